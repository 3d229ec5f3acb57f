"""Which decoded pictures a camera's process keeps."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from server.ingest.pictures import Pictures, encode
from server.ingest.wire import EncodeRequest
from yolov9.letterbox import Letterboxer


def frame() -> av.VideoFrame:
    return av.VideoFrame(64, 32, "yuv420p")


def test_the_picture_of_the_last_result_is_kept_even_if_later_units_were_shown_before_it() -> None:
    pictures = Pictures()
    frames = {seq: frame() for seq in (6, 7, 5, 8)}  # in the order of display: unit 5 is a P frame behind B frames
    for seq, picture in frames.items():
        pictures.hold(seq, picture)
    for seq in (6, 7, 5):
        pictures.release(seq, completed=True)
        assert pictures.find(seq, completed=False) is frames[seq]
        assert pictures.find(None, completed=True) is frames[seq]
    assert pictures.find(6, completed=False) is None, "nothing more is kept than is needed"
    assert pictures.find(8, completed=False) is frames[8], "the server still has it"
    pictures.release(8, completed=False)
    assert pictures.find(None, completed=True) is frames[5]
    assert pictures.find(None, completed=False) is frames[8], "the newest decoded"


def picture(width: int, height: int) -> av.VideoFrame:
    """Red, but for a blue square of 40 pixels at (100, 60)."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = 220
    pixels[60:100, 100:140] = (0, 0, 220)
    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuv420p")


@pytest.mark.parametrize(
    ("crop", "max_width", "size"),
    [
        ((90.0, 50.0, 150.0, 110.0), None, (60, 60)),
        ((90.0, 50.0, 150.0, 110.0), 480, (60, 60)),
        ((90.0, 50.0, 150.0, 110.0), 30, (30, 30)),
        ((-50.0, -50.0, 150.0, 110.0), None, (150, 110)),
        ((100.0, 60.0, 900.0, 900.0), None, (220, 120)),
        ((400.0, 300.0, 500.0, 400.0), None, (1, 1)),
        ((100.0, 60.0, 100.0, 60.0), 16, (1, 1)),
    ],
)
def test_a_part_of_a_picture(crop: tuple[float, float, float, float], max_width: int | None, size: Any) -> None:
    jpeg = encode(picture(320, 180), EncodeRequest(id=1, crop=crop, max_width=max_width), Letterboxer())
    image = Image.open(io.BytesIO(jpeg))
    assert image.size == pytest.approx(size, abs=1)
    if crop[0] == 90:
        middle = np.asarray(image)[image.height // 2, image.width // 2].astype(int)
        assert middle[2] > middle[0] + 100, "the square is in the middle"
