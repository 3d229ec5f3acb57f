"""From rounds to figures, and from figures to the table. Pure.

A figure is the median of the rounds, with the lowest and the highest. A ratio is taken round by round, then the median:
what slows the machine for some seconds slows both, and falls out.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from yolov9.benchmark.cells import MODES, Cell, Reference, roof_cells
from yolov9.benchmark.rounds import Result
from yolov9.benchmark.worker import Round

Results = Mapping[Cell, Result]
Operations = Callable[[Cell], float | None]
"""Of one image of a cell."""
Figures = dict[str, Any]


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not below `percent` of all (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, int(-(-len(ordered) * percent // 100)) - 1)]


def spread(values: Iterable[float]) -> Figures | None:
    """{median, low, high}; None without values."""
    known = list(values)
    return {"median": statistics.median(known), "low": min(known), "high": max(known)} if known else None


def ratio(result: Result, base: Result | None, of: Callable[[Round], float]) -> Figures | None:
    """`of` the result's rounds over those of `base` in the same rounds; None if there are none."""
    if base is None:
        return None
    return spread(of(taken) / of(base.rounds[key]) for key, taken in result.rounds.items() if key in base.rounds)


def cell_figures(
    result: Result, results: Results, reference: Reference, operations: Operations, accuracy: Mapping[str, float] | None
) -> Figures:
    """All of one cell, as plain data."""
    cell, rounds, ready = result.cell, list(result.rounds.values()), result.ready
    base = reference.of(cell)
    per_image = operations(cell)
    figures: Figures = {
        "model": cell.model, "engine": cell.engine, "precision": cell.precision, "batch": cell.batch,
        "width": cell.width, "height": cell.height, "mode": cell.mode,
        "computes_in": ready.precision if ready else None, "device": ready.device if ready else None,
        "parallel": ready.parallel if ready else None, "prepare_s": ready.prepare_s if ready else None,
        "reason": result.reason, "rounds": len(rounds), "calls": sum(len(r.milliseconds) for r in rounds),
        "ms_p50": spread(percentile(r.milliseconds, 50) for r in rounds),
        "ms_p90": spread(percentile(r.milliseconds, 90) for r in rounds),
        "images_per_s": spread(r.images_per_s for r in rounds),
        "baseline": str(base), "speed_to_baseline": ratio(result, results.get(base), _rate),
        "gflop_per_image": per_image / 1e9 if per_image else None,
        "gflops": None, "of_roof": None,
        "peak_bytes": max((r.peak_bytes for r in rounds), default=None), "gpu_bytes": result.gpu_bytes,
        "accuracy": dict(accuracy) if accuracy else None, "accuracy_reason": result.accuracy_reason,
    }  # fmt: skip
    if per_image and ready:
        figures["gflops"] = spread(r.images_per_s * per_image / 1e9 for r in rounds)
        (roof_cell,) = roof_cells([ready.precision])
        roof = results.get(roof_cell)
        if roof is not None and roof.ready is not None and roof.ready.roof_operations:
            share = ratio(result, roof, _rate)
            scale = per_image / roof.ready.roof_operations
            figures["of_roof"] = {name: value * scale for name, value in share.items()} if share else None
    return figures


def roof_figures(result: Result) -> Figures:
    """GFLOP/s of a convolution at one precision."""
    operations = result.ready.roof_operations if result.ready else None
    rates = [r.images_per_s * operations / 1e9 for r in result.rounds.values()] if operations else []
    return {"precision": result.cell.precision, "gflops": spread(rates), "reason": result.reason}


def _rate(taken: Round) -> float:
    return taken.images_per_s


# The table.


def markdown(report: Mapping[str, Any]) -> str:
    """The report of `bench` (machine, versions, command, cells, ...) as a page."""
    lines = [_machine(report["machine"]), "", _versions(report), ""]
    lines += ["```sh", report["command"], "```", ""]
    if any(cell["rounds"] for cell in report["cells"]):
        lines += [*_table(report["cells"], report), "", *_notes(report)]
    else:
        lines.append("Nothing could be measured.")
    lines += _roof(report["roof"]) if report["roof"] else []
    lines += _missing(report["cells"])
    return "\n".join(lines) + "\n"


