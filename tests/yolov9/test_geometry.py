"""Input shapes and the letterbox: every picture fits, centred, undistorted to within the rounding of a pixel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yolov9.geometry import STRIDE, Letterbox, input_shape, input_shapes

SIZES = st.integers(1, 40).map(lambda n: n * STRIDE)
SIDES = st.integers(1, 8192)


def test_usual_cameras_get_the_shapes_that_peers_use():
    assert input_shape(640, 1920, 1080) == (384, 640)
    assert input_shape(640, 640, 480) == (480, 640)
    assert input_shape(640, 1280, 1024) == (512, 640)
    assert input_shape(640, 1080, 1920) == (640, 384)
    assert input_shape(640, 300, 300) == (640, 640)
    assert input_shape(640, 2560, 1080) == (288, 640)
    assert input_shape(320, 1920, 1080) == (192, 320)


@given(SIZES)
def test_there_are_few_shapes_and_all_are_multiples_of_the_stride(size):
    shapes = input_shapes(size)
    assert len(set(shapes)) == len(shapes) <= 11
    assert all(h % STRIDE == 0 == w % STRIDE and max(h, w) == size for h, w in shapes)


@given(SIZES, SIDES, SIDES)
def test_the_chosen_shape_is_one_of_the_set_and_holds_the_picture_at_full_long_side(size, width, height):
    shape = input_shape(size, width, height)
    assert shape in input_shapes(size)
    box = Letterbox.fit(width, height, shape[1], shape[0])
    assert max(box.scaled_width, box.scaled_height) == size


@given(SIDES, SIDES, SIZES, SIZES)
def test_the_picture_lies_inside_centred_and_undistorted(width, height, input_width, input_height):
    box = Letterbox.fit(width, height, input_width, input_height)
    right = input_width - box.left - box.scaled_width
    bottom = input_height - box.top - box.scaled_height
    assert 0 <= right - box.left <= 1
    assert 0 <= bottom - box.top <= 1
    gain = min(input_width / width, input_height / height)
    assert box.scaled_width == max(round(width * gain), 1)
    assert box.scaled_height == max(round(height * gain), 1)
    assert box.scale_x * width == pytest.approx(box.scaled_width)
    assert box.scale_y * height == pytest.approx(box.scaled_height)


@pytest.mark.parametrize("size", [0, -32, 33, 650])
def test_an_impossible_input_size_is_refused(size):
    with pytest.raises(ValueError, match=str(size)):
        input_shapes(size)


@pytest.mark.parametrize(("width", "height"), [(0, 10), (10, 0), (-1, 5)])
def test_an_empty_picture_is_refused(width, height):
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        input_shape(640, width, height)
