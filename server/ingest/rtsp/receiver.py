"""Packets of one video track in, access units with their times out; and the reports that the sender wants.

Pure: the sockets stand in `source`, time is passed in. One receiver lives as long as one connection.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from server.ingest.rtsp.assembly import CodedUnit, Depacketizer
from server.ingest.rtsp.h264 import H264Depacketizer
from server.ingest.rtsp.h265 import H265Depacketizer
from server.ingest.rtsp.jpeg import JpegDepacketizer
from server.ingest.rtsp.rtcp import Bye, CaptureClock, Reception, SenderReport, parse_rtcp
from server.ingest.rtsp.rtp import Delivery, MediaClock, Sequencer, parse_rtp
from server.ingest.rtsp.sdp import VideoTrack
from server.ingest.source import AccessUnit

_DEPACKETIZERS: dict[str, Callable[[tuple[bytes, ...]], Depacketizer]] = {
    "h264": H264Depacketizer,
    "hevc": H265Depacketizer,
    "mjpeg": JpegDepacketizer,
}


class RtpReceiver:
    """`in_order`: packets come over TCP. `unix_offset` is wall clock minus monotonic clock, passed with each packet so
    that a wall clock that is set while running shows at once."""

    def __init__(self, track: VideoTrack, in_order: bool) -> None:
        self._payload_type = track.payload_type
        self._sequencer = Sequencer(in_order)
        self._depacketizer = _DEPACKETIZERS[track.codec](track.parameter_sets)
        self._clock = MediaClock(track.clock_rate)
        self._capture = CaptureClock(track.clock_rate)
        self._reception = Reception(track.clock_rate, secrets.randbits(32))
        self._unix_offset = 0.0
        self._restarted = False
        """The next unit is the first one of a sender that began anew."""
        self.packets = 0
        """Packets of this track so far."""
        self.ended = False
        """The sender said BYE."""

    def rtp(self, data: memoryview, arrived_at: float, unix_offset: float, uncertainty_s: float) -> list[AccessUnit]:
        """One RTP packet. What is none, or belongs to another payload type, is ignored. Raises UnsupportedPacket."""
        packet = parse_rtp(data, arrived_at)
        if packet is None or packet.payload_type != self._payload_type:
            return []
        self.packets += 1
        self._unix_offset = unix_offset
        if packet.marker:
            # One packet of each frame: that a frame's packets come in a burst is no jitter of the network.
            self._reception.received(packet)
        if self._sequencer.follows(packet):
            return [self._unit(coded, uncertainty_s) for coded in self._depacketizer.push(packet)]
        return self._deliver(self._sequencer.push(packet), uncertainty_s)

    def rtcp(self, data: memoryview | bytes, arrived_at: float, unix_offset: float) -> None:
        """One compound packet. The SSRC of sender reports is not compared: cameras exist that put another one there,
        and the channel carries nothing but this track."""
        for item in parse_rtcp(data):
            if isinstance(item, SenderReport):
                self._capture.report(item, arrived_at + unix_offset)
                self._reception.sender_report(item, arrived_at)
            elif isinstance(item, Bye) and (not item.ssrcs or self._sequencer.ssrc in (None, *item.ssrcs)):
                self.ended = True

    @property
    def lost_packets(self) -> int:
        """In all, as far as is known."""
        return self._sequencer.lost_total

    @property
    def dropped_packets(self) -> int:
        """Duplicates, strays, and those that came too late."""
        return self._sequencer.dropped_total

    @property
    def clock_wrong_by_s(self) -> float | None:
        """How far the sender's clock is ahead of ours, if it is too far off for capture times."""
        return self._capture.wrong_by_s

    @property
    def deadline(self) -> float | None:
        """When to call `expire`; None: nothing is waited for."""
        return self._sequencer.deadline

    def expire(self, now: float) -> list[AccessUnit]:
        """Access units whose missing packets are given up."""
        return self._deliver(self._sequencer.expire(now), 0.0)

    def flush(self) -> list[AccessUnit]:
        """What is left when the connection ends; a frame that was cut off is damaged."""
        units = self._deliver(self._sequencer.flush(), 0.0)
        return units + [self._unit(unit, 0.0) for unit in self._depacketizer.flush()]

    def report(self, now: float) -> bytes:
        """A receiver report, to be sent every REPORT_INTERVAL_S."""
        return self._reception.report(self._sequencer, now)

    def _deliver(self, deliveries: list[Delivery], uncertainty_s: float) -> list[AccessUnit]:
        units: list[AccessUnit] = []
        for packet, lost, restarted in deliveries:
            if restarted:
                # What the sender did not finish before it began anew ends on the old time stamps.
                units += [self._unit(unit, uncertainty_s) for unit in self._depacketizer.flush()]
                self._clock.restart()
                self._capture.restart()
                self._reception.restart()
                self._restarted = True
            units += [self._unit(unit, uncertainty_s) for unit in self._depacketizer.push(packet, lost, restarted)]
        return units

    def _unit(self, coded: CodedUnit, uncertainty_s: float) -> AccessUnit:
        discontinuity, self._restarted = self._restarted, False
        received_unix = coded.arrived_at + self._unix_offset
        captured, capture_uncertainty = self._capture.captured(coded.timestamp, received_unix)
        return AccessUnit(
            data=coded.data,
            pts=self._clock.seconds(coded.timestamp, coded.arrived_at),
            arrived_at=coded.arrived_at,
            received_unix=received_unix,
            keyframe=coded.keyframe,
            reference=coded.reference,
            damaged=coded.damaged,
            lost_packets=coded.lost,
            arrival_uncertainty_s=uncertainty_s,
            captured_unix=captured,
            capture_uncertainty_s=capture_uncertainty,
            discontinuity=discontinuity,
        )
