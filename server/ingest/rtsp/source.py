"""A camera over RTSP as a `Source`: connects, receives RTP, yields access units the moment they are complete.

No retries, no threads, no decoding. `arrived_at` is the kernel's time stamp of the last packet wherever there is one.
Cameras have self-signed certificates, so `rtsps://` encrypts but does not verify unless `tls_verify` says so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator

from server.ingest.network import ANYWHERE, Networks
from server.ingest.rtsp.assembly import UnsupportedPacket
from server.ingest.rtsp.bits import SequenceInfo, h264_sequence, h265_sequence
from server.ingest.rtsp.messages import Interleaved
from server.ingest.rtsp.receiver import RtpReceiver
from server.ingest.rtsp.rtcp import REPORT_INTERVAL_S
from server.ingest.rtsp.sdp import VideoTrack
from server.ingest.rtsp.session import Options, Session, start
from server.ingest.rtsp.sockets import Datagrams
from server.ingest.source import AccessUnit, Reason, SourceError, StreamInfo

log = logging.getLogger("yolov9.ingest")

TICK_S = 0.5
MAX_KEEP_ALIVE_S = 60.0
MIN_KEEP_ALIVE_S = 1.0
_MAX_DATAGRAMS_IN_A_ROW = 512
"""Then time-outs and the connection get their turn."""


class RtspSource:
    """See `server.ingest.source.Source`. `transport`: auto (TCP, then UDP where TCP is refused), tcp or udp."""

    def __init__(
        self,
        url: str,
        username: str | None = None,
        password: str | None = None,
        transport: str = "auto",
        open_timeout_s: float = 5.0,
        read_timeout_s: float = 5.0,
        tls_verify: bool = False,
        networks: Networks = ANYWHERE,
    ) -> None:
        self._options = Options(url, username, password, transport, tls_verify, networks)
        self._open_timeout_s = open_timeout_s
        self._read_timeout_s = read_timeout_s
        self._session: Session | None = None

    def __repr__(self) -> str:
        return f"RtspSource({self._options!r})"

    def open(self) -> StreamInfo:
        """Connect and start to play. Raises SourceError within the open time-out."""
        self.close()
        self._session = start(self._options, time.monotonic() + self._open_timeout_s)
        track = self._session.track
        width, height = _size(track)
        return StreamInfo(
            codec=track.codec,
            extradata=track.extradata,
            width=width,
            height=height,
            fps=track.fps,
            transport=self._session.transport,
            client="native",
            live=True,
        )

    def units(self) -> Iterator[AccessUnit | None]:
        """Access units in decoding order, None twice a second while nothing comes.

        Ends with the camera's FIN, RST, BYE, TEARDOWN or REDIRECT. Raises SourceError: STALLED when no packet of the
        video came for the read time-out, PROTOCOL when the connection cannot be understood any more, CODEC when the
        packets are of a kind that we do not support.
        """
        if self._session is None:
            raise RuntimeError("units() before open()")
        reception = _Reception(self._session, self._read_timeout_s)
        try:
            yield from reception.units()
        except UnsupportedPacket as error:
            raise SourceError(Reason.CODEC, str(error)) from None
        finally:
            reception.log_summary()

    def close(self) -> None:
        """Say goodbye to the camera, within half a second. Does nothing on a closed source."""
        session, self._session = self._session, None
        if session is not None:
            session.close()


class _Reception:
    """What happens while a camera plays."""

    def __init__(self, session: Session, read_timeout_s: float) -> None:
        self._session = session
        self._client = session.client
        self._stream_file = self._client.stream.fileno()
        self._receiver = RtpReceiver(session.track, in_order=session.datagrams is None)
        self._read_timeout_s = read_timeout_s
        self._keep_alive_s = min(max(self._client.session_timeout_s / 2, MIN_KEEP_ALIVE_S), MAX_KEEP_ALIVE_S)
        now = time.monotonic()
        self._packets = 0
        self._packet_at = now
        self._report_at = now + REPORT_INTERVAL_S
        self._alive_at = now + self._keep_alive_s
        self._clock_told = False

    def units(self) -> Iterator[AccessUnit | None]:
        ready = [self._stream_file]
        yielded_at = time.monotonic()
        while True:
            for unit in self._read(ready):
                yield unit
                yielded_at = time.monotonic()
            if self._client.closed or self._receiver.ended:
                yield from self._receiver.flush()
                return
            now = time.monotonic()
            if self._receiver.packets != self._packets:
                self._packets, self._packet_at = self._receiver.packets, now
            elif now - self._packet_at >= self._read_timeout_s:
                yield from self._receiver.flush()
                raise self._stalled()
            if now - yielded_at >= TICK_S:
                yield None
                yielded_at = now = time.monotonic()
            self._do_what_is_due(now)
            ready = self._client.wait(self._until_next(now) - now)

    def log_summary(self) -> None:
        receiver, skipped = self._receiver, self._client.reader.skipped_bytes
        log.debug(
            "rtsp reception ended packets=%d lost=%d dropped=%d skipped_bytes=%d",
            receiver.packets, receiver.lost_packets, receiver.dropped_packets, skipped,
        )  # fmt: skip

    def _stalled(self) -> SourceError:
        if self._packets:
            return SourceError(Reason.STALLED, f"no video for {self._read_timeout_s:g} s")
        return SourceError(Reason.STALLED, f"no video within {self._read_timeout_s:g} s after PLAY")

    def _read(self, ready: list[int]) -> Iterator[AccessUnit]:
        receiver, datagrams = self._receiver, self._session.datagrams
        drained = True
        if datagrams is not None:
            drained = yield from self._read_datagrams(datagrams, ready)
        if self._stream_file in ready:
            for received in self._client.read():
                item = received.item
                if not isinstance(item, Interleaved):
                    continue
                if item.channel == self._session.rtp_channel:
                    yield from receiver.rtp(item.data, *received[1:])
                elif item.channel == self._session.rtcp_channel:
                    receiver.rtcp(item.data, received.arrived_at, received.unix_offset)
        # What is still in the kernel's buffer is not late because we are.
        if drained and receiver.deadline is not None:
            yield from receiver.expire(time.monotonic())

    def _read_datagrams(self, datagrams: Datagrams, ready: list[int]) -> Generator[AccessUnit, None, bool]:
        """The value is True if all of the video was read."""
        if datagrams.rtcp.fileno() in ready and (report := datagrams.receive(datagrams.rtcp)) is not None:
            self._receiver.rtcp(report.data, report.arrived_at, report.unix_offset)
        if datagrams.rtp.fileno() not in ready:
            return True
        for _ in range(_MAX_DATAGRAMS_IN_A_ROW):
            chunk = datagrams.receive(datagrams.rtp)
            if chunk is None:
                return True
            yield from self._receiver.rtp(
                memoryview(chunk.data), chunk.arrived_at, chunk.unix_offset, chunk.uncertainty_s
            )
        return False

    def _until_next(self, now: float) -> float:
        """When there is something to do even if nothing comes."""
        due = min(now + TICK_S, self._packet_at + self._read_timeout_s, self._report_at, self._alive_at)
        deadline = self._receiver.deadline
        return due if deadline is None else min(due, deadline)

    def _do_what_is_due(self, now: float) -> None:
        if now >= self._report_at:
            self._report_at = now + REPORT_INTERVAL_S
            self._session.send_rtcp(self._receiver.report(now))
            self._tell_of_the_clock()
        if now >= self._alive_at:
            self._alive_at = now + self._keep_alive_s
            self._client.keep_alive()

    def _tell_of_the_clock(self) -> None:
        """Once a connection: someone will ask why there are no capture times."""
        ahead_s = self._receiver.clock_wrong_by_s
        if ahead_s is not None and not self._clock_told:
            self._clock_told = True
            log.warning(
                "camera=%s clock_ahead_s=%.0f too far from our clock: its frames have no capture time",
                self._client.stream.peer, ahead_s,
            )  # fmt: skip


def _size(track: VideoTrack) -> tuple[int, int]:
    """Width and height by the parameter sets of the SDP; (0, 0) if there are none."""
    for nal in track.parameter_sets:
        info: SequenceInfo | None = None
        if track.codec == "h264" and nal[0] & 0x1F == 7:
            info = h264_sequence(nal)
        elif track.codec == "hevc" and nal[0] >> 1 & 0x3F == 33:
            info = h265_sequence(nal)
        if info is not None:
            return info.width, info.height
    return 0, 0
