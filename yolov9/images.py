"""Still images to RGB: whatever Pillow reads, upright, 8 bits, without transparency; or one clear error.

Files may come from anyone (`POST /detect`): only formats whose decoders run nothing are read (EPS calls Ghostscript),
and the size is looked at before a pixel is decoded.
"""

from __future__ import annotations

import io
from os import PathLike

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
"""Read where the installed Pillow can. MPO is what some phones write under the name of JPEG."""
MAX_PIXELS = 100_000_000
"""300 MB of RGB. The largest phone cameras take pictures of 200 million, which are refused with that reason."""
_TOO_LARGE = f"more than {MAX_PIXELS // 1_000_000} million pixels"
_BACKGROUND = (255, 255, 255)
"""Behind transparent pixels, as viewers show them; their own colour is often arbitrary."""

Rgb = npt.NDArray[np.uint8]


class ImageError(Exception):
    """It cannot be read as an image. One sentence; names the file where there is one."""


def read_image(source: bytes | str | PathLike[str]) -> Rgb:
    """(h, w, 3) uint8 RGB of encoded bytes or of a file; of an animation the first picture. ImageError.

    Turned upright as EXIF says. Grey of 16 bits keeps its upper 8. Transparent images lie on white.
    """
    label = "image" if isinstance(source, bytes) else str(source)
    try:
        with _open(source) as image:
            return to_rgb(image)
    except ImageError as error:
        raise ImageError(f"{label}: {error}") from None
    except OSError as error:  # Pillow's own errors too: not an image, cut short, damaged
        reason = error.strerror or ("not an image that can be read" if "cannot identify" in str(error) else str(error))
        raise ImageError(f"{label}: {reason}") from None
    except Exception as error:  # decoders of damaged files raise whatever they stumble over: SyntaxError, KeyError, ...
        raise ImageError(f"{label}: damaged, {error or type(error).__name__}") from error


def to_rgb(image: Image.Image) -> Rgb:
    """(h, w, 3) uint8 RGB of an opened Pillow image, decoded only now. ImageError for what has no defined range."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return np.repeat(_grey(image)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (*_BACKGROUND, 255)), image)
    return np.asarray(image.convert("RGB"))


def _open(source: bytes | str | PathLike[str]) -> Image.Image:
    Image.init()
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN])
    except Image.DecompressionBombError:
        raise ImageError(_TOO_LARGE) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(_TOO_LARGE)
    return image


def _grey(image: Image.Image) -> Rgb:
    """Grey of more than 8 bits -> 8. What lies outside of 16 bits has no range that could be known."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError("grey values of more than 16 bits or with fractions; convert it to 8 or 16 bits")
    return (values >> 8).astype(np.uint8)
