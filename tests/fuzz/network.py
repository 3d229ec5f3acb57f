"""Targets that read what comes from the network: stream definitions, RTSP and what it carries, clients' bytes."""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fake_runtime import FakeRuntime
from pydantic import SecretStr, ValidationError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from server.addresses import masked_url, split_credentials
from server.delivery.app import create_app
from server.delivery.ports import Unavailable
from server.delivery.push import PushProtocol
from server.ingest.playlist import absolute
from server.ingest.rtsp.address import parse_address
from server.ingest.rtsp.assembly import UnsupportedPacket
from server.ingest.rtsp.auth import Authenticator
from server.ingest.rtsp.messages import (
    Interleaved,
    MessageReader,
    ProtocolError,
    Response,
    ServerRequest,
    build_request,
    build_response,
)
from server.ingest.rtsp.receiver import RtpReceiver
from server.ingest.rtsp.sdp import SdpError, VideoTrack, select_video
from server.ingest.source import AccessUnit, SourceError
from server.settings import ServerSettings
from server.streams import StreamDefinition, StreamFields, StreamPatch, reveal

from .files import Check

CODECS = ("h264", "hevc", "mjpeg")
_STARTS = {"h264": b"\0\0\0\1", "hevc": b"\0\0\0\1", "mjpeg": b"\xff\xd8"}
_UNIT_AT_MOST = 64 << 20
_NONCE = "0123456789abcdef"


@contextmanager
def streams() -> Iterator[Check]:
    """The body of `POST /streams`, and of `PATCH`."""

    def check(data: bytes) -> None:
        try:
            definition = StreamDefinition.model_validate_json(data)
            _definition(definition)
        except ValidationError:
            pass
        try:
            patch = StreamPatch.model_validate_json(data)
            StreamDefinition(url="rtsp://camera/one", id="a").patched(patch)
        except ValidationError:
            pass

    yield check


def _definition(definition: StreamDefinition) -> None:
    stored = json.dumps(reveal(definition, exclude_none=True), allow_nan=False, ensure_ascii=False).encode()
    assert StreamDefinition.model_validate(json.loads(stored)) == definition, "does not come back from the data base"
    assert split_credentials(definition.url)[1] is None
    masked_url(definition.url)
    _hides_its_password(definition)
    if definition.url.lower().startswith("rtsp"):
        try:
            address, _, _ = parse_address(definition.url)
        except SourceError:
            return
        assert 0 < address.port < 65_536
        _request("DESCRIBE", address.url, {})


def _hides_its_password(definition: StreamFields) -> None:
    secret = "canary-7f1d"
    shown = definition.model_copy(update={"password": SecretStr(secret)})
    assert secret not in repr(shown) + str(shown) + shown.model_dump_json()


def _request(method: str, uri: str, headers: dict[str, str]) -> None:
    """ValueError is the documented answer to an address that would break a request apart."""
    try:
        request = build_request(method, uri, headers)
    except ValueError:
        return
    assert request.count(b"\r\n") == len(headers) + 2


@contextmanager
def sdp() -> Iterator[Check]:
    """The description of a camera; what follows from it goes into requests."""

    def check(data: bytes) -> None:
        try:
            track = select_video(data, "rtsp://camera:8554/one?a=b", None)
        except SdpError:
            return
        assert track.clock_rate > 0
        assert math.isfinite(track.fps)
        assert track.codec in CODECS
        RtpReceiver(track, in_order=True)
        _request("SETUP", track.control, {"Transport": "RTP/AVP"})
        _request("PLAY", track.aggregate, {"Range": track.play_range})

    yield check


@contextmanager
def playlist() -> Iterator[Check]:
    """An HLS playlist, whose names are made absolute before libavformat sees them."""

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        made = absolute(text, "http://camera:8080/live/index.m3u8?a=b")
        assert len(made) <= len(text) + 64 * (text.count('URI="') + len(text.splitlines()) + 1), "it grows by its base"

    yield check


@contextmanager
def rtsp() -> Iterator[Check]:
    """What a camera's connection carries, whole and in pieces: while nothing has to be skipped, both mean the same."""

    def check(data: bytes) -> None:
        for channels in ((), (0, 1)):
            whole, skipped = _messages([data], channels)
            size = 1 + (len(data) % 61)
            cut, cut_skipped = _messages([data[i : i + size] for i in range(0, len(data), size)], channels)
            if not skipped and not cut_skipped:
                assert [_plain(item) for item in whole] == [_plain(item) for item in cut]
            for item in cut:
                _answer(item)

    yield check


def _messages(pieces: list[bytes], channels: tuple[int, ...]) -> tuple[list[Any], bool]:
    """(messages, whether bytes were skipped or the connection was given up)."""
    reader = MessageReader()
    reader.allow_channels(*channels)
    items: list[Any] = []
    try:
        for piece in pieces:
            items += reader.feed(piece)
    except ProtocolError:
        return items, True
    return items, reader.skipped_bytes > 0


