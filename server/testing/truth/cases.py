"""What is held against the truth: senders x transports x codecs x clients, B frames, losses, wrong clocks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import product
from math import inf
from pathlib import Path
from typing import Any, Literal

from server.bench.report import balances
from server.ingest.clocks import instant
from server.testing.camera import Mount
from server.testing.faults import Faults
from server.testing.synthetic import Codec
from server.testing.truth.clips import pattern_clip
from server.testing.truth.judge import TOLERANCE_S, Verdict, judge, middle
from server.testing.truth.rig import Rig
from server.testing.truth.senders import FfmpegSender, GstSender, OwnSender, Sender

FPS = 25.0
FRAMES = 150
"""Six seconds: no two frames of the same counter are near enough to each other to be taken for one another."""

GOP = 25
LOSSY_GOP = 10
"""Where packets are lost, more keyframes leave more to be judged."""

SenderName = Literal["own", "gst", "ffmpeg"]


@dataclass(frozen=True, slots=True)
class Case:
    sender: SenderName
    codec: Codec
    transport: Literal["tcp", "udp"]
    client: Literal["native", "libav"]
    b_frames: int = 0
    loss: float = 0.0
    """Share of packets that are lost. Our sender only."""
    reorder: float = 0.0
    fps: float | None = None
    """Frames a second, whatever the stream says of itself; None: what it says. Our sender only."""
    clock_offset_s: float = 0.0
    """The camera's wall clock is so far ahead. Our sender only."""

    @property
    def mount(self) -> str:
        """Cases with the same one watch the same camera."""
        extras = (
            ("b", self.b_frames), ("loss", self.loss * 100), ("reorder", self.reorder * 100), ("at", self.fps or 0),
            ("behind" if self.clock_offset_s < 0 else "ahead", abs(self.clock_offset_s)),
        )  # fmt: skip
        return "-".join([self.codec, *(f"{name}{value:g}" for name, value in extras if value)])

    @property
    def name(self) -> str:
        """Also the stream's id."""
        return f"{self.sender}-{self.mount}-{self.transport}-{self.client}"


@dataclass(slots=True)
class Outcome:
    case: Case
    verdict: Verdict
    ledger: dict[str, Any]
    sent: int
    """Frames that were sent while the stream was there."""
    faults: list[str] = field(default_factory=list)
    held_up_s: float = 0.0
    """How long the machine kept a thread of the rig waiting. Beyond `TOLERANCE_S` only the median is judged."""


def matrix() -> list[Case]:
    """The long form. With losses over UDP only: TCP has none."""
    codecs: tuple[Codec, ...] = ("h264", "hevc")
    clients: tuple[Literal["native", "libav"], ...] = ("native", "libav")
    transports: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp")
    senders: tuple[SenderName, ...] = ("own", "gst", "ffmpeg")
    cases = [Case(s, c, t, k) for s, c, t, k in product(senders, codecs, transports, clients)]
    cases += [Case(s, c, "udp", k, b_frames=2) for s, c, k in product(senders, codecs, clients)]
    cases += [
        Case("own", c, "udp", k, b_frames=b, loss=loss, reorder=0.05)
        for c, loss, b, k in product(codecs, (0.01, 0.05), (0, 2), clients)
    ]
    cases += [Case("own", "h264", "tcp", k, fps=10.0) for k in clients]
    cases += [Case("own", c, "tcp", "native", clock_offset_s=s) for c, s in product(codecs, (-7200.0, 7200.0))]
    return cases


def run(rig: Rig, cases: Sequence[Case], seconds: float) -> list[Outcome]:
    """All of them side by side, for so long after each has its first result. BenchError if one gets none."""
    with ExitStack() as stack:
        senders = {name: stack.enter_context(sender) for name, sender in _senders(cases)}
        begun, rig.held_up_s = time.monotonic(), 0.0
        for case in cases:
            url = senders[case.sender].url(case.mount)
            rig.add(case.name, url, transport=case.transport, rtsp_client=case.client)
        names = [case.name for case in cases]
        rig.wait_for(names)
        time.sleep(seconds)
        ledgers = {name: rig.ledger(name) for name in names}
        for name in names:
            rig.remove(name)
        offset = instant().offset
        return [_outcome(case, senders[case.sender], rig, ledgers[case.name], begun, offset) for case in cases]


def _outcome(case: Case, sender: Sender, rig: Rig, ledger: dict[str, Any], begun: float, offset: float) -> Outcome:
    sent = [frame for frame in sender.sent(case.mount) if frame.sent_at >= begun]
    verdict = judge(rig.received.get(case.name, []), sent, offset, exact=case.client == "native")
    # After a loss over UDP libavformat keeps packets in a queue of its own, for an unknown time: nothing is promised.
    unknown = (case.client == "libav" and case.loss) or rig.held_up_s > TOLERANCE_S
    faults = verdict.faults(inf if unknown else TOLERANCE_S)
    outcome = Outcome(case, verdict, ledger, len(sent), faults, rig.held_up_s)
    if abs(middle(verdict.latency_errors) or 0.0) > TOLERANCE_S:
        outcome.faults.append("the median of the latencies is wrong")
    if not balances(ledger):
        outcome.faults.append("the ledger does not balance")
    return outcome


def _senders(cases: Sequence[Case]) -> Iterator[tuple[SenderName, Any]]:
    kinds = {case.sender for case in cases}
    if "own" in kinds:
        yield "own", OwnSender({case.mount: _mount(case) for case in cases if case.sender == "own"})
    for name, kind in (("gst", GstSender), ("ffmpeg", FfmpegSender)):
        if name in kinds:
            yield name, kind({case.mount: _clip(case) for case in cases if case.sender == name})


def _clip(case: Case) -> Path:
    gop = LOSSY_GOP if case.loss else GOP
    return pattern_clip(frames=FRAMES, fps=FPS, codec=case.codec, b_frames=case.b_frames, gop=gop)


def _mount(case: Case) -> Mount:
    faults = Faults(loss=case.loss, reorder=case.reorder)
    return Mount(_clip(case), fps=case.fps, clock_offset_s=case.clock_offset_s, faults=faults)
