"""MPEG-TS on its way to libavformat: which packets are missing.

libavformat looks at the continuity counters of the video alone, and those have four bits: sixteen packets lost in a row
go unseen. Tables and sound, which are sent ten times a second and more, tell of most of such losses, so every stream's
counter counts here. What is left: sixteen packets of video (or 32, ...) lost between two packets of the others.
"""

from __future__ import annotations

from server.ingest.readable import Readable

PACKET = 188
SYNC = 0x47
_NULL_PID = 0x1FFF
_DISCONTINUITY = 0x80


class Continuity:
    """Pure."""

    def __init__(self) -> None:
        self._counters: dict[int, int] = {}  # PID -> counter of its newest packet

    def missing(self, packets: bytes) -> int:
        """How many packets are missing in front of or between these (whole ones), as far as the counters tell."""
        missing = 0
        for begin in range(0, len(packets) - PACKET + 1, PACKET):
            if packets[begin] != SYNC:
                continue
            pid = (packets[begin + 1] & 0x1F) << 8 | packets[begin + 2]
            control = packets[begin + 3]
            if pid == _NULL_PID or not control & 0x10:  # without payload the counter stands still
                continue
            counter = control & 0x0F
            before = self._counters.get(pid)
            self._counters[pid] = counter
            # The counter may stay (a packet sent twice) or jump where the sender says so.
            announced = control & 0x20 and packets[begin + 4] and packets[begin + 5] & _DISCONTINUITY
            if before is not None and counter != before and not announced:
                missing += (counter - before - 1) & 0x0F
        return missing


class TransportStream(Readable):
    """A file of TS packets that come in datagrams, as `_datagram` gives them."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._continuity = Continuity()
        self._missing = 0

    def begin_anew(self) -> None:
        super().begin_anew()
        self._continuity = Continuity()
        self._missing = 0

    def take_lost(self) -> int:
        """Packets missed since the last call."""
        missing, self._missing = self._missing, 0
        return missing

    def _more(self, size: int) -> bytes:
        packets = self._datagram()
        self._missing += self._continuity.missing(packets)
        return packets

    def _datagram(self) -> bytes:
        """The packets of the next datagram, b"" at the end. Raises SourceError."""
        raise NotImplementedError
