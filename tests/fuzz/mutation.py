"""Changed inputs, the same ones for the same seed: for the short form, which has no coverage to follow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

MAX_BYTES = 4096
_VALUES = (0, 1, 0x7F, 0x80, 0xFF, ord("\n"), ord("0"), ord("-"), ord('"'), ord("{"), ord("<"), ord("$"))
_TEXTS = (
    b"99999999999999999999", b"-1", b"1e999", b"nan", b"null", b"\x00", b"\xff\xff\xff\xff", b"\x80\x00", b"../",
    b"%00", b"\r\n", b"\xed\xa0\x80", b"{}", b"[]", b"[" * 64, b"\\u0000", b"0x1p3", b" ",
)  # fmt: skip


def cases(corpus: Sequence[bytes], count: int, seed: int = 0) -> Iterator[bytes]:
    """The corpus as it is, then `count` changed members of it."""
    yield from corpus
    random = Random(seed)
    for _ in range(count):
        data = bytearray(random.choice(corpus))
        for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
            _change(random, data, corpus)
        yield bytes(data[:MAX_BYTES])


def _change(random: Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    at = random.randint(0, len(data))
    some = at + random.choice((1, 1, 2, 4, 16))
    match random.randrange(7):
        case 0 if at < len(data):
            data[at] ^= 1 << random.randrange(8)
        case 1 if at < len(data):
            data[at] = random.choice(_VALUES)
        case 2:
            del data[at:some]
        case 3:
            data[at:at] = data[at:some] * random.choice((1, 2, 30))
        case 4:
            data[at:at] = random.choice(_TEXTS)
        case 5:
            data[at:some] = random.choice(_TEXTS)
        case _:  # the end of another one
            other = random.choice(corpus)
            data[at:] = other[random.randint(0, len(other)) :]
