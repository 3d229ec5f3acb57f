"""WebSocket, SSE and MJPEG over real sockets, served by uvicorn as in production."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import httpx
import pytest
import uvicorn
from fake_runtime import JPEG, FakeRuntime, detection
from live_server import Live, live_server, raw_websocket, until
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from server.delivery import serve as serve_module
from server.delivery import subscriptions
from server.delivery.app import create_app
from server.delivery.push import PushProtocol
from server.delivery.serve import ServeError, serve
from server.settings import ServerSettings

pytestmark = pytest.mark.system


@pytest.fixture(params=["past ASGI", "through ASGI"])
async def live(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Live]:
    """Everything holds on both ways to the socket, whenever uvicorn looks whether it is to end."""
    monkeypatch.setattr(uvicorn.Server, "main_loop", _impatient)
    if request.param == "through ASGI":
        monkeypatch.setattr(PushProtocol, "handle_connect", PushProtocol.__base__.handle_connect)  # type: ignore[union-attr]
    runtime = FakeRuntime()
    runtime.add("door")
    async with live_server(runtime) as live:
        yield live


async def _impatient(server: uvicorn.Server) -> None:
    """Uvicorn's own looks every .1 s, which may be at once."""
    while not server.should_exit:  # noqa: ASYNC110  (uvicorn has a flag only)
        await asyncio.sleep(0.001)


async def receive(websocket: ClientConnection) -> dict:
    async with asyncio.timeout(10):
        return json.loads(await websocket.recv())


async def closing(websocket: ClientConnection) -> tuple[int, str]:
    """Read to the end: the close code and reason."""
    async with asyncio.timeout(10):
        with suppress(ConnectionClosed):
            while True:
                await websocket.recv()
    assert websocket.close_code is not None
    return websocket.close_code, websocket.close_reason or ""


async def refusal(url: str) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        await connect(url)
    response = refused.value.response
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, json.loads(response.body)["code"]


async def test_state_first_then_results(live: Live) -> None:
    async with connect(f"{live.ws}/streams/door/detections") as websocket:
        assert await receive(websocket) == {"type": "state", "stream": "door", "state": "running", "reason": None}
        seen = live.runtime.see("door", detection())
        assert await receive(websocket) == seen
        large = live.runtime.see("door", *[detection("person", 0.5)] * 1000)
        assert await receive(websocket) == large
    assert await until(lambda: len(live.runtime.hub) == 0) is None


async def test_queries_select(live: Live) -> None:
    live.runtime.add("yard")
    query = "?stream=yard&class=car&class=bus&min_confidence=0.5&zone=gate"
    async with connect(f"{live.ws}/detections{query}") as websocket:
        assert (await receive(websocket))["stream"] == "yard"
        live.runtime.see("door", detection("car", 0.9, ["gate"]))
        live.runtime.see(
            "yard",
            detection("car", 0.9, ["gate"]),
            detection("car", 0.4, ["gate"]),
            detection("person", 0.9, ["gate"]),
            detection("bus", 0.5, ["gate", "x"]),
            detection("bus", 0.9),
        )
        got = await receive(websocket)
        assert (got["stream"], [(d["class"], d["confidence"]) for d in got["detections"]]) == (
            "yard",
            [("car", 0.9), ("bus", 0.5)],
        )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/streams/none/detections", (404, "stream_not_found")),
        ("/detections?min_confidence=2", (422, "invalid_field")),
        ("/detections?min_confidence=nan", (422, "invalid_field")),
        ("/nothing", (404, "not_found")),
        ("/streams", (404, "not_found")),
    ],
)
async def test_refused_at_the_handshake(live: Live, path: str, expected: tuple[int, str]) -> None:
    assert await refusal(live.ws + path) == expected
    assert len(live.runtime.hub) == 0


async def test_removal_ends_its_subscribers(live: Live) -> None:
    async with connect(f"{live.ws}/streams/door/detections") as one, connect(f"{live.ws}/detections") as everything:
        await receive(one)
        await receive(everything)
        await live.runtime.remove_stream("door")
        last = {"type": "state", "stream": "door", "state": "stopped", "reason": "removed"}
        assert await receive(one) == last
        assert await closing(one) == (1000, "the stream was removed")
        assert await receive(everything) == last
        live.runtime.add("yard")
        assert (await receive(everything))["stream"] == "yard"