def _machine(machine: Mapping[str, Any]) -> str:
    flags = f" ({', '.join(machine['flags'])})" if machine["flags"] else ""
    text = (
        f"Machine: {machine['cpu']}{flags}, {machine['cores']} cores, {machine['threads']} threads used, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, load before {machine['load_average_before']}"
    )
    gpus = [f"{gpu['name']}, {gpu['memory.total']}, driver {gpu['driver_version']}" for gpu in machine["gpus"]]
    return "; ".join([text, *gpus]) + "."


def _versions(report: Mapping[str, Any]) -> str:
    return f"Measured {report['date']} with " + ", ".join(f"{n} {v}" for n, v in report["versions"].items()) + ":"


def _table(cells: Sequence[Figures], report: Mapping[str, Any]) -> list[str]:
    """A row for each cell, both modes side by side. One that could not be measured has the number of its reason."""
    rows, numbers = _rows(cells), {reason: n for n, reason in enumerate(_reasons(cells), 1)}
    modes = [mode for mode in MODES if any(mode in row for row in rows)]
    columns: list[tuple[str, Callable[[dict[str, Figures]], str]]] = [
        ("model", lambda row: _any(row)["model"]),
        ("engine", lambda row: _any(row)["engine"]),
        ("precision", lambda row: _precision(_any(row))),
        ("input", lambda row: f"{_any(row)['width']}x{_any(row)['height']}"),
        ("batch", lambda row: str(_any(row)["batch"])),
    ]
    for mode in modes:
        columns += _mode_columns(mode)
    columns.append(("GFLOP/s", lambda row: _best(row, "gflops", "{:.0f}")))
    if report["roof"]:
        columns.append(("of roof", lambda row: _best(row, "of_roof", "{:.0%}")))
    columns.append(("memory, MB", lambda row: _memory(row, "peak_bytes")))
    if any(cell["gpu_bytes"] is not None for cell in cells):
        columns.append(("GPU, MB", lambda row: _memory(row, "gpu_bytes")))
    if any(cell["accuracy"] for cell in cells):
        columns += [("AP", lambda row: _accuracy(row, "map")), ("AP50", lambda row: _accuracy(row, "map50"))]
    if numbers:
        columns.append(("missing", lambda row: _footnotes(row, numbers)))
    lines = ["| " + " | ".join(title for title, _ in columns) + " |", "|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join(write(row) for _, write in columns) + " |" for row in rows]


def _mode_columns(mode: str) -> list[tuple[str, Callable[[dict[str, Figures]], str]]]:
    if mode == "latency":
        return [
            ("ms p50", lambda row: _ranged(row.get(mode), "ms_p50", "{:.1f}")),
            ("p90", lambda row: _middle(row.get(mode), "ms_p90", "{:.1f}")),
            ("images/s", lambda row: _middle(row.get(mode), "images_per_s", "{:.1f}")),
            ("x baseline", lambda row: _ranged(row.get(mode), "speed_to_baseline", "{:.2f}")),
        ]
    return [
        ("images/s, throughput", lambda row: _ranged(row.get(mode), "images_per_s", "{:.1f}")),
        ("x baseline", lambda row: _ranged(row.get(mode), "speed_to_baseline", "{:.2f}")),
    ]


def _rows(cells: Sequence[Figures]) -> list[dict[str, Figures]]:
    """Mode -> figures, for each combination of the other fields; in order."""
    rows: dict[tuple[Any, ...], dict[str, Figures]] = {}
    for cell in cells:
        key = tuple(cell[k] for k in ("model", "engine", "precision", "width", "height", "batch"))
        rows.setdefault(key, {})[cell["mode"]] = cell
    return list(rows.values())


def _any(row: Mapping[str, Figures]) -> Figures:
    return next(iter(row.values()))


def _precision(cell: Figures) -> str:
    asked, real = cell["precision"], cell["computes_in"]
    return str(asked) if real in (None, asked) else f"{real} ({asked})"


def _middle(cell: Figures | None, name: str, form: str) -> str:
    return form.format(cell[name]["median"]) if cell and cell[name] else "-"


def _ranged(cell: Figures | None, name: str, form: str) -> str:
    """`21.8 (21.5-22.4)`"""
    if not cell or not cell[name]:
        return "-"
    figure = {k: form.format(v) for k, v in cell[name].items()}
    if figure["low"] == figure["high"]:
        return figure["median"]
    return f"{figure['median']} ({figure['low']}-{figure['high']})"


def _best(row: Mapping[str, Figures], name: str, form: str) -> str:
    """Of the faster mode."""
    known = [cell[name]["median"] for cell in row.values() if cell[name]]
    return form.format(max(known)) if known else "-"


def _memory(row: Mapping[str, Figures], name: str) -> str:
    known = [cell[name] for cell in row.values() if cell[name] is not None]
    return f"{max(known) / 1e6:.0f}" if known else "-"


def _accuracy(row: Mapping[str, Figures], name: str) -> str:
    known = [cell["accuracy"][name] for cell in row.values() if cell["accuracy"]]
    return f"{100 * known[0]:.2f}" if known else "-"


def _notes(report: Mapping[str, Any]) -> list[str]:
    settings = report["settings"]
    what = "suppression included" if settings["suppress"] else "without suppression"
    lines = [
        f"{_rounds(report)}; the cells take turns. "
        f"An inference takes uint8 pictures from the host's memory and ends with predictions there, {what}. "
        f"*x baseline*: images/s over those of {settings['baseline']} (other fields as in the row), round by round.",
        "*ms*: a call with the whole batch, one at a time, on all threads. *Throughput*: as many calls at once as the "
        "engine says pay. Memory: the largest of a process of its own for each cell, libraries included.",
    ]
    if settings["data"]:
        pictures = f", the first {settings['limit']} pictures alone" if settings["limit"] else ""
        lines.append(
            f"AP: {settings['data']}, split {settings['split']}{pictures}, COCO's protocol, long side as the input's."
        )
    return lines


def _rounds(report: Mapping[str, Any]) -> str:
    """A baseline is measured in every group, so it has more; a run that was interrupted has cells with fewer."""
    counts = sorted({cell["rounds"] for cell in report["cells"] if cell["rounds"]})
    seconds = f"{report['settings']['seconds']:g} s"
    if counts == [1]:
        return f"One round of {seconds}"
    most = f" to {counts[-1]}" if len(counts) > 1 else ""
    return f"Median of {counts[0]}{most} rounds of {seconds} (lowest-highest)"


def _roof(roofs: Sequence[Figures]) -> list[str]:
    known = [f"{r['precision']} {r['gflops']['median']:.0f}" for r in roofs if r["gflops"]]
    missing = [f"{r['precision']}: {r['reason']}" for r in roofs if not r["gflops"]]
    text = f"Roof (3x3 convolutions, all threads, in the same rounds), GFLOP/s: {', '.join(known) or 'none'}."
    return [text, *missing]


def _missing(cells: Sequence[Figures]) -> list[str]:
    """The reasons that the table's column `missing` refers to."""
    reasons = _reasons(cells)
    return ["", "Missing:", "", *(f"{n}. {reason}" for n, reason in enumerate(reasons, 1))] if reasons else []


def _reasons(cells: Sequence[Figures]) -> list[str]:
    """Why cells have no figures, or not all of them: each reason once."""
    return [*dict.fromkeys(reason for cell in cells for reason in _reasons_of(cell))]


def _reasons_of(cell: Figures) -> list[str]:
    accuracy = cell["accuracy_reason"]
    return [reason for reason in (cell["reason"], accuracy and f"no AP: {accuracy}") if reason]


def _footnotes(row: Mapping[str, Figures], numbers: Mapping[str, int]) -> str:
    found = sorted({numbers[reason] for cell in row.values() for reason in _reasons_of(cell)})
    return ", ".join(map(str, found)) or "-"


def shared_accuracy(cell: Cell, results: Results) -> Mapping[str, float] | None:
    """What any cell of the same model, engine, precision and long side reached: batch and mode change nothing."""
    key = _accuracy_key(cell)
    return next((r.accuracy for c, r in results.items() if r.accuracy and _accuracy_key(c) == key), None)


def evaluated_cells(cells: Sequence[Cell]) -> list[Cell]:
    """The first cell of each model, engine, precision and long side."""
    first: dict[tuple[str, str, str, int], Cell] = {}
    for cell in cells:
        first.setdefault(_accuracy_key(cell), cell)
    return list(first.values())


def _accuracy_key(cell: Cell) -> tuple[str, str, str, int]:
    return cell.model, cell.engine, cell.precision, max(cell.width, cell.height)
