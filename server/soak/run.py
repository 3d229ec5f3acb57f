"""A long run: faults as they were planned, samples in between, and what the ledgers say at all times."""

from __future__ import annotations

import ast
import heapq
import itertools
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server.bench.processes import BenchError, Cameras, Server
from server.bench.report import balances
from server.chaos.recorder import Recorder
from server.soak.acts import Acts, End
from server.soak.sample import Sample, compared, take
from server.soak.schedule import Planned

_FIRST_RESULT_S = 60.0
_READ_EVERY_S = 1.0
_LEVEL_S = 20.0
"""A level is awaited for so long: sessions and processes that have just gone end within seconds."""
_DRAIN_S = 8.0
_SETTLE_S = 1.0
_HEALED_S = 6.0
"""Bits that were flipped may show until the next whole keyframe."""
_CLOSED = re.compile(r"stream=(\S+) closed ledger=(\{.*\})")
_BAD_LINE = re.compile(r"Traceback|CRITICAL|Task exception was never retrieved|LedgerError|supervision ended")


@dataclass(slots=True)
class Soaked:
    """What a run gave."""

    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    with_streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Counts before the first and after the last fault."""
    empty: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Counts without streams, before and after."""
    reads: int = 0
    unbalanced: int = 0
    results: int = 0
    torn: int = 0
    """Results of unreadable pictures, but for cameras whose bits were being flipped."""
    torn_when: list[str] = field(default_factory=list)
    torn_by_flips: int = 0
    errors: int = 0
    missed: int = 0
    frames: int = 0
    completed: int = 0
    unaccounted: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    """Streams without a result at the end, when all faults were over."""
    done: dict[str, int] = field(default_factory=dict)
    not_done: list[str] = field(default_factory=list)
    bad_lines: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Flips:
    """Bits of a camera's packets are being flipped."""

    stream: str
    since: float
    until: float = math.inf


