"""What is read out of parameter sets and SEI."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from rtsp_nals import RECOVERY, SPS, SPS5

from server.ingest.rtsp.bits import first_number, h264_sequence, h265_sequence, has_recovery_point

SMALL_SPS5 = "42010101600000030090000003000003003fa005020169d565959a4932b9a02000000300200000030321"


def test_picture_sizes() -> None:
    sizes = [
        (h264_sequence, "6742c01fda014016e840000003004000000c83c60ca8", (1280, 720)),
        (h264_sequence, "6764001eacd940a02fea6840000003004000000c83c58b6580", (638, 358)),
        (h264_sequence, "674d4028f403c0227ee1000003000100000300321f162ea0", (1920, 1080)),  # interlaced
        (h265_sequence, SPS5.hex(), (1280, 720)),
        (h265_sequence, SMALL_SPS5, (638, 358)),
    ]  # fmt: skip
    for parse, text, size in sizes:
        info = parse(bytes.fromhex(text))
        assert info is not None
        assert (info.id, info.width, info.height) == (0, *size)
    assert h264_sequence(SPS[:6]) is None
    assert h265_sequence(SPS5[:12]) is None


def test_numbers_and_messages() -> None:
    assert first_number(b"\x68\xce", 1) == 0
    assert first_number(b"\x68\x28", 1) == 4
    assert first_number(b"\x68", 1) is None
    assert has_recovery_point(RECOVERY)
    assert not has_recovery_point(b"\x06\x05\xff\xff\x10" + b"\x06" * 500)
    assert has_recovery_point(b"\x06\x05\xff\x01" + b"\xaa" * 256 + b"\x06\x01\xc4\x80")


@given(st.binary(max_size=80))
def test_arbitrary_parameter_sets(data: bytes) -> None:
    for parse in (h264_sequence, h265_sequence):
        info = parse(data)
        assert info is None or (info.width >= 0 and info.height >= 0)
    has_recovery_point(data)
    first_number(data, 1)
