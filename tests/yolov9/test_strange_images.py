"""Pictures as they come in the wild: read right or refused with one clear sentence, alike by `read_image`, by
`python -m yolov9.predict` and by `python -m yolov9.val`."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_model import tiny_bundle

from yolov9 import predict, val
from yolov9.images import MAX_PIXELS, MAX_SCANS, ImageError, read_header, read_image

RED_BOX = (32, 32, 64, 64)
"""Of every picture of 128 x 96 here: a cell of the tiny detector's grid."""


def scene(size=(128, 96), box=RED_BOX) -> Image.Image:
    image = Image.new("RGB", size, (114, 114, 114))
    image.paste((255, 0, 0), box)
    return image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int, how: Image.Transpose, kind: str = "JPEG") -> bytes:
    """Stored so that EXIF's orientation brings it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(scene().transpose(how), kind, exif=exif)


def cmyk() -> bytes:
    return encoded(scene().convert("CMYK"), "JPEG", quality=95)


def palette_with_transparency() -> bytes:
    """Grey is transparent, so it shows as white."""
    return encoded(scene().quantize(4), "PNG", transparency=scene().quantize(4).getpixel((0, 0)))


def alpha() -> bytes:
    """Half transparent around the box; pure red hides below it."""
    pixels = np.full((96, 128, 4), (255, 0, 0, 0), np.uint8)
    pixels[32:64, 32:64] = 255, 0, 0, 255
    return encoded(Image.fromarray(pixels), "PNG")


def animation() -> bytes:
    return encoded(scene(), "GIF", save_all=True, append_images=[Image.new("RGB", (128, 96), (0, 0, 255))])


def rgb16() -> bytes:
    """A PNG of 16 bits a channel, written by hand: Pillow cannot."""
    values = np.asarray(scene()).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", 128, 96, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def damaged_exif() -> bytes:
    return encoded(scene(), "JPEG", quality=95, exif=b"Exif\0\0this is no directory")


SHOWN = {
    "photo.jpg": encoded(scene(), "JPEG", quality=95),
    "cmyk.jpg": cmyk(),
    "palette.png": palette_with_transparency(),
    "alpha.png": alpha(),
    "animation.gif": animation(),
    "sixteen.png": rgb16(),
    "exif2.jpg": turned(2, Image.Transpose.FLIP_LEFT_RIGHT),
    "exif3.jpg": turned(3, Image.Transpose.ROTATE_180),
    "exif4.jpg": turned(4, Image.Transpose.FLIP_TOP_BOTTOM),
    "exif5.jpg": turned(5, Image.Transpose.TRANSPOSE),
    "exif6.jpg": turned(6, Image.Transpose.ROTATE_90),
    "exif6.png": turned(6, Image.Transpose.ROTATE_90, "PNG"),
    "exif6.webp": turned(6, Image.Transpose.ROTATE_90, "WEBP"),
    "exif6.tif": turned(6, Image.Transpose.ROTATE_90, "TIFF"),
    "exif7.jpg": turned(7, Image.Transpose.TRANSVERSE),
    "exif8.jpg": turned(8, Image.Transpose.ROTATE_270),
    "damaged-exif.jpg": damaged_exif(),
}
"""All show the same scene: red in RED_BOX, something else around it."""

JPEG = encoded(scene((640, 480), (100, 100, 300, 300)), "JPEG")
BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    for name, body in (
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1 << 20))),
        (b"IEND", b""),
    )
)
REFUSED = {
    "empty.jpg": (b"", "an empty file"),
    "text.jpg": (b"<html>not found</html>", "not an image that can be read"),
    "truncated.jpg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated.png": (encoded(scene(), "PNG")[:-60], "truncated|broken|damaged"),
    "header-only.jpg": (JPEG[:200], "not an image that can be read|[Tt]runcated|damaged"),
    "bomb.png": (BOMB, f"more than {MAX_PIXELS // 1_000_000} million pixels"),
    "float.tif": (encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "convert it to 8 or 16 bits"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny").path)


def data_set(folder: Path, name: str, content: bytes, more: dict[str, bytes] | None = None) -> Path:
    """YOLO labels that name the red box in each picture."""
    for part in ("images", "labels"):
        (folder / part / "val").mkdir(parents=True)
    for file, data in {name: content, **(more or {})}.items():
        (folder / "images" / "val" / file).write_bytes(data)
        (folder / "labels" / "val" / file).with_suffix(".txt").write_text("0 .375 .5 .25 .33333333\n")
    (folder / "data.yaml").write_text("val: images/val\nnames: [red, blue]\n")
    return folder


def run_predict(bundle, source, tmp_path, capsys):
    arguments = ["--weights", bundle, "--source", str(source), "--out", str(tmp_path / "out"), "--engine", "openvino"]
    code = predict.main([*arguments, "--json", str(tmp_path / "p.json"), "--precision", "fp32", "--confidence", ".5"])
    entries = json.loads((tmp_path / "p.json").read_text())
    return code, entries, capsys.readouterr().err


def run_val(bundle, data, tmp_path, capsys):
    arguments = ["--weights", bundle, "--data", str(data), "--no-save", "--json", str(tmp_path / "v.json")]
    code = val.main([*arguments, "--engine", "openvino", "--precision", "fp32"])
    file = tmp_path / "v.json"
    return code, json.loads(file.read_text()) if file.exists() else None, capsys.readouterr().err


@pytest.mark.parametrize("name", SHOWN)
def test_a_picture_is_shown_as_it_is_meant(name):
    image = read_image(SHOWN[name])
    assert image.shape == (96, 128, 3)
    assert image.dtype == np.uint8
    assert read_header(SHOWN[name]).displayed == (128, 96)
    inside = image[36:60, 36:60].astype(int)
    # A CMYK red is as red as the simple conversion makes it.
    assert (inside[..., 0] > 200).all()
    assert (inside[..., 1:] < 60).all()
    outside = np.concatenate([image[:28].reshape(-1, 3), image[68:].reshape(-1, 3)]).astype(int)
    assert (np.ptp(outside, axis=1) < 40).all()


@pytest.mark.parametrize("name", SHOWN)
def test_predict_and_val_find_what_it_shows(name, bundle, tmp_path, capsys):
    (tmp_path / name).write_bytes(SHOWN[name])
    code, (entry,), err = run_predict(bundle, tmp_path / name, tmp_path, capsys)
    assert code == 0, err
    assert [d["class"] for d in entry["detections"]] == ["red"]
    np.testing.assert_allclose(entry["detections"][0]["box"], RED_BOX, atol=0.1)
    code, metrics, err = run_val(bundle, data_set(tmp_path / "data", name, SHOWN[name]), tmp_path, capsys)
    assert code == 0, err
    assert metrics["map"] == 1


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_all_alike(name, bundle, tmp_path, capsys):
    content, message = REFUSED[name]
    with pytest.raises(ImageError, match=f"^image: .*({message})"):
        read_image(content)
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ImageError, match=f"^{file}: .*({message})") as caught:
        read_image(file)
    reason = str(caught.value).removeprefix(f"{file}: ")
    code, entries, err = run_predict(bundle, file, tmp_path, capsys)
    assert (code, entries) == (1, [])
    assert f"error: {file}: {reason}" in err
    # val goes on without it.
    data = data_set(tmp_path / "data", name, content, {"good.jpg": SHOWN["photo.jpg"]})
    code, metrics, err = run_val(bundle, data, tmp_path, capsys)
    assert code == 0, err
    assert (metrics["map"], metrics["images"]) == (1, 1)
    assert metrics["data"]["problems"] == {"corrupt image": 1}
    assert f"corrupt image: {data / 'images' / 'val' / name}: {reason}" in err


def progressive(repeats: int) -> bytes:
    """A JPEG whose last scan, some 30 bytes, comes again and again: each time all pixels are gone through."""
    whole = encoded(scene(), "JPEG", progressive=True)
    begin = whole.rindex(b"\xff\xda")
    return whole[:begin] + whole[begin:-2] * repeats + whole[-2:]


def test_a_jpeg_that_would_take_hours_is_refused():
    assert read_image(progressive(MAX_SCANS - 12)).shape == (96, 128, 3)
    with pytest.raises(ImageError, match=f"image: a JPEG of more than {MAX_SCANS} scans"):
        read_image(progressive(MAX_SCANS + 1))


def test_whoever_reads_may_set_a_lower_limit():
    image = SHOWN["photo.jpg"]
    assert read_image(image, max_pixels=128 * 96).shape == (96, 128, 3)
    with pytest.raises(ImageError, match="more than 0 million pixels"):
        read_image(image, max_pixels=128 * 96 - 1)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (3, 2)])
def test_a_picture_of_one_pixel_is_a_picture(size, bundle, tmp_path, capsys):
    name = "dot.png"
    content = encoded(Image.new("RGB", size, (255, 0, 0)), "PNG")
    assert read_image(content).shape == (size[1], size[0], 3)
    (tmp_path / name).write_bytes(content)
    code, (entry,), err = run_predict(bundle, tmp_path / name, tmp_path, capsys)
    assert code == 0, err
    for detection in entry["detections"]:
        x1, y1, x2, y2 = detection["box"]
        assert 0 <= x1 < x2 <= size[0]
        assert 0 <= y1 < y2 <= size[1]
    data = data_set(tmp_path / "data", name, content, {"good.jpg": SHOWN["photo.jpg"]})
    code, metrics, err = run_val(bundle, data, tmp_path, capsys)
    assert code == 0, err
    assert metrics["images"] == 2


@pytest.mark.parametrize("mode", ["L", "1", "LA", "I;16"])
def test_grey_of_any_depth_is_grey(mode):
    ramp = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (96, 1))
    image = Image.fromarray(ramp)
    if mode == "I;16":
        image = Image.fromarray(ramp.astype(np.uint16) << 8)
    elif mode != "L":
        image = image.convert(mode)
    shown = read_image(encoded(image, "PNG"))
    assert (shown[..., 0] == shown[..., 1]).all()
    assert (shown[..., 0] == shown[..., 2]).all()
    if mode != "1":
        np.testing.assert_array_equal(shown[..., 0], ramp)


def test_an_unknown_orientation_is_none():
    exif = Image.Exif()
    exif[0x0112] = 9
    assert read_header(encoded(scene(), "JPEG", exif=exif)).orientation == 1
    assert read_image(encoded(scene(), "JPEG", exif=exif)).shape == (96, 128, 3)


def test_headers_are_read_without_the_pixels(tmp_path):
    (tmp_path / "a.jpg").write_bytes(JPEG[:2000])
    assert read_header(tmp_path / "a.jpg").displayed == (640, 480)
    with pytest.raises(ImageError, match="truncated"):
        read_image(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"nowhere\.jpg: No such file"):
        read_header(tmp_path / "nowhere.jpg")
    with pytest.raises(ImageError, match="million pixels"):
        read_header(BOMB)
