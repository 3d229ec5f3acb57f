"""The letterbox against exact arithmetic: colours, ranges, depths, odd sizes, turned frames, borders."""

from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yolov9.geometry import PAD_VALUE, Letterbox
from yolov9.letterbox import Letterboxer, displayed_size

LUMA = {"709": (0.2126, 0.0722), "601": (0.299, 0.114), "2020": (0.2627, 0.0593)}
UNSTATED, BT709, BT601, BT2020 = 2, 1, 6, 9  # AVColorSpace
RED, GREENISH, WHITE, BLACK = (255, 0, 0), (20, 200, 90), (255, 255, 255), (0, 0, 0)


def yuv(colour, matrix, full):
    """8-bit Y, U, V of an RGB colour, from the definition of the standards."""
    kr, kb = LUMA[matrix]
    r, g, b = (c / 255 for c in colour)
    y = kr * r + (1 - kr - kb) * g + kb * b
    u, v = (b - y) / 2 / (1 - kb), (r - y) / 2 / (1 - kr)
    values = (255 * y, 128 + 255 * u, 128 + 255 * v) if full else (16 + 219 * y, 128 + 224 * u, 128 + 224 * v)
    return [min(max(round(x), 0), 255) for x in values]


def plain_frame(width, height, pixel_format, values, depth=8):
    """A frame of one colour; `values` of 8 bits."""
    frame = av.VideoFrame(width, height, pixel_format)
    for index, plane in enumerate(frame.planes):
        samples = np.frombuffer(plane, np.uint8 if depth == 8 else np.uint16)
        if len(frame.planes) == 2 and index == 1:  # nv12: U and V take turns
            samples[0::2], samples[1::2] = values[1], values[2]
        else:
            samples[:] = values[index] << (depth - 8)
    return frame


def letterboxed(frame, height=384, width=640):
    out = np.full((height, width, 3), 7, np.uint8)
    box = Letterboxer().write(frame, out)
    return out, box


def inside(out, box):
    return out[box.top : box.top + box.scaled_height, box.left : box.left + box.scaled_width]


@pytest.mark.parametrize("colour", [RED, GREENISH, WHITE, BLACK])
@pytest.mark.parametrize(
    ("pixel_format", "size", "depth", "stated", "matrix", "full"),
    [
        ("yuv420p", (640, 480), 8, UNSTATED, "601", False),
        ("yuv420p", (1280, 720), 8, UNSTATED, "709", False),
        ("yuv420p", (640, 480), 8, BT709, "709", False),
        ("yuv420p", (1280, 720), 8, BT601, "601", False),
        ("yuv420p", (1920, 1080), 8, BT2020, "2020", False),
        ("yuvj420p", (640, 480), 8, UNSTATED, "601", True),
        ("yuvj422p", (1280, 720), 8, BT601, "601", True),
        ("yuv422p", (704, 576), 8, UNSTATED, "601", False),
        ("yuv444p", (641, 481), 8, UNSTATED, "601", False),
        ("nv12", (1280, 720), 8, UNSTATED, "709", False),
        ("yuv420p10le", (1280, 720), 10, UNSTATED, "709", False),
        ("yuv422p10le", (640, 360), 10, UNSTATED, "601", False),
        ("yuv420p", (33, 97), 8, UNSTATED, "601", False),
    ],
)
def test_colours_are_those_of_the_stated_or_usual_matrix_and_range(
    pixel_format, size, depth, stated, matrix, full, colour
):
    frame = plain_frame(*size, pixel_format, yuv(colour, matrix, full), depth)
    frame.colorspace = stated
    out, box = letterboxed(frame)
    assert np.abs(inside(out, box).astype(int) - colour).max() <= 3


def test_a_full_range_flag_counts_without_a_j_format():
    frame = plain_frame(640, 480, "yuv420p", [235, 128, 128])
    limited, box = letterboxed(frame)
    frame.color_range = 2
    full, _ = letterboxed(frame)
    assert inside(limited, box).min() == 255
    assert np.abs(inside(full, box).astype(int) - 235).max() <= 1


@pytest.mark.parametrize(("flag", "shown"), [(0, 255), (1, 255), (2, 235)])
def test_grey_video_is_stretched_unless_it_says_full_range(flag, shown):
    frame = plain_frame(640, 480, "gray", [235])
    frame.color_range = flag
    out, box = letterboxed(frame)
    assert np.abs(inside(out, box).astype(int) - shown).max() <= 1


@pytest.mark.parametrize(
    ("width", "height"), [(1920, 1080), (640, 480), (300, 700), (31, 17), (640, 384), (1, 1), (2560, 100)]
)
def test_every_pixel_is_written_and_the_border_is_grey(width, height):
    out, box = letterboxed(plain_frame(width, height, "yuv420p", [16, 128, 128]))
    assert box == Letterbox.fit(width, height, 640, 384)
    assert (inside(out, box) <= 1).all()
    border = np.ones(out.shape[:2], bool)
    border[box.top : box.top + box.scaled_height, box.left : box.left + box.scaled_width] = False
    assert (out[border] == PAD_VALUE).all()


@settings(max_examples=40)
@given(st.integers(2, 400), st.integers(2, 400), st.sampled_from(["yuv420p", "yuvj422p", "nv12", "rgb24", "gray"]))
def test_any_size_and_format_keeps_a_plain_colour(width, height, pixel_format):
    values = {"rgb24": [77], "gray": [77], "yuvj422p": [77, 128, 128]}.get(pixel_format, [82, 128, 128])
    out, box = letterboxed(plain_frame(width, height, pixel_format, values), 96, 160)
    shown = (77 - 16) * 255 / 219 if pixel_format == "gray" else 77
    assert np.abs(inside(out, box).astype(float) - shown).max() <= 2.5


