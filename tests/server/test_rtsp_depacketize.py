"""H.264 and H.265 out of RTP: layouts of the RFCs, and random packetisation with random loss."""

from __future__ import annotations

import itertools
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.ingest.rtsp import assembly
from server.ingest.rtsp.assembly import CodedUnit, NalDepacketizer, UnsupportedPacket
from server.ingest.rtsp.bits import first_number, h264_sequence, h265_sequence, has_recovery_point
from server.ingest.rtsp.h264 import H264Depacketizer
from server.ingest.rtsp.h265 import H265Depacketizer
from server.ingest.rtsp.rtp import RtpPacket, Sequencer

START = b"\0\0\0\1"
SPS = bytes.fromhex("6742c01fda014016e840000003004000000c83c60ca8")  # 1280x720
PPS = bytes.fromhex("68ce0fc8")
VPS5 = bytes.fromhex("40010c01ffff01600000030090000003000003005d959809")
SPS5 = bytes.fromhex("42010101600000030090000003000003005da00280802d165959a4932b9a020000030002000003003210")
SMALL_SPS5 = "42010101600000030090000003000003003fa005020169d565959a4932b9a02000000300200000030321"
PPS5 = bytes.fromhex("4401c172b46240")
RECOVERY = bytes.fromhex("060101320503aabbcc0601c480")  # pic timing (1), user data (5), recovery point (6)


def annexb(*nals: bytes) -> bytes:
    return b"".join(START + nal for nal in nals)


def idr(body: bytes = b"idr") -> bytes:
    return b"\x65\x88" + body


def inter(body: bytes = b"p", first: bool = True, reference: bool = True) -> bytes:
    return bytes([0x41 if reference else 0x01, 0x9A if first else 0x2A]) + body


def fragments(nal: bytes, *cuts: int) -> list[bytes]:
    """FU-A payloads of an H.264 NAL unit, cut at these positions of its body."""
    body = nal[1:]
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
    last = len(pieces) - 1
    return [
        bytes([nal[0] & 0xE0 | 28, (0x80 if i == 0 else 0) | (0x40 if i == last else 0) | nal[0] & 0x1F]) + piece
        for i, piece in enumerate(pieces)
    ]


def stap(*nals: bytes) -> bytes:
    return b"\x78" + b"".join(len(nal).to_bytes(2, "big") + nal for nal in nals)


class Feed:
    """Pushes payloads with a running sequence number; `lose` skips some."""

    def __init__(self, depacketizer: NalDepacketizer) -> None:
        self.depacketizer = depacketizer
        self.sequence = 0
        self.lost = 0

    def lose(self, count: int = 1) -> None:
        self.lost += count

    def push(self, payload: bytes, timestamp: int, marker: bool = False, restarted: bool = False) -> list[CodedUnit]:
        self.sequence += 1 + self.lost
        packet = RtpPacket(marker, 96, self.sequence, timestamp, 1, memoryview(payload), float(self.sequence))
        lost, self.lost = self.lost, 0
        return self.depacketizer.push(packet, lost, restarted)

    def all(self, payloads: list[bytes], timestamp: int) -> list[CodedUnit]:
        """The payloads of one access unit, the last with the marker."""
        last = len(payloads) - 1
        return [unit for i, payload in enumerate(payloads) for unit in self.push(payload, timestamp, i == last)]


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


def nal5(kind: int, body: bytes = b"body", first: bool = True, temporal_id: int = 0) -> bytes:
    return bytes([kind << 1, temporal_id + 1, 0x80 if first else 0x00]) + body


def fragments5(nal: bytes, *cuts: int) -> list[bytes]:
    body, kind = nal[2:], nal[0] >> 1 & 0x3F
    pieces = [body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]
    last = len(pieces) - 1
    head = bytes([nal[0] & 0x81 | 49 << 1, nal[1]])
    return [
        head + bytes([(0x80 if i == 0 else 0) | (0x40 if i == last else 0) | kind]) + piece
        for i, piece in enumerate(pieces)
    ]


def aggregate5(*nals: bytes) -> bytes:
    return bytes([48 << 1, 1]) + b"".join(len(nal).to_bytes(2, "big") + nal for nal in nals)


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


# Bits -----------------------------------------------------------------------------------------------------------------


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


# Random packetisation -------------------------------------------------------------------------------------------------


def coded_stream(random: Random, codec: str) -> list[list[bytes]]:
    """Access units as lists of NAL units, the first one an IDR with its parameter sets."""
    units = []
    for index in range(random.randint(2, 7)):
        is_idr = index == 0 or random.random() < 0.4
        nals = []
        if is_idr and (index == 0 or random.random() < 0.6):
            nals += [SPS, PPS] if codec == "h264" else [VPS5, SPS5, PPS5]
        for number in range(random.randint(1, 3)):
            body = random.randbytes(random.randint(1, 60)) + bytes([index, number])
            if codec == "h264":
                nals.append(bytes([0x65 if is_idr else 0x41, 0x80 if number == 0 else 0x40]) + body)
            else:
                nals.append(nal5(19 if is_idr else 1, body, first=number == 0))
        units.append(nals)
    return units


