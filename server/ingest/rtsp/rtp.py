"""RTP packets (RFC 3550): header, order, loss, and time stamps as seconds.

Pure: arrival times are passed in (monotonic seconds). Over TCP packets come in order and a gap is a loss at once; over
UDP a gap is given `reorder_s` for its packets to come late, and only frames that have a gap ever wait.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

REORDER_S = 0.08
"""Wi-Fi and powerline retransmissions reorder within tens of milliseconds; later than this a packet counts as lost."""
MAX_HELD_PACKETS = 512
"""Some 0.7 MB: far more than any camera sends within REORDER_S, and a bound for a hostile one."""
MAX_DROPOUT = 3000
"""RFC 3550 A.1: a jump of more packets than this is a restart of the numbering, if a second packet confirms it."""
MAX_MISORDER = 100
"""RFC 3550 A.1: a packet up to so many numbers old is late or a duplicate, an older one a restart."""

_HEADER = struct.Struct("!BBHII")
_SEQ_MASK = 0xFFFF


class RtpPacket(NamedTuple):
    marker: bool
    payload_type: int
    sequence: int
    """16 bits."""
    timestamp: int
    """32 bits."""
    ssrc: int
    payload: memoryview
    arrived_at: float
    """Monotonic seconds."""


class Delivery(NamedTuple):
    """A packet in its order."""

    packet: RtpPacket
    lost: int
    """Packets missing directly before it."""
    restarted: bool
    """The sender began anew (another SSRC, another numbering): how much is missing before it is not known."""


def parse_rtp(data: memoryview, arrived_at: float) -> RtpPacket | None:
    """None for what is no RTP packet of version 2."""
    size = len(data)
    if size < 12:
        return None
    first, second, sequence, timestamp, ssrc = _HEADER.unpack_from(data)
    if first >> 6 != 2:
        return None
    start = 12
    if first & 0x3F:  # padding, extension or contributing sources: rare
        start += 4 * (first & 0x0F)
        if first & 0x10:
            if size < start + 4:
                return None
            start += 4 + 4 * (data[start + 2] << 8 | data[start + 3])
        if first & 0x20:
            padding = data[size - 1]
            if padding == 0:
                return None
            size -= padding
        if size < start:
            return None
    return RtpPacket(second > 127, second & 0x7F, sequence, timestamp, ssrc, data[start:size], arrived_at)


class Sequencer:
    """Puts packets in order and knows what is missing between them.

    `in_order`: the transport keeps the order (TCP), so nothing is ever held. Packets must be of one payload type.
    """

    def __init__(self, in_order: bool, reorder_s: float = REORDER_S, max_held: int = MAX_HELD_PACKETS) -> None:
        self._in_order = in_order
        self._reorder_s = reorder_s
        self._max_held = max_held
        self._expected = 0
        """Extended: never wraps."""
        self._held: dict[int, RtpPacket] = {}
        self._candidate: RtpPacket | None = None
        self.ssrc: int | None = None
        self.first = 0
        """Extended number of the first packet of this numbering."""
        self.highest = 0
        """Extended."""
        self.received = 0
        """Packets of this numbering, with duplicates and late ones, as RFC 3550 counts them."""
        self.lost_total = 0
        self.dropped_total = 0
        """Duplicates, packets that came after their gap had been given up, and strays."""

    def follows(self, packet: RtpPacket) -> bool:
        """Take a packet that comes exactly when it should, as nearly all do: it can be used now. False: `push` it."""
        expected = self._expected
        if packet.sequence != expected & _SEQ_MASK or packet.ssrc != self.ssrc or self._held:
            return False
        self.highest = expected
        self._expected = expected + 1
        self.received += 1
        self._candidate = None
        return True

    def push(self, packet: RtpPacket) -> list[Delivery]:
        """Packets that can be used now."""
        if self.ssrc is None:
            self._start(packet)
        delta = (packet.sequence - self._expected) & _SEQ_MASK
        if packet.ssrc != self.ssrc or MAX_DROPOUT <= delta < 0x10000 - MAX_MISORDER:
            return self._probe(packet)
        self._candidate = None
        self.received += 1
        if delta >= MAX_DROPOUT:
            self.dropped_total += 1
            return []
        number = self._expected + delta
        if number > self.highest:
            self.highest = number
        if self._in_order:
            self._expected = number + 1
            self.lost_total += delta
            return [Delivery(packet, delta, False)]
        if number in self._held:
            self.dropped_total += 1
            return []
        self._held[number] = packet
        if delta == 0:
            return self._run()
        return self._skip_gap() if len(self._held) > self._max_held else []

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do; None while nothing is held."""
        if not self._held:
            return None
        return min(packet.arrived_at for packet in self._held.values()) + self._reorder_s

    def expire(self, now: float) -> list[Delivery]:
        """Packets whose missing predecessors are not waited for any longer."""
        released: list[Delivery] = []
        while (deadline := self.deadline) is not None and deadline <= now:
            released += self._skip_gap()
        return released

    def flush(self) -> list[Delivery]:
        """Everything that is still held."""
        released: list[Delivery] = []
        while self._held:
            released += self._skip_gap()
        return released

    def _start(self, packet: RtpPacket) -> None:
        self.ssrc = packet.ssrc
        self._expected = self.first = self.highest = packet.sequence
        self.received = 0
        self._candidate = None

    def _run(self) -> list[Delivery]:
        """The held packets that follow without a gap."""
        released = []
        while (packet := self._held.pop(self._expected, None)) is not None:
            released.append(Delivery(packet, 0, False))
            self._expected += 1
        return released

    def _skip_gap(self) -> list[Delivery]:
        number = min(self._held)
        lost, self._expected = number - self._expected, number
        self.lost_total += lost
        first, *others = self._run()
        return [first._replace(lost=lost), *others]

    def _probe(self, packet: RtpPacket) -> list[Delivery]:
        """A packet of another sender or numbering is believed once its successor has come too."""
        candidate, self._candidate = self._candidate, packet
        if (
            candidate is None
            or candidate.ssrc != packet.ssrc
            or (candidate.sequence + 1) & _SEQ_MASK != packet.sequence
        ):
            self.dropped_total += candidate is not None
            return []
        released = self.flush()
        self._start(candidate)
        self._expected = candidate.sequence + 2
        self.highest = self._expected - 1
        self.received = 2
        return [*released, Delivery(candidate, 0, True), Delivery(packet, 0, False)]


class MediaClock:
    """RTP time stamps (32 bits, wrapping, starting anywhere) as seconds since the first access unit."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._ticks = 0
        self._timestamp: int | None = None
        self._arrived_at = 0.0
        self._restarted = False

    def restart(self) -> None:
        """The next time stamp has nothing to do with the last one; time goes on by the arrival."""
        self._restarted = True

    def seconds(self, timestamp: int, arrived_at: float) -> float:
        if self._timestamp is None:
            self._timestamp = timestamp
        elif self._restarted:
            self._ticks += round(max(0.0, arrived_at - self._arrived_at) * self._rate)
        else:
            self._ticks += signed32(timestamp - self._timestamp)
        self._restarted = False
        self._timestamp, self._arrived_at = timestamp, arrived_at
        return self._ticks / self._rate


def signed32(difference: int) -> int:
    """The shorter way round of a 32-bit difference."""
    return (difference + 0x80000000 & 0xFFFFFFFF) - 0x80000000
