"""H.264 and H.265 out of RTP: the layouts of the RFCs, and what a loss does to which unit."""

from __future__ import annotations

import pytest
from rtsp_nals import (
    PPS,
    PPS5,
    RECOVERY,
    SPS,
    SPS5,
    VPS5,
    Feed,
    aggregate5,
    annexb,
    fragments,
    fragments5,
    idr,
    inter,
    nal5,
    stap,
)  # fmt: skip

from server.ingest.rtsp import assembly
from server.ingest.rtsp.assembly import NalDepacketizer, UnsupportedPacket
from server.ingest.rtsp.h264 import H264Depacketizer
from server.ingest.rtsp.h265 import H265Depacketizer


@pytest.fixture
def feed() -> Feed:
    """An H.264 stream that has begun: an IDR with its parameter sets in band."""
    started = Feed(H264Depacketizer())
    (unit,) = started.all([SPS, PPS, idr()], 0)
    assert unit.keyframe
    assert not unit.damaged
    return started


# H.264 layouts --------------------------------------------------------------------------------------------------------


def test_single_nal_units_stap_and_fragments(feed: Feed) -> None:
    long = idr(bytes(range(200)))
    (unit,) = feed.all([stap(b"\x09\x10", SPS, PPS), *fragments(long, 50, 120)], 3000)
    assert unit.data == annexb(b"\x09\x10", SPS, PPS, long)
    assert (unit.timestamp, unit.keyframe, unit.damaged, unit.lost) == (3000, True, False, 0)
    assert unit.arrived_at == float(feed.sequence), "of the last packet"


def test_several_slices_and_reference(feed: Feed) -> None:
    slices = [inter(b"one"), inter(b"two", first=False), inter(b"three", first=False)]
    (unit,) = feed.all(slices, 1)
    assert unit.data == annexb(*slices)
    assert not unit.damaged
    assert not unit.keyframe
    assert unit.reference
    (unit,) = feed.all([inter(reference=False), inter(first=False, reference=False)], 2)
    assert not unit.reference
    (unit,) = feed.all([inter(reference=False), inter(first=False, reference=True)], 3)
    assert unit.reference


def test_parameter_sets_in_front_of_keyframes_that_lack_them() -> None:
    feed = Feed(H264Depacketizer((SPS, PPS)))
    (unit,) = feed.all([idr()], 0)
    assert unit.data == annexb(SPS, PPS, idr())
    (unit,) = feed.all([inter()], 1)
    assert unit.data == annexb(inter())
    (unit,) = feed.all([b"\x09\xf0", idr()], 2)
    assert unit.data == annexb(b"\x09\xf0", SPS, PPS, idr()), "the access unit delimiter stays first"
    other = PPS + b"\x80"
    (unit,) = feed.all([SPS, other, idr()], 3)
    assert unit.data == annexb(SPS, other, idr()), "it carries its own"
    (unit,) = feed.all([idr()], 4)
    assert unit.data == annexb(SPS, other, idr()), "the newest of each"
    (unit,) = feed.all([*fragments(SPS, 5), PPS, idr()], 5)
    assert unit.data == annexb(SPS, PPS, idr()), "also in fragments"


def test_parameter_sets_sent_ahead_with_their_own_time_stamp_and_marker(feed: Feed) -> None:
    assert feed.push(SPS, 10, marker=True) == []
    assert feed.push(PPS, 11, marker=True) == []
    (unit,) = feed.all([idr()], 12)
    assert unit.data == annexb(SPS, PPS, idr())
    assert unit.timestamp == 12


def test_recovery_point_is_a_start_point(feed: Feed) -> None:
    (unit,) = feed.all([RECOVERY, inter()], 1)
    assert unit.keyframe
    assert unit.data == annexb(SPS, PPS, RECOVERY, inter())
    (unit,) = feed.all([b"\x06\x05\x01\xaa\x80", inter()], 2)
    assert not unit.keyframe


def test_without_marker_bits_a_unit_ends_with_its_time_stamp(feed: Feed) -> None:
    assert feed.push(inter(b"1"), 10) == []
    assert feed.push(inter(b"1", first=False), 10) == []
    arrived = float(feed.sequence)
    (unit,) = feed.push(inter(b"2"), 20)
    assert unit.data == annexb(inter(b"1"), inter(b"1", first=False))
    assert not unit.damaged
    assert unit.arrived_at == arrived, "its own last packet, not the one that revealed the end"


