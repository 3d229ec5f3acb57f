"""`python -m yolov9.predict` end to end, on a tiny detector of red and blue whose right answers are known."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from tiny_model import tiny_bundle

from yolov9 import predict
from yolov9.draw import class_colour, draw_boxes
from yolov9.images import ImageError, read_image
from yolov9.media import find, masked

RED, BLUE, GREY = (255, 0, 0), (0, 0, 255), (114, 114, 114)


def scene(width=128, height=96, red=(32, 32, 64, 64), blue=None):
    """A grey picture with a red and a blue rectangle. At 128x96 the input's cells are its own, of 32 pixels."""
    image = Image.new("RGB", (width, height), GREY)
    for colour, box in ((RED, red), (BLUE, blue)):
        if box is not None:
            image.paste(colour, box)
    return image


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return str(tiny_bundle(tmp_path_factory.mktemp("bundles") / "tiny").path)


@pytest.fixture
def run(bundle, tmp_path, capsys):
    """Run the command in-process -> (exit code, entries of the JSON file, stdout, stderr)."""

    def call(source, *options, weights=bundle):
        file = tmp_path / "results.json"
        arguments = ["--weights", weights, "--source", str(source), "--out", str(tmp_path / "out"), "--json", str(file)]
        code = predict.main([*arguments, "--engine", "openvino", "--precision", "fp32", "--confidence", ".5", *options])
        captured = capsys.readouterr()
        entries = json.loads(file.read_text()) if file.exists() else []
        return code, entries, captured.out, captured.err

    return call


def boxes(entry):
    return [(d["class"], d["box"]) for d in entry["detections"]]


def test_an_image_gives_json_and_a_drawn_picture(run, tmp_path):
    scene(blue=(96, 0, 128, 32)).save(tmp_path / "a.png")
    code, entries, out, _ = run(tmp_path / "a.png")
    assert code == 0
    (entry,) = entries
    assert {k: entry[k] for k in ("source", "frame", "pts", "width", "height")} == {
        "source": str(tmp_path / "a.png"), "frame": 0, "pts": None, "width": 128, "height": 96,
    }  # fmt: skip
    assert sorted(boxes(entry)) == [("blue", [96, 0, 128, 32]), ("red", [32, 32, 64, 64])]
    assert set(entry["detections"][0]) == {"class", "class_id", "confidence", "box"}
    assert entry["detections"][0]["confidence"] == pytest.approx(1.0, abs=1e-3)
    drawn = Image.open(tmp_path / "out" / "a.png")
    assert drawn.size == (128, 96)
    assert drawn.getpixel((32, 50)) == class_colour("red")
    assert "1 red" in out
    assert str((tmp_path / "out").resolve()) in out


def test_boxes_are_in_pixels_of_the_source_whatever_its_size(run, tmp_path):
    scene(1280, 960, red=(320, 320, 640, 640)).save(tmp_path / "large.png")
    _, (entry,), _, _ = run(tmp_path / "large.png")
    assert boxes(entry) == [("red", [320, 320, 640, 640])]


def test_a_tall_image_runs_in_a_tall_input(run, tmp_path):
    scene(96, 128, red=(64, 96, 96, 128)).save(tmp_path / "tall.png")
    _, (entry,), _, _ = run(tmp_path / "tall.png")
    assert boxes(entry) == [("red", [64, 96, 96, 128])]


