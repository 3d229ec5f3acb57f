"""What delivery needs of the rest of the server: the only names through which REST and WebSocket reach it.

`server.runtime.Runtime` implements it; tests give a small fake. All coroutines run on the server's one event loop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from server.results import Detection, Result
from server.streams import LedgerView, StreamDefinition, StreamPatch, StreamStatus

if TYPE_CHECKING:
    from server.analytics.journal import Journal
    from server.checks import Check
    from server.delivery.hub import Hub
    from server.metrics import Metrics
    from server.models.registry import Registry
    from server.models.swap import Swapper


class ServerError(Exception):
    """An answer other than success. Subclasses carry the HTTP status and the stable `code` of problem+json."""

    status = 500
    code = "internal"

    def __init__(self, detail: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after_s = retry_after_s


class StreamNotFound(ServerError):
    """There is no stream of this id."""

    status, code = 404, "stream_not_found"


class StreamExists(ServerError):
    """A stream of this id is there already."""

    status, code = 409, "stream_exists"


class InvalidField(ServerError):
    """Bad input that only the runtime can see (a path outside the media folders, an unknown class)."""

    status, code = 422, "invalid_field"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(detail)
        self.field = field


class NoCapacity(ServerError):
    """Too many streams, subscribers or other work at once."""

    status, code = 503, "no_capacity"


class Unavailable(ServerError):
    """The engine is not ready, or did not answer before the deadline."""

    status, code = 503, "unavailable"


class NoPicture(ServerError):
    """The stream has no such frame yet, or has it no more."""

    status, code = 404, "no_picture"


class StreamHandle(Protocol):
    """One stream of the running server."""

    @property
    def definition(self) -> StreamDefinition: ...
    def status(self) -> StreamStatus: ...
    def ledger(self) -> LedgerView: ...
    def recent(self, limit: int) -> Sequence[Result]:
        """Newest first, at most `limit` (the server keeps 100)."""
        ...


class ProbeReport(Protocol):
    """What a dry run found. `ok` false: `reason` and `detail` say why."""

    ok: bool
    reason: str | None
    detail: str | None
    codec: str | None
    width: int | None
    height: int | None
    fps: float | None
    capacity: bool
    """Whether the engine has room for another stream at this rate."""


class DetectReport(Protocol):
    """What was found in an image, and by which model."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def detections(self) -> list[Detection]: ...
    @property
    def latency_ms(self) -> dict[str, float]: ...
    @property
    def model(self) -> str: ...
    @property
    def model_generation(self) -> int: ...


class RuntimePort(Protocol):
    hub: Hub
    metrics: Metrics

    @property
    def journal(self) -> Journal:
        """Events."""
        ...

    registry: Registry
    swapper: Swapper

    @property
    def streams(self) -> Mapping[str, StreamHandle]: ...
    async def add_stream(self, definition: StreamDefinition) -> StreamHandle:
        """Persisted and started; does not wait for the camera. StreamExists, InvalidField, NoCapacity."""
        ...

    async def update_stream(self, stream_id: str, patch: StreamPatch) -> StreamHandle: ...
    async def remove_stream(self, stream_id: str) -> None:
        """Stopped, forgotten by the store, the metrics (`forget`) and the hub (`close_stream`)."""
        ...

    async def probe(self, definition: StreamDefinition) -> ProbeReport: ...
    async def snapshot(
        self,
        stream_id: str,
        *,
        seq: int | None = None,
        annotate: bool = False,
        max_width: int | None = None,
        quality: int = 85,
    ) -> bytes:
        """JPEG of the frame `seq`, while the camera's process keeps it; None: of the newest frame, annotated: of the
        newest one that has a result. NoPicture."""
        ...

    async def detect(
        self,
        image: bytes,
        *,
        confidence: float | None = None,
        iou: float | None = None,
        classes: list[str] | None = None,
    ) -> DetectReport:
        """InvalidField('image'), Unavailable."""
        ...

    def readiness(self) -> tuple[bool, str]:
        """(ready, reason)"""
        ...

    def checks(self) -> Sequence[Check]:
        """What of the server works, part by part."""
        ...

    def reconfigure(self, names: frozenset[str]) -> None:
        """These settings have changed."""
        ...

    @property
    def model(self) -> Mapping[str, object]:
        """name, generation, engine, precision, device, why, upgrade, sha256, input_size, names. `upgrade`: the faster
        engine that is being built, or why it could not be; else None."""
        ...
