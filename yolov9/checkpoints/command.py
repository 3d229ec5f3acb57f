"""`python -m yolov9.weights inspect | convert | get`: what is in a checkpoint, into our format, from the publisher.

`get` needs no torch; the other two do.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from yolov9 import packaged
from yolov9.checkpoints import releases
from yolov9.checkpoints.errors import WeightsError

_PROGRESS_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.weights`. 0; 1 if the network or the disk fails; 2 for input that is no good."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except (WeightsError, packaged.ModelNotFound, _UsageError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except (releases.ReleaseError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was fetched so far is kept", file=sys.stderr)
        return 130


class _UsageError(Exception):
    """Arguments that cannot be; one sentence."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m yolov9.weights", description="Look at, convert and fetch checkpoints.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    file_help = "a checkpoint of any known format, a bundle's folder, or a name"

    inspect = commands.add_parser("inspect", help="say what is in a checkpoint; runs nothing of it, reads no tensors")
    inspect.add_argument("file", metavar="FILE", help=file_help)
    inspect.add_argument("--json", action="store_true", help="as JSON")
    inspect.set_defaults(run=_inspect)

    convert = commands.add_parser("convert", help="write a checkpoint in our own format (safetensors)")
    convert.add_argument("file", metavar="FILE", help=file_help)
    convert.add_argument("out", metavar="OUT", type=Path, help="the new file, ending in .safetensors")
    convert.add_argument(
        "--inference", action="store_true", help="leave the auxiliary branch out (outputs stay the same)"
    )
    convert.set_defaults(run=_convert)

    cache = str(releases.cache_folder()).replace("%", "%%")
    get = commands.add_parser("get", help="fetch a published checkpoint into the cache, where all commands find it")
    get.add_argument("name", metavar="NAME", nargs="?", help="such as yolov9-c; without it, all names are listed")
    get.add_argument("--cache", type=Path, metavar="DIR", help=f"instead of {cache}")
    get.set_defaults(run=_get)
    return parser


def _inspect(given: argparse.Namespace) -> int:
    _wants_torch()
    from yolov9.checkpoints.summary import describe, summarise
    from yolov9.weights import open_checkpoint, skeleton

    checkpoint = open_checkpoint(given.file)
    summary = summarise(checkpoint, skeleton(checkpoint))
    print(json.dumps(asdict(summary), ensure_ascii=False) if given.json else describe(summary))
    return 0


def _convert(given: argparse.Namespace) -> int:
    _wants_torch()
    from yolov9.checkpoints.matching import fill
    from yolov9.checkpoints.summary import kind, summarise
    from yolov9.weights import open_checkpoint, save, skeleton

    if given.out.suffix != ".safetensors":
        raise _UsageError(f"{given.out}: the name of the new file ends in .safetensors")
    checkpoint = open_checkpoint(given.file)
    model = skeleton(checkpoint)
    summary = summarise(checkpoint, model)
    print(f"{summary.file}: {kind(summary)}")
    print(f"{summary.architecture}, {summary.classes} classes, {summary.parameters:,} parameters in {summary.dtype}")
    for note in summary.notes:
        print(f"note: {note}")
    model = fill(model, checkpoint.tensors())
    if given.inference and summary.auxiliary:
        model.prune_auxiliary()
        left = sum(p.numel() for p in model.parameters())
        print(f"left the auxiliary branch out: {model.name}, {left:,} parameters, the same outputs")
    elif given.inference:
        print("has no auxiliary branch to leave out")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    save(model, given.out)
    print(f"wrote {given.out.resolve()}: {model.name} in float32, {given.out.stat().st_size:,} bytes")
    return 0


def _get(given: argparse.Namespace) -> int:
    if given.name is None:
        for release in releases.RELEASES.values():
            print(f"{release.name:<20}{release.licence:<29}{release.about}")
        return 0
    try:
        release = releases.find(given.name)
    except releases.ReleaseError as e:
        raise _UsageError(str(e)) from None
    folder = given.cache or releases.cache_folder()
    path = releases.get(release, folder, lambda line: print(line, flush=True), _Progress(release.file))
    used = release.name if folder == releases.cache_folder() else path
    print(f"use it as: --weights {used}")
    return 0


class _Progress:
    """Lines about a download on stderr, one every few seconds."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._began = self._said = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._first is None:
            self._first = done
        if now - self._said < _PROGRESS_S and done != total:
            return
        self._said = now
        rate = (done - self._first) / 1e6 / max(now - self._began, 1e-9)
        of = f" of {total / 1e6:.1f} MB ({100 * done // total} %)" if total else " MB"
        print(f"{self._file}: {done / 1e6:.1f}{of}, {rate:.1f} MB/s", file=sys.stderr, flush=True)


def _wants_torch() -> None:
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ImportError as e:
        raise _UsageError(f"this needs {e.name}: pip install 'yolov9-server[train]'") from None
