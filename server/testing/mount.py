"""One path of a camera: what it plays, and the live sender that plays it to all of its clients.

The sender lives on the camera's event loop. Like a camera it has a clock that runs whether anyone watches or not, cuts
each frame into packets once for all clients, and sends the packets of a frame back to back.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from server.testing.clip import CLOCK_HZ, Clip, load_clip
from server.testing.faults import Faults
from server.testing.rtp import Track, interleave
from server.testing.timeline import Scheduled, Timeline

SENT_LOG_FRAMES = 20_000
"""Eight cameras' minutes of a test, and no more memory than a clip."""
_HICCUP_S = 1.0
"""A sender that is so late (a busy machine) gives the lost time up instead of sending a burst of old frames."""
_UDP_BURST_PACKETS = 48
_UDP_PACKET_S = 1400 * 8 / 100e6
"""A camera on 100 Mbit/s Ethernet. Loopback would deliver a big keyframe at once, into a socket buffer that holds some
90 packets (212 kB by default, counted with overhead): losses that no network makes."""

Transport = Literal["tcp", "udp"]


@dataclass(slots=True)
class Mount:
    """What a path plays. `faults` may be changed at any time; the rest is read when the camera starts."""

    clip: str | os.PathLike[str]
    fps: float | None = None
    """Frames a second; None: the clip's own times."""
    phase_s: float = 0.0
    """The clip starts so far inside, so that cameras with the same clip do not send their keyframes at once."""
    start_at_keyframe: bool = False
    """A client's first packet is that of a keyframe; else it joins at the live point, as with most cameras."""
    transports: tuple[Transport, ...] = ("tcp", "udp")
    """SETUP of any other is answered with 461."""
    sdp_parameter_sets: bool = True
    """Give SPS and PPS in SDP too; they are in the stream in any case."""
    audio: bool = False
    """Name an audio track before the video in SDP. It can be set up and stays silent."""
    sender_report_interval_s: float | None = 5.0
    """None: no sender reports, so the time of capture stays unknown."""
    clock_offset_s: float = 0.0
    """The camera's wall clock is so far ahead."""
    first_sequence: int | None = None
    """RTP sequence number of the first packet; None: by chance, as RFC 3550 wants it."""
    first_timestamp: int | None = None
    faults: Faults = field(default_factory=Faults)


@dataclass(frozen=True, slots=True)
class SentFrame:
    """The truth about one frame, to hold a server's statement against."""

    rtp_timestamp: int
    index: int
    """Of the frame within its clip, decoding order."""
    began_at: float
    """CLOCK_MONOTONIC seconds, before its first packet was given to the kernel."""
    sent_at: float
    """CLOCK_MONOTONIC seconds, taken when its last packet had been given to the kernel for the last client."""
    captured_unix: float
    """By the camera's clock: what its sender reports make of `rtp_timestamp`."""
    keyframe: bool
    packets: int
    harmed: int
    """Packets of it that were lost or corrupted on purpose."""


class Client(Protocol):
    """A session that plays the mount."""

    transport: Transport
    channel: int
    """First interleaved channel (TCP)."""

    def send_tcp(self, data: bytes) -> None: ...
    def send_udp(self, packets: Sequence[bytes]) -> None: ...
    def send_rtcp(self, packet: bytes) -> None: ...


