"""`python -m tests.fuzz TARGET [--cases N] [--minutes M]`: Atheris, guided by the coverage of the readers.

A crash, a wrong answer or a hang ends the run with 1 and leaves the input in the findings folder;
`python -m tests.fuzz TARGET FILE...` plays it again. `all` takes the targets one after the other, a process each.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
import time
from pathlib import Path

HANG_S = 20
"""A case takes milliseconds; on a machine with other work, seconds."""
MAX_BYTES = 8192
MEMORY_MB = 3000


def main() -> int:
    given = _parser().parse_args()
    from .targets import TARGETS  # not before: what the targets import is to be instrumented

    names = list(TARGETS) if given.target == "all" else [given.target]
    if unknown := [name for name in names if name not in TARGETS]:
        print(f"no target {unknown[0]!r}; there are: all, {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    if given.files:
        return _play(names, given.files)
    failed = []
    for name in names:
        # A process each: libFuzzer ends the one it runs in, and coverage of one target is noise for the next.
        process = multiprocessing.get_context("spawn").Process(target=_fuzz, args=(name, given))
        began = time.monotonic()
        process.start()
        process.join()
        print(f"{name}: exit {process.exitcode} after {time.monotonic() - began:.0f} s", flush=True)
        if process.exitcode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}; the inputs are in {given.findings}", file=sys.stderr)
    return 1 if failed else 0


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


def _fuzz(name: str, given: argparse.Namespace) -> None:
    import atheris

    # Packages that Atheris would slow down without telling it anything of ours are imported first.
    for module in ("torch", "numpy", "PIL.Image", "fastapi", "uvicorn", "pydantic", "av"):
        importlib.import_module(module)
    with atheris.instrument_imports(include=["yolov9", "server", "websockets", "uvicorn.protocols"]):
        targets = importlib.import_module(f"{__package__}.targets")
    given.findings.mkdir(parents=True, exist_ok=True)
    folders = [str(targets.CORPUS / name)]
    if given.keep:
        kept = given.keep / name
        kept.mkdir(parents=True, exist_ok=True)
        folders.insert(0, str(kept))
    else:
        import tempfile

        folders.insert(0, tempfile.mkdtemp(prefix="yolov9-fuzz-corpus-"))
    options = [
        f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1",
        f"-artifact_prefix={given.findings}/{name}-", f"-runs={given.cases or -1}",
    ]  # fmt: skip
    if given.minutes:
        options.append(f"-max_total_time={round(given.minutes * 60)}")
    if given.seed:
        options.append(f"-seed={given.seed}")
    context = targets.TARGETS[name]()
    check = context.__enter__()  # Atheris ends the process, so nothing after it would run
    atheris.Setup([name, *options, *folders], check)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
