"""Boxes with labels on a picture, by Pillow. Used by `predict` and by the server's snapshots."""

from __future__ import annotations

import colorsys
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Box = tuple[float, float, float, float, str]
"""x1, y1, x2, y2 in pixels of the picture, and the text."""
_Colour = tuple[int, int, int]

_WIDTH_SHARE = 1 / 240
_TEXT_SHARE = 1 / 36
"""Line width and text size as shares of the picture's shorter side, so that boxes look alike at any size."""
_MIN_WIDTH, _MIN_TEXT = 2, 12
_MAX_TEXT = 40
_DARK: _Colour = (16, 16, 16)
_LIGHT: _Colour = (255, 255, 255)
_HUE_SEED = 66
"""Of the hash. With it person, car, truck, bus, bicycle and motorcycle are an eighth of the circle apart or more."""
_READING = re.compile(r"\s+[#\d].*$")
"""What follows the class in a label, such as a confidence or a track's number."""


def draw_boxes(image: Image.Image, boxes: Sequence[Box]) -> None:
    """Draw on an RGB image, in place: the last boxes first, so that the best, which come first, lie on top."""
    side = min(image.size)
    width = max(_MIN_WIDTH, round(side * _WIDTH_SHARE))
    font = _font(min(max(_MIN_TEXT, round(side * _TEXT_SHARE)), _MAX_TEXT))
    draw = ImageDraw.Draw(image)
    for x1, y1, x2, y2, text in reversed(boxes):
        colour = class_colour(text)
        left, right = sorted((round(x1), round(x2)))
        top, bottom = sorted((round(y1), round(y2)))
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        if text:
            _label(draw, image.size, (left, top), text, font, colour, width)


def class_colour(label: str) -> _Colour:
    """The colour of a label's class: always the same for one name, whatever model or process draws it."""
    digest = zlib.crc32(_READING.sub("", label).encode(), _HUE_SEED)
    hue = (digest & 0xFFFF) / 0x10000
    value = 0.75 + 0.25 * ((digest >> 16) & 0xFF) / 0xFF
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[int, int],
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    colour: _Colour,
    margin: int,
) -> None:
    """Above the box, or inside it where there is no room above; never cut off by the picture's edge."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = round(right - left) + 2 * margin, round(bottom - top) + 2 * margin
    x = max(0, min(corner[0], size[0] - width))
    y = corner[1] - height if corner[1] >= height else min(max(corner[1], 0), size[1] - height)
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    draw.text((x + margin - left, y + margin - top), text, font=font, fill=_DARK if brightness > 140 else _LIGHT)


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font: no file of the system is needed. It knows Latin letters; others show as boxes."""
    return ImageFont.load_default(size)
