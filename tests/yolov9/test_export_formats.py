"""Every format beside the model: checked on drawn and real pictures, metadata inside, nothing left if it fails."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import openvino as ov
import pytest
import torch
from drawn_data import NAMES, truth, write_yolo
from small_detector import every_block

from yolov9.bundle import Bundle
from yolov9.engines import EngineError, make
from yolov9.export import ServingGraph, export, pictures, run
from yolov9.export.check import compare_detections
from yolov9.export.command import main
from yolov9.export.suppression import Suppression
from yolov9.nn.model import Detector
from yolov9.weights import load, save

FORMATS = ["onnx", "openvino", "torchscript"]
SIZE = 64

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = every_block(NAMES, score=-1.0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save(model, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo(tmp_path_factory.mktemp("data"), truth(images=4))


@pytest.fixture(scope="module")
def bundle(weights: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundles") / "drawn"
    arguments = ["--weights", str(weights), "--out", str(out), "--imgsz", str(SIZE), "--data", str(data)]
    assert main([*arguments, "--format", *FORMATS, "--nms", "--images", "3", "--max-det", "20"]) == 0
    return Bundle.load(out)


@pytest.fixture(scope="module")
def model(weights: Path) -> Detector:
    return load(weights)


def test_all_files_are_in_the_bundle_with_what_their_checks_found(bundle: Bundle) -> None:
    assert sorted(bundle.files) == [
        "model.onnx", "model.safetensors", "model.torchscript", "nms.onnx", "openvino/model.bin", "openvino/model.xml",
    ]  # fmt: skip
    checks = bundle.lineage["check"]
    assert [*checks] == [*FORMATS, "nms"]
    for name in FORMATS:
        assert checks[name]["images"] == 5 + 3, "drawn and real"
        assert checks[name]["score"] <= 1e-4
        assert checks[name]["box_px"] <= 0.05
    assert checks["nms"]["detections"] > 20


def test_metadata_is_inside_each_file(bundle: Bundle) -> None:
    files: dict[str, bytes | str] = {"metadata.json": ""}
    torch.jit.load(str(bundle.path / "model.torchscript"), _extra_files=files)
    script = json.loads(files["metadata.json"])
    xml = ov.Core().read_model(str(bundle.path / "openvino" / "model.xml"))
    vino = {key: str(value.value) for key, value in xml.get_rt_info()["yolov9"].items()}
    plain, nms = (
        {p.key: p.value for p in onnx.load(bundle.path / file).metadata_props} for file in ("model.onnx", "nms.onnx")
    )
    assert script == vino == plain
    assert json.loads(plain["names"]) == {str(i): name for i, name in enumerate(NAMES)}
    assert (plain["name"], plain["stride"], plain["input_size"]) == ("drawn", "8", str(SIZE))
    assert nms["output"].startswith("float32 (batch, 20, 6): x1, y1, x2, y2 in input pixels, score, class")
    assert {**nms, "output": ""} == {**plain, "output": ""}


def test_torchscript_is_the_model_for_any_batch_and_shape(bundle: Bundle, model: Detector) -> None:
    script = torch.jit.load(str(bundle.path / "model.torchscript"))
    for batch, height, width in ((1, 32, 32), (3, 64, 160)):
        images = torch.from_numpy(pictures(batch, height, width, seed=4))
        with torch.inference_mode():
            torch.testing.assert_close(script(images), ServingGraph(model)(images), atol=1e-3, rtol=0)


def test_the_openvino_engine_takes_the_openvino_files(bundle: Bundle, model: Detector) -> None:
    (bundle.path / "model.onnx").rename(bundle.path / "away")  # after it was checked: to see which file is read
    try:
        engine = make(bundle, "openvino", "fp32")
    finally:
        (bundle.path / "away").rename(bundle.path / "model.onnx")
    images = pictures(1, SIZE, SIZE, seed=5)
    with torch.inference_mode():
        expected = ServingGraph(model)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(engine.infer([images[0]]), expected, atol=1e-2)
    engine.close()
    with pytest.raises(EngineError, match=r"no model in int8; to make it one: python -m yolov9\.quantize"):
        make(bundle, "openvino", "int8")


@pytest.mark.parametrize(
    ("broken", "options", "message"),
    [
        ("to_onnx", [], "the ONNX graph differs from PyTorch on drawn pictures of 64x64"),
        ("to_openvino", ["--format", "openvino"], "the OpenVINO model differs from PyTorch"),
        ("to_torchscript", ["--format", "torchscript"], "the TorchScript file differs from PyTorch"),
        ("with_suppression", ["--nms"], "the graph with NMS finds "),
    ],
)
def test_what_is_broken_on_purpose_is_never_written(
    broken: str,
    options: list[str],
    message: str,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = getattr(run, broken)
    wrong = load(weights).fuse()
    with torch.no_grad():
        wrong.head.cv3[0][-1].bias.add_(0.5)

    def spoilt(what: object, *more: object) -> object:
        if broken == "with_suppression":
            return made(what, more[0], Suppression(iou=0.1))
        if broken == "to_openvino":
            return made(run.to_onnx(wrong, more[0]), *more)  # type: ignore[arg-type]
        return made(wrong, *more)

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(run, broken, spoilt)
    arguments = ["--weights", str(weights), "--out", str(tmp_path / "out"), "--imgsz", str(SIZE)]
    assert main([*arguments, *options]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {message}")
    assert [*(tmp_path / "out").iterdir()] == []
    assert [*tmp_path.iterdir()] == [tmp_path / "out"], "no scratch folder beside it"


def test_without_the_check_nothing_is_run(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("checked")

    monkeypatch.setattr(run, "_check", never)
    arguments = ["--weights", str(weights), "--out", str(tmp_path / "b"), "--imgsz", str(SIZE), "--no-check"]
    assert main(arguments) == 0
    assert "check" not in Bundle.load(tmp_path / "b").lineage


def test_what_postprocess_would_say_otherwise_is_caught() -> None:
    prediction = np.array([[[0, 1], [0, 1], [20, 21], [20, 21], [0.9, 0.8]]], np.float32)  # two boxes that overlap
    both = np.array([[[0, 0, 20, 20, 0.9, 0], [1, 1, 21, 21, 0.8, 0]]], np.float32)
    case = run.checks.Case("two boxes", np.zeros((1, 32, 32, 3), np.uint8), prediction)

    def compared(detections: np.ndarray) -> int:
        return compare_detections("it", lambda images: prediction, lambda images: detections, Suppression(), [case])

    assert compared(both[:, :1]) == 1
    with pytest.raises(run.ExportError, match=r"it finds 2 objects on two boxes where yolov9\.postprocess finds 1"):
        compared(both)
    with pytest.raises(run.ExportError, match=r"it finds other objects than yolov9\.postprocess on two boxes"):
        compared(both[:, 1:])


class TestTensorRt:
    def test_without_tensorrt_nothing_is_begun(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def missing(flavour: str | None = None) -> None:
            raise EngineError("tensorrt is not installed (pip install 'yolov9-server[tensorrt]')")

        monkeypatch.setattr("yolov9.engines.tensorrt.api.load", missing)
        assert main(["--weights", str(weights), "--out", str(tmp_path / "b"), "--format", "tensorrt"]) == 2
        assert capsys.readouterr().err == (
            "error: format tensorrt: tensorrt is not installed (pip install 'yolov9-server[tensorrt]')\n"
        )
        assert not (tmp_path / "b").exists()

    def test_its_engine_is_built_from_the_bundle(
        self, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[tuple[str, Path]] = []

        def built(bundle: Bundle, out: Path, *, say: run.Say) -> Path:
            say("built")
            asked.append((bundle.hash, out))
            return out

        monkeypatch.setattr("yolov9.engines.tensorrt.api.load", lambda: "TensorRT")
        monkeypatch.setattr("yolov9.engines.tensorrt.provide.build_engine", built)
        arguments = ["--weights", str(weights), "--out", str(tmp_path / "b"), "--imgsz", str(SIZE), "--no-check"]
        assert main([*arguments, "--format", "tensorrt", "--engines", str(tmp_path / "engines")]) == 0
        assert asked == [(Bundle.load(tmp_path / "b").hash, tmp_path / "engines")]
        assert "built\n" in capsys.readouterr().err

    def test_a_build_that_fails_is_told_with_where_the_bundle_is(
        self, model: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fails(*_: object, **__: object) -> None:
            raise EngineError("out of memory")

        monkeypatch.setattr("yolov9.engines.tensorrt.api.load", lambda: "TensorRT")
        monkeypatch.setattr("yolov9.engines.tensorrt.provide.build_engine", fails)
        with pytest.raises(run.ExportError, match=r"written to .*, but TensorRT cannot .*: out of memory"):
            export(model, tmp_path / "b", input_size=SIZE, formats=["tensorrt"], check=False)
        assert Bundle.load(tmp_path / "b").name == "b"


def test_torchscript_needs_nothing_of_ours(bundle: Bundle) -> None:
    """Its code names no module of the package."""
    stream = io.BytesIO((bundle.path / "model.torchscript").read_bytes())
    script = torch.jit.load(stream)
    assert "import yolov9" not in script.code
    assert script(torch.zeros(1, 32, 32, 3, dtype=torch.uint8)).shape == (1, 4 + len(NAMES), 64 + 16)