class LiveMount:
    """Plays a `Mount`. All methods are called on the event loop."""

    def __init__(self, path: str, mount: Mount, rng: random.Random) -> None:
        self.path = path
        self.mount = mount
        self.sent: deque[SentFrame] = deque(maxlen=SENT_LOG_FRAMES)
        self.clients: dict[Client, bool] = {}
        """Each with whether it has joined: false while it waits for a keyframe."""
        self.frames_sent = 0
        self._rng = rng
        self._track = Track(
            ssrc=rng.getrandbits(32),
            sequence=rng.getrandbits(16) if mount.first_sequence is None else mount.first_sequence,
            timestamp=rng.getrandbits(32) if mount.first_timestamp is None else mount.first_timestamp,
        )
        self._timeline = Timeline(load_clip(mount.clip), mount.fps, mount.phase_s)
        self._jumped = 0
        self._withhold_left = 0
        self._wanted = asyncio.Event()
        self._started_at = time.monotonic()
        self._unix_offset = time.time() - self._started_at
        self._report_due = 0.0

    @property
    def clip(self) -> Clip:
        return self._timeline.clip

    def next_packet(self) -> tuple[int, int]:
        """(sequence number, RTP timestamp) of the next packet, for RTP-Info."""
        if not self.clients:
            self._timeline.skip_to(self._ticks(time.monotonic()))
        return self._track.sequence, self._track.timestamp(self._timeline.peek().pts + self._jumped)

    def join(self, client: Client) -> None:
        self.clients[client] = not self.mount.start_at_keyframe
        self._withhold_left = self.mount.faults.withhold_sets
        self._report_due = 0.0
        self._wanted.set()

    def leave(self, client: Client) -> None:
        self.clients.pop(client, None)
        if not self.clients:
            self._wanted.clear()

    def switch(self, clip: Clip, fps: float | None) -> None:
        """Go on with another clip (a new resolution, another codec), without a word to the clients."""
        self._timeline.switch(clip, fps)
        self._report_due = 0.0

    def jump(self, seconds: float) -> None:
        """RTP timestamps make a jump; the time of capture does not."""
        self._jumped += round(seconds * CLOCK_HZ)
        self._report_due = 0.0

    def bye(self) -> None:
        """Say goodbye to all clients and send them nothing more. Their connections stay open."""
        now = time.monotonic()
        packet = self._track.bye(self._wall_clock(now), self._report_ticks(now))
        for client in list(self.clients):
            client.send_rtcp(packet)
            self.leave(client)

    async def run(self) -> None:
        """Play until cancelled."""
        while True:
            if not self.clients:
                await self._wanted.wait()
                self._timeline.skip_to(self._ticks(time.monotonic()))
            scheduled = self._timeline.peek()
            due = self._started_at + scheduled.dts / CLOCK_HZ
            if scheduled.frame.keyframe:
                due += self.mount.faults.keyframe_pause_s
            delay = due - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            elif delay < -_HICCUP_S:
                self._started_at -= delay
            if self._timeline.peek() != scheduled:
                continue  # the clip was switched meanwhile
            self._timeline.advance()
            if not self.clients:
                continue
            if self.mount.faults.stalled:
                # Lost on the way. Frames that are left out without a gap in the numbers are what no camera sends.
                self._track.packets(scheduled.frame.payloads, scheduled.pts + self._jumped)
                continue
            self._report()
            await self._send(scheduled)

    async def _send(self, scheduled: Scheduled) -> None:
        faults = self.mount.faults
        frame = scheduled.frame
        payloads = frame.payloads
        if frame.keyframe:
            for client in self.clients:
                self.clients[client] = True
            if self._withhold_left > 0:
                self._withhold_left -= 1
                payloads = frame.without_sets
        ticks = scheduled.pts + self._jumped
        packets: Sequence[bytes] = self._track.packets(payloads, ticks)
        harmed = 0
        if faults.harms_packets():
            packets, harmed = faults.damage(packets, self._rng)
        joined = [client for client, has_joined in self.clients.items() if has_joined]
        began_at = time.monotonic()
        self._send_tcp([client for client in joined if client.transport == "tcp"], packets)
        await self._send_udp([client for client in joined if client.transport == "udp"], packets)
        self.frames_sent += bool(joined)
        self.sent.append(
            SentFrame(
                rtp_timestamp=self._track.timestamp(ticks),
                index=scheduled.index,
                began_at=began_at,
                sent_at=time.monotonic(),
                captured_unix=self._wall_clock(self._captured_at(scheduled.pts)),
                keyframe=frame.keyframe,
                packets=len(payloads),
                harmed=harmed,
            )
        )

    @staticmethod
    def _send_tcp(clients: Sequence[Client], packets: Sequence[bytes]) -> None:
        framed: dict[int, bytes] = {}
        for client in clients:
            if client.channel not in framed:
                framed[client.channel] = interleave(client.channel, packets)
            client.send_tcp(framed[client.channel])

    async def _send_udp(self, clients: Sequence[Client], packets: Sequence[bytes]) -> None:
        if not clients:
            return
        if self.mount.faults.reorder:
            packets = self.mount.faults.shuffled(packets, self._rng)
        for start in range(0, len(packets), _UDP_BURST_PACKETS):
            burst = packets[start : start + _UDP_BURST_PACKETS]
            if start:
                await asyncio.sleep(len(burst) * _UDP_PACKET_S)
            for client in clients:
                client.send_udp(burst)

    def _report(self) -> None:
        interval = self.mount.sender_report_interval_s
        now = time.monotonic()
        if interval is None or now < self._report_due:
            return
        self._report_due = now + interval
        packet = self._track.sender_report(self._wall_clock(now), self._report_ticks(now))
        for client in self.clients:
            client.send_rtcp(packet)

    def _ticks(self, monotonic: float) -> int:
        return round((monotonic - self._started_at) * CLOCK_HZ)

    def _report_ticks(self, monotonic: float) -> int:
        """The timestamp that a frame captured at this instant would have."""
        return self._ticks(monotonic) + self._timeline.delay + self._jumped

    def _captured_at(self, pts: int) -> float:
        """A frame is captured before it is sent: by as much as its clip's B-frames need to be put in order."""
        return self._started_at + (pts - self._timeline.delay) / CLOCK_HZ

    def _wall_clock(self, monotonic: float) -> float:
        return monotonic + self._unix_offset + self.mount.clock_offset_s