def test_a_marker_on_every_slice_is_found_out(feed: Feed) -> None:
    first, second = inter(b"a"), inter(b"b", first=False)
    feed.push(first, 1, marker=True)
    (broken,) = feed.push(second, 1, marker=True)
    assert broken.damaged
    assert feed.push(first, 2, marker=True) == []
    assert feed.push(second, 2, marker=True) == []
    (unit,) = feed.push(first, 3, marker=True)
    assert unit.data == annexb(first, second)
    assert not unit.damaged


def test_empty_payloads_and_nal_units(feed: Feed) -> None:
    assert feed.push(b"", 1) == []
    (unit,) = feed.all([b"\x78\0\0\0\4" + inter(b"xx") + b"\0\0", b""], 1)
    assert unit.data == annexb(inter(b"xx"))
    assert not unit.damaged


def test_one_fragment_with_both_ends(feed: Feed) -> None:
    (unit,) = feed.all([bytes([0x5C, 0xC1]) + inter()[1:]], 1)
    assert unit.data == annexb(inter())
    assert not unit.damaged


def test_the_end_bit_may_be_missing(feed: Feed) -> None:
    head, tail = fragments(inter(b"123456"), 3)
    (unit,) = feed.all([head, bytes([tail[0], tail[1] & ~0x40]) + tail[2:]], 1)
    assert unit.data == annexb(inter(b"123456"))
    assert not unit.damaged


@pytest.mark.parametrize(
    "payload",
    [
        b"\x7c",  # FU-A without its header
        b"\x7c\x01rest",  # a fragment without beginning
        b"\x7c\x9c",  # a fragmented FU-A
        b"\x78\x00\x09\x41",  # an aggregate with a NAL unit longer than itself
        b"\x78\x00",  # an aggregate cut short
        b"\xc1\x9a",  # forbidden bit
        b"\x7a\x00",  # a single MTAP
    ],
)
def test_malformed_packets_damage_their_unit(feed: Feed, payload: bytes) -> None:
    (unit,) = feed.all([inter(), payload], 1)
    assert unit.damaged
    (unit,) = feed.all([inter()], 2)
    assert not unit.damaged


@pytest.mark.parametrize(
    ("depacketizer", "payload", "name"),
    [
        (H264Depacketizer(), b"\x7b\0\0\0", "MTAP24"),
        (H264Depacketizer(), b"\x79\0\0", "STAP-B"),
        (H265Depacketizer(), b"\x64\x01\0\0", "PACI"),
    ],
)
def test_unsupported_packetisation_is_named(depacketizer: NalDepacketizer, payload: bytes, name: str) -> None:
    feed = Feed(depacketizer)
    for timestamp in range(assembly.MAX_UNSUPPORTED - 1):
        assert feed.push(payload, timestamp, marker=True) == []
    with pytest.raises(UnsupportedPacket, match=name):
        feed.push(payload, assembly.MAX_UNSUPPORTED, marker=True)


def test_size_is_bounded(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "MAX_UNIT_BYTES", 10_000)
    head, *rest = fragments(inter(bytes(20_000)), *range(1000, 20_000, 1000))
    (unit,) = feed.all([head, *rest], 1)
    assert unit.damaged
    assert len(unit.data) <= 10_000
    tiny = fragments(inter(bytes(300)), *range(1, 300))
    (unit,) = feed.all(tiny, 2)
    assert unit.damaged, "tiny fragments cost more than their bytes"
    (unit,) = feed.all([inter()], 3)
    assert not unit.damaged


# Loss -----------------------------------------------------------------------------------------------------------------


def test_a_gap_inside_damages_this_unit_only(feed: Feed) -> None:
    head, _, tail = fragments(inter(bytes(300)), 100, 200)
    feed.push(head, 1)
    feed.lose()
    (unit,) = feed.push(tail, 1, marker=True)
    assert unit.damaged
    assert unit.lost == 1
    (unit,) = feed.all([inter()], 2)
    assert not unit.damaged
    assert unit.lost == 0


def test_a_gap_over_the_end_damages_both(feed: Feed) -> None:
    feed.push(inter(), 1)
    feed.lose(3)
    first, second = feed.push(inter(), 2, marker=True)
    assert (first.damaged, first.lost, first.timestamp) == (True, 3, 1)
    assert (second.damaged, second.lost, second.timestamp) == (True, 0, 2)


def test_a_lost_unit_is_told_by_the_next(feed: Feed) -> None:
    feed.lose(2)
    (unit,) = feed.all([inter()], 2)
    assert unit.damaged
    assert unit.lost == 2
    (unit,) = feed.all([inter()], 3)
    assert not unit.damaged