def _plain(item: Any) -> Any:
    if isinstance(item, Interleaved):
        return item.channel, bytes(item.data)
    if isinstance(item, Response):
        return item.status, item.reason, item.body
    return item.method, item.uri, item.body


def _answer(item: Any) -> None:
    if isinstance(item, ServerRequest):
        assert build_response(item, 200, "OK").count(b"\r\n") == 2 + (item.headers.cseq is not None)
    elif isinstance(item, Response):
        authenticator = Authenticator("viewer", "secret", lambda: _NONCE)
        if authenticator.challenge(item.headers.get_all("WWW-Authenticate")) is not None:
            value = authenticator.authorization("PLAY", "rtsp://camera/one")
            assert value is not None
            _request("PLAY", "rtsp://camera/one", {"Authorization": value})


@contextmanager
def rtp() -> Iterator[Check]:
    """Packets after SETUP: RTP and RTCP, in order or not, the clock moving on. See `packets` for the form."""

    def check(data: bytes) -> None:
        if not data:
            return
        codec, in_order = CODECS[data[0] % len(CODECS)], bool(data[0] & 0x80)
        track = VideoTrack(codec, 96, 90_000, "rtsp://camera/one/track", "rtsp://camera/one")
        receiver = RtpReceiver(track, in_order)
        now = 1000.0
        for kind, packet in packets(data[1:]):
            now += (kind >> 2) / 100
            try:
                if kind & 3 == 1:
                    receiver.rtcp(packet, now, 1.7e9)
                elif kind & 3 == 2:
                    _units(codec, receiver.expire(now))
                    receiver.report(now)
                else:
                    _units(codec, receiver.rtp(memoryview(packet), now, 1.7e9, 0.0))
            except UnsupportedPacket:
                return
        _units(codec, receiver.flush())

    yield check


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(kind, packet) for each record: a byte of kind, two of length, the packet."""
    position = 0
    while position + 3 <= len(data):
        size = int.from_bytes(data[position + 1 : position + 3], "big")
        yield data[position], data[position + 3 : position + 3 + size]
        position += 3 + size


def _units(codec: str, units: list[AccessUnit]) -> None:
    for unit in units:
        assert math.isfinite(unit.pts)
        assert len(unit.data) < _UNIT_AT_MOST
        assert unit.damaged or unit.data.startswith(_STARTS[codec])


class _Transport(asyncio.Transport):
    """A socket of nothing: takes everything, keeps nothing."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 40_000), "sockname": ("127.0.0.1", 8080)})
        self.protocol: Any = None
        self.closed = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def write(self, data: Any) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


HANDSHAKE = (
    b"GET /detections HTTP/1.1\r\nHost: localhost:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@contextmanager
def websocket() -> Iterator[Check]:
    """What a client sends over an open WebSocket."""
    with _connections() as connection:
        yield lambda data: connection([HANDSHAKE, data[: len(data) // 2], data[len(data) // 2 :]])


@contextmanager
def http() -> Iterator[Check]:
    """What a client sends to the port: requests, upgrades, anything."""
    with _connections() as connection:
        yield lambda data: connection([data])


class _Runtime(FakeRuntime):
    """What the fake does not have (models, events) answers 503."""

    def __getattr__(self, name: str) -> Any:
        raise Unavailable(f"there is no {name} here")


@contextmanager
def _connections() -> Iterator[Any]:
    """Plays one connection to the application; nothing of it may stay, and nothing may be logged as an error."""
    runtime = _Runtime()
    app = create_app(runtime, ServerSettings())
    config = uvicorn.Config(
        app, ws=PushProtocol, ws_max_size=64 << 10, ws_per_message_deflate=False, lifespan="off", log_config=None,
        access_log=False, ws_ping_interval=None,
    )  # fmt: skip
    config.load()
    errors: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("uvicorn.error").addHandler(handler)
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: errors.append(str(context)))

    async def play(pieces: list[bytes]) -> None:
        state, transport = ServerState(), _Transport()
        transport.protocol = HttpToolsProtocol(config, state, {}, loop)
        transport.protocol.connection_made(transport)
        for piece in pieces:
            if not transport.closed:
                transport.protocol.data_received(piece)
            for _ in range(4):
                await asyncio.sleep(0)
        transport.closed = True
        transport.protocol.connection_lost(None)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            async with asyncio.timeout(20):
                await asyncio.wait(others)
        assert not state.connections

    def connection(pieces: list[bytes]) -> None:
        loop.run_until_complete(play(pieces))
        assert not errors, errors.pop()
        assert not len(runtime.hub), "a subscriber is left behind"

    try:
        yield connection
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
