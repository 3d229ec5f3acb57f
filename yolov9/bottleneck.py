"""`python -m yolov9.bottleneck`: the paper's figure 2, drawn and measured.

Feature maps of random, untrained networks at growing depth, and how much of the picture a linear probe can still read
from them. Writes PNGs, the numbers (JSON, CSV) and a report for people.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from yolov9.bottlenecks.report import Origin
    from yolov9.bottlenecks.study import Study

_DRAWN = 4


def _parser() -> argparse.ArgumentParser:
    from yolov9.bottlenecks.networks import ACTIVATIONS, FIGURE_2, NETWORKS, VARIANT_TEXT, VARIANTS
    from yolov9.bottlenecks.study import Settings

    usual = Settings()
    p = argparse.ArgumentParser(
        "python -m yolov9.bottleneck",
        description="How much of a picture is left in the features of deep, untrained networks (the paper's figure 2).",
        epilog="variants: " + "; ".join(f"{name}: {text}" for name, text in VARIANT_TEXT.items()),
    )
    p.add_argument("--picture", nargs="+", type=Path, metavar="FILE", help=f"two or more; the figures show "
                   f"the first (default: {_DRAWN} drawn street scenes)")  # fmt: skip
    p.add_argument("--out", type=Path, default=Path("runs/bottleneck"), metavar="DIR", help="(default: %(default)s)")
    p.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*FIGURE_2], metavar="NAME",
                   help=f"of {', '.join(NETWORKS)} (default: {' '.join(FIGURE_2)})")  # fmt: skip
    p.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS], metavar="NAME",
                   help="see below (default: all)")  # fmt: skip
    p.add_argument("--depths", nargs="+", type=int, default=[*usual.depths], metavar="N",
                   help=f"of the pictures; the curve has more ({' '.join(map(str, usual.depths))})")  # fmt: skip
    p.add_argument("--seeds", type=int, default=usual.seeds, metavar="N", help="random networks (default: %(default)s)")
    p.add_argument("--width", type=int, default=usual.width, metavar="N", help="channels (default: %(default)s)")
    p.add_argument("--size", type=int, default=usual.size, metavar="N", help="pixels a side (default: %(default)s)")
    p.add_argument("--activation", choices=ACTIVATIONS, default=usual.activation,
                   help="of the networks (default: %(default)s)")  # fmt: skip
    p.add_argument("--neighbourhood", type=int, choices=(1, 3, 5), default=usual.neighbourhood,
                   help="side of what the probe reads (default: %(default)s)")  # fmt: skip
    p.add_argument("--ridge", type=float, default=usual.ridge, metavar="X", help="its penalty (default: %(default)s)")
    p.add_argument(
        "--hidden",
        type=int,
        default=usual.hidden,
        metavar="N",
        help="units of a hidden layer of the probe, random and fixed (default: none, it is linear)",
    )
    p.add_argument("--detail", action="store_true", help="ask the probe for edges and texture, not for whole colours")
    p.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all that this process may use)")
    return p


def write(study: Study, origin: Origin, out: Path) -> list[Path]:
    """All files of a study into the folder `out`. Their paths, the report first. OSError."""
    from yolov9.bottlenecks import figures, report

    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.md": report.to_markdown(study, origin),
        "results.json": json.dumps(report.to_json(study, origin), indent=1) + "\n",
        "results.csv": report.to_csv(study),
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    pngs = [out / "curve.png"]
    figures.curves(study, pngs[0])
    for variant in study.settings.variants:
        pngs += [out / f"feature-maps-{variant}.png", out / f"reconstructions-{variant}.png"]
        figures.grid(study, variant, "maps", pngs[-2])
        figures.grid(study, variant, "reconstructions", pngs[-1])
    return [*(out / name for name in texts), *pngs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.bottleneck`. 0; 2 for bad input or for what is not installed; 130 if interrupted."""
    try:
        import matplotlib  # noqa: F401 - looked for before minutes of work
        import torch
    except ImportError as error:
        print(f"error: needs PyTorch and matplotlib ({error}): pip install 'yolov9-server[train]'", file=sys.stderr)
        return 2
    from yolov9.benchmark.machine import machine
    from yolov9.bottlenecks import scenes
    from yolov9.bottlenecks.report import Origin
    from yolov9.bottlenecks.study import Settings, measure
    from yolov9.engines.cpu import available_cpus
    from yolov9.images import ImageError

    given = _parser().parse_args(arguments)
    began = time.monotonic()
    threads = max(given.threads or available_cpus(), 1)
    torch.set_num_threads(threads)
    try:
        settings = Settings(
            networks=_unique(given.networks), variants=_unique(given.variants), depths=sorted({*given.depths}),
            seeds=given.seeds, width=given.width, size=given.size, activation=given.activation,
            neighbourhood=given.neighbourhood, ridge=given.ridge, hidden=given.hidden, detail=given.detail,
        )  # fmt: skip
        pictures = scenes.read(given.picture, given.size) if given.picture else scenes.drawn(_DRAWN, given.size)
        given.out.mkdir(parents=True, exist_ok=True)
        study = measure(settings, pictures, lambda line: print(line, file=sys.stderr, flush=True))
        names = [p.name for p in given.picture] if given.picture else [f"{_DRAWN} drawn street scenes"]
        seconds = time.monotonic() - began
        where = f"{threads} thread{'s' if threads > 1 else ''} of {machine(threads)['cpu']}"
        origin = Origin(_command(arguments), _today(), seconds, names, where, _versions())
        written = write(study, origin, given.out)
    except (ImageError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: not finished", file=sys.stderr)
        return 130
    print(f"report: {written[0].resolve()}")
    print(f"beside it: {', '.join(path.name for path in written[1:])}")
    return 0


def _unique(names: Sequence[Any]) -> list[Any]:
    return [*dict.fromkeys(names)]


def _command(arguments: Sequence[str] | None) -> str:
    return shlex.join(["python", "-m", "yolov9.bottleneck", *(sys.argv[1:] if arguments is None else arguments)])


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def _versions() -> dict[str, str]:
    return {"Python": platform.python_version(), "PyTorch": importlib.metadata.version("torch")}


if __name__ == "__main__":
    sys.exit(main())
