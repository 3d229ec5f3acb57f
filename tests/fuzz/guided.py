"""One target under Atheris, in a process of its own: libFuzzer takes the process over and ends it."""

from __future__ import annotations

import argparse
import hashlib
import importlib
import tempfile

HANG_S = 20
"""A case takes milliseconds; on a machine with other work, seconds."""
MAX_BYTES = 8192
MEMORY_MB = 3000
_FOREIGN = ("torch", "numpy", "PIL.Image", "fastapi", "uvicorn", "pydantic", "av", "yaml")
"""Imported first: Atheris would slow them down and count their coverage."""


def run(name: str, given: argparse.Namespace) -> None:
    """Does not return. `given`: cases, minutes, seed, findings, keep."""
    import atheris

    for module in _FOREIGN:
        importlib.import_module(module)
    with atheris.instrument_imports(include=["yolov9", "server", "websockets", "uvicorn.protocols"]):
        targets = importlib.import_module(f"{__package__}.targets")
    given.findings.mkdir(parents=True, exist_ok=True)
    kept = given.keep / name if given.keep else tempfile.mkdtemp(prefix="yolov9-fuzz-kept-")
    if given.keep:
        kept.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_len={MAX_BYTES}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1",
        f"-artifact_prefix={given.findings}/{name}-", f"-runs={given.cases or -1}", f"-seed={given.seed}",
    ]  # fmt: skip
    if given.minutes:
        options.append(f"-max_total_time={round(given.minutes * 60)}")
    context = targets.TARGETS[name]()
    check = context.__enter__()  # not left: nothing after Fuzz() runs

    def kept_if_it_fails(data: bytes) -> None:
        try:
            check(data)
        except BaseException:
            # libFuzzer writes it too, unless its own alarm ends the process first.
            (given.findings / f"{name}-{hashlib.sha1(data).hexdigest()}").write_bytes(data)
            raise

    atheris.Setup([name, *options, str(kept), str(targets.CORPUS / name)], kept_if_it_fails)
    atheris.Fuzz()
