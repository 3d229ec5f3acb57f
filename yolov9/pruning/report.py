"""What pruning did, as JSON and as text."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from yolov9.nn.cost import gflops, parameters
from yolov9.nn.model import Detector
from yolov9.nn.widths import table
from yolov9.pruning.pruner import Pruned
from yolov9.pruning.spaces import label


def served_cost(model: Detector, input_size: int) -> dict[str, float]:
    """Parameters and GFLOPs of what will be served: without the auxiliary branch, fused."""
    served = copy.deepcopy(model).float().eval().prune_auxiliary().fuse()
    return {"parameters": parameters(served), "gflops": round(gflops(served, input_size, input_size), 3)}


def layers(whole: Detector, pruned: Detector) -> list[dict[str, Any]]:
    """Every convolution of the network, in order: its name in the architecture's words, its [inputs, outputs]."""
    before, after = table(whole)["convolutions"], table(pruned)["convolutions"]
    return [
        {"name": label(whole, key), "key": key, "before": before[key], "after": after[key]}  # one line each
        for key in before
    ]


def summary(whole: Detector, result: Pruned, input_size: int) -> dict[str, Any]:
    """Widths and costs before and after; what was measured is added by the command."""
    return {
        "model": whole.name,
        "classes": len(whole.names),
        "input_size": input_size,
        "before": served_cost(whole, input_size),
        "after": served_cost(result.model, input_size),
        "channels": {"before": result.channels[0], "after": result.channels[-1]},
        "steps_gflops": [round(g, 3) for g in result.gflops],
        "layers": layers(whole, result.model),
    }


def text(report: Mapping[str, Any]) -> str:
    """Two tables: the layers of the architecture, and what the model is and takes before and after."""
    rows: dict[str, list[str]] = {}
    for layer in report["layers"]:
        name, _, inner = layer["name"].partition(".")
        before, after = layer["before"][1], layer["after"][1]
        if before != after:
            inner = inner.removesuffix("conv").removesuffix(".")
            rows.setdefault(name, []).append(f"{inner or 'conv'} {before}>{after}")
    lines = ["layer: output channels of its convolutions that changed"]
    for name, changes in rows.items():
        lines += _wrapped(f"  {name:<12} ", changes)
    lines += ["", f"{'':<24}{'before':>12}{'after':>12}{'ratio':>8}"]
    for title, key, form in _FIGURES:
        before, after = report["before"].get(key), report["after"].get(key)
        if before is not None and after is not None:
            ratio = f"{after / before:>8.2f}" if before else f"{'':>8}"
            lines.append(f"{title:<24}{before:>12{form}}{after:>12{form}}{ratio}")
    return "\n".join(lines)


_FIGURES = (
    ("parameters, fused", "parameters", ",.0f"),
    ("GFLOPs", "gflops", ".2f"),
    ("latency, ms", "latency_ms", ".2f"),
    ("AP", "map", ".3f"),
    ("AP50", "map50", ".3f"),
)


def _wrapped(start: str, words: Sequence[str], width: int = 118) -> list[str]:
    lines, indent = [start.rstrip() if not words else start], " " * len(start)
    for word in words:
        if len(lines[-1]) + len(word) + 2 > width and lines[-1].strip():
            lines.append(indent)
        lines[-1] += word + "  "
    return [line.rstrip() for line in lines]
