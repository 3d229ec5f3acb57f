"""The pictures: any that are given, else street scenes of our own drawing, so that the study needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from yolov9.images import read_image

_OVERSAMPLING = 4
"""Drawn that much larger, then reduced: smooth edges, as a lens makes them."""
_BLUR = 7
Rgb = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]


def drawn(count: int, size: int) -> list[Rgb]:
    """`count` different scenes, (size, size, 3) uint8. Always the same ones."""
    return [scene(size, seed) for seed in range(count)]


def read(paths: Sequence[str | Path], size: int) -> list[Rgb]:
    """The middle square of each picture at `size`. `yolov9.images.ImageError` for what is none."""
    pictures = []
    for path in paths:
        image = Image.fromarray(read_image(path))
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        square = image.crop((left, top, left + side, top + side))
        pictures.append(np.asarray(square.resize((size, size), Image.Resampling.LANCZOS)))
    return pictures


def to_tensor(pictures: Sequence[Rgb]) -> Tensor:
    """(N, 3, H, W) float32 in 0..1."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def without_blur(pictures: Tensor) -> Tensor:
    """(N, 3, H, W): pictures in 0..1 without their blur (the mean of 7x7 pixels), around 0.5."""
    margin = _BLUR // 2
    blurred = F.avg_pool2d(F.pad(pictures, (margin,) * 4, mode="reflect"), _BLUR, 1)
    return (pictures - blurred) / 2 + 0.5


def scene(size: int, seed: int) -> Rgb:
    """A street: sky, houses with windows, a tree, a road, a car and a person, and a little noise as of a sensor."""
    random = np.random.default_rng(seed)
    side = size * _OVERSAMPLING
    shade = np.linspace(0, 1, side)[:, None, None]
    sky = (1 - shade) * random.uniform((60, 110, 180), (110, 160, 230)) + shade * np.array([235, 225, 205])
    image = Image.fromarray(np.broadcast_to(sky, (side, side, 3)).astype(np.uint8))
    draw = _Pen(ImageDraw.Draw(image), side)
    _sun(draw, random)
    _houses(draw, random)
    _road(draw, random)
    _tree(draw, random, x=float(random.uniform(0.05, 0.25)))
    _car(draw, random, x=float(random.uniform(0.3, 0.45)))
    _person(draw, random, x=float(random.uniform(0.82, 0.92)))
    reduced = np.asarray(image.resize((size, size), Image.Resampling.BOX), np.float64)
    return (reduced + random.normal(0, 2, reduced.shape)).clip(0, 255).astype(np.uint8)


class _Pen:
    """Draws in shares of the picture's side, from the upper left corner."""

    def __init__(self, draw: ImageDraw.ImageDraw, side: int) -> None:
        self._draw, self._side = draw, side

    def box(self, x1: float, y1: float, x2: float, y2: float, colour: Colour) -> None:
        self._draw.rectangle([round(v * self._side) for v in (x1, y1, x2, y2)], fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        corners = (x - radius, y - radius, x + radius, y + radius)
        self._draw.ellipse([round(v * self._side) for v in corners], fill=colour)

    def shape(self, points: Sequence[tuple[float, float]], colour: Colour) -> None:
        self._draw.polygon([(round(x * self._side), round(y * self._side)) for x, y in points], fill=colour)


def _colour(random: np.random.Generator, low: int = 30, high: int = 230) -> Colour:
    red, green, blue = (int(v) for v in random.integers(low, high, 3))
    return red, green, blue


def _sun(draw: _Pen, random: np.random.Generator) -> None:
    draw.disc(float(random.uniform(0.1, 0.9)), 0.1, 0.05, (255, 245, 190))


def _houses(draw: _Pen, random: np.random.Generator) -> None:
    x = -0.05
    while x < 1:
        width, top = float(random.uniform(0.16, 0.28)), float(random.uniform(0.12, 0.4))
        wall = _colour(random, 90, 210)
        draw.box(x, top, x + width, 0.68, wall)
        draw.shape([(x - 0.01, top), (x + width / 2, top - 0.09), (x + width + 0.01, top)], _colour(random, 40, 120))
        pane = (250, 225, 130) if random.random() < 0.4 else (60, 75, 100)
        for row in np.arange(top + 0.04, 0.6, 0.1):
            for column in np.arange(x + 0.025, x + width - 0.04, 0.06):
                draw.box(float(column), float(row), float(column) + 0.03, float(row) + 0.055, pane)
        x += width + float(random.uniform(0, 0.03))


def _road(draw: _Pen, random: np.random.Generator) -> None:
    draw.box(0, 0.68, 1, 0.74, (150, 145, 140))
    draw.box(0, 0.74, 1, 1, (75, 75, 80))
    for x in np.arange(float(random.uniform(-0.1, 0)), 1, 0.2):
        draw.box(float(x), 0.91, float(x) + 0.1, 0.925, (235, 235, 225))


def _tree(draw: _Pen, random: np.random.Generator, x: float) -> None:
    draw.box(x - 0.015, 0.45, x + 0.015, 0.72, (95, 65, 40))
    for _ in range(14):
        dx, dy = random.normal(0, 0.045, 2)
        green = int(random.integers(80, 160))
        draw.disc(x + float(dx), 0.42 + float(dy), 0.045, (green // 3, green, green // 4))


def _car(draw: _Pen, random: np.random.Generator, x: float) -> None:
    paint = _colour(random)
    draw.box(x, 0.74, x + 0.4, 0.84, paint)
    draw.shape([(x + 0.06, 0.74), (x + 0.12, 0.66), (x + 0.28, 0.66), (x + 0.36, 0.74)], paint)
    draw.shape([(x + 0.09, 0.735), (x + 0.135, 0.675), (x + 0.195, 0.675), (x + 0.195, 0.735)], (170, 205, 225))
    draw.shape([(x + 0.21, 0.735), (x + 0.21, 0.675), (x + 0.272, 0.675), (x + 0.33, 0.735)], (170, 205, 225))
    draw.box(x + 0.375, 0.765, x + 0.4, 0.785, (255, 240, 170))
    for wheel in (x + 0.09, x + 0.31):
        draw.disc(wheel, 0.84, 0.048, (20, 20, 22))
        draw.disc(wheel, 0.84, 0.022, (180, 180, 185))


def _person(draw: _Pen, random: np.random.Generator, x: float) -> None:
    draw.disc(x, 0.545, 0.025, (225, 180, 150))
    draw.box(x - 0.03, 0.575, x + 0.03, 0.69, _colour(random))
    draw.box(x - 0.026, 0.69, x - 0.004, 0.81, (40, 45, 75))
    draw.box(x + 0.004, 0.69, x + 0.026, 0.81, (40, 45, 75))
