"""The streams of the running server: they come, change and go, and the store remembers them.

Everything here runs on the server's event loop. What happens to one stream is `server.stream`; here is what concerns
all of them: names, limits, the order in which parts are opened and closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from pydantic import ValidationError

from server import media
from server.analytics.journal import Journal
from server.analytics.shapes import Line, Zone
from server.delivery.hub import Hub
from server.delivery.ports import InvalidField, NoCapacity, StreamExists, StreamNotFound
from server.engine_room import EngineRoom
from server.ingest.supervisor import Camera, ProbeResult, probe
from server.ingest.wire import CameraSettings
from server.metrics import Metrics
from server.models.model import missing_classes
from server.settings import ServerSettings
from server.store import Store
from server.stream import SLOTS, Defaults, House, Stream
from server.streams import StreamDefinition, StreamPatch

log = logging.getLogger("yolov9.runtime")

_DRAIN_S = 4.0
"""Of the 5 s that a SIGTERM grants: frames in the house are answered within it, then it closes."""
_IN_ENGINE_S = 1.0
"""How long a stream that goes waits for its frames in the engine."""


class Roster:
    """`restore`, use, `drain`. `make_camera` is replaced in tests."""

    COPIED = frozenset(
        {
            "confidence", "iou", "max_staleness_ms", "open_timeout_s", "read_timeout_s", "backoff_initial_s",
            "backoff_max_s", "media", "source_schemes", "allow_networks", "deny_networks",
        }
    )  # fmt: skip
    """Settings of which streams have copies: after a change of any, `reconfigure`."""

    def __init__(
        self,
        settings: ServerSettings,
        store: Store,
        engine: EngineRoom,
        *,
        hub: Hub,
        journal: Journal,
        metrics: Metrics,
        make_camera: Callable[..., Camera],
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._store = store
        self._engine = engine
        self._hub = hub
        self._metrics = metrics
        self._make_camera = make_camera
        self._clock = clock
        self._house = House(
            engine.dispatcher, hub, journal, metrics, lambda: engine.model, self._defaults, clock, wall_clock
        )
        self._adding: set[str] = set()
        self.streams: dict[str, Stream] = {}

    # Life.

    async def restore(self) -> None:
        """Open the streams of the store. One that cannot be opened is logged and stays in the store."""
        for definition in await self._store.load():
            try:
                # The model may be another one than when it was added: what it lacks is seen in the status.
                self._open(definition, self._check(definition, checked=definition))
            except (InvalidField, NoCapacity, OSError) as error:
                log.error("stream=%s not restored: %s", definition.id, error, extra={"stream": definition.id})

    async def drain(self) -> None:
        """The end of the server: the frames in the house are still answered, within the drain time."""
        await asyncio.gather(*(self._drain(stream) for stream in list(self.streams.values())))

    def tick(self) -> None:
        """Once a second."""
        for stream in self.streams.values():
            stream.tick()

    # Changes.

    async def add(self, definition: StreamDefinition) -> Stream:
        """See `delivery.ports.RuntimePort.add_stream`."""
        if definition.id in self.streams or definition.id in self._adding:
            raise StreamExists(f"stream {definition.id!r} exists already")
        address = self._check(definition)
        self._adding.add(definition.id)
        try:
            await self._store.put(definition)
            try:
                return self._open(definition, address)
            except BaseException:
                await self._store.delete(definition.id)
                raise
        except OSError as error:
            raise NoCapacity(f"no memory or descriptors for another stream: {error.strerror}") from error
        finally:
            self._adding.discard(definition.id)

    async def update(self, stream_id: str, patch: StreamPatch) -> Stream:
        async with self._changing(stream_id) as stream:
            try:
                definition = stream.definition.patched(patch)
            except ValidationError as error:
                first = error.errors(include_input=False, include_url=False)[0]
                field, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
                if not field:  # from a validator of the whole: "zones.1.name: ..."
                    field, _, message = message.partition(": ")
                raise InvalidField(field, message) from None
            address = self._check(definition, checked=stream.definition)
            await self._store.put(definition)
            stream.define(definition)
            stream.camera.apply(self._camera_settings(definition, address))
            return stream

    async def remove(self, stream_id: str) -> None:
        async with self._changing(stream_id) as stream:
            await self._store.delete(stream_id)
            await self._close(stream)

    async def probe(self, definition: StreamDefinition) -> ProbeResult:
        """Open the source in a process of its own, say what it is, keep nothing."""
        settings = self._camera_settings(definition, self._check(definition))
        result = await probe(settings, self._settings.open_timeout_s + 3.0)
        rates = sum(stream.rates()[0] or 0.0 for stream in self.streams.values())
        result.capacity = self._engine.has_room(
            result.width or 1280, result.height or 720, rates + (result.fps or 25.0)
        )
        return result

    def get(self, stream_id: str) -> Stream:
        """StreamNotFound if there is none."""
        try:
            return self.streams[stream_id]
        except KeyError:
            raise self._missing(stream_id) from None

    @asynccontextmanager
    async def _changing(self, stream_id: str) -> AsyncIterator[Stream]:
        """The stream, for one who changes it alone. StreamNotFound, also if it went while others were waited for."""
        stream = self.get(stream_id)
        async with stream.changing:
            if self.streams.get(stream_id) is not stream:
                raise self._missing(stream_id)
            yield stream

    async def _drain(self, stream: Stream) -> None:
        async with stream.changing:
            if stream.id in self.streams:
                await self._close(stream, _DRAIN_S / 2, removed=False)

    @staticmethod
    def _missing(stream_id: str) -> StreamNotFound:
        return StreamNotFound(f"there is no stream {stream_id!r}")

    def _check(self, definition: StreamDefinition, checked: StreamDefinition | None = None) -> str:
        """What only the running server can judge: the address, the classes, the room. Returns the address to open.

        `checked`: classes that it names have been accepted before; a change of the model may have taken them away.
        """
        address = self._resolve("url", definition.url)
        if definition.detect_url is not None:
            address = self._resolve("detect_url", definition.detect_url)
        if (definition.every_frame or definition.loop) and not media.is_file(address):
            name = "every_frame" if definition.every_frame else "loop"
            raise InvalidField(name, "is for files only; a live camera cannot wait")
        self._check_classes(definition, checked)
        count = len(self.streams) + len(self._adding)
        if definition.id not in self.streams and count >= self._settings.max_streams:
            raise NoCapacity(f"the server serves {self._settings.max_streams} streams at most (max_streams)")
        return address

    def _resolve(self, field: str, url: str) -> str:
        try:
            return media.resolve(url, media.Rules.of(self._settings))
        except media.BadAddress as error:
            raise InvalidField(field, str(error)) from None

    def _check_classes(self, definition: StreamDefinition, checked: StreamDefinition | None) -> None:
        names = self._engine.model.names
        for field in ("classes", "class_confidence"):
            asked = getattr(definition, field)
            missing = missing_classes(names, asked, None)
            if missing and (checked is None or asked != getattr(checked, field)):
                raise InvalidField(field, f"the model has no class {missing[0]!r}")
        for field in ("zones", "lines"):
            shapes: list[Zone] | list[Line] = getattr(definition, field) or []
            known = [] if checked is None else getattr(checked, field) or []
            for index, shape in enumerate(shapes):
                missing = missing_classes(names, shape.classes, None)
                if missing and shape not in known:
                    raise InvalidField(f"{field}.{index}.classes", f"the model has no class {missing[0]!r}")

    def _defaults(self) -> Defaults:
        settings = self._settings
        return Defaults(settings.confidence, settings.iou, settings.max_staleness_ms)

    def reconfigure(self) -> None:
        """The settings have changed: for streams that are there, from their next frame or connection on."""
        for stream in self.streams.values():
            definition = stream.definition
            try:
                address = self._check(definition, checked=definition)
            except InvalidField as error:
                log.error("stream=%s is not allowed any more: %s; remove it", stream.id, error.detail,
                          extra={"stream": stream.id})  # fmt: skip
                continue
            stream.define(definition)
            stream.camera.apply(self._camera_settings(definition, address))

    def resize(self, input_size: int) -> None:
        """Cameras scale for another model from their next frame on."""
        for stream in self.streams.values():
            stream.camera.resize(input_size)

    def scale_for(self, input_size: int) -> bool:
        """Whether no camera can send a frame of another input size any more."""
        return all(stream.scales_for(input_size) for stream in self.streams.values())

    def _open(self, definition: StreamDefinition, address: str) -> Stream:
        arena_id = self._engine.new_arena_id()
        stream = Stream(definition, arena_id, self._house)
        try:
            stream.camera = self._make_camera(
                self._camera_settings(definition, address), slots=SLOTS, on_events=stream.on_events,
                on_state=stream.on_state, on_lost=stream.on_lost, clock=self._clock,
            )  # fmt: skip
        except BaseException:
            self._engine.dispatcher.remove(definition.id)
            raise
        self._engine.attach(arena_id, stream.camera.arena)
        self.streams[definition.id] = stream
        self._hub.publish(stream.state_message())
        stream.camera.start(1)
        return stream

    async def _close(self, stream: Stream, drain_s: float = 0.0, *, removed: bool = True) -> None:
        """Stop the camera, give its frames `drain_s` to be answered, take the waiting ones back, close the ledger.

        Not `removed`: subscribers are not told that it was, since the server ends and tells them so.
        """
        await stream.camera.stop(_DRAIN_S / 2)
        if drain_s and self._engine.live.worker.ready:
            await stream.emptied(drain_s)
        stream.closing = True
        self._engine.dispatcher.remove(stream.id)
        await stream.emptied(_IN_ENGINE_S)
        stream.ledger_entries.drop_all("inference", "stopped")
        stream.end_tracks()
        self._engine.detach(stream.arena)
        stream.camera.arena.close()
        self.streams.pop(stream.id, None)
        self._metrics.forget(stream.id)
        if removed:
            self._hub.close_stream(stream.id)
        log.info("stream=%s closed ledger=%s", stream.id, stream.ledger_entries.snapshot(), extra={"stream": stream.id})

    def _camera_settings(self, definition: StreamDefinition, address: str) -> CameraSettings:
        settings = self._settings
        secret = definition.password
        return CameraSettings(
            stream=definition.id,
            url=address,
            username=definition.username,
            password=None if secret is None else secret.get_secret_value(),
            transport=definition.transport or "auto",
            rtsp_client=definition.rtsp_client or "native",
            max_fps=definition.max_fps,
            loop=bool(definition.loop),
            every_frame=bool(definition.every_frame),
            realtime=definition.realtime if definition.realtime is not None else not definition.every_frame,
            input_size=self._engine.model.input_size,
            open_timeout_s=settings.open_timeout_s,
            read_timeout_s=settings.read_timeout_s,
            backoff_initial_s=settings.backoff_initial_s,
            backoff_max_s=settings.backoff_max_s,
            decoder=definition.decoder or "auto",
            allow_networks=None if settings.allow_networks is None else [str(n) for n in settings.allow_networks],
            deny_networks=[str(network) for network in settings.deny_networks],
        )
