"""`python -m yolov9.data check PATH`: counts, sizes and every problem of a data set, before an epoch is spent on it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from yolov9.data import DataError
from yolov9.data.check import check


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m yolov9.data", description="Look at data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    p = commands.add_parser("check", help="count, measure, and name what is wrong")
    p.add_argument("path", help="data.yaml, COCO JSON file, or a folder with YOLO txt, COCO JSON or Pascal VOC XML")
    p.add_argument("--split", nargs="+", metavar="S", help="train, val, test (default: all that are there)")
    p.add_argument("--show", type=int, default=20, metavar="N", help="problems of a kind to print (%(default)s)")
    p.add_argument("--json", type=Path, metavar="FILE", help="write everything there, with all problems")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of `python -m yolov9.data`. 0 if nothing is wrong, 1 if something is, 2 if there is no data set."""
    given = _parser().parse_args(arguments)
    try:
        found = check(given.path, given.split, lambda line: print(line, file=sys.stderr, flush=True))
        for line in found.lines(max(given.show, 0)):
            print(line)
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(found.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
            print(f"\nreport: {given.json.resolve()}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0 if found.clean else 1


if __name__ == "__main__":
    sys.exit(main())
