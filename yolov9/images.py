"""Still images to RGB: whatever Pillow reads, upright, 8 bits, without transparency; or one clear error.

Files may come from anyone (`POST /detect`): only formats whose decoders run nothing are read (EPS calls Ghostscript),
and the size is looked at before a pixel is decoded.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, TiffImageFile

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""Read where the installed Pillow can. MPO is what some phones write under the name of JPEG."""
# fmt: off
SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2",
    ".avif",
})
# fmt: on
"""Of files that are taken for images in a folder, in lower case."""
MAX_PIXELS = 100_000_000
"""300 MB of RGB. The largest phone cameras take pictures of 200 million, which are refused with that reason."""
_ORIENTATION = 0x0112
"""EXIF's tag."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF's orientation -> what brings the picture upright."""
MAX_SCANS = 200
"""Of a JPEG. Encoders write a dozen; a scan of 30 bytes makes the decoder go through all pixels once more (20 ms for 16
million), so that a file of some megabytes could take hours."""
_SCAN = b"\xff\xda"
_BACKGROUND = (255, 255, 255)
"""Behind transparent pixels, as viewers show them; their own colour is often arbitrary."""

Rgb = npt.NDArray[np.uint8]
T = TypeVar("T")


class ImageError(Exception):
    """It cannot be read as an image. One sentence; names the file where there is one."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says of its picture, before a pixel is decoded."""

    width: int
    height: int
    """As the pixels are stored."""
    orientation: int
    """EXIF's, 1 to 8. From 5 on the picture lies on its side."""

    @property
    def displayed(self) -> tuple[int, int]:
        """(width, height) of the upright picture: what `read_image` gives."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_image(source: bytes | str | PathLike[str], *, max_pixels: int = MAX_PIXELS) -> Rgb:
    """(h, w, 3) uint8 RGB of encoded bytes or of a file; of an animation the first picture. ImageError.

    Turned upright as EXIF says. Grey of 16 bits keeps its upper 8. Transparent images lie on white.
    """
    return _read(source, to_rgb, max_pixels)


def read_header(source: bytes | str | PathLike[str]) -> Header:
    """Size and orientation, some 50 us a file; ImageError for what `read_image` would refuse by its header.

    Whether the pixels can be decoded is not known yet.
    """
    return _read(source, _header, MAX_PIXELS)


def _read(source: bytes | str | PathLike[str], take: Callable[[Image.Image], T], max_pixels: int) -> T:
    label = "image" if isinstance(source, bytes) else str(source)
    try:
        with _open(source, max_pixels) as image:
            return take(image)
    except ImageError as error:
        raise ImageError(f"{label}: {error}") from None
    except OSError as error:  # Pillow's own errors too: not an image, cut short, damaged
        raise ImageError(f"{label}: {_reason(source, error)}") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumble over: SyntaxError, KeyError, ...
        raise ImageError(f"{label}: damaged, {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Rgb:
    """(h, w, 3) uint8 RGB of an opened Pillow image, decoded only now. ImageError for what has no defined range."""
    image.load()  # of a PNG, EXIF may follow the pixels
    turn = _TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_grey(image)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*_BACKGROUND, 255)), image)
    return np.asarray(image.convert("RGB"))


def _reason(source: bytes | str | PathLike[str], error: OSError) -> str:
    if error.strerror:
        return error.strerror
    if "cannot identify" not in str(error):
        return str(error)
    size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
    return "not an image that can be read" if size else "an empty file, not an image"


def _open(source: bytes | str | PathLike[str], max_pixels: int) -> Image.Image:
    Image.init()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.DecompressionBombError:
        raise ImageError(_too_large(max_pixels)) from None
    if image.width * image.height > max_pixels:
        image.close()
        raise ImageError(_too_large(max_pixels))
    # Of a file there is no limit: it is not sent by others. In a PNG the bytes may stand anywhere.
    if isinstance(source, bytes) and image.format in ("JPEG", "MPO") and source.count(_SCAN) > MAX_SCANS:
        image.close()
        raise ImageError(f"a JPEG of more than {MAX_SCANS} scans")
    return image


def _too_large(max_pixels: int) -> str:
    return f"more than {max_pixels // 1_000_000} million pixels"


def _header(image: Image.Image) -> Header:
    # Pillow looks for a PNG's EXIF behind the pixels too, which it would have to decode first. Nobody writes it there.
    known = image.format != "PNG" or "exif" in image.info
    width, height = image.size
    if isinstance(image, TiffImageFile):  # newer Pillows state the size of the upright picture
        width, height = image.tag_v2[IMAGEWIDTH], image.tag_v2[IMAGELENGTH]
    return Header(width, height, _orientation(image) if known else 1)


def _orientation(image: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 where it is damaged or strange: the picture itself is whole, and viewers show it."""
    try:
        stated = image.getexif().get(_ORIENTATION)
    except Exception:  # of a damaged directory Pillow raises SyntaxError, struct.error, ...
        return 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def _grey(image: Image.Image) -> Rgb:
    """Grey of more than 8 bits -> 8. What lies outside of 16 bits has no range that could be known."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError("grey values of more than 16 bits or with fractions; convert it to 8 or 16 bits")
    return (values >> 8).astype(np.uint8)