async def test_the_end_of_the_server_is_told_and_quick(live: Live) -> None:
    async with connect(f"{live.ws}/detections") as websocket, httpx.AsyncClient() as http:
        await receive(websocket)
        await raw_websocket(live.port)
        async with http.stream("GET", f"{live.http}/detections/sse") as sse:
            began = time.monotonic()
            live.stop.set()
            assert await closing(websocket) == (1001, "the server is going away")
            assert b"running" in await sse.aread()
        await live.task
        assert time.monotonic() - began < 3.0


async def test_clients_that_do_not_read_do_not_hold_up_the_end(caplog: pytest.LogCaptureFixture) -> None:
    runtime = FakeRuntime()
    runtime.add("door")
    async with live_server(runtime) as live:
        _, one = await raw_websocket(live.port)
        _, other = await asyncio.open_connection("127.0.0.1", live.port, limit=1024)
        other.write(b"GET /detections/sse HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: len(runtime.hub) == 2)
        for _ in range(300):
            runtime.see("door", *[detection()] * 300)
            await asyncio.sleep(0)
        began = time.monotonic()
        live.stop.set()
        await live.task
        assert time.monotonic() - began < 3.0
        one.close()
        other.close()
    assert [r for r in caplog.records if r.exc_info] == []


async def test_nobody_else_feels_what_a_client_sends(live: Live) -> None:
    """1 MB, frames that are not masked, nonsense, a flood: each costs only who sends it."""
    async with connect(f"{live.ws}/detections") as good:
        await receive(good)
        async with connect(f"{live.ws}/detections") as large:
            await large.send("x" * (1 << 20))
            assert (await closing(large))[0] == 1009
        async with connect(f"{live.ws}/detections") as flood:
            for _ in range(subscriptions._MAX_INCOMING + 1):
                await flood.send("x")
            assert await closing(flood) == (1008, "this is a one-way connection")
        for bytes_sent in (b"\x81\x05hello", b"\xff" * 100, struct.pack("!BBQ", 0x82, 0xFF, 1 << 62) + b"mask"):
            reader, writer = await raw_websocket(live.port)
            writer.write(bytes_sent)
            async with asyncio.timeout(10):
                while await reader.read(1024):
                    pass
            writer.close()
        await good.send("are you there?")
        seen = live.runtime.see("door")
        assert await receive(good) == seen
    await until(lambda: len(live.runtime.hub) == 0)


async def test_a_silent_client_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-open: no close, no pong."""
    monkeypatch.setattr(serve_module, "_PING_S", 0.2)
    runtime = FakeRuntime()
    async with live_server(runtime) as live, connect(f"{live.ws}/detections"):
        _, writer = await raw_websocket(live.port)
        await until(lambda: len(runtime.hub) == 2)
        await until(lambda: len(runtime.hub) == 1)
        await asyncio.sleep(0.5)
        assert len(runtime.hub) == 1  # who answers pings stays
        writer.close()


async def test_a_client_that_cannot_take_its_close_frame_is_cut_off(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "_CLOSE_S", 0.1)
    _, writer = await raw_websocket(live.port, "/streams/door/detections")
    await until(lambda: len(live.runtime.hub) == 1)
    for _ in range(300):
        live.runtime.see("door", *[detection()] * 300)
        await asyncio.sleep(0)
    await live.runtime.remove_stream("door")
    gauge = "yolov9_websocket_clients 0\n"
    await until(lambda: gauge in live.runtime.metrics.render().decode())
    writer.close()


async def test_clients_are_counted_and_limited() -> None:
    runtime = FakeRuntime()
    async with live_server(runtime, max_clients=2) as live:
        async with connect(f"{live.ws}/detections"), connect(f"{live.ws}/detections"):
            await until(lambda: "yolov9_websocket_clients 2\n" in runtime.metrics.render().decode())
            assert await refusal(f"{live.ws}/detections") == (503, "no_capacity")
            async with httpx.AsyncClient() as http:
                assert (await http.get(f"{live.http}/detections/sse")).status_code == 503
        await until(lambda: "yolov9_websocket_clients 0\n" in runtime.metrics.render().decode())
        async with connect(f"{live.ws}/detections"):
            pass


async def test_delivery_is_measured(live: Live) -> None:
    async with connect(f"{live.ws}/detections") as websocket:
        await receive(websocket)
        live.runtime.see("door")
        await receive(websocket)
    assert 'yolov9_frame_latency_seconds_count{stage="delivery"} 2\n' in live.runtime.metrics.render().decode()


async def sse_messages(lines: AsyncIterator[str], count: int) -> list[dict]:
    messages: list[dict] = []
    async with asyncio.timeout(10):
        async for line in lines:
            if line.startswith("data: "):
                messages.append(json.loads(line[6:]))
                if len(messages) == count:
                    break
    return messages


async def test_server_sent_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscriptions, "_IDLE_S", 0.1)
    runtime = FakeRuntime()
    runtime.add("door")
    runtime.add("yard")
    async with live_server(runtime) as live, httpx.AsyncClient() as http:
        async with http.stream("GET", f"{live.http}/detections/sse?stream=door&class=car") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = response.aiter_lines()
            assert await anext(lines) == "retry: 2000"
            assert (await sse_messages(lines, 1))[0]["type"] == "state"
            async for line in lines:
                if line == ": nothing new":
                    break
            runtime.see("yard", detection("car"))
            runtime.see("door", detection("car"), detection("bus"))
            seen = runtime.see("door")
            first, second = await sse_messages(lines, 2)
            assert [d["class"] for d in first["detections"]] == ["car"]
            assert second == seen
            assert len(runtime.hub) == 1
        await until(lambda: len(runtime.hub) == 0)
        problem = await http.get(f"{live.http}/detections/sse?min_confidence=x")
        assert (problem.status_code, problem.json()["code"]) == (422, "invalid_field")


async def test_a_slow_reader_of_events_gets_gaps_too() -> None:
    runtime = FakeRuntime(max_messages=8)
    runtime.add("door")
    async with live_server(runtime) as live, httpx.AsyncClient() as http:
        async with http.stream("GET", f"{live.http}/detections/sse") as response:
            await until(lambda: len(runtime.hub) == 1)
            for _ in range(1000):
                last = runtime.see("door", *[detection()] * 100)
                await asyncio.sleep(0)
            got = missed = 0
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                message = json.loads(line[6:])
                missed += message.get("missed", 0)
                got += message["type"] == "result"
                if message.get("seq") == last["seq"]:
                    break
        assert missed > 0
        assert got + missed == 1000


async def parts(response: httpx.Response) -> AsyncIterator[bytes]:
    """The pictures of a multipart/x-mixed-replace body, each as soon as its closing boundary is there."""
    rest = b""
    async for chunk in response.aiter_raw():
        rest += chunk
        while rest.count(b"--frame\r\n") > 1:
            _, part, rest = rest.split(b"--frame\r\n", 2)
            rest = b"--frame\r\n" + rest
            head, _, body = part.partition(b"\r\n\r\n")
            length = int(head.rpartition(b"Content-Length: ")[2])
            assert head.startswith(b"Content-Type: image/jpeg\r\n")
            assert body[length:] == b"\r\n"
            yield body[:length]


async def test_live_view() -> None:
    runtime = FakeRuntime()
    runtime.add("door")
    async with live_server(runtime) as live, httpx.AsyncClient(timeout=10) as http:
        async with http.stream("GET", f"{live.http}/streams/door/live.mjpg?fps=30&width=320&quality=60") as response:
            assert response.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
            pictures = parts(response)
            runtime.see("door")
            assert await anext(pictures) == JPEG
            runtime.jpeg = None  # connecting again: no picture for a while
            runtime.see("door")
            await until(lambda: len(runtime.snapshots) > 1)
            runtime.jpeg = JPEG + b"2"
            assert await anext(pictures) == JPEG + b"2"
            asked = len(runtime.snapshots)
            await asyncio.sleep(0.2)
            assert len(runtime.snapshots) == asked  # no new frame, nothing encoded
            assert set(runtime.snapshots) == {("door", True, 320, 60)}
            assert 'yolov9_http_clients{kind="mjpeg"} 1\n' in runtime.metrics.render().decode()
        await until(lambda: 'yolov9_http_clients{kind="mjpeg"} 0\n' in runtime.metrics.render().decode())


async def test_live_view_is_not_faster_than_asked_and_ends_with_its_stream() -> None:
    runtime = FakeRuntime()
    runtime.add("door")
    async with live_server(runtime) as live, httpx.AsyncClient(timeout=10) as http:
        async with http.stream("GET", f"{live.http}/streams/door/live.mjpg?fps=10") as response:
            began = time.monotonic()
            frames = asyncio.create_task(_frames(runtime))
            pictures = [picture async for picture in _first(parts(response), 5)]
            assert len(pictures) == 5
            assert time.monotonic() - began > 0.35
            frames.cancel()
            await asyncio.gather(frames, return_exceptions=True)
            await runtime.remove_stream("door")
            async with asyncio.timeout(5):
                await response.aread() if not response.is_stream_consumed else None
        assert (await http.get(f"{live.http}/streams/door/live.mjpg")).status_code == 404


async def _frames(runtime: FakeRuntime) -> None:
    while True:
        runtime.see("door")
        await asyncio.sleep(0.01)


async def _first(pictures: AsyncIterator[bytes], count: int) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield await anext(pictures)


async def test_no_token_in_any_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    token = "t0p-secret"
    caplog.set_level(logging.DEBUG)
    for name in ("websockets", "httpx", "httpcore"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)  # the clients' own logs
        monkeypatch.setattr(logging.getLogger(name), "level", logging.CRITICAL)
    runtime = FakeRuntime()
    runtime.add("door")
    async with live_server(runtime, token=token) as live, httpx.AsyncClient() as http:
        async with connect(f"{live.ws}/detections?token={token}") as websocket:
            await receive(websocket)
        assert (await http.get(f"{live.http}/streams/door/snapshot.jpg?token={token}")).status_code == 200
        assert (await http.get(f"{live.http}/streams?token={token}")).status_code == 401
        with pytest.raises(InvalidStatus):
            await connect(f"{live.ws}/nothing?token={token}")
        runtime.failure = ZeroDivisionError()
        assert (await http.get(f"{live.http}/streams/door/snapshot.jpg?token={token}")).status_code == 500
    assert "ZeroDivisionError" in caplog.text
    assert "handshake" not in caplog.text  # refusals are no errors of ours
    assert token not in caplog.text


async def test_a_bug_costs_one_answer(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    live.runtime.failure = ZeroDivisionError("bowels")
    async with httpx.AsyncClient() as http:
        broken = await http.get(f"{live.http}/streams/door/snapshot.jpg")
        assert (broken.status_code, broken.json()["code"]) == (500, "internal")
        assert "bowels" not in broken.text
        assert (await http.get(f"{live.http}/healthz")).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    """`serve` returns: what comes after it (draining the streams) is not cut short by the signal."""
    settings = ServerSettings(port=0)
    before = signal.getsignal(number)
    app = create_app(FakeRuntime(), settings)
    async with asyncio.timeout(10):
        await serve(app, settings, lambda _: os.kill(os.getpid(), number))
    assert signal.getsignal(number) in (before, signal.default_int_handler, signal.SIG_DFL)


async def test_a_port_in_use_is_said(live: Live) -> None:
    settings = ServerSettings(port=live.port)
    with pytest.raises(ServeError, match=rf"^port {live.port} of 127\.0\.0\.1 is in use"):
        await serve(create_app(live.runtime, settings), settings, lambda _: None)


async def test_a_name_that_is_none_is_said() -> None:
    settings = ServerSettings(host="no-such-host.invalid", token="x")
    with pytest.raises(ServeError, match="no-such-host"):
        await serve(create_app(FakeRuntime(), settings), settings, lambda _: None)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
async def test_ipv6_and_localhost() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("needs an IPv6 loopback address")
    async with live_server(FakeRuntime(), host="::1") as live, httpx.AsyncClient() as http:
        assert live.http.startswith("http://[::1]:")
        assert (await http.get(f"{live.http}/streams")).status_code == 200
    addresses = {info[4][0] for info in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    async with live_server(FakeRuntime(), host="localhost") as live, httpx.AsyncClient() as http:
        for address in addresses:
            url = httpx.URL(scheme="http", host=str(address), port=live.port, path="/streams")
            assert (await http.get(url)).status_code == 200
