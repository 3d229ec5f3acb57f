"""A counter and a time code that a program can read off a picture, after coding, scaling and letterboxing.

The whole picture is 12 rows of 20 black or white cells: 80 bits, three times one below the other, the second time
inverted. All bits but eight are scrambled by those eight, so that about half of all cells change from frame to frame:
wherever a part of another frame shows, be it one row of macroblocks, cells disagree and `read` gives None. A moving
texture within the cells gives a codec something to predict.

    draw(picture, counter=1234, time=51.2)
    assert read(letterboxed) == (1234, 51.2)
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from yolov9.geometry import PAD_VALUE

COLUMNS, COPIES, ROWS_OF_COPY = 20, 3, 4
ROWS = COPIES * ROWS_OF_COPY
DIGIT_BITS = 4
DIGITS = COLUMNS * ROWS_OF_COPY // DIGIT_BITS
"""The 80 bits as hexadecimal digits: four cells side by side each, row by row."""
COUNTERS = 1 << 24
TIME_STEP_S = 1e-4
TIMES = 1 << 40
"""Time codes: 3.4 years in steps of .1 ms."""
CERTAINTY = 0.6
"""A cell counts as white if every sample of it is at least so bright, as black if every one is at least so dark."""

_INNER = 0.6
"""Share of a cell's side that is looked at: the rest is for blur at the edges."""
_TEXTURE = 40
_FRAME = 20.0
"""Mean distance from the border's grey above which a row or column belongs to the picture; cells are 114 off."""
_TIME_BITS, _CRC_BITS, _PLAIN_BITS = 40, 16, 8
_SCRAMBLED_BITS = DIGITS * DIGIT_BITS - _PLAIN_BITS

Image = npt.NDArray[np.uint8]


class Stamp(NamedTuple):
    counter: int
    time: float
    """Seconds since whatever the one who drew it counts from."""


class Samples(NamedTuple):
    """Which pixels are looked at: `height` rows of each row of cells, `width` columns of each column of cells."""

    rows: npt.NDArray[np.int64]
    columns: npt.NDArray[np.int64]
    height: int
    width: int


def draw(frame: Image, counter: int, time: float) -> None:
    """Fill `frame`, (H, W, 3) RGB and at least 160 pixels wide. ValueError if the numbers are out of range."""
    digits = to_digits(counter, time)
    bits = np.array([digit >> (3 - bit) & 1 for digit in digits for bit in range(DIGIT_BITS)], np.uint8)
    copy = bits.reshape(ROWS_OF_COPY, COLUMNS)
    cells = np.concatenate([copy, 1 - copy, copy])
    height, width = frame.shape[:2]
    white = cells[np.arange(height) * ROWS // height][:, np.arange(width) * COLUMNS // width]
    texture = np.roll(_texture(width, height), (counter, 3 * counter), (0, 1))
    frame[:] = np.where(white, 255 - texture, texture)[:, :, None]


def read(image: Image) -> Stamp | None:
    """What is burnt into a picture (H, W, 3) of any size, with or without a letterbox's border. None if there is no
    pattern, or if any part of it is damaged or of another frame."""
    distance = np.abs(image.astype(np.int16) - PAD_VALUE)
    rows, columns = distance.mean(axis=(1, 2)), distance.mean(axis=(0, 2))
    inside_y, inside_x = np.flatnonzero(rows > _FRAME), np.flatnonzero(columns > _FRAME)
    if not len(inside_x) or not len(inside_y):
        return None
    left, top = int(inside_x[0]), int(inside_y[0])
    width, height = int(inside_x[-1]) + 1 - left, int(inside_y[-1]) + 1 - top
    if width < 4 * COLUMNS or height < 4 * ROWS:
        return None
    where = samples(width, height, left, top)
    pixels = image[where.rows][:, where.columns].reshape(ROWS, where.height, COLUMNS, where.width, 3)
    darkest, brightest = pixels.min(axis=(1, 3, 4)) / 255, pixels.max(axis=(1, 3, 4)) / 255
    inverted = np.arange(COPIES)[:, None, None] % 2 == 1
    shape = (COPIES, ROWS_OF_COPY, COLUMNS)
    darkest, brightest = darkest.reshape(shape), brightest.reshape(shape)
    white = np.where(inverted, 1 - brightest, darkest).min(axis=0)
    black = np.where(inverted, darkest, 1 - brightest).min(axis=0)
    if not np.maximum(white, black).min() >= CERTAINTY:
        return None
    bits = (white > black).reshape(DIGITS, DIGIT_BITS)
    return from_digits([int(digit) for digit in bits @ (8, 4, 2, 1)])


def samples(width: int, height: int, left: int = 0, top: int = 0) -> Samples:
    """The pixels that tell of a picture of `width` x `height` at (`left`, `top`)."""
    columns, across = _inner(width / COLUMNS, COLUMNS)
    rows, down = _inner(height / ROWS, ROWS)
    return Samples(rows + top, columns + left, down, across)


def to_digits(counter: int, time: float) -> list[int]:
    """ValueError if the numbers are out of range."""
    steps = round(time / TIME_STEP_S)
    if not 0 <= counter < COUNTERS or not 0 <= steps < TIMES:
        raise ValueError(f"counter {counter} or time {time} is out of range")
    low = counter & 0xFF
    # The low byte stands in front of the others, where it is read without the mask that it makes.
    high = (counter >> _PLAIN_BITS << _TIME_BITS | steps) << _CRC_BITS | _checksum(counter, steps)
    value = low << _SCRAMBLED_BITS | high ^ _mask(low)
    return [value >> DIGIT_BITS * (DIGITS - 1 - place) & 0xF for place in range(DIGITS)]


def from_digits(digits: list[int]) -> Stamp | None:
    """None if the checksum is wrong."""
    value = functools.reduce(lambda value, digit: value << DIGIT_BITS | digit, digits, 0)
    low = value >> _SCRAMBLED_BITS
    high = (value & (1 << _SCRAMBLED_BITS) - 1) ^ _mask(low)
    counter = high >> _TIME_BITS + _CRC_BITS << _PLAIN_BITS | low
    steps = high >> _CRC_BITS & TIMES - 1
    if _checksum(counter, steps) != high & 0xFFFF:
        return None
    return Stamp(counter, steps * TIME_STEP_S)


def _checksum(counter: int, steps: int) -> int:
    return binascii.crc_hqx((counter << _TIME_BITS | steps).to_bytes(8, "big"), 0xFFFF)


@functools.cache
def _mask(low: int) -> int:
    return int.from_bytes(hashlib.blake2b(bytes((low,)), digest_size=_SCRAMBLED_BITS // 8).digest(), "big")


def _inner(side: float, count: int) -> tuple[npt.NDArray[np.int64], int]:
    """Pixels inside of each of `count` cells, all of them behind each other, and how many there are of each."""
    inside = max(1, int(_INNER * side))
    starts = [math.ceil((cell + (1 - _INNER) / 2) * side) for cell in range(count)]
    return np.add.outer(starts, np.arange(inside)).ravel(), inside


@functools.lru_cache(maxsize=4)
def _texture(width: int, height: int) -> Image:
    """Blocks of 4x4 pixels, 0 to _TEXTURE."""
    blocks = np.random.default_rng(3).integers(0, _TEXTURE, (-(-height // 4), -(-width // 4)), np.uint8)
    return np.repeat(np.repeat(blocks, 4, 0), 4, 1)[:height, :width]
