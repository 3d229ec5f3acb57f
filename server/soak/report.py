"""A run's verdict, as data, for terminals and for a page. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from server.soak.run import Soaked
from server.soak.sample import KINDS, SERIES
from server.soak.trend import Trend, trend

_SHOWN = 10
"""Single torn results in the table; all of them are in the JSON."""


def summarise(soaked: Soaked) -> dict[str, Any]:
    """Everything that was measured, and `faults`: what is not as it should be, empty if all is well."""
    times = [sample.at for sample in soaked.samples]
    trends = {
        name: trend(times, [sample.series()[name] for sample in soaked.samples], KINDS.get(name, "count"))  # type: ignore[arg-type]
        for name in SERIES
    }
    return {
        "seconds": round(soaked.seconds, 1),
        "faults_done": soaked.done,
        "faults_not_done": soaked.not_done,
        "frames": soaked.frames, "completed": soaked.completed, "results": soaked.results,
        "reads": soaked.reads, "unbalanced": soaked.unbalanced, "unaccounted": soaked.unaccounted,
        "torn": soaked.torn, "torn_when": soaked.torn_when,
        "torn_by_flips": soaked.torn_by_flips, "errors": soaked.errors, "missed": soaked.missed,
        "with_streams": soaked.with_streams, "empty": soaked.empty,
        "trends": {name: dataclasses.asdict(item) | {"share": item.share} for name, item in trends.items()},
        "samples": [dataclasses.asdict(sample) for sample in soaked.samples],
        "faults": faults(soaked, trends),
    }  # fmt: skip


def faults(soaked: Soaked, trends: Mapping[str, Trend]) -> list[str]:
    """One sentence each."""
    found = [f"{name} grows by {_amount(name, item)}" for name, item in trends.items() if item.verdict == "grows"]
    for what, levels in (("with the streams", soaked.with_streams), ("without streams", soaked.empty)):
        for name, level in levels.items():
            if level["after"] > level["before"]:
                found.append(f"{name} {what}: {level['before']} before, {level['after']} after")
    if soaked.unbalanced:
        found.append(f"{soaked.unbalanced} of {soaked.reads} reads of ledgers do not balance")
    found += [f"unaccounted for: {what}" for what in soaked.unaccounted]
    if soaked.torn:
        found.append(f"{soaked.torn} results are of torn pictures")
    if soaked.errors:
        found.append(f"{soaked.errors} results of status error")
    found += soaked.silent
    found += [f"the server's log: {line}" for line in soaked.bad_lines]
    return found


def table(report: Mapping[str, Any]) -> str:
    """For a terminal."""
    figures = report["figures"]
    done = figures["faults_done"]
    lines = [
        f"{figures['seconds'] / 60:.1f} minutes, {report['cameras']} cameras, {sum(done.values())} faults, "
        f"seed {report['seed']}",
        "  " + ", ".join(f"{name} {count}" for name, count in sorted(done.items())),
        f"  {figures['frames']} frames received, {figures['completed']} completed, {figures['results']} results, "
        f"{figures['torn']} torn ({figures['torn_by_flips']} more while bits were flipped), {figures['errors']} errors",
        f"  {figures['unbalanced']} of {figures['reads']} reads of ledgers unbalanced",
        "",
        f"  {'second half':<16}{'level':>12}{'growth':>12}  verdict",
    ]
    for name, item in figures["trends"].items():
        level, growth = (
            f"{item[key] / 2**20:.2f} MB" if name in KINDS else f"{item[key]:g}" for key in ("level", "growth")
        )
        lines.append(f"  {name:<16}{level:>12}{growth:>12}  {item['verdict']} ({item['share']:+.2%})")
    for what, levels in (("with streams", figures["with_streams"]), ("empty", figures["empty"])):
        counts = ", ".join(f"{name} {level['before']} -> {level['after']}" for name, level in levels.items())
        lines.append(f"  {what}: {counts}")
    lines += [f"torn: {when}" for when in figures["torn_when"][:_SHOWN]]
    lines += [f"not done: {what}" for what in figures["faults_not_done"]]
    lines += [f"FAILED: {fault}" for fault in figures["faults"]] or ["all is well"]
    return "\n".join(lines)


def markdown(report: Mapping[str, Any]) -> str:
    """A section for docs/benchmarks.md."""
    figures, what = report["figures"], report["machine"]
    done = figures["faults_done"]
    out = [
        "## Soak\n",
        f"`{report['command']}` on {what['cpu']}, {what['cores']} cores: {figures['seconds'] / 60:.0f} minutes, "
        f"{report['cameras']} cameras at {report['fps']:g} fps, {sum(done.values())} faults "
        f"({', '.join(f'{name} {count}' for name, count in sorted(done.items()))}).\n",
        f"{figures['frames']} frames received, {figures['completed']} completed; {figures['unbalanced']} of "
        f"{figures['reads']} reads of ledgers unbalanced; {len(figures['unaccounted'])} streams with frames "
        f"unaccounted for; {figures['torn']} results of torn pictures; {figures['errors']} errors.\n",
        "| second half | level | growth (Theil-Sen) | |",
        "|---|---|---|---|",
    ]
    for name, item in figures["trends"].items():
        level, growth = (
            f"{item[key] / 2**20:.1f} MB" if name in KINDS else f"{item[key]:g}" for key in ("level", "growth")
        )
        out.append(f"| {name.replace('_', ' ')} | {level} | {growth} ({item['share']:+.2%}) | {item['verdict']} |")
    out.append("\n| before and after | " + " | ".join(figures["empty"]) + " |")
    out.append("|---" * (len(figures["empty"]) + 1) + "|")
    for name, levels in (("with streams", figures["with_streams"]), ("without streams", figures["empty"])):
        out.append(f"| {name} | " + " | ".join(f"{lv['before']} / {lv['after']}" for lv in levels.values()) + " |")
    out += [f"\n**Not as it should be**: {fault}" for fault in figures["faults"]]
    return "\n".join(out) + "\n"


def _amount(name: str, item: Trend) -> str:
    if name in KINDS:
        return f"{item.growth / 2**20:.2f} MB ({item.share:+.2%}) in the second half"
    return f"{item.growth:.2f} in the second half"