class Soak:
    """One run on a server that is empty. `log`: the server's."""

    def __init__(self, server: Server, cameras: Cameras, recorder: Recorder, acts: Acts, log: Path) -> None:
        self._server, self._cameras, self._recorder, self._acts, self._log = server, cameras, recorder, acts, log
        self._soaked = Soaked()
        self._streams: set[str] = set()
        self._counted_at_start: dict[str, int] = {}
        self._began = time.monotonic()
        self._flips: list[_Flips] = []
        self._history: list[str] = []
        self._over = threading.Event()
        acts.added = self._added

    def run(self, planned: Sequence[Planned], seconds: float, sample_every_s: float) -> Soaked:
        """BenchError if the server does not come up with results, or closes the WebSocket."""
        empty = self._warm_up()
        for stream in self._acts.streams:
            self._acts.add(stream)
        self._wait_for_results(time.monotonic())
        self._acts.ask_for_pictures()  # each camera's process has a thread for them from then on
        self._began = time.monotonic()
        reader = threading.Thread(target=self._read_ledgers, name="ledgers", daemon=True)
        reader.start()
        try:
            before = self._sample()
            self._play(planned, seconds, sample_every_s)
            self._judge_end(before, empty)
        finally:
            self._over.set()
            reader.join()
        return self._soaked

    def _warm_up(self) -> Sample:
        """A stream and a model come and go: what is started at its first need is there from then on."""
        first = self._acts.streams[0]
        self._acts.add(first)
        self._wait_for_results(time.monotonic(), [first])
        self._server.ask("DELETE", f"/streams/{first}")
        self._streams.clear()
        self._acts.swap_there_and_back()
        time.sleep(_SETTLE_S)  # the process that was reaped last closes its ends
        return self._sample()

    def _play(self, planned: Sequence[Planned], seconds: float, sample_every_s: float) -> None:
        order = itertools.count()
        queue: list[tuple[float, int, Planned | End | None]] = [(p.at_s, next(order), p) for p in planned]
        queue += [(at, next(order), None) for at in _steps(sample_every_s, seconds)]
        heapq.heapify(queue)
        while queue:
            at_s, _, what = heapq.heappop(queue)
            if not self._recorder.alive:
                raise BenchError("the server closed the WebSocket")
            time.sleep(max(0.0, self._began + at_s - time.monotonic()))
            if what is None:
                self._soaked.samples.append(self._sample())
                self._take_results()
            elif isinstance(what, Planned):
                end = self._begin(what)
                if end is not None:
                    heapq.heappush(queue, (self._now() + what.lasts_s, next(order), end))
            else:
                self._end(what)
        self._soaked.seconds = self._now()

    def _begin(self, planned: Planned) -> End | None:
        if planned.camera is None:
            return self._acts.begin(planned)
        stream = self._acts.streams[planned.camera]
        self._history.append(f"{planned.fault} of {stream} at {self._now():.1f} s")
        if planned.fault == "removed":
            self._streams.discard(stream)
        flips = None
        if planned.fault == "corrupt":
            flips = _Flips(stream, time.monotonic())
            self._flips.append(flips)
        end = self._acts.begin(planned)
        if flips is None or end is None:
            return end

        def healed() -> None:
            end()
            flips.until = time.monotonic() + _HEALED_S

        return healed

    def _end(self, end: End) -> None:
        try:
            end()
        except (BenchError, OSError) as error:
            self._acts.failed.append(f"the end of a fault: {error}")

    def _judge_end(self, before: Sample, empty: Sample) -> None:
        soaked, acts = self._soaked, self._acts
        soaked.silent = self._silent()
        after = self._calm(before)
        soaked.with_streams = compared(before, after)
        self._drain()
        for stream in list(self._streams):
            self._server.ask("DELETE", f"/streams/{stream}")
        self._streams.clear()
        soaked.empty = compared(empty, self._calm(empty))
        self._closed_ledgers()
        recorder = self._recorder
        soaked.results, soaked.errors = sum(recorder.counted.values()), sum(recorder.errors.values())
        soaked.missed = sum(recorder.missed.values())
        soaked.done, soaked.not_done = acts.done, acts.failed
        lines = self._log.read_text(errors="replace").splitlines()
        soaked.bad_lines = [line.strip()[:300] for line in lines if _BAD_LINE.search(line)]

    # Looking.

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _sample(self) -> Sample:
        assert self._server.pid is not None
        return take(self._server.pid, round(self._now(), 3))

    def _calm(self, wanted: Sample) -> Sample:
        """A sample of which no count is above the wanted one's, or the last that was taken within the time for it."""
        deadline = time.monotonic() + _LEVEL_S
        while True:
            sample = self._sample()
            levels = compared(wanted, sample).values()
            if all(level["after"] <= level["before"] for level in levels) or time.monotonic() > deadline:
                return sample
            time.sleep(0.2)

    def _added(self, stream: str) -> None:
        self._counted_at_start[stream] = self._told(stream)
        self._streams.add(stream)

    def _told(self, stream: str) -> int:
        return self._recorder.counted[stream] + self._recorder.missed[stream]

    def _wait_for_results(self, since: float, streams: Sequence[str] | None = None) -> None:
        wanted = self._acts.streams if streams is None else streams
        deadline = time.monotonic() + _FIRST_RESULT_S
        while missing := [stream for stream in wanted if self._recorder.good_since(stream, since) is None]:
            if time.monotonic() > deadline:
                raise BenchError(f"no result of {', '.join(missing)} within {_FIRST_RESULT_S:g} s")
            time.sleep(0.05)

    def _silent(self) -> list[str]:
        try:
            self._wait_for_results(time.monotonic())
        except BenchError as error:
            return [str(error)]
        return []

    def _read_ledgers(self) -> None:
        while not self._over.wait(_READ_EVERY_S):
            for stream in list(self._streams):
                try:
                    ledger = self._server.json("GET", f"/streams/{stream}/ledger")
                except BenchError:
                    continue  # it has just been removed
                self._soaked.reads += 1
                self._soaked.unbalanced += not balances(ledger)

    def _take_results(self) -> None:
        """Judge what came since the last time, and keep none of it."""
        for stream, results in list(self._recorder.results.items()):
            for result in [r for r in list(results) if r.torn]:
                flipped = any(f.stream == stream and f.since <= result.at <= f.until for f in self._flips)
                self._soaked.torn_by_flips += flipped
                self._soaked.torn += not flipped
                if not flipped:
                    before = [item for item in self._history if stream in item][-2:]
                    at = result.at - self._began
                    self._soaked.torn_when.append(f"{stream} at {at:.1f} s, {result.width} wide, after {before}")
        self._recorder.forget()

    def _drain(self) -> None:
        """Cameras fall silent; then every frame is completed or dropped, and each completed one was told."""
        self._take_results()
        self._cameras.fall_silent()
        deadline = time.monotonic() + _DRAIN_S
        faults: list[str] = ["not read"]
        while faults and time.monotonic() < deadline:
            faults = [fault for stream in sorted(self._streams) if (fault := self._unaccounted(stream))]
            time.sleep(0.1)
        self._soaked.unaccounted += faults

    def _unaccounted(self, stream: str) -> str | None:
        ledger: Mapping[str, Any] = self._server.json("GET", f"/streams/{stream}/ledger")
        told = self._told(stream) - self._counted_at_start[stream]
        if ledger["in_flight"]:
            return f"{stream}: {ledger['in_flight']} frames are in flight, and its camera is silent"
        if ledger["completed"] != told:
            return f"{stream}: {ledger['completed']} frames completed, {told} told to the client"
        return None

    def _closed_ledgers(self) -> None:
        """Each stream's ledger when it went, as the log has it."""
        for stream, text in _CLOSED.findall(self._log.read_text(errors="replace")):
            ledger = ast.literal_eval(text)
            self._soaked.frames += ledger["received"]
            self._soaked.completed += ledger["completed"]
            if ledger["in_flight"] or not balances(ledger):
                self._soaked.unaccounted.append(f"{stream}: its ledger was closed as {ledger}")


def _steps(step: float, end: float) -> list[float]:
    return [round(step * number, 3) for number in range(1, int(end / step) + 1)]
