"""`python -m yolov9.engines.tensorrt BUNDLE`: build the engine that this machine's server will look for, ahead of time.

With `--attached` it is the builder that a server keeps in a process of its own, because a build takes the GPU for
minutes, cannot be broken off from within everywhere, and may crash: JSON lines on stdout (`background`), and the end of
stdin, which is the end of whoever started it, cancels.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yolov9.bundle import Bundle, BundleError
from yolov9.engines.base import EngineError
from yolov9.engines.tensorrt.cache import default_folder
from yolov9.engines.tensorrt.provide import provide, site
from yolov9.engines.tensorrt.recipe import PRECISIONS

_GRACE_S = 10.0
"""From being cancelled to the end, whatever the builder is caught in."""
_CANCELLED = 3


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    cancelled = threading.Event()
    if options.attached:
        os.nice(options.nice)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the server, which closes our stdin
        threading.Thread(target=_watch, args=(sys.stdin.fileno(), cancelled), daemon=True).start()
        return _build(options, cancelled, _json_line)
    signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    return _build(options, cancelled, _people_line)


def _build(options: argparse.Namespace, cancelled: threading.Event, tell: Callable[..., None]) -> int:
    try:
        bundle = Bundle.load(options.bundle)
        where = site(bundle, precision=options.precision, max_batch=options.max_batch, cache_dir=options.cache)
        wanted, plan = provide(
            where, progress=lambda share, what: tell(share=round(share, 2), what=what), cancelled=cancelled
        )
    except (BundleError, EngineError, OSError) as error:
        tell(error=" ".join(str(error).split()))
        return _CANCELLED if cancelled.is_set() else 2
    tell(built=str(where.cache.path(wanted)), bytes=len(plan))
    return 0


def _json_line(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _people_line(**fields: Any) -> None:
    if "error" in fields:
        print(f"error: {fields['error']}", file=sys.stderr)
    elif "built" in fields:
        print(f"{fields['built']} ({fields['bytes'] / 1e6:.1f} MB)")
    else:
        print(f"{fields['share']:4.0%} {fields['what']}", file=sys.stderr)


def _watch(descriptor: int, cancelled: threading.Event) -> None:
    """Until its end. Not through `sys.stdin`: a thread that holds its lock at the end of the process aborts it."""
    while os.read(descriptor, 1024):
        pass
    cancelled.set()
    threading.Timer(_GRACE_S, os._exit, (_CANCELLED,)).start()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m yolov9.engines.tensorrt",
        description="Build a bundle's TensorRT engine for the GPU of this machine into the cache.",
    )
    parser.add_argument("bundle", type=Path, help="folder of the model bundle")
    parser.add_argument("--precision", default="auto", choices=("auto", *PRECISIONS), help="default: auto")
    parser.add_argument("--max-batch", type=int, help="largest batch (default: 16)")
    parser.add_argument("--cache", type=Path, help=f"folder of engines (default: {default_folder()})")
    parser.add_argument("--attached", action="store_true", help="JSON lines on stdout; the end of stdin cancels")
    parser.add_argument("--nice", type=int, default=0, help="with --attached: added to the niceness (default: 0)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
