"""Live view: the very frame of each result, one encoding for all, the newest for the slow, nothing for nobody."""

from __future__ import annotations

import asyncio
import math
import struct

import pytest
import websockets
from fake_runtime import FakeRuntime, result
from live_server import live_server, raw_websocket, until
from websockets.asyncio.client import ClientConnection, connect

from server.delivery.feeds import Feeds, LivePicture, View
from server.delivery.hub import Closing
from server.delivery.live_socket import standard_width
from server.delivery.pictures import Pictures


def parsed(message: str | bytes) -> tuple[int, float, bytes]:
    """(seq, PTS, JPEG)"""
    assert isinstance(message, bytes)
    return *struct.unpack_from("!Qd", message), message[16:]


async def received(client: ClientConnection) -> tuple[int, float, bytes]:
    async with asyncio.timeout(10):
        return parsed(await client.recv())


@pytest.fixture
def runtime() -> FakeRuntime:
    fake = FakeRuntime()
    fake.add("door")
    return fake


async def test_every_picture_is_the_frame_of_a_result(runtime: FakeRuntime) -> None:
    async with live_server(runtime) as live, connect(f"{live.ws}/streams/door/live?width=600") as client:
        for _ in range(3):
            seen = runtime.see("door")
            assert await received(client) == (seen["seq"], seen["pts"], runtime.jpeg)
            assert runtime.asked[-1] == seen["seq"]
        assert set(runtime.snapshots) == {("door", False, 640, 75)}
        assert 'yolov9_http_clients{kind="live"} 1\n' in runtime.metrics.render().decode()
    assert 'yolov9_http_clients{kind="live"} 0\n' in runtime.metrics.render().decode()


async def test_one_encoding_for_all_and_none_for_nobody(runtime: FakeRuntime) -> None:
    async with live_server(runtime) as live:
        for _ in range(5):
            runtime.see("door")
        assert runtime.asked == []
        clients = [await connect(f"{live.ws}/streams/door/live?width={width}") for width in (500, 600, 640, 640)]
        for client in clients:
            await received(client)  # the newest frame comes at once
        assert runtime.asked == [5]
        for _ in range(4):
            seen = runtime.see("door")
            assert {(await received(client))[0] for client in clients} == {seen["seq"]}
        assert runtime.asked == [5, 6, 7, 8, 9]
        for client in clients:
            await client.close()
        await until(lambda: 'yolov9_http_clients{kind="live"} 0\n' in runtime.metrics.render().decode())
        runtime.see("door")
        await asyncio.sleep(0)
        assert runtime.asked == [5, 6, 7, 8, 9]
        assert len(runtime.hub) == 0


async def test_a_viewer_that_does_not_read_gets_the_newest_when_it_does(runtime: FakeRuntime) -> None:
    runtime.jpeg = bytes(1 << 20)
    async with live_server(runtime) as live, connect(f"{live.ws}/streams/door/live", max_size=None) as quick:
        reader, writer = await raw_websocket(live.port, "/streams/door/live")
        shown = []
        for _ in range(60):
            last = runtime.see("door")["seq"]
            shown.append((await received(quick))[0])
        assert shown == list(range(1, last + 1)), "the quick one misses nothing"
        got = []
        while not got or got[-1] != last:
            async with asyncio.timeout(10):
                head = await reader.readexactly(10)
                (length,) = struct.unpack_from("!Q", head, 2)
                body = await reader.readexactly(length)
            got.append(parsed(body)[0])
        assert got == sorted(set(got))
        assert len(got) < 30, "old pictures do not wait in buffers"
        writer.close()


async def test_a_frame_whose_inference_failed_has_no_picture(runtime: FakeRuntime) -> None:
    async with live_server(runtime) as live, connect(f"{live.ws}/streams/door/live") as client:
        failed = {**result("door", 7), "status": "error", "error": "engine"}
        runtime.streams["door"].results.append(failed)  # type: ignore[arg-type]
        runtime.hub.publish(failed)  # type: ignore[arg-type]
        seen = runtime.see("door")
        assert (await received(client))[0] == seen["seq"]
        assert runtime.asked == [seen["seq"]]


async def test_the_picture_is_asked_for_again_while_the_camera_has_none(runtime: FakeRuntime) -> None:
    runtime.jpeg = None
    async with live_server(runtime) as live, connect(f"{live.ws}/streams/door/live") as client:
        seen = runtime.see("door")
        await until(lambda: runtime.asked == [seen["seq"]])
        runtime.jpeg = b"late"
        assert (await received(client))[::2] == (seen["seq"], b"late")


async def test_it_ends_with_its_stream_and_with_the_server(runtime: FakeRuntime) -> None:
    runtime.add("yard")
    async with live_server(runtime) as live:
        door, yard = [await connect(f"{live.ws}/streams/{name}/live") for name in ("door", "yard")]
        await runtime.remove_stream("door")
        with pytest.raises(websockets.ConnectionClosedOK):
            await received(door)
        assert door.close_code == 1000
        with pytest.raises(websockets.InvalidStatus) as refused:
            await connect(f"{live.ws}/streams/door/live")
        assert refused.value.response.status_code == 404
        live.stop.set()
        with pytest.raises(websockets.ConnectionClosed):
            await received(yard)
        assert yard.close_code == 1001


async def test_what_fails_inside_a_feed_ends_its_viewers_and_the_next_one_starts_anew(runtime: FakeRuntime) -> None:
    feeds, view = Feeds(runtime, Pictures(runtime)), View("door", False, None, 75)
    with feeds.watch(view) as viewer:
        runtime.failure = RuntimeError("a bug")
        runtime.see("door")
        async with asyncio.timeout(5):
            assert await viewer.next() is None
        assert viewer.closing == Closing(1011, "the live view failed")
        runtime.failure = None
        with feeds.watch(view) as another:
            async with asyncio.timeout(5):
                picture = await another.next()
            assert picture is not None
            assert picture.jpeg == runtime.jpeg


@pytest.mark.parametrize("size", [10, 125, 126, 65_519, 65_520, 200_000])
def test_the_shared_frame_is_valid_whatever_its_length(size: int) -> None:
    picture = LivePicture(3, None, bytes(size))
    seq, pts, jpeg = parsed(picture.message)
    assert (seq, len(jpeg)) == (3, size)
    assert math.isnan(pts)
    announced = picture.frame[1]
    start = 4 if announced == 126 else 10
    assert picture.frame[0] == 0x82
    assert int.from_bytes(picture.frame[2:start], "big") == len(picture.frame) - start == size + 16


@pytest.mark.parametrize(
    ("asked", "given"), [(None, None), (16, 320), (320, 320), (321, 480), (3840, 3840), (8192, None)]
)
def test_standard_widths(asked: int | None, given: int | None) -> None:
    assert standard_width(asked) == given
