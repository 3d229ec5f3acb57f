"""`python -m yolov9.nn ARCHITECTURE [OPTION=VALUE ...]`: what a network consists of and costs, ablations included.

Counts only: no weights are made and no picture is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from yolov9.nn.ablation import ablate, options
from yolov9.nn.architecture import Architecture, names
from yolov9.nn.cost import gflops, parameters
from yolov9.nn.model import Detector, build

_EPILOG = """options, each as OPTION=VALUE:
  auxiliary    none, deep_supervision, reversible, pgi
  integration  none, fpn, composite
  reversible   composite, columns: how the auxiliary branch is reversible
  main         plain, composite, columns: whether the main branch is
  computation  csp, conv, res, res2, dark
  depth        ELAN depth, 2 by default
  repeats      CSP depth, 1 to 3 by default

example: python -m yolov9.nn yolov9-t auxiliary=pgi integration=fpn computation=res"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.nn`; the exit status."""
    parser = argparse.ArgumentParser(
        "python -m yolov9.nn",
        description="Say what a network consists of and what it costs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("architecture", help=", ".join(names()))
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE", help="changes it: see below")
    parser.add_argument("--classes", type=int, default=80, metavar="N", help="default: %(default)s")
    parser.add_argument("--yaml", metavar="FILE", help="write the architecture to a file, too")
    given = parser.parse_args(arguments)
    try:
        arch = ablate(given.architecture, **options(given.options))
        print(_table(arch, given.classes))
        if given.yaml:
            Path(given.yaml).write_text(arch.to_yaml(), encoding="utf-8")
            print(f"wrote {given.yaml}: {len(arch.layers)} layers")
    except (ValueError, OSError) as e:  # ArchitectureError is a ValueError
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


def _table(arch: Architecture, classes: int) -> str:
    """The network as it is trained, and what is left of it at inference: counts of the fused model, as published."""
    rows = [("", "parameters", "fused", "GFLOPs at 640")]
    for title, counted in {"training": arch, "inference": arch.inference}.items():
        if title == "training" and not arch.head.auxiliary:
            continue
        with torch.device("meta"):
            model = build(counted, classes)
        whole = parameters(model)
        rows.append((f"{title}: {counted.name}", f"{whole:,}", f"{parameters(model.fuse()):,}", f"{gflops(model):.2f}"))
        rows += [(f"  {section}", "", f"{count:,}", "") for section, count in _sections(model).items()]
    width = max(len(row[0]) for row in rows)
    return "\n".join(f"{a:<{width}}  {b:>12}  {c:>12}  {d:>13}".rstrip() for a, b, c, d in rows)


def _sections(model: Detector) -> dict[str, int]:
    counts: dict[str, int] = {}
    for layer, module in zip(model.arch.layers, model.model, strict=True):
        counts[layer.section] = counts.get(layer.section, 0) + parameters(module)
    return counts


if __name__ == "__main__":
    sys.exit(main())
