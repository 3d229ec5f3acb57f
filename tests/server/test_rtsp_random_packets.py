"""Random access units in every packetisation that the RFCs allow, with random loss, duplicates and reordering."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rtsp_nals import PPS, PPS5, SPS, SPS5, START, VPS5, aggregate5, annexb, fragments, fragments5, nal5, stap

from server.ingest.rtsp.assembly import CodedUnit, NalDepacketizer, UnsupportedPacket
from server.ingest.rtsp.h264 import H264Depacketizer
from server.ingest.rtsp.h265 import H265Depacketizer
from server.ingest.rtsp.rtp import RtpPacket, Sequencer


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
@settings(max_examples=300)
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
