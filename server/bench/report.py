"""From what was measured to figures, and from figures to a table for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

STAGES = ("decode", "queue", "inference", "postprocess", "total")
PERCENTILES = (50, 95, 99)

Ledger = Mapping[str, Any]
"""As `GET /streams/{id}/ledger` gives it."""


def balances(ledger: Ledger) -> bool:
    """received = completed + in_flight + the sum of dropped"""
    dropped = sum(count for reasons in ledger["dropped"].values() for count in reasons.values())
    return bool(ledger["received"] == ledger["completed"] + ledger["in_flight"] + dropped)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that is not below `percent` of all (nearest rank); None without values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


@dataclass(slots=True)
class Measured:
    """One run. Counts are those of the window, between the first and the last reading of the ledgers in it."""

    window_s: float
    first: dict[str, Ledger]
    """stream -> ledger at the window's begin"""
    last: dict[str, Ledger]
    final: dict[str, Ledger]
    """After the cameras have fallen silent and what was under way has ended."""
    ledger_reads: int = 0
    unbalanced_reads: int = 0
    latencies: list[dict[str, float]] = field(default_factory=list)
    """`latency_ms` of each result in the window, in order of arrival."""
    results: dict[str, int] = field(default_factory=dict)
    """stream -> results that came over WebSocket in the window"""
    errors: int = 0
    """Results with status error."""
    gaps: int = 0
    """Messages that the WebSocket client missed."""
    first_result_s: list[float] = field(default_factory=list)
    """From `POST /streams` to the stream's first result, for each stream."""
    frames_sent: dict[str, int] | None = None
    """stream -> frames that its camera sent from first to last; None without cameras of ours."""
    cpu_s: dict[str, float] | None = None
    """role -> CPU seconds in the window; None if the server's process is not known."""
    rss: dict[str, list[int]] = field(default_factory=dict)
    rss_first: int = 0
    rss_peak: int = 0
    pss: int | None = None
    scrape_ms: float = 0.0


def summarise(measured: Measured, engine: Mapping[str, Any], video: Mapping[str, Any]) -> dict[str, Any]:
    """All figures as plain data. `engine` and `video`: what `baseline` measured (EngineAlone, VideoAlone)."""
    completed = {name: _change(measured, name, "completed") for name in measured.last}
    detected = sum(completed.values())
    received = sum(_change(measured, name, "received") for name in measured.last)
    rates = sorted(count / measured.window_s for count in completed.values())
    figures: dict[str, Any] = {
        "window_s": measured.window_s,
        "streams": len(measured.last),
        "received_per_s": received / measured.window_s,
        "detected_per_s": detected / measured.window_s,
        "detected_per_s_by_stream": {"min": rates[0], "max": rates[-1]} if rates else {},
        "of_engine_alone": detected / measured.window_s / engine["images_per_s"],
        "results_over_websocket": sum(measured.results.values()),
        "errors": measured.errors,
        "websocket_missed": measured.gaps,
        "dropped": _dropped(measured),
        "latency_ms": latency_figures(measured.latencies),
        "first_result_s": _spread(measured.first_result_s),
        "ledger": _ledger_figures(measured),
        "scrape_ms": measured.scrape_ms,
    }
    if measured.cpu_s is not None:
        figures["cpu"] = cpu_figures(measured.cpu_s, measured.window_s, detected, received, engine, video)
        figures["memory_bytes"] = {
            "rss_sum": sum(size for sizes in measured.rss.values() for size in sizes),
            "rss_sum_at_begin": measured.rss_first,
            "rss_sum_peak": measured.rss_peak,
            "pss_sum": measured.pss,
            "by_role": {
                role: {"processes": len(sizes), "sum": sum(sizes), "max": max(sizes)}
                for role, sizes in measured.rss.items()
            },
        }
    return figures


