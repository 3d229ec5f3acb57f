"""`evaluate` and `python -m yolov9.val`: with an engine whose predictions are known, on pictures drawn here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn_data import CATEGORY_IDS, COLOURS, NAMES, picture, truth, write_coco, write_voc, write_yolo
from test_data_formats import make_coco, make_yolo
from tiny_model import tiny_bundle

from yolov9 import val
from yolov9.data import DataError, open_dataset
from yolov9.engines import EngineError
from yolov9.evaluation.coco import METRICS
from yolov9.evaluation.run import MAX_CANDIDATES
from yolov9.postprocess import PredictionError
from yolov9.val import EvaluationError, evaluate

MODEL_NAMES = dict(enumerate(NAMES))


class FakeEngine:
    """Finds what is drawn: each colour's smallest enclosing box, and by the way a wrong box of each class.

    That is right where a class has one object, and wrong in a known way where it has several: enough for metrics that
    are neither 0 nor 1, from pixels alone, whatever the format of the labels."""

    name, precision, device, parallel = "fake", "fp32", "nowhere", 1

    def __init__(self, max_batch=3, classes=3, order=(0, 1, 2)):
        self.max_batch = max_batch
        self.classes = classes
        self.order = order
        self.prepared = []
        self.batches = []
        self.closed = False

    def prepare(self, height, width):
        self.prepared.append((height, width))

    def infer(self, images):
        self.batches.append((images[0].shape[:2], len(images)))
        result = np.zeros((len(images), 4 + self.classes, 12), np.float32)
        for prediction, image in zip(result, images, strict=True):
            for place, class_id in enumerate(self.order):
                rows, columns = np.nonzero((np.abs(image.astype(int) - COLOURS[place]) < 40).all(axis=2))
                if len(rows):
                    prediction[:4, place] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
                    prediction[4 + class_id, place] = 0.9 - 0.1 * place
                prediction[:4, 6 + place] = 0, 0, 30 + place, 30
                prediction[4 + class_id, 6 + place] = 0.3
        return result

    def close(self):
        self.closed = True


@pytest.fixture
def data(tmp_path):
    return open_dataset(write_yolo(tmp_path / "data", truth()))


def test_three_formats_of_one_truth_give_identical_metrics(tmp_path):
    reports = [
        evaluate(
            FakeEngine(), open_dataset(write(tmp_path / write.__name__, truth())), names=MODEL_NAMES, input_size=160
        )
        for write in (write_yolo, write_coco, write_voc)
    ]
    first = reports[0]
    assert 0.1 < first.metrics["map"] < 0.9
    assert list(first.metrics) == list(METRICS)
    for report in reports[1:]:
        assert report.metrics == first.metrics
        assert report.classes == first.classes
        assert report.confusion.tolist() == first.confusion.tolist()
        assert report.confidence == first.confidence


def test_boxes_come_back_in_pixels_of_the_picture_and_small_ones_of_their_own(tmp_path):
    made = {"a.png": ((320, 240), [(40, 40, 200, 120, 0)]), "b.png": ((60, 80), [(8, 8, 40, 60, 1)])}
    report = evaluate(
        FakeEngine(), open_dataset(write_coco(tmp_path, made)), names=MODEL_NAMES, input_size=160, confidence=0.5
    )
    found = {p.file_name: p.found for p in report.pictures}
    np.testing.assert_allclose(found["a.png"][0, :4], (40, 40, 200, 120), atol=2)
    np.testing.assert_allclose(found["b.png"][0, :4], (8, 8, 40, 60), atol=1)
    assert report.metrics["map50"] == pytest.approx(1)


def test_each_shape_is_prepared_once_and_batches_hold_one_shape(data):
    engine = FakeEngine(max_batch=2)
    report = evaluate(engine, data, names=MODEL_NAMES, input_size=160)
    shapes = [(128, 160), (160, 128), (96, 160), (160, 160)]
    assert engine.prepared == shapes
    assert engine.batches == [(s, n) for s in shapes for n in (2, 1)]
    assert report.images == 12
    assert [p.file_name for p in report.pictures] == [f"{n:04}.png" for n in range(12)]


def test_the_batch_does_not_change_the_result(data):
    reports = [evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160, batch=n) for n in (1, 2, 5)]
    assert reports[0].metrics == reports[1].metrics == reports[2].metrics
    assert [r.settings["batch"] for r in reports] == [1, 2, 5]


def test_classes_are_matched_by_name_and_the_common_ones_count(data):
    """The model knows them in another order, one under another spelling, one not at all, and one of its own."""
    whole = evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160)
    engine = FakeEngine(order=(3, 1, 0), classes=4)
    names = {0: "Traffic_Light", 1: "individual", 2: "dog", 3: "car"}
    report = evaluate(engine, data, names=names, input_size=160)
    assert (report.missing, report.unused) == (["person"], ["individual", "dog"])
    assert [(c.id, c.name) for c in report.classes] == [(0, "car"), (2, "traffic light")]
    assert report.classes == [whole.classes[0], whole.classes[2]]
    assert report.metrics["map"] == pytest.approx((whole.classes[0].ap + whole.classes[2].ap) / 2)
    assert set(np.concatenate([p.found for p in report.pictures])[:, 5]) == {0, 2}
    assert report.confusion.shape == (3, 3)
    with pytest.raises(DataError, match="no class in common: the model has cat, the data car, person"):
        evaluate(FakeEngine(classes=1), data, names={0: "cat"})


def test_a_model_without_names_is_matched_by_number(data):
    whole = evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160)
    report = evaluate(FakeEngine(), data, names={i: f"class{i}" for i in range(3)}, input_size=160)
    assert report.metrics == whole.metrics


def test_what_is_found_where_nothing_is_costs(tmp_path):
    made = truth()
    report = evaluate(FakeEngine(), open_dataset(write_coco(tmp_path / "a", made)), names=MODEL_NAMES, input_size=160)
    # A picture with a red rectangle that nobody labelled. First, since of equal scores the first ones rank higher.
    file = write_coco(tmp_path / "b", {"none.png": ((160, 120), [(20, 20, 90, 90, 0)]), **made})
    content = json.loads(file.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != content["images"][0]["id"]]
    file.write_text(json.dumps(content))
    again = evaluate(FakeEngine(), open_dataset(file), names=MODEL_NAMES, input_size=160)
    assert again.images == report.images + 1
    assert again.metrics["map"] < report.metrics["map"]


def test_nothing_to_compare_with_is_said_before_anything_runs(tmp_path):
    engine = FakeEngine()
    data = open_dataset(write_yolo(tmp_path, {"a.png": ((160, 120), [])}))
    with pytest.raises(EvaluationError, match="1 images without a single object of the model's classes"):
        evaluate(engine, data, names=MODEL_NAMES)
    data = open_dataset(make_coco(tmp_path / "crowd", [{"bbox": [1, 1, 5, 5], "iscrowd": 1}]))
    with pytest.raises(EvaluationError, match="without a single object"):
        evaluate(engine, data, names=MODEL_NAMES)
    assert engine.batches == []


def test_a_crowd_neither_counts_nor_costs(tmp_path):
    class Everywhere(FakeEngine):
        """Two boxes in the crowd, one on the object; two pixels of the input are one of the picture."""

        def infer(self, images):
            result = np.zeros((1, 7, 3), np.float32)
            result[0, :4] = np.array([(10, 20, 20, 30), (30, 25, 40, 35), (60, 20, 90, 40)]).T * 1.6
            result[0, 4] = 0.9, 0.8, 0.7
            return result

    boxes = [{"bbox": [60, 20, 30, 20]}, {"bbox": [0, 0, 50, 50], "iscrowd": 1}]
    data = open_dataset(make_coco(tmp_path, boxes, size=(100, 100)))
    report = evaluate(Everywhere(1), data, names=MODEL_NAMES, input_size=160)
    assert report.metrics["map"] == pytest.approx(1)
    assert report.confusion[:3, :3].sum() == report.confusion.sum() == 1
    assert report.classes[0].precision == report.classes[0].recall == 1
    assert report.classes[0].objects == 1


def test_a_picture_that_cannot_be_decoded_is_left_out_with_its_objects(tmp_path, data):
    whole = evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160)
    folder = data.items[5].image.parent
    image = folder / "0001.png"
    content = image.read_bytes()
    image.write_bytes(content[: len(content) - 40])  # its header is whole
    broken = open_dataset(folder.parent.parent)
    assert len(broken.items) == 12
    lines = []
    report = evaluate(FakeEngine(), broken, names=MODEL_NAMES, input_size=160, say=lines.append)
    assert report.images == 11
    assert [(p.kind, p.file.name) for p in report.problems] == [("corrupt image", "0001.png")]
    assert sum(c.objects for c in report.classes) == sum(c.objects for c in whole.classes) - len(data.items[1].boxes)
    assert report.to_json()["data"]["problems"] == {"corrupt image": 1}
    # As if it were not there.
    image.unlink()
    without = evaluate(FakeEngine(), open_dataset(folder.parent.parent), names=MODEL_NAMES, input_size=160)
    assert without.metrics == report.metrics


def test_a_picture_that_changes_after_its_header_was_read_is_left_out(data):
    picture((64, 64), []).save(data.items[0].image)
    report = evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160)
    assert report.images == 11
    assert "has 64 x 64 pixels, but its header said 160 x 120" in str(report.problems[0])


def test_no_picture_that_can_be_decoded_is_an_error(tmp_path):
    file = make_yolo(tmp_path, "0 .5 .5 .5 .5")
    image = tmp_path / "images" / "val" / "a.png"
    image.write_bytes(image.read_bytes()[:-40])
    with pytest.raises(EvaluationError, match=r"no image could be decoded, such as .*a\.png"):
        evaluate(FakeEngine(), open_dataset(file), names=MODEL_NAMES)


def test_a_limit_takes_pictures_from_all_over_the_data_set(data):
    report = evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160, limit=4)
    assert [p.file_name for p in report.pictures] == ["0000.png", "0003.png", "0006.png", "0009.png"]
    assert evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160, limit=99).images == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [({"input_size": 100}, "multiple of 32"), ({"batch": 0}, "batch: 0"), ({"limit": -1}, "limit: -1"),
     ({"max_detections": 0}, "max_detections: 0")],
)  # fmt: skip
def test_options_that_cannot_be(data, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(FakeEngine(), data, names=MODEL_NAMES, **options)


def test_an_engine_that_fails_is_not_an_empty_scene(data):
    class Broken(FakeEngine):
        def infer(self, images):
            raise EngineError("the device is gone")

    class Nan(FakeEngine):
        def infer(self, images):
            return super().infer(images) * np.float32("nan")

    with pytest.raises(EngineError, match="the device is gone"):
        evaluate(Broken(), data, names=MODEL_NAMES)
    with pytest.raises(PredictionError, match="NaN"):
        evaluate(Nan(), data, names=MODEL_NAMES)


def test_several_labels_a_box_count_and_low_scores_too(tmp_path):
    class Unsure(FakeEngine):
        def infer(self, images):
            result = np.zeros((len(images), 7, 2), np.float32)
            result[:, :4, 0] = 0, 8, 160, 88
            result[:, 4:, 0] = 0.5, 0.002, 0.0005
            return result

    data = open_dataset(make_yolo(tmp_path, "0 .5 .5 1 1\n1 .5 .5 1 1\n2 .5 .5 1 1"))
    report = evaluate(Unsure(), data, names=MODEL_NAMES, input_size=160)
    assert [c.ap for c in report.classes] == pytest.approx([1, 1, 0])
    report = evaluate(Unsure(), data, names=MODEL_NAMES, input_size=160, confidence=0.1)
    assert [c.ap for c in report.classes] == pytest.approx([1, 0, 0])
    assert MAX_CANDIDATES >= 30_000


def test_files_hold_what_coco_tools_make_the_same_figures_of(tmp_path):
    from faster_coco_eval import COCO, COCOeval_faster

    data = open_dataset(write_coco(tmp_path / "data", truth()))
    report = evaluate(FakeEngine(), data, names=MODEL_NAMES, input_size=160)
    report.write(tmp_path / "out")
    objects = COCO(str(tmp_path / "out" / "truth.json"))
    run = COCOeval_faster(objects, objects.loadRes(str(tmp_path / "out" / "predictions.json")), "bbox")
    run.run()
    assert run.stats[:12].tolist() == pytest.approx(list(report.metrics.values()), abs=1e-6)
    categories = {p["category_id"] for p in json.loads((tmp_path / "out" / "predictions.json").read_text())}
    assert categories == set(CATEGORY_IDS)
    # The detections belong to the original annotations as well.
    original = COCO(str(tmp_path / "data" / "annotations" / "instances_val.json"))
    run = COCOeval_faster(original, original.loadRes(str(tmp_path / "out" / "predictions.json")), "bbox")
    run.run()
    assert run.stats[0] == pytest.approx(report.metrics["map"], abs=1e-6)


class TestCommand:
    @pytest.fixture
    def run(self, tmp_path, capsys):
        """The command in-process, on a data set of red and blue and the tiny detector of them."""
        bundle = tiny_bundle(tmp_path / "tiny", input_size=128)
        made = {f"{i}.png": ((128, 96), [(32, 32, 64, 64, 0), (64, 0, 96, 32, 1)][: i % 2 + 1]) for i in range(4)}
        for part in ("images", "labels"):
            (tmp_path / "data" / part / "val").mkdir(parents=True)
        for name, (size, objects) in made.items():
            image = picture(size, [])
            for *box, class_id in objects:
                image.paste(((255, 0, 0), (0, 0, 255))[class_id], tuple(box))
            image.save(tmp_path / "data" / "images" / "val" / name)
            lines = [f"{c} {(a + x) / 256} {(b + y) / 192} {(x - a) / 128} {(y - b) / 96}" for a, b, x, y, c in objects]
            (tmp_path / "data" / "labels" / "val" / name).with_suffix(".txt").write_text("\n".join(lines))
        (tmp_path / "data" / "data.yaml").write_text("val: images/val\nnames: [red, blue]\n")

        def call(*options, weights=str(bundle.path), data=str(tmp_path / "data")):
            arguments = ["--weights", weights, "--data", data, "--out", str(tmp_path / "out"), *options]
            code = val.main(arguments)
            captured = capsys.readouterr()
            return code, captured.out, captured.err

        return call

    @pytest.mark.parametrize("engine", ["auto", "openvino", "onnxruntime", "onnx"])
    def test_it_writes_and_prints_what_it_found(self, run, tmp_path, engine):
        code, out, err = run("--engine", engine, "--precision", "fp32", "--json", str(tmp_path / "m" / "m.json"))
        assert code == 0, err
        metrics = json.loads((tmp_path / "m" / "m.json").read_text())
        assert metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["map"] == metrics["map50"] == metrics["map75"] == 1
        assert metrics["images"] == 4
        assert set(metrics["class_confidence"]) == {"red", "blue"}
        assert metrics["engine"]["name"] == ("onnxruntime" if "onnx" in engine else "openvino")
        assert set(metrics["speed_ms"]) == {"read", "inference", "postprocess"}
        assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
            "confusion_matrix.png", "f1_curve.png", "metrics.json", "pr_curve.png", "precision_curve.png",
            "predictions.json", "recall_curve.png", "truth.json",
        ]  # fmt: skip
        assert "red" in out
        assert str((tmp_path / "out").resolve()) in out
        assert "shape 1/1: 128x96, 4 images" in err

    def test_options_reach_the_evaluation(self, run, tmp_path):
        options = ["--imgsz", "64", "--batch", "2", "--conf", ".2", "--iou", ".5", "--max-det", "7", "--limit", "3",
                   "--device", "cpu", "--split", "all"]  # fmt: skip
        code, _, err = run(*options, "--no-save", "--json", str(tmp_path / "m.json"))
        assert code == 0, err
        assert not (tmp_path / "out").exists()
        metrics = json.loads((tmp_path / "m.json").read_text())
        assert metrics["settings"] == {
            "input_size": 64, "confidence": 0.2, "iou": 0.5, "max_detections": 7, "batch": 2, "limit": 3,
        }  # fmt: skip
        assert metrics["images"] == 3

    def test_a_checkpoint_runs_in_torch(self, run, tmp_path):
        import yolov9

        yolov9.save(yolov9.build("gelan-t", ["red", "blue"]), tmp_path / "w.safetensors")
        code, out, err = run("--imgsz", "64", "--limit", "1", "--no-save", weights=str(tmp_path / "w.safetensors"))
        assert code == 0, err
        assert "torch fp32 on CPU" in out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"data": "nowhere"}, "nowhere: no such file or folder"),
            ({"weights": "nowhere"}, "neither a folder nor a packaged model"),
            ({"options": ["--split", "train"]}, r"has no split 'train'"),
            ({"options": ["--imgsz", "100"]}, "multiple of 32"),
            ({"options": ["--engine", "abacus"]}, "unknown engine 'abacus'"),
            ({"options": ["--device", "cuda", "--engine", "openvino"]}, "openvino: does not run on the device 'cuda'"),
        ],
    )
    def test_what_cannot_be_begun_is_one_sentence(self, run, options, message):
        code, out, err = run(*options.pop("options", []), **options)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert not out

    def test_problems_of_the_data_are_said(self, run, tmp_path):
        (tmp_path / "data" / "labels" / "val" / "1.txt").write_text("0 .5 .5 0 0\n")
        _, _, err = run("--no-save")
        assert f"empty box: {tmp_path}/data/labels/val/1.txt:1: box: 0 x 0 pixels" in err

    def test_missing_faster_coco_eval_is_said_at_once(self, run, monkeypatch):
        monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
        code, _, err = run()
        assert code == 2
        assert "pip install 'yolov9-server[train]'" in err

    def test_missing_matplotlib_still_gives_figures(self, run, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        code, out, err = run()
        assert code == 1
        assert "pictures need matplotlib" in err
        assert "IoU .50" in out
        assert (tmp_path / "out" / "metrics.json").exists()


def test_importing_it_brings_neither_torch_nor_the_evaluator():
    code = "import sys, yolov9.val; print([m for m in ('torch', 'faster_coco_eval', 'matplotlib') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
@pytest.mark.skipif("YOLOV9_SHARED" not in os.environ, reason="YOLOV9_SHARED names no folder with real weights")
@pytest.mark.timeout(900)
def test_three_engines_have_the_same_ap_on_real_weights(tmp_path):
    from yolov9.engines.onnxruntime import OnnxRuntimeEngine
    from yolov9.engines.openvino import OpenVinoEngine
    from yolov9.engines.torch import TorchEngine
    from yolov9.export import export
    from yolov9.weights import load

    shared = Path(os.environ["YOLOV9_SHARED"])
    model = load(shared / "weights" / "gelan-t-coco.safetensors")
    bundle = export(model, tmp_path / "coco", check=False)
    data = open_dataset(shared / "data" / "coco128")
    metrics = {}
    for engine in (TorchEngine(model), OnnxRuntimeEngine(bundle), OpenVinoEngine(bundle, precision="fp32")):
        metrics[engine.name] = evaluate(engine, data, names=model.names).metrics
        engine.close()
    reference = metrics.pop("torch")
    assert reference["map"] > 0.45
    for name, found in metrics.items():
        assert found["map"] == pytest.approx(reference["map"], abs=0.001), name
        assert found["map50"] == pytest.approx(reference["map50"], abs=0.002), name
