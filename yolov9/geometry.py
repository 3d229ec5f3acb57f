"""Where a picture lies in the model's input: rectangular shapes and the letterbox. Pure integer arithmetic.

A 16:9 camera runs at 640x384, not padded to a square. Shapes come from a small set (`input_shapes`), so that an engine
compiles few of them and frames of different cameras meet in one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

STRIDE = 32
"""Every side of an input is a multiple of the coarsest stride."""
PAD_VALUE = 114
"""Grey of the border, as in training."""
_SHORT_SIDES = (1.0, 0.8, 0.75, 0.6, 0.45, 0.3)
"""Short side / long side, before rounding up: 1:1, 5:4, 4:3, 16:9 (.5625), 21:9 (.43) and panoramas."""


def input_shapes(size: int) -> list[tuple[int, int]]:
    """All (height, width) that frames may take at long side `size`. ValueError if it is not a multiple of 32."""
    if size <= 0 or size % STRIDE:
        raise ValueError(f"input size {size} is not a positive multiple of {STRIDE}")
    shorts = sorted({-(-round(size * r) // STRIDE) * STRIDE for r in _SHORT_SIDES}, reverse=True)
    return [(s, size) for s in shorts] + [(size, s) for s in shorts if s != size]


def input_shape(size: int, width: int, height: int) -> tuple[int, int]:
    """The (height, width) of the smallest input of long side `size` in which a `width` x `height` picture fits unscaled
    beyond `size` on its long side. Degenerate pictures (a panorama of 100:1) take the narrowest shape."""
    if width <= 0 or height <= 0:
        raise ValueError(f"picture of {width}x{height} pixels")
    shorts = [h for h, w in input_shapes(size) if w == size]
    need = size * min(width, height) / max(width, height)
    short = min((s for s in shorts if s >= need), default=size)
    return (short, size) if width >= height else (size, short)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Source picture -> input: scaled to `scaled_width` x `scaled_height`, then placed at (`left`, `top`), centred."""

    source_width: int
    source_height: int
    input_width: int
    input_height: int
    scaled_width: int
    scaled_height: int
    left: int
    top: int

    @classmethod
    def fit(cls, source_width: int, source_height: int, input_width: int, input_height: int) -> Letterbox:
        """Largest picture of the source's aspect ratio in the input; enlarges small sources too."""
        gain = min(input_width / source_width, input_height / source_height)
        width = min(max(round(source_width * gain), 1), input_width)
        height = min(max(round(source_height * gain), 1), input_height)
        return cls(source_width, source_height, input_width, input_height, width, height,
                   (input_width - width) // 2, (input_height - height) // 2)  # fmt: skip

    @property
    def scale_x(self) -> float:
        """Input pixels a source pixel (exact: after rounding of the scaled size)."""
        return self.scaled_width / self.source_width

    @property
    def scale_y(self) -> float:
        return self.scaled_height / self.source_height