def test_reduction_averages_and_so_does_not_alias():
    """Stripes finer than the input's pixels become grey; a scaler that picks single pixels shows them as bars."""
    image = np.zeros((1080, 1920, 3), np.uint8)
    image[:, ::3] = 255
    out = np.empty((384, 640, 3), np.uint8)
    box = Letterboxer().write_rgb(image, out)
    assert np.abs(inside(out, box).astype(int) - 85).max() <= 2
    video = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv444p")
    out, box = letterboxed(video)
    assert inside(out, box).std() <= 2


def test_images_are_scaled_as_exact_arithmetic_does():
    image = np.random.default_rng(0).integers(0, 256, (960, 1280, 3), np.uint8)
    out = np.empty((480, 640, 3), np.uint8)
    Letterboxer().write_rgb(image, out)
    exact = image.reshape(480, 2, 640, 2, 3).mean((1, 3))
    assert np.abs(out - exact).max() <= 1


def test_an_image_of_the_inputs_own_size_is_copied():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    out = np.empty_like(image)
    Letterboxer().write_rgb(image, out)
    assert (out == image).all()


def test_video_and_image_of_one_picture_agree():
    """The same shading as a decoded frame and as an image: what remains is the rounding of 8-bit YUV."""
    y, x = np.mgrid[0:720, 0:1280]
    image = np.stack([x * 255 // 1279, y * 255 // 719, (x + y) * 255 // 1998], 2).astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(
        format="yuv444p", src_color_range=2, dst_color_range=1, dst_colorspace=1
    )
    frame.colorspace = BT709
    frame.color_range = 1
    from_video, _ = letterboxed(frame)
    from_image = np.empty_like(from_video)
    Letterboxer().write_rgb(image, from_image)
    difference = np.abs(from_video.astype(int) - from_image)
    assert difference.max() <= 6
    assert difference.mean() <= 1.5


def turned_clip(matrix):
    """An MP4 of one frame, 64 x 32, black with a white upper left quarter, with this display matrix."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        frame = plain_frame(64, 32, "yuv420p", [16, 128, 128])
        luma = np.frombuffer(frame.planes[0], np.uint8).reshape(32, -1)
        luma[:16, :32] = 235
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    data = bytearray(file.getvalue())
    start = data.index(b"tkhd") + 44  # version and flags, times, track, duration, layer, volume: 40 bytes before it
    a, b, c, d = matrix
    data[start : start + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    return io.BytesIO(bytes(data))


@pytest.mark.parametrize(
    ("matrix", "size", "corner"),  # the matrix takes the stored x, y to a * x + c * y, b * x + d * y
    [
        ((1, 0, 0, 1), (64, 32), "upper left"),
        ((0, 1, -1, 0), (32, 64), "upper right"),
        ((-1, 0, 0, -1), (64, 32), "lower right"),
        ((0, -1, 1, 0), (32, 64), "lower left"),
    ],
)
def test_a_frame_with_a_display_matrix_is_turned_upright(matrix, size, corner):
    frame = next(av.open(turned_clip(matrix)).decode(video=0))
    assert displayed_size(frame) == size
    out = np.empty((96, 96, 3), np.uint8)
    box = Letterboxer().write(frame, out)
    assert box == Letterbox.fit(*size, 96, 96)
    for picture in (inside(out, box), Letterboxer().picture(frame)):
        height, width = picture.shape[:2]
        assert (width > height) == (size[0] > size[1])
        quarters = {
            "upper left": picture[: height // 2, : width // 2],
            "upper right": picture[: height // 2, width // 2 :],
            "lower left": picture[height // 2 :, : width // 2],
            "lower right": picture[height // 2 :, width // 2 :],
        }
        assert max(quarters, key=lambda name: quarters[name].mean()) == corner


def test_picture_is_the_whole_frame_in_its_own_size():
    picture = Letterboxer().picture(plain_frame(641, 361, "yuv420p", yuv(GREENISH, "601", False)))
    assert picture.shape == (361, 641, 3)
    assert picture.flags.c_contiguous
    assert np.abs(picture.astype(int) - GREENISH).max() <= 3


def test_one_letterboxer_serves_changing_sizes_and_threads_have_their_own():
    frames = [
        plain_frame(width, height, "yuv420p", [40 + 3 * i, 128, 128])
        for i, (width, height) in enumerate([(1280, 720), (640, 480), (320, 240), (1280, 720)] * 8)
    ]
    expected = [letterboxed(frame)[0] for frame in frames]
    one = Letterboxer()

    def again(frame):
        out = np.empty((384, 640, 3), np.uint8)
        one.write(frame, out)
        return out

    assert all((again(f) == e).all() for f, e in zip(frames, expected, strict=True))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda f: letterboxed(f)[0], frames))
    assert all((r == e).all() for r, e in zip(results, expected, strict=True))


@pytest.mark.parametrize(
    "out",
    [np.empty((64, 64, 4), np.uint8), np.empty((64, 64), np.uint8), np.empty((64, 64, 3), np.float32)],
)
def test_an_output_that_does_not_fit_is_refused(out):
    with pytest.raises(ValueError, match="output of shape"):
        Letterboxer().write_rgb(np.zeros((8, 8, 3), np.uint8), out)


def test_an_image_that_is_not_rgb_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 8\)"):
        Letterboxer().write_rgb(np.zeros((8, 8), np.uint8), np.empty((64, 64, 3), np.uint8))