def save_exif(image, path):
    """Turned by 90 degrees in storage, with EXIF saying so (6: the stored left side is the shown top)."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)


def save_grey16(image, path):
    values = np.asarray(image.convert("L")).astype(np.uint16) << 8
    Image.fromarray(values).save(path)


def save_alpha(image, path):
    """Transparent where it is grey; there the hidden colour is pure red."""
    pixels = np.asarray(image.convert("RGBA")).copy()
    pixels[(pixels[..., :3] == GREY).all(2)] = (255, 0, 0, 0)
    Image.fromarray(pixels).save(path)


def save_palette(image, path):
    image.quantize(8).save(path)


@pytest.mark.parametrize(
    ("save", "name"),
    [
        (save_exif, "exif.png"),
        (save_alpha, "alpha.png"),
        (save_palette, "palette.gif"),
        (lambda image, path: image.save(path, quality=95, subsampling=0), "photo.jpg"),
        (lambda image, path: image.convert("CMYK").save(path), "print.tif"),
        (lambda image, path: image.save(path, lossless=True), "web.webp"),
    ],
)
def test_any_kind_of_image_gives_the_right_result(run, tmp_path, save, name):
    save(scene(), tmp_path / name)
    code, (entry,), _, _ = run(tmp_path / name)
    assert code == 0
    assert (entry["width"], entry["height"]) == (128, 96)
    assert boxes(entry) == [("red", [32, 32, 64, 64])]


def test_grey_images_of_8_and_16_bits_are_read_alike(tmp_path):
    scene().convert("L").save(tmp_path / "g8.png")
    save_grey16(scene(), tmp_path / "g16.png")
    eight, sixteen = read_image(tmp_path / "g8.png"), read_image(tmp_path / "g16.png")
    assert (eight == sixteen).all()
    assert eight.shape == (96, 128, 3)
    assert eight[0, 0].tolist() == [114, 114, 114]


def test_a_grey_image_of_unknown_range_is_refused(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageError, match=r"f\.tif: grey values of more than 16 bits"):
        read_image(tmp_path / "f.tif")


def encoded(kind, **options):
    file = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8))
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about the damage
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"])
def test_damaged_bytes_give_an_image_error_or_a_picture(kind):
    whole = encoded(kind)
    assert read_image(whole).shape == (96, 128, 3)
    with pytest.raises(ImageError, match=r"^image: "):
        read_image(whole[: len(whole) // 2])
    chance = random.Random(1)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(8):
            damaged[chance.randrange(min(len(whole), 400))] = chance.randrange(256)
        try:
            assert read_image(bytes(damaged)).dtype == np.uint8
        except ImageError:
            pass


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(ImageError, match="not an image"):
        read_image(data)


def test_a_decompression_bomb_is_refused_by_its_header():
    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    data = file.getvalue()
    start = data.index(b"IHDR")
    header = (20_000).to_bytes(4, "big") * 2 + data[start + 12 : start + 17]
    chunk = b"IHDR" + header
    import zlib

    bomb = data[:start] + chunk + zlib.crc32(chunk).to_bytes(4, "big") + data[start + 21 :]
    with pytest.raises(ImageError, match="more than 100 million pixels"):
        read_image(bomb)


def test_a_huge_text_chunk_is_refused():
    file, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text("a", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("L", (4, 4)).save(file, "PNG", pnginfo=text)
    with pytest.raises(ImageError, match=r"^image: "):
        read_image(file.getvalue())


def test_a_bad_file_is_named_and_the_others_go_on(run, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    scene().save(folder / "a.png")
    (folder / "b.jpg").write_bytes(encoded("JPEG")[:700])
    scene().save(folder / "c.png")
    (folder / "notes.txt").write_text("no picture")
    code, entries, out, err = run(folder)
    assert code == 1
    assert [entry["source"] for entry in entries] == [str(folder / "a.png"), str(folder / "c.png")]
    assert err.count("error: ") == 1
    assert str(folder / "b.jpg") in err
    assert "2 images" in out


def test_a_glob_takes_files_of_one_name_apart(run, tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        scene().save(tmp_path / place / "x.png")
    code, entries, _, _ = run(tmp_path / "*" / "x.png")
    assert code == 0
    assert len(entries) == 2
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["x-2.png", "x.png"]


def test_the_source_is_never_overwritten(run, tmp_path):
    (tmp_path / "out").mkdir()
    scene().save(tmp_path / "out" / "x.png")
    before = (tmp_path / "out" / "x.png").read_bytes()
    assert run(tmp_path / "out" / "x.png")[0] == 0
    assert (tmp_path / "out" / "x.png").read_bytes() == before
    assert (tmp_path / "out" / "x-2.png").exists()


def write_clip(path, times, size=(128, 96), pixel_format="yuv444p"):
    """A clip whose red square moves right by 32 pixels a second; `times` in milliseconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        for ms in times:
            left = ms // 1000 * 32
            frame = av.VideoFrame.from_image(scene(*size, red=(left, 32, left + 32, 64)))
            frame.pts, frame.time_base = ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_every_frame_of_a_video_is_reported_with_its_time(run, tmp_path):
    times = [0, 40, 80, 1000, 1500, 2040, 3000]  # of varying rate
    write_clip(tmp_path / "clip.mp4", times)
    code, entries, out, _ = run(tmp_path / "clip.mp4")
    assert code == 0
    assert [entry["frame"] for entry in entries] == list(range(7))
    assert [entry["pts"] for entry in entries] == pytest.approx([ms / 1000 for ms in times], abs=1e-3)
    for entry, ms in zip(entries, times, strict=True):
        left = ms // 1000 * 32
        assert boxes(entry) == [("red", [left, 32, left + 32, 64])]
    assert "7 frames" in out
    drawn = list(av.open(str(tmp_path / "out" / "clip.mp4")).decode(video=0))
    assert [float(f.pts * f.time_base) for f in drawn] == pytest.approx([ms / 1000 for ms in times], abs=1e-3)
    assert (drawn[0].width, drawn[0].height, drawn[0].format.name) == (128, 96, "yuv420p")
    outline = np.asarray(drawn[0].to_image(), int)[33:63, 0]
    assert np.abs(outline - class_colour("red")).mean() < 60


