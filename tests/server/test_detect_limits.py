"""Images that cost more than they look: decompression bombs at the desk of `POST /detect`."""

from __future__ import annotations

import asyncio
import struct
import threading
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from server import detect as detect_module
from server.delivery.ports import InvalidField
from server.detect import MAX_PIXELS, SLOTS, DetectDesk
from server.shm import Arena, slot_bytes

INPUT = 64


def png(width: int, height: int) -> bytes:
    """A real black RGB picture, a thousandth of its pixels in size."""
    compressor = zlib.compressobj(9)
    row = b"\0" * (1 + 3 * width)
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
    )


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena.create("test", SLOTS, slot_bytes(INPUT))
    yield arena
    arena.close()


@pytest.fixture
def desk(arena: Arena) -> DetectDesk:
    """No frame that is decoded gets any further."""
    dispatcher: Any = SimpleNamespace(configure=lambda *_: None, offer=lambda _: None, pump=lambda: None)
    model: Any = SimpleNamespace(input_size=INPUT, names={0: "person"})
    return DetectDesk(dispatcher, arena, 1, lambda: model, lambda: 0.0)


async def test_a_bomb_is_refused_by_its_header(desk: DetectDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 kB that would become 150 MB, or 450 MB on the way."""
    side = 7100
    assert side * side > MAX_PIXELS
    bomb = png(side, side)
    assert len(bomb) < 250_000
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("pixels were decoded"))
    with pytest.raises(InvalidField, match="more than 50 million pixels") as caught:
        await desk.detect(bomb, 0.25, 0.7)
    assert caught.value.field == "image"
    assert desk._free.qsize() == SLOTS


async def test_large_images_are_decoded_one_at_a_time(desk: DetectDesk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect_module, "LARGE_PIXELS", 1000)
    at_once, most, lock = {"large": 0, "small": 0}, {"large": 0, "small": 0}, threading.Lock()
    small_ones = threading.Barrier(2)

    def slow(image: bytes, **_: Any) -> Any:
        kind = "large" if image == large else "small"
        with lock:
            at_once[kind] += 1
            most[kind] = max(most[kind], at_once[kind])
        if kind == "small":
            small_ones.wait(10)  # passes only if both are here at once, whatever large ones are waiting
        with lock:
            at_once[kind] -= 1
        return np.zeros((8, 8, 3), np.uint8)

    large, small = png(40, 40), png(8, 8)
    monkeypatch.setattr(detect_module, "read_image", slow)
    tasks = [asyncio.create_task(desk.detect(image, 0.25, 0.7)) for image in (large, small, large, small, large)]
    async with asyncio.timeout(10):
        while len(desk._waiting) < len(tasks):  # noqa: ASYNC110 - the desk has no event for it
            await asyncio.sleep(0.005)
    assert most == {"large": 1, "small": 2}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
