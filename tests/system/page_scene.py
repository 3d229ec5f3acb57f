"""A scene for tests of the page: in every picture its number, a red square whose place follows from the number, and a
blue one that stands still. The tiny model sees both, so what is drawn on a picture can be held against the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from server.testing.synthetic import coded, draw

WIDTH, HEIGHT, FPS, FRAMES = 320, 192, 10, 60
CELL = 32
"""The tiny model reports cells of so many pixels."""
RED_TOP = 64
BLUE = (128, 128)
"""Left and top of the one that stands still."""


def red_left(number: int) -> int:
    """Where the red square of picture `number` begins."""
    return number * 3 % (WIDTH // CELL) * CELL


def scene() -> Path:
    return coded("page-scene-1", _pictures(), width=WIDTH, height=HEIGHT, fps=FPS, gop=10, quality=18)


def _pictures() -> Iterator[npt.NDArray[np.uint8]]:
    for number in range(FRAMES):
        picture = draw(WIDTH, HEIGHT, number)
        picture[HEIGHT // 5 :] = 96
        left = red_left(number)
        picture[RED_TOP : RED_TOP + CELL, left : left + CELL] = (230, 20, 20)
        picture[BLUE[1] : BLUE[1] + CELL, BLUE[0] : BLUE[0] + CELL] = (20, 20, 230)
        yield picture


RECORD = """
async ({frames, seconds, redBottom}) => {
  const picture = document.querySelector("canvas.frame");
  const overlay = document.querySelector("canvas.overlay");
  const bright = (pen, x, y) => pen.getImageData(x, y, 1, 1).data[0];
  const number = () => {
    const pen = picture.getContext("2d", {willReadFrequently: true});
    let value = 0;
    for (let bit = 0; bit < 16; bit++) {
      const x = (bit + 0.5) * picture.width / 16;
      if (bright(pen, x, 0.05 * picture.height) > bright(pen, x, 0.15 * picture.height)) value += 2 ** bit;
    }
    return value;
  };
  const edges = () => {
    const y = Math.round(redBottom * overlay.height);
    const row = overlay.getContext("2d", {willReadFrequently: true}).getImageData(0, y, overlay.width, 1).data;
    const drawn = [...Array(overlay.width).keys()].filter((x) => row[4 * x + 3] > 200);
    return drawn.length ? [drawn[0] / overlay.width, (drawn.at(-1) + 1) / overlay.width] : null;
  };
  const shown = [];
  await new Promise((resolve) => {
    const observer = new MutationObserver(() => {
      shown.push({number: number(), edges: edges(), at: (performance.timeOrigin + performance.now()) / 1000});
      if (shown.length === frames) resolve();
    });
    observer.observe(overlay, {attributes: true, attributeFilter: ["data-seq"]});
    setTimeout(resolve, seconds * 1000);
  });
  return shown;
}
"""
"""What stands on the two canvases each time that they are painted, read from their pixels: number of the picture, left
and right edge of what is drawn around the red square's lower edge (shares of the width), Unix seconds."""