def test_a_video_of_odd_size_is_drawn(run, tmp_path):
    write_clip(tmp_path / "odd.mkv", [0, 40, 80], size=(129, 97))
    code, entries, _, _ = run(tmp_path / "odd.mkv")
    assert code == 0
    assert len(entries) == 3
    assert (entries[0]["width"], entries[0]["height"]) == (129, 97)
    frame = next(av.open(str(tmp_path / "out" / "odd.mp4")).decode(video=0))
    assert (frame.width, frame.height) == (128, 96)


def test_a_damaged_video_gives_what_can_be_decoded(run, tmp_path):
    write_clip(tmp_path / "clip.ts", range(0, 2000, 40), pixel_format="yuv420p")
    data = (tmp_path / "clip.ts").read_bytes()
    (tmp_path / "cut.ts").write_bytes(data[: len(data) // 2])
    code, entries, _, _ = run(tmp_path / "cut.ts")
    assert code == 0
    assert 0 < len(entries) < 50
    (tmp_path / "no.mp4").write_bytes(b"no video at all")
    code, entries, _, err = run(tmp_path / "no.mp4")
    assert code == 1
    assert entries == []
    assert "no.mp4: Invalid data" in err


def test_nothing_is_drawn_without_save(run, tmp_path):
    scene().save(tmp_path / "a.png")
    code, entries, _, _ = run(tmp_path / "a.png", "--no-save")
    assert code == 0
    assert len(entries) == 1
    assert not (tmp_path / "out").exists()


def test_only_wanted_classes_are_reported(run, tmp_path):
    scene(blue=(96, 0, 128, 32)).save(tmp_path / "a.png")
    _, (entry,), _, _ = run(tmp_path / "a.png", "--classes", "blue")
    assert [name for name, _ in boxes(entry)] == ["blue"]
    code, _, _, err = run(tmp_path / "a.png", "--classes", "green")
    assert code == 2
    assert "no class 'green' (it has red, blue)" in err


def test_another_input_size_changes_the_cells(run, tmp_path):
    scene().save(tmp_path / "a.png")
    _, (entry,), _, _ = run(tmp_path / "a.png", "--imgsz", "256")
    assert len(entry["detections"]) == 4  # the square covers four cells of 32 pixels now
    code, _, _, err = run(tmp_path / "a.png", "--imgsz", "100")
    assert code == 2
    assert "100" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nowhere.jpg"}, "nowhere.jpg: no such file"),
        ({"source": "."}, "no images or videos"),
        ({"weights": "no-such-model"}, "no-such-model"),
    ],
)
def test_a_run_that_cannot_begin_says_why(run, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    scene().save(tmp_path / "a.dat", "PNG")
    code, _, _, err = run(**{"source": "a.dat", **options})
    assert code == 2
    assert message in err


def test_a_damaged_bundle_is_named(run, tmp_path):
    tiny_bundle(tmp_path / "b")
    (tmp_path / "b" / "model.onnx").write_bytes(b"x")
    scene().save(tmp_path / "a.png")
    code, _, _, err = run(tmp_path / "a.png", weights=str(tmp_path / "b"))
    assert code == 2
    assert "model.onnx: has 1 bytes" in err


def test_results_are_complete_json_after_an_interrupt(run, tmp_path, monkeypatch):
    write_clip(tmp_path / "clip.mkv", range(0, 1000, 40))
    frames = 0
    original = predict.Predictor.frame

    def interrupted(self, frame):
        nonlocal frames
        frames += 1
        if frames == 5:
            raise KeyboardInterrupt
        return original(self, frame)

    monkeypatch.setattr(predict.Predictor, "frame", interrupted)
    code, entries, out, _ = run(tmp_path / "clip.mkv")
    assert code == 0
    assert len(entries) == 4
    assert "interrupted" in out
    assert len(list(av.open(str(tmp_path / "out" / "clip.mp4")).decode(video=0))) == 4


def test_a_video_left_early_never_waits_for_decoder_threads_that_want_to_log(tmp_path):
    """libav's log takes the GIL, and freeing a decoder waits for its threads: together they hang for good, and hold
    the GIL, so that only another process can tell."""
    write_clip(tmp_path / "clip.mkv", range(0, 1000, 40))
    program = """
import itertools, sys
import av
from yolov9.media import Video, find

av.logging.set_level(av.logging.DEBUG)
(source,) = find(sys.argv[1])
with av.logging.Capture(local=False) as lines:
    for count in range(300):
        video = Video(source)
        list(itertools.islice(video, 1 + count % 8))
        video.close()
        del video
        lines.clear()
print("done")
"""
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "clip.mkv")], capture_output=True, text=True, timeout=60
    )
    assert ended.stdout == "done\n", ended.stderr


