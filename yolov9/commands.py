"""What the command lines share: kinds of numbers, and where progress goes."""

from __future__ import annotations

import argparse
import sys


def count(text: str) -> int:
    """An argument's type: a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


def share(text: str) -> float:
    """An argument's type: from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def say(line: str) -> None:
    """Progress: on stderr, so that stdout holds results alone."""
    print(line, file=sys.stderr, flush=True)