def test_a_unit_of_which_only_scraps_came_is_told_by_the_next(feed: Feed) -> None:
    feed.lose(1)
    _, middle, tail = fragments(inter(bytes(30)), 10, 20)
    assert feed.all([middle, tail], 2) == []
    (unit,) = feed.all([inter()], 3)
    assert unit.damaged
    assert unit.lost == 1


def test_an_idr_after_a_gap_is_clean_if_it_visibly_begins(feed: Feed) -> None:
    feed.lose(4)
    (unit,) = feed.all([SPS, PPS, idr()], 1)
    assert not unit.damaged
    assert unit.lost == 4
    feed.lose(1)
    (unit,) = feed.all([PPS, idr()], 2)
    assert unit.damaged, "its SPS may be among what was lost"
    feed.lose(1)
    (unit,) = feed.all([SPS, PPS, b"\x65\x28rest"], 3)
    assert unit.damaged, "not its first slice"
    feed.lose(1)
    (unit,) = feed.all([SPS, PPS, RECOVERY, inter()], 4)
    assert unit.damaged, "a recovery point refers to frames before it"


def test_the_first_unit_has_to_begin() -> None:
    feed = Feed(H264Depacketizer())
    (unit,) = feed.all([inter(first=False)], 0)
    assert unit.damaged, "joined in the middle of a picture"
    (unit,) = feed.all([inter()], 1)
    assert not unit.damaged
    joined = Feed(H264Depacketizer())
    assert joined.all(fragments(inter(bytes(9)), 3)[1:], 0) == []
    (unit,) = joined.all([RECOVERY, inter()], 1)
    assert not unit.damaged, "nothing that could be missing before the first"
    assert unit.keyframe


def test_a_restart_ends_the_unit(feed: Feed) -> None:
    feed.push(inter(), 1)
    done = feed.push(inter(), 1, marker=True, restarted=True)
    assert [unit.damaged for unit in done] == [True, True]


def test_flush_gives_the_rest_as_damaged(feed: Feed) -> None:
    assert feed.depacketizer.flush() == []
    feed.push(inter(), 1)
    (unit,) = feed.depacketizer.flush()
    assert unit.damaged
    assert feed.depacketizer.flush() == []


# H.265 ----------------------------------------------------------------------------------------------------------------


def test_h265_layouts() -> None:
    feed = Feed(H265Depacketizer())
    long = nal5(19, bytes(range(200)))
    (unit,) = feed.all([aggregate5(VPS5, SPS5, PPS5), *fragments5(long, 50, 120)], 1)
    assert unit.data == annexb(VPS5, SPS5, PPS5, long)
    assert unit.keyframe
    assert not unit.damaged
    (unit,) = feed.all([nal5(20)], 2)
    assert unit.data == annexb(VPS5, SPS5, PPS5, nal5(20)), "sets in front"
    (unit,) = feed.all([bytes([35 << 1, 1, 0x50]), nal5(21)], 3)
    assert unit.data == annexb(bytes([35 << 1, 1, 0x50]), VPS5, SPS5, PPS5, nal5(21))
    assert unit.keyframe
    (unit,) = feed.all([nal5(1), nal5(1, first=False)], 4)
    assert unit.data == annexb(nal5(1), nal5(1, first=False))
    assert not unit.keyframe
    assert unit.reference


def test_h265_after_a_gap() -> None:
    feed = Feed(H265Depacketizer((VPS5, SPS5, PPS5)))
    feed.all([nal5(19)], 0)
    for timestamp, (kind, damaged) in enumerate([(19, False), (18, False), (21, True), (1, True)], 1):
        feed.lose()
        (unit,) = feed.all([nal5(kind)], timestamp)
        assert unit.damaged == damaged, kind


def test_h265_references() -> None:
    feed = Feed(H265Depacketizer((VPS5, SPS5, PPS5)))
    assert [feed.all([nal5(kind)], kind + 1)[0].reference for kind in (0, 1, 2, 9, 14)] == [
        False, True, False, True, False,
    ]  # fmt: skip
    unknown = Feed(H265Depacketizer())
    (unit,) = unknown.all([nal5(0)], 1)
    assert unit.reference, "higher sub-layers may refer to it as far as we know"
    two_layers = bytearray(SPS5)
    two_layers[2] |= 1 << 1
    layered = Feed(H265Depacketizer())
    layered.depacketizer._sub_layers = 2  # type: ignore[attr-defined]
    assert layered.all([nal5(0)], 1)[0].reference
    assert not layered.all([nal5(0, temporal_id=1)], 2)[0].reference