def test_a_checkpoint_runs_in_torch(run, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    import yolov9

    yolov9.save(yolov9.build("gelan-t", ["red", "blue"]), tmp_path / "weights.safetensors")
    scene().save(tmp_path / "a.png")
    options = ("--engine", "torch", "--imgsz", "64")
    code, entries, out, _ = run(tmp_path / "a.png", *options, weights=str(tmp_path / "weights.safetensors"))
    assert code == 0
    assert len(entries) == 1
    assert "engine torch fp32" in out
    code, _, _, err = run(tmp_path / "a.png", weights=str(tmp_path / "weights.safetensors"))
    assert code == 2
    assert "only the engine torch runs" in err


SHARED = os.environ.get("YOLOV9_SHARED")


@pytest.mark.slow
@pytest.mark.skipif(not SHARED, reason="needs real weights and clips: set YOLOV9_SHARED to their folder")
@pytest.mark.parametrize(
    ("clip", "name", "first"), [("motorway-h265.mp4", "car", 0), ("people-indoor.mp4", "person", 230)]
)
def test_real_weights_find_what_a_real_clip_shows(tmp_path, clip, name, first):
    pytest.importorskip("torch")
    import yolov9
    from yolov9.engines import create
    from yolov9.export import export
    from yolov9.predictor import Predictor

    assert SHARED is not None
    model = yolov9.load(Path(SHARED) / "weights" / "gelan-t-coco.safetensors")
    bundle = export(model, tmp_path / "coco", check=False)
    predictor = Predictor(create(bundle), bundle.names, bundle.input_size)
    seen = []
    for number, frame in enumerate(av.open(str(Path(SHARED) / "clips" / clip)).decode(video=0)):
        if first <= number < first + 30:
            seen.append(any(m["class"] == name for m in predictor.messages(predictor.frame(frame))))
    assert len(seen) == 30
    assert sum(seen) >= 28


def test_credentials_of_a_url_are_never_shown(run, capsys):
    code, entries, out, err = run("rtsp://admin:s3cr@t/?@127.0.0.1:9/live?token=t0ken", "--no-save")
    assert code == 1
    assert entries == []
    assert "rtsp://127.0.0.1:9/live" in err
    for secret in ("s3cr", "t0ken", "admin"):
        assert secret not in out + err


def test_masking_and_finding(tmp_path):
    assert masked("http://host/a.mp4?sig=1#x") == "http://host/a.mp4"
    for name in ("b.MP4", "a.jpg", "c.txt"):
        (tmp_path / name).write_text("")
    found = find(str(tmp_path))
    assert [(s.label.rpartition("/")[2], s.is_image) for s in found] == [("a.jpg", True), ("b.MP4", False)]


class TestDrawing:
    def test_a_class_has_one_colour_whatever_stands_behind_its_name(self):
        assert class_colour("person 0.91") == class_colour("person") == class_colour("person #12 0.50")
        street = ["person", "car", "truck", "bus", "bicycle", "motorcycle"]
        colours = [np.array(class_colour(name)) for name in street]
        assert min(np.abs(a - b).sum() for i, a in enumerate(colours) for b in colours[:i]) > 100

    @pytest.mark.parametrize("size", [(8, 8), (640, 360), (3840, 2160)])
    def test_boxes_anywhere_are_drawn_and_nothing_else_is_touched(self, size):
        image = Image.new("RGB", size)
        width, height = size
        draw_boxes(
            image, [(-50, -50, width + 50, height + 50, "dog 0.5"), (width, height, 0, 0, "cat"), (3, 3, 3, 3, "")]
        )
        assert np.asarray(image).any()
        blank = Image.new("RGB", size)
        draw_boxes(blank, [])
        assert not np.asarray(blank).any()

    def test_lines_and_text_grow_with_the_picture(self):
        painted = []
        for size in ((640, 360), (2560, 1440)):
            image = Image.new("RGB", size)
            draw_boxes(image, [(size[0] * 0.4, size[1] * 0.4, size[0] * 0.6, size[1] * 0.6, "person 0.91")])
            painted.append(np.asarray(image).any(2).mean())
        assert painted[1] == pytest.approx(painted[0], rel=0.5)

    def test_a_label_at_the_edge_stays_inside_and_can_be_read(self):
        image = Image.new("RGB", (640, 360))
        draw_boxes(image, [(600, 0, 640, 200, "traffic light 0.88")])
        pixels = np.asarray(image)
        label = pixels[2:12, 560:600]
        assert label.any(2).mean() > 0.9, "the label's field is filled, left of the box that leaves it no room"
        assert len(np.unique(label.reshape(-1, 3), axis=0)) > 2, "with letters on it"
