"""From a decoded picture to the model's input, through libswscale (PyAV): scaled, centred, bordered, RGB uint8.

The same code serves cameras, files, images and evaluation, so that their results are equal.

Video is scaled in two passes: planes first (YUV stays YUV, 4:2:2), then the colours of the small picture, which is
cheap when nothing is scaled. The single pass costs twice as much and gives no better results. Images
(RGB) are scaled as three grey planes, as swscale would go through YUV and back. AREA averages all source pixels when it
reduces and is bilinear when it enlarges; FAST_BILINEAR picks single pixels and aliases.

CPU milliseconds to 640x360 on a shared Zen 4 core (1080p: full-range 4:2:0, 720p: limited; one run of all ways), and AP
of a COCO-trained T model on coco128 (128 images, partly its training data) reduced to inputs of 320 and of 224 pixels:

    1080p  720p  AP 320  AP 224   way
     2.2   1.2    .352    .268    one pass, BILINEAR
     1.3   1.0    .352    .254    one pass, FAST_BILINEAR
     1.7   1.0    .365    .272    one pass, AREA
     0.8   0.5    .350    .257    two passes, FAST_BILINEAR
     1.0   0.5    .355    .273    two passes, BILINEAR
     2.0   0.6    .365    .274    two passes, BICUBIC
     0.9   0.5    .368    .275    two passes, AREA (used)

Differences of a few thousandths are noise on so few images: AREA is used as the cheapest of those that lose nothing.
Enlarging 200 street photographs from 416 to 640 gave .540 in one pass (AREA), .545 in two, .536 with BICUBIC in two.

A frame may be in the hands of one thread only while it is written: PyAV changes it for the time of the call.
"""

from __future__ import annotations

from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from yolov9.geometry import PAD_VALUE, Letterbox

_SCALING = Interpolation.AREA
_PLANES = "yuv422p"
"""Between the passes. 4:2:0 costs as much and loses half of the chroma rows; 4:4:4 costs two to three times as
much."""
_HD_HEIGHT = 720
"""Video that does not state its colour matrix: BT.709 from here on, BT.601 below, as players do."""

# AVColorSpace (what frames carry) -> the matrix, as swscale numbers them. All others count as unstated.
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


def displayed_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(width, height) of the frame as it is to be shown: turned by its display matrix (phones held upright)."""
    return (frame.height, frame.width) if _quarter_turns(frame) % 2 else (frame.width, frame.height)


class Letterboxer:
    """Writes pictures into model inputs. One for each thread: it keeps scalers that are set up once for a geometry."""

    def __init__(self) -> None:
        self._scaler = VideoReformatter()
        self._converter = VideoReformatter()

    def write(self, frame: av.VideoFrame, out: npt.NDArray[np.uint8]) -> Letterbox:
        """Write a decoded frame into `out` (H, W, 3) uint8 and return where it lies; every pixel of `out` is written.

        Any pixel format that swscale reads, of any depth, full or limited range, even or odd in size. The frame is
        turned upright first if its display matrix says so (quarter turns; mirroring is ignored), and the letterbox is
        that of the upright picture. Pixels count as square, whatever the sample aspect ratio. ValueError if `out` does
        not fit; av.FFmpegError if swscale refuses the frame.
        """
        turns = _quarter_turns(frame)
        source = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        box, inside = _place(*source, out)
        width, height = box.scaled_width, box.scaled_height
        inside[...] = np.rot90(self._rgb(frame, *((height, width) if turns % 2 else (width, height))), turns)
        return box

    def write_rgb(self, image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> Letterbox:
        """The same for an image (h, w, 3) uint8 RGB."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image of shape {image.shape} and type {image.dtype}, not (h, w, 3) uint8")
        box, inside = _place(image.shape[1], image.shape[0], out)
        self._scale_rgb(image, inside)
        return box

    def picture(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """The whole frame in its own size, upright, (h, w, 3) uint8 RGB: what `write` scales, to be looked at."""
        return np.ascontiguousarray(np.rot90(self._rgb(frame, frame.width, frame.height), _quarter_turns(frame)))

    def _rgb(self, frame: av.VideoFrame, width: int, height: int) -> npt.NDArray[np.uint8]:
        """The frame as it is stored, (height, width, 3). The array is a view of a picture of its own."""
        if frame.format.is_rgb or frame.format.has_palette:
            rgb = self._converter.reformat(
                frame, format="rgb24", dst_color_range=ColorRange.JPEG, interpolation=_SCALING, threads=1
            )
            scaled = np.empty((height, width, 3), np.uint8)
            self._scale_rgb(_pixels(rgb), scaled)
            return scaled
        matrix, levels = _colours(frame)
        # swscale takes grey as full range, whatever the frame says: the first pass copies it, the second stretches it.
        stored = ColorRange.JPEG if frame.format.name.startswith("gray") else levels
        planes = self._scaler.reformat(
            frame, width=width, height=height, format=_PLANES, interpolation=_SCALING, threads=1,
            src_colorspace=matrix, dst_colorspace=matrix, src_color_range=stored, dst_color_range=stored,
        )  # fmt: skip
        rgb = self._converter.reformat(
            planes, format="rgb24", interpolation=_SCALING, threads=1,
            src_colorspace=matrix, src_color_range=levels, dst_color_range=ColorRange.JPEG,
        )  # fmt: skip
        return _pixels(rgb)

    def _scale_rgb(self, image: npt.NDArray[np.uint8], out: npt.NDArray[np.uint8]) -> None:
        """Fill `out` with the whole image."""
        if out.shape == image.shape:
            out[...] = image
            return
        height, width, _ = out.shape
        for channel in range(3):
            plane = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:, :, channel]), "gray")
            scaled = self._scaler.reformat(plane, width=width, height=height, interpolation=_SCALING, threads=1)
            out[:, :, channel] = _pixels(scaled)


def _pixels(picture: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """The pixels of an RGB or grey picture of 8 bits, without a copy."""
    return cast(npt.NDArray[np.uint8], picture.to_ndarray())


def _colours(frame: av.VideoFrame) -> tuple[Colorspace, ColorRange]:
    matrix = _MATRICES.get(frame.colorspace)
    if matrix is None:
        matrix = Colorspace.ITU709 if frame.height >= _HD_HEIGHT else Colorspace.ITU601
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    return matrix, ColorRange.JPEG if full else ColorRange.MPEG


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring the stored picture upright, 0..3."""
    return round(frame.rotation / 90) % 4


def _place(width: int, height: int, out: npt.NDArray[np.uint8]) -> tuple[Letterbox, npt.NDArray[np.uint8]]:
    """Where the picture goes, and the part of `out` for it; the bars around it are painted."""
    if out.dtype != np.uint8 or out.ndim != 3 or out.shape[2] != 3 or not out.flags.writeable:
        raise ValueError(f"output of shape {out.shape} and type {out.dtype}, not a writable (H, W, 3) uint8")
    box = Letterbox.fit(width, height, out.shape[1], out.shape[0])
    bottom, right = box.top + box.scaled_height, box.left + box.scaled_width
    out[: box.top] = PAD_VALUE
    out[bottom:] = PAD_VALUE
    out[box.top : bottom, : box.left] = PAD_VALUE
    out[box.top : bottom, right:] = PAD_VALUE
    return box, out[box.top : bottom, box.left : right]