def latency_figures(latencies: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Percentiles by stage in ms, the median of total - inference, and p99 of both halves of the run (drift)."""
    figures: dict[str, Any] = {
        stage: {f"p{percent}": percentile([item[stage] for item in latencies], percent) for percent in PERCENTILES}
        for stage in STAGES
    }
    figures["total_minus_inference_p50"] = percentile([item["total"] - item["inference"] for item in latencies], 50)
    totals = [item["total"] for item in latencies]
    middle = len(totals) // 2
    figures["total_p99_by_half"] = [percentile(totals[:middle], 99), percentile(totals[middle:], 99)]
    return figures


def cpu_figures(
    used: Mapping[str, float],
    window_s: float,
    detected: int,
    received: int,
    engine: Mapping[str, Any],
    video: Mapping[str, Any],
) -> dict[str, Any]:
    """CPU seconds for each detected frame, and against the parts alone.

    `ratio_to_parts` is the cost of a detected frame over (engine + decode and scaling) alone. Under overload frames are
    decoded that nobody detects: `ratio_to_work` counts decode and scaling alone for all received frames.
    """
    total = sum(used.values())
    parts = engine["cpu_s_per_image"] + video["cpu_s_per_frame"]
    work = detected * engine["cpu_s_per_image"] + received * video["cpu_s_per_frame"]
    return {
        "cores_used": total / window_s,
        "s_per_detected_frame": total / detected if detected else None,
        "s_per_detected_frame_by_role": {role: value / detected for role, value in used.items()} if detected else {},
        "parts_alone_s": parts,
        "ratio_to_parts": total / detected / parts if detected else None,
        "ratio_to_work": total / work if work else None,
    }


def _change(measured: Measured, stream: str, name: str) -> int:
    return int(measured.last[stream][name] - measured.first[stream][name])


def _dropped(measured: Measured) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for stream, ledger in measured.last.items():
        before = measured.first[stream]["dropped"]
        for stage, reasons in ledger["dropped"].items():
            for reason, count in reasons.items():
                change = count - before.get(stage, {}).get(reason, 0)
                if change:
                    counts = total.setdefault(stage, {})
                    counts[reason] = counts.get(reason, 0) + change
    return total


def _ledger_figures(measured: Measured) -> dict[str, Any]:
    final = measured.final.values()
    figures = {
        "reads": measured.ledger_reads,
        "unbalanced_reads": measured.unbalanced_reads,
        "received": sum(ledger["received"] for ledger in final),
        "completed": sum(ledger["completed"] for ledger in final),
        "dropped": sum(n for ledger in final for reasons in ledger["dropped"].values() for n in reasons.values()),
        "in_flight": sum(ledger["in_flight"] for ledger in final),
    }
    if measured.frames_sent is not None:
        figures["sent_by_cameras"] = sum(measured.frames_sent.values())
    return figures


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"p50": percentile(values, 50), "max": max(values, default=None)}


def mean(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Rates and costs of a part alone, averaged over two measurements; everything else as in the first."""
    return {name: (value + after[name]) / 2 if isinstance(value, float) else value for name, value in before.items()}


# The table.


def table(report: Mapping[str, Any]) -> str:
    """The report of `cli` (command, machine, baselines, figures) for a terminal."""
    figures, engine, video = report["figures"], report["engine_alone"], report["video_alone"]
    lines = [f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {_versions(report)}"]
    lines += [_clip_line(report["clip"]), ""]
    lines += ["alone, before the server"]
    lines += _alone_rows(engine, video)
    if report.get("engine_alone_after"):
        lines.append("alone, after the server")
        lines += _alone_rows(report["engine_alone_after"], report["video_alone_after"])
    lines += ["", f"server, {figures['streams']} streams, {figures['window_s']:.1f} s"]
    lines += _rows(_server_rows(figures))
    lines += ["", f"  {'latency, ms':<16}" + "".join(f"{f'p{percent}':>9}" for percent in PERCENTILES)]
    for stage in STAGES:
        cells = (figures["latency_ms"][stage][f"p{percent}"] for percent in PERCENTILES)
        lines.append(f"  {stage:<16}" + "".join(f"{_number(cell):>9}" for cell in cells))
    lines.append(f"  {'total-inference':<16}{_number(figures['latency_ms']['total_minus_inference_p50']):>9}")
    halves = " -> ".join(_number(value) for value in figures["latency_ms"]["total_p99_by_half"])
    lines.append(f"  total p99, first half -> second half: {halves}")
    if "cpu" in figures:
        lines += ["", *_rows(_cost_rows(figures))]
    return "\n".join(lines)


def _clip_line(clip: Mapping[str, Any]) -> str:
    text = f"{clip['name']}: {clip['codec']} {clip['width']}x{clip['height']}, {clip['fps']:g} fps"
    if clip["reorder_ms"]:
        text += f"; its B-frames make any decoder hold frames back, up to {clip['reorder_ms']:.0f} ms of `decode`"
    return text


def _versions(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in report["versions"].items())


def _alone_rows(engine: Mapping[str, Any], video: Mapping[str, Any]) -> list[str]:
    height, width = engine["shape"]
    return _rows(
        [
            (
                "engine",
                f"{engine['images_per_s']:.1f} images/s, {engine['cpu_s_per_image'] * 1e3:.2f} ms of CPU each "
                f"({engine['engine']} {engine['precision']}, {width}x{height}, batch {engine['batch']}, "
                f"{engine['parallel']} at once)",
            ),
            (
                "decode + letterbox",
                f"{video['frames_per_s']:.1f} frames/s, {video['cpu_s_per_frame'] * 1e3:.2f} ms of CPU each "
                f"({video['codec']} {video['width']}x{video['height']}, one thread)",
            ),
        ]
    )


def _server_rows(figures: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    by_stream = figures["detected_per_s_by_stream"]
    share = f"; by stream {by_stream['min']:.2f} to {by_stream['max']:.2f}" if by_stream else ""
    yield "received", f"{figures['received_per_s']:.1f} frames/s"
    yield "detected", f"{figures['detected_per_s']:.1f} frames/s{share}"
    yield "of engine alone", f"{figures['of_engine_alone']:.3f}"
    drops = [f"{stage}/{reason} {n}" for stage, reasons in figures["dropped"].items() for reason, n in reasons.items()]
    yield "dropped", ", ".join(drops) or "none"
    yield (
        "results",
        (
            f"{figures['results_over_websocket']} over WebSocket, {figures['websocket_missed']} missed, "
            f"{figures['errors']} errors"
        ),
    )
    first = figures["first_result_s"]
    yield "first result", f"{_number(first['p50'], 2)} s after POST (p50), {_number(first['max'], 2)} s (max)"
    ledger = figures["ledger"]
    sent = f"{ledger['sent_by_cameras']} sent by the cameras; " if "sent_by_cameras" in ledger else ""
    yield (
        "ledger",
        (
            f"{sent}{ledger['received']} received = {ledger['completed']} completed + {ledger['dropped']} dropped "
            f"+ {ledger['in_flight']} in flight; {ledger['unbalanced_reads']} of {ledger['reads']} reads unbalanced"
        ),
    )
    yield "scrape", f"{figures['scrape_ms']:.1f} ms"


def _cost_rows(figures: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    cpu, memory = figures["cpu"], figures["memory_bytes"]
    by_role = ", ".join(f"{role} {value * 1e3:.2f}" for role, value in cpu["s_per_detected_frame_by_role"].items())
    spent = cpu["s_per_detected_frame"]
    yield "CPU", f"{_number(None if spent is None else spent * 1e3, 2)} ms a detected frame ({by_role})"
    yield (
        "",
        (
            f"{_number(cpu['ratio_to_parts'], 3)} x parts alone ({cpu['parts_alone_s'] * 1e3:.2f} ms), "
            f"{_number(cpu['ratio_to_work'], 3)} x with all received decoded; {cpu['cores_used']:.2f} cores in use"
        ),
    )
    sizes = ", ".join(
        f"{role} {item['processes']} x {item['max'] >> 20} MB" for role, item in memory["by_role"].items()
    )
    pss = "" if memory["pss_sum"] is None else f", {memory['pss_sum'] >> 20} MB with shared pages once"
    yield "memory", f"{memory['rss_sum'] >> 20} MB RSS{pss} ({sizes})"
    yield "", f"{memory['rss_sum_at_begin'] >> 20} MB at the window's begin, {memory['rss_sum_peak'] >> 20} MB at most"


def _rows(rows: Iterable[tuple[str, str]]) -> list[str]:
    return [f"  {name:<20}{text}" for name, text in rows]


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
