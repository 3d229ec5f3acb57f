"""`python -m tests.fuzz TARGET [--cases N] [--minutes M]`: Atheris, guided by the coverage of the readers.

A crash, a wrong answer or a hang ends the run with 1 and leaves the input in the findings folder;
`python -m tests.fuzz TARGET FILE...` plays it again. `all` takes the targets one after the other, a process each.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from . import guided


def main() -> int:
    given = _parser().parse_args()
    from .targets import TARGETS  # not before: what the targets import is to be instrumented

    names = list(TARGETS) if given.target == "all" else [given.target]
    if unknown := [name for name in names if name not in TARGETS]:
        print(f"no target {unknown[0]!r}; there are: all, {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    if given.files:
        return _play(names, given.files)
    failed = [name for name in names if not _passes(name, given)]
    if failed:
        print(f"failed: {', '.join(failed)}; the inputs are in {given.findings}", file=sys.stderr)
    return 1 if failed else 0


def _passes(name: str, given: argparse.Namespace) -> bool:
    """A process for each target: libFuzzer ends the one it runs in. What that leaves behind goes with its folder."""
    memory = Path("/dev/shm")  # where there is such a place: a million cases are a million files
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="yolov9-fuzz-", dir=memory if memory.is_dir() else None) as folder:
        os.environ["TMPDIR"] = folder
        process = multiprocessing.get_context("spawn").Process(target=guided.run, args=(name, given))
        process.start()
        process.join()
    print(f"{name}: exit {process.exitcode} after {time.monotonic() - began:.0f} s", flush=True)
    return process.exitcode == 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("target", help="a target's name, or all")
    parser.add_argument("files", nargs="*", type=Path, help="play these inputs instead of making new ones")
    parser.add_argument("--cases", type=int, default=0, help="end after so many (default: no such end)")
    parser.add_argument("--minutes", type=float, default=1.0, help="end after so long (default 1; 0: no such end)")
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"), help="folder for inputs that fail")
    parser.add_argument("--keep", type=Path, help="folder for inputs that reach new code, for the next run")
    return parser


def _play(names: list[str], paths: list[Path]) -> int:
    from .targets import TARGETS

    for name in names:
        with TARGETS[name]() as check:
            for path in paths:
                check(path.read_bytes())
                print(f"{name}: {path} passes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