def packetized(random: Random, codec: str, units: list[list[bytes]], markers: bool) -> list[tuple[bytes, int, bool]]:
    """The units in any way that the RFC allows: (payload, time stamp, marker)."""
    cut_up, put_together, header = (fragments, stap, 1) if codec == "h264" else (fragments5, aggregate5, 2)
    out = []
    for index, nals in enumerate(units):
        payloads: list[bytes] = []
        position = 0
        while position < len(nals):
            nal = nals[position]
            way = random.choice(["single", "fragments", "together"])
            if way == "fragments" and len(nal) > header + 2:
                cuts = random.choices(range(1, len(nal) - header), k=random.randint(1, 3))
                payloads += cut_up(nal, *sorted(set(cuts)))
            elif way == "together":
                count = random.randint(1, len(nals) - position)
                payloads.append(put_together(*nals[position : position + count]))
                position += count - 1
            else:
                payloads.append(nal)
            position += 1
        last = len(payloads) - 1
        out += [(payload, 1000 * (index + 1), markers and i == last) for i, payload in enumerate(payloads)]
    return out


@pytest.mark.parametrize("codec", ["h264", "hevc"])
@pytest.mark.parametrize("markers", [True, False])
@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**63), loss=st.sampled_from([0.0, 0.05, 0.2]))
def test_same_nal_units_or_flagged(codec: str, markers: bool, seed: int, loss: float) -> None:
    """Through sequencer and depacketiser with loss, duplicates and reordering: a unit is exactly what was sent, or
    damaged; and from a loss on, some unit says so before the next IDR is clean."""
    random = Random(seed)
    units = coded_stream(random, codec)
    sent = packetized(random, codec, units, markers)
    first = random.randint(0, 65_535)
    # The first access unit tells the receiver where the stream begins; losses come after it.
    head = sum(timestamp == 1000 for _, timestamp, _ in sent)
    kept = [
        1 if index < head else 0 if random.random() < loss else random.choice([1, 1, 1, 2])
        for index in range(len(sent))
    ]
    arrivals = [
        (index if index < head else index + random.randint(0, 2) + 3 * copy, index)
        for index, copies in enumerate(kept)
        for copy in range(copies)
    ]
    sequencer = Sequencer(in_order=False)
    depacketizer = H264Depacketizer() if codec == "h264" else H265Depacketizer()
    out: list[CodedUnit] = []
    for at, index in sorted(arrivals):
        payload, timestamp, marker = sent[index]
        packet = RtpPacket(marker, 96, (first + index) & 0xFFFF, timestamp, 1, memoryview(payload), at * 0.001)
        for delivery in [*sequencer.expire(at * 0.001), *sequencer.push(packet)]:
            out += depacketizer.push(*delivery)
    for delivery in sequencer.flush():
        out += depacketizer.push(*delivery)
    out += depacketizer.flush()

    whole = {1000 * (index + 1) for index in range(len(units))}
    whole -= {sent[index][1] for index, copies in enumerate(kept) if index >= head and not copies}
    assert [unit.timestamp for unit in out] == sorted({unit.timestamp for unit in out}), "each once, in order"
    broken = False
    seen = 0
    for unit in out:
        index = unit.timestamp // 1000 - 1
        broken = broken or any(1000 * (between + 1) not in whole for between in range(seen, index))
        seen = index + 1
        if unit.damaged:
            broken = False
            continue
        assert unit.timestamp in whole
        is_idr, nals = unit.keyframe, annexb(*units[index])
        assert unit.data.endswith(nals)
        extra = set(unit.data.removesuffix(nals).split(START)) - {b""}
        sets = {SPS, PPS} if codec == "h264" else {VPS5, SPS5, PPS5}
        assert extra <= sets if is_idr else not extra
        assert sets <= set(unit.data.split(START)) or not is_idr
        assert is_idr or not broken, "a lost unit was passed over in silence"
        broken = broken and not is_idr
    if all(kept):
        # Without markers the end of the last one cannot be known.
        assert [unit.damaged for unit in out] == [False] * (len(units) - 1) + [not markers]
        assert sum(unit.lost for unit in out) == 0


@pytest.mark.parametrize("make", [H264Depacketizer, H265Depacketizer])
@given(
    pushed=st.lists(
        st.tuples(st.binary(max_size=40), st.integers(0, 3), st.booleans(), st.integers(0, 2), st.booleans()),
        max_size=40,
    )
)
def test_arbitrary_payloads(make: type[NalDepacketizer], pushed: list[tuple[bytes, int, bool, int, bool]]) -> None:
    depacketizer = make()
    try:
        for payload, timestamp, marker, lost, restarted in pushed:
            packet = RtpPacket(marker, 96, 0, timestamp, 1, memoryview(payload), 0.0)
            for unit in depacketizer.push(packet, lost, restarted):
                assert unit.data.startswith(START)
        depacketizer.flush()
    except UnsupportedPacket:
        pass
