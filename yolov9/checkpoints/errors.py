"""What can be wrong with a checkpoint, as errors of one sentence."""

from __future__ import annotations

from typing import Any

_SHOWN = 60
"""Characters of a file's own text that a sentence repeats."""


class WeightsError(Exception):
    """A checkpoint that cannot be read or written: one sentence with the file and the keys."""


class RefusedError(WeightsError):
    """A file that wants more than to be data: the sentence names what it asks for. Nothing of it was run."""


def printable(text: str, longest: int = _SHOWN) -> str:
    """Text out of a file, for people: without characters that a terminal would obey, and short."""
    safe = "".join(c if c.isprintable() else "?" for c in text[:longest])
    return safe + ("..." if len(text) > longest else "")


def shown(value: Any) -> str:
    """A value out of a file, for an error: printable, short, and never one whose repr could be deep or long."""
    if type(value) is int:
        return str(value) if value.bit_length() < 128 else "a huge number"
    if value is None or type(value) in (bool, float):
        return repr(value)
    if type(value) in (str, bytes):
        return repr(value[:_SHOWN]) + ("..." if len(value) > _SHOWN else "")
    if type(value) is tuple and all(x is None or type(x) in (bool, int, float, str) for x in value[:8]):
        return "(" + ", ".join(shown(x) for x in value[:8]) + (", ...)" if len(value) > 8 else ")")
    return f"a {type(value).__name__}"
