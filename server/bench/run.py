"""One measurement of a running server: add the streams, wait, watch for a while, let all end, read the ledgers."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.bench.processes import BenchError, Cameras, Server
from server.bench.procfs import Usage, pss_bytes, snapshot
from server.bench.report import Ledger, Measured, balances
from server.bench.watcher import Watcher

_FIRST_RESULT_S = 30.0
_DRAIN_S = 3.0
"""Well below the server's read time-out, after which it would count the silent cameras as stalled."""
_SETTLED_S = 0.5
_READ_EVERY_S = 0.25
"""Ledgers and processes are looked at so often: some milliseconds of the server's CPU each second with many streams."""
_FILE_STREAM = "file"


@dataclass(frozen=True, slots=True)
class Plan:
    cameras: Cameras | None
    transport: str
    every_frame: Path | None
    """A file to be detected frame by frame, as fast as it goes, in a loop."""
    warm_up_s: float
    """From the last stream's first result to the begin of the window."""
    seconds: float


def run(server: Server, plan: Plan) -> Measured:
    """Carry the plan out. The streams are removed at the end, whatever happens. BenchError."""
    definitions = _definitions(plan)
    added: dict[str, float] = {}
    with Watcher(server) as watcher:
        try:
            for definition in definitions:
                added[definition["id"]] = time.monotonic()
                server.ask("POST", "/streams", definition)
            _wait_for_first_results(server, watcher, list(added))
            time.sleep(plan.warm_up_s)
            measured = _window(server, watcher, plan, list(added))
            measured.first_result_s = [watcher.first_at[stream] - begin for stream, begin in added.items()]
            _drain(server, plan, measured)
        finally:
            for stream in added:
                _remove(server, stream)
    return measured


def _definitions(plan: Plan) -> list[dict[str, Any]]:
    urls = plan.cameras.urls if plan.cameras is not None else {}
    definitions: list[dict[str, Any]] = [
        {"id": stream, "url": url, "transport": plan.transport} for stream, url in urls.items()
    ]
    if plan.every_frame is not None:
        path = str(plan.every_frame.resolve())
        definitions.append({"id": _FILE_STREAM, "url": path, "every_frame": True, "loop": True})
    return definitions


def _wait_for_first_results(server: Server, watcher: Watcher, streams: list[str]) -> None:
    deadline = time.monotonic() + _FIRST_RESULT_S
    while missing := [stream for stream in streams if stream not in watcher.first_at]:
        if not watcher.alive:
            raise BenchError("the server closed the WebSocket")
        if time.monotonic() > deadline:
            status = server.json("GET", f"/streams/{missing[0]}")["status"]
            raise BenchError(f"no result of {', '.join(missing)} within {_FIRST_RESULT_S:g} s; {missing[0]}: {status}")
        time.sleep(0.02)


def _window(server: Server, watcher: Watcher, plan: Plan, streams: list[str]) -> Measured:
    usage = Usage(server.pid) if server.pid is not None else None
    reads = unbalanced = 0

    def look() -> dict[str, Ledger]:
        nonlocal reads, unbalanced
        ledgers = _ledgers(server, streams)
        reads += len(ledgers)
        unbalanced += sum(not balances(ledger) for ledger in ledgers.values())
        if usage is not None:
            usage.sample(snapshot())
        return ledgers

    watcher.begin()
    begin = time.monotonic()
    first = look()
    while (left := begin + plan.seconds - time.monotonic()) > 0:
        time.sleep(min(_READ_EVERY_S, left))
        last = look()
        if not watcher.alive:
            raise BenchError("the server closed the WebSocket")
        if sys.stderr.isatty():
            print(f"\r{max(0.0, left):4.0f} s left \r", end="", file=sys.stderr, flush=True)
    window = time.monotonic() - begin
    watcher.end()
    measured = Measured(
        window, first, last, last, reads, unbalanced, list(watcher.latencies), dict(watcher.results), watcher.errors,
        watcher.gaps,
    )  # fmt: skip
    if usage is not None:
        measured.cpu_s, measured.rss = usage.cpu_s(), usage.rss()
        measured.rss_first, measured.rss_peak = usage.rss_first, usage.rss_peak
        measured.pss = pss_bytes(usage.pids)
    begin = time.perf_counter()
    server.ask("GET", "/metrics")
    measured.scrape_ms = (time.perf_counter() - begin) * 1e3
    return measured


def _drain(server: Server, plan: Plan, measured: Measured) -> None:
    """The cameras fall silent and what is under way ends; then what was sent and what was received can be compared.

    Frames that a decoder holds to put B-frames in order stay in flight: it is over once nothing changes any more."""
    if plan.cameras is not None:
        measured.frames_sent = plan.cameras.fall_silent()
    deadline = time.monotonic() + _DRAIN_S
    streams = list(measured.last)
    before: dict[str, Ledger] = {}
    while (now := _ledgers(server, streams)) != before and time.monotonic() < deadline:
        before = now
        measured.ledger_reads += len(now)
        measured.unbalanced_reads += sum(not balances(ledger) for ledger in now.values())
        if plan.cameras is None:
            break  # a file goes on for ever: one reading is as good as another
        time.sleep(_SETTLED_S)
    measured.final = now


def _ledgers(server: Server, streams: list[str]) -> dict[str, Ledger]:
    return {stream: server.json("GET", f"/streams/{stream}/ledger") for stream in streams}


def _remove(server: Server, stream: str) -> None:
    try:
        server.ask("DELETE", f"/streams/{stream}")
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)  # the run's own result or error counts
