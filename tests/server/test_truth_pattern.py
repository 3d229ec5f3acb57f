"""The pattern of the truth rig: what is drawn is read back, and nothing else is."""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.testing.truth.pattern import COUNTERS, TIME_STEP_S, TIMES, Stamp, draw, read
from yolov9.geometry import input_shape
from yolov9.letterbox import Letterboxer

counters = st.integers(0, COUNTERS - 1)
times = st.integers(0, TIMES - 1).map(lambda steps: steps * TIME_STEP_S)
sizes = st.sampled_from([(640, 360), (320, 192), (1280, 720), (640, 480), (352, 288), (1920, 1080)])
ENCODERS = {"libx264": "h264", "libx265": "hevc"}


def drawn(size: tuple[int, int], counter: int, time: float) -> npt.NDArray[np.uint8]:
    image = np.zeros((size[1], size[0], 3), np.uint8)
    draw(image, counter, time)
    return image


def boxed(image: npt.NDArray[np.uint8], input_size: int) -> npt.NDArray[np.uint8]:
    frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
    return boxed_frame(frame, input_size)


def boxed_frame(frame: av.VideoFrame, input_size: int) -> npt.NDArray[np.uint8]:
    target = np.empty((*input_shape(input_size, frame.width, frame.height), 3), np.uint8)
    Letterboxer().write(frame, target)
    return target


@given(size=sizes, counter=counters, time=times, input_size=st.sampled_from([320, 480, 640]))
@settings(max_examples=40)
def test_what_is_drawn_is_read_from_the_picture_and_from_the_models_input(size, counter, time, input_size):
    image = drawn(size, counter, time)
    stamp = read(image)
    assert stamp is not None
    assert stamp.counter == counter
    assert stamp.time == pytest.approx(time, abs=1e-6)
    assert read(boxed(image, input_size)) == stamp


@given(counter=st.integers(0, COUNTERS - 2), time=st.floats(0, 1e6), top=st.integers(0, 21), rows=st.integers(1, 4))
@settings(max_examples=60)
def test_a_row_of_macroblocks_of_the_frame_before_is_noticed(counter, time, top, rows):
    image = drawn((640, 360), counter + 1, time + 0.1)
    image[16 * top : 16 * (top + rows)] = drawn((640, 360), counter, time)[16 * top : 16 * (top + rows)]
    assert read(image) is None
    assert read(boxed(image, 320)) is None


@given(data=st.data(), counter=counters, time=times)
@settings(max_examples=30)
def test_grey_black_noise_and_other_pictures_bear_nothing(data, counter, time):
    image = drawn((320, 192), counter, time)
    y, x = data.draw(st.integers(0, 192 - 16)), data.draw(st.integers(0, 320 - 16))
    image[y : y + 16, x : x + 16] = 114
    assert read(image) is None
    assert read(np.full((192, 320, 3), data.draw(st.integers(0, 255)), np.uint8)) is None
    noise = np.random.default_rng(counter).integers(0, 256, (192, 320, 3), np.uint8)
    assert read(noise) is None


def test_numbers_out_of_range_are_refused():
    image = np.zeros((192, 320, 3), np.uint8)
    for counter, time in ((-1, 0.0), (COUNTERS, 0.0), (0, -1.0), (0, TIMES * TIME_STEP_S)):
        with pytest.raises(ValueError, match="out of range"):
            draw(image, counter, time)


@pytest.mark.parametrize(("encoder", "quality"), [("libx264", 30), ("libx264", 38), ("libx265", 30), ("libx265", 38)])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_it_survives_coding(encoder, quality, b_frames):
    """At quality 38 a frame of 640x360 takes some few kilobytes: less than cameras send."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream(encoder, rate=Fraction(25), options={"crf": str(quality), "preset": "ultrafast"})
        parameters = f"bframes={b_frames}:keyint=10" + (":log-level=none:pools=1" if encoder == "libx265" else "")
        stream.options |= {ENCODERS[encoder].replace("h264", "x264-params").replace("hevc", "x265-params"): parameters}
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number in range(20):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(drawn((640, 360), number, number / 25), "rgb24")))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        for number, frame in enumerate(container.decode(video=0)):
            expected = Stamp(number, pytest.approx(number / 25))
            assert read(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)) == expected
            assert read(boxed_frame(frame, 320)) == expected
    assert number == 19
