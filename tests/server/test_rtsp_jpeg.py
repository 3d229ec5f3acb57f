"""Motion JPEG over RTP: pictures cut up as RFC 2435 says come back as the same pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from server.ingest.rtsp.assembly import MAX_UNSUPPORTED, CodedUnit, UnsupportedPacket
from server.ingest.rtsp.jpeg import JpegDepacketizer
from server.ingest.rtsp.rtp import RtpPacket


def jpeg(quality: int, subsampling: str = "4:2:0", restarts: int = 0) -> bytes:
    noise = np.random.default_rng(1).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((64, 48))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality, subsampling=subsampling, restart_marker_blocks=restarts)
    return out.getvalue()


def segments(data: bytes) -> tuple[bytes, bytes]:
    """(quantisation tables, entropy-coded data) of a JPEG."""
    tables, position = b"", 2
    while True:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == 0xDB:
            tables += data[position + 5 : position + 2 + length]
        position += 2 + length
        if marker == 0xDA:
            return tables, data[position:]


def payloads(scan: bytes, quality: int, kind: int = 1, extra: bytes = b"", size: int = 100) -> list[bytes]:
    """`extra` stands behind the first header (quantisation tables), or behind all of them (restarts)."""
    restarts = b"\0\4\xff\xff" if kind >= 64 else b""
    return [
        b"\0"
        + start.to_bytes(3, "big")
        + bytes((kind, quality, 64 // 8, 48 // 8))
        + restarts
        + (extra if start == 0 else b"")
        + scan[start : start + size]
        for start in range(0, len(scan), size)
    ]


def push(
    depacketizer: JpegDepacketizer, parts: list[bytes], timestamp: int, missing: frozenset[int] = frozenset()
) -> list[CodedUnit]:
    units, lost = [], 0
    for index, part in enumerate(parts):
        if index in missing:
            lost += 1
            continue
        marker = index == len(parts) - 1
        packet = RtpPacket(marker, 26, index, timestamp, 1, memoryview(part), float(timestamp))
        units += depacketizer.push(packet, lost)
        lost = 0
    return units


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("quality", [1, 30, 50, 75, 99])
@pytest.mark.parametrize(("subsampling", "kind"), [("4:2:2", 0), ("4:2:0", 1)])
def test_standard_tables(quality: int, subsampling: str, kind: int) -> None:
    source = jpeg(quality, subsampling)
    (unit,) = push(JpegDepacketizer(), payloads(segments(source)[1], quality, kind), 5)
    assert np.array_equal(pixels(unit.data), pixels(source))
    assert (unit.keyframe, unit.reference, unit.damaged, unit.timestamp) == (True, False, False, 5)


def test_tables_that_are_sent_and_kept() -> None:
    source = jpeg(83)
    tables, scan = segments(source)
    depacketizer = JpegDepacketizer()
    assert push(depacketizer, payloads(scan, 200, extra=b"\0\0\0\0"), 0) == [], "the tables have not come yet"
    (first,) = push(depacketizer, payloads(scan, 200, extra=b"\0\0\0\x80" + tables), 1)
    (second,) = push(depacketizer, payloads(scan, 200, extra=b"\0\0\0\0"), 2)
    assert first.data == second.data
    assert np.array_equal(pixels(first.data), pixels(source))
    (always,) = push(depacketizer, payloads(scan, 255, extra=b"\0\0\0\x80" + tables), 3)
    assert always.data == first.data


def test_restart_intervals_and_missing_end() -> None:
    source = jpeg(50, restarts=4)
    scan = segments(source)[1].removesuffix(b"\xff\xd9")
    (unit,) = push(JpegDepacketizer(), payloads(scan, 50, 65), 0)
    assert np.array_equal(pixels(unit.data), pixels(source))


def test_losses_concern_their_picture_only() -> None:
    parts = payloads(segments(jpeg(90))[1], 90)
    assert len(parts) > 4
    depacketizer = JpegDepacketizer()
    (unit,) = push(depacketizer, parts, 1, frozenset({2}))
    assert (unit.damaged, unit.lost) == (True, 1)
    assert push(depacketizer, parts, 2, frozenset({0})) == [], "without its beginning there is no picture"
    (unit,) = push(depacketizer, parts, 3)
    assert (unit.damaged, unit.lost) == (False, 1)
    assert push(depacketizer, parts, 4, frozenset({len(parts) - 1})) == []
    cut, whole = push(depacketizer, parts, 5)
    assert (cut.damaged, cut.timestamp) == (True, 4)
    assert (whole.damaged, whole.timestamp) == (False, 5)
    push(depacketizer, [*parts[:2], b""], 6, frozenset({2}))
    (rest,) = depacketizer.flush()
    assert rest.damaged
    assert depacketizer.flush() == []


def test_unsupported_types_are_named() -> None:
    depacketizer = JpegDepacketizer()
    for timestamp in range(MAX_UNSUPPORTED - 1):
        push(depacketizer, payloads(b"scan", 50, kind=2), timestamp)
    with pytest.raises(UnsupportedPacket, match="JPEG type 2"):
        push(depacketizer, payloads(b"scan", 50, kind=2), 100)


@given(st.lists(st.tuples(st.binary(max_size=30), st.integers(0, 2), st.booleans(), st.integers(0, 1)), max_size=30))
def test_arbitrary_payloads(pushed: list[tuple[bytes, int, bool, int]]) -> None:
    depacketizer = JpegDepacketizer()
    try:
        for payload, timestamp, marker, lost in pushed:
            for data in (payload, b"\0\0\0\0\1\x32\1\1" + payload):
                for unit in depacketizer.push(RtpPacket(marker, 26, 0, timestamp, 1, memoryview(data), 0.0), lost):
                    assert unit.data.startswith(b"\xff\xd8")
    except UnsupportedPacket:
        pass
