"""From a checkpoint to a bundle: the graph's contract, its agreement with PyTorch, and the command."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from drawn_data import truth, write_yolo
from small_detector import every_block
from torch import nn

from yolov9 import openvino_core
from yolov9.bundle import Bundle
from yolov9.export import Difference, ExportError, ServingGraph, export, pictures, to_onnx
from yolov9.export.check import Case, cases, compare, onnx_runner
from yolov9.export.command import main
from yolov9.lineage import lineage_of
from yolov9.metadata import metadata
from yolov9.nn.model import Detector, build
from yolov9.weights import load, save


@pytest.fixture(scope="module")
def tiny() -> Detector:
    return every_block({0: "cat", 1: "dog"})


@pytest.fixture(scope="module")
def graph(tiny: Detector) -> bytes:
    properties = metadata(tiny.names, stride=tiny.stride, name="tiny", input_size=128)
    return to_onnx(copy.deepcopy(tiny).fuse(), properties)


def difference(graph: bytes, model: Detector) -> Difference:
    return compare("the ONNX graph", *onnx_runner(graph), cases(model, 128))


def test_the_graph_keeps_the_contract(graph: bytes) -> None:
    model = onnx.load_from_string(graph)
    (image,), (prediction,) = model.graph.input, model.graph.output
    sizes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in (image, prediction)]
    assert (image.name, prediction.name) == ("images", "predictions")
    assert sizes == [["batch", "height", "width", 3], ["batch", 6, "anchors"]]
    types = [v.type.tensor_type.elem_type for v in (image, prediction)]
    assert types == [onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT]
    properties = {p.key: p.value for p in model.metadata_props}
    assert json.loads(properties.pop("names")) == {"0": "cat", "1": "dog"}
    assert properties.pop("input").startswith("uint8 RGB, (batch, height, width, 3)")
    assert properties.pop("output").startswith("float32 (batch, 4 + classes, boxes)")
    assert properties == {"name": "tiny", "input_size": "128", "stride": "8"}


def test_the_graph_is_plain_and_fused(graph: bytes, tiny: Detector) -> None:
    nodes = Counter(n.op_type for n in onnx.load_from_string(graph).graph.node)
    convolutions = sum(isinstance(m, nn.Conv2d) for m in tiny.modules()) - 1  # the frozen weights are a sum
    merged = 4  # RepConvN: two convolutions become one
    assert nodes["Conv"] == convolutions - merged
    assert nodes["BatchNormalization"] == nodes["If"] == nodes["Loop"] == 0
    assert nodes["Softmax"] == nodes["ReduceSum"] == 1
    assert not nodes["MatMul"], "the boxes' expectation stays out of what engines compute in low precision"
    assert all(n.domain in ("", "ai.onnx") for n in onnx.load_from_string(graph).graph.node)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 32, 32), (3, 64, 160), (2, 160, 64)])
def test_batch_height_and_width_are_dynamic_in_onnxruntime(
    graph: bytes, tiny: Detector, batch: int, height: int, width: int
) -> None:
    ort = pytest.importorskip("onnxruntime")
    images = pictures(batch, height, width, seed=9)
    (given,) = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"images": images})
    with torch.inference_mode():
        expected = ServingGraph(tiny)(torch.from_numpy(images)).numpy()
    assert given.shape == (batch, 6, height * width // 16 + height * width // 64)
    np.testing.assert_allclose(given[:, :4], expected[:, :4], atol=1e-2)
    np.testing.assert_allclose(given[:, 4:], expected[:, 4:], atol=1e-4)


def test_anchors_fold_away_once_openvino_knows_the_shape(graph: bytes, tiny: Detector) -> None:

    core = openvino_core.core()
    fp32 = {"INFERENCE_PRECISION_HINT": "f32"}
    model = core.read_model(graph, b"")
    assert model.input().partial_shape.is_dynamic
    images = pictures(1, 64, 96, seed=2)
    dynamic = core.compile_model(model, "CPU", fp32)(images)[0].copy()
    model.reshape({"images": [1, 64, 96, 3]})
    static = core.compile_model(model, "CPU", fp32)
    kinds = {op.get_rt_info()["layerType"] for op in static.get_runtime_model().get_ops()}
    assert not kinds & {"Range", "ShapeOf", "Gather", "NonZero", "Broadcast"}
    np.testing.assert_allclose(static(images)[0], dynamic, atol=1e-3)
    with torch.inference_mode():
        expected = ServingGraph(tiny)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(dynamic, expected, atol=1e-2)


def test_a_graph_that_computes_something_else_is_caught(graph: bytes, tiny: Detector) -> None:
    found = difference(graph, tiny)
    assert found.score < 1e-4
    assert found.images == 5
    model = onnx.load_from_string(graph)
    bias = next(t for t in model.graph.initializer if t.name.endswith("cv3.0.2.bias"))
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 0.05).astype(np.float32).tobytes()
    with pytest.raises(
        ExportError,
        match=r"the ONNX graph differs from PyTorch on drawn pictures of 128x96, batch 1: scores by .* "
        r"\(logits by 0\.05.*onnxruntime",
    ):
        difference(model.SerializeToString(), tiny)
    bias.raw_data = np.full(2, np.nan, np.float32).tobytes()
    with pytest.raises(ExportError, match="scores by nan"):
        difference(model.SerializeToString(), tiny)


def test_exporting_leaves_the_model_and_writes_a_loadable_bundle(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("yolov9-t", ["cat", "dog"]).train()
    lines: list[str] = []
    bundle = export(model, tmp_path / "pets", input_size=64, lineage={"data": "pets"}, say=lines.append)
    assert (model.training, model.name, model.fused) == (True, "yolov9-t", False)
    assert (bundle.name, bundle.names, bundle.input_size, bundle.precision) == (
        "pets",
        {0: "cat", 1: "dog"},
        64,
        "fp32",
    )
    assert bundle.lineage["data"] == "pets"
    assert bundle.lineage["architecture"] == "gelan-t"
    assert bundle.lineage["check"]["onnx"]["score"] <= 1e-4
    assert bundle.lineage["check"]["onnx"]["images"] == 5
    assert any(line.startswith("checked onnx in ") for line in lines)
    loaded = load(bundle.path)
    assert (loaded.name, loaded.names) == ("gelan-t", {0: "cat", 1: "dog"})
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model.eval()(images)), (
            "the auxiliary branch was pruned exactly, before fusing"
        )


def test_weights_of_a_training_run_tell_their_story(tmp_path: Path) -> None:
    recipe = {"optimizer": "sgd"}
    run = {"data": ["/home/me/pets"], "weights": "/home/me/w.pt", "recipe": recipe, "arguments": ["--secret"]}
    run |= dict.fromkeys(
        ("model", "data_sha256", "pictures", "epochs", "batch", "size", "seed", "freeze", "commit", "torch"), 1
    )
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "best.json").write_text(json.dumps({"epoch": 7, "figures": {"val/map": 0.5, "train/box": 1.0}}))
    save(every_block(["a"]), tmp_path / "best.safetensors")
    told = lineage_of(str(tmp_path / "best.safetensors"))
    assert (told["epoch"], told["metrics"], told["run"]["recipe"]) == (7, {"map": 0.5}, recipe)
    assert (told["run"]["data"], told["run"]["weights"]) == (["pets"], "w.pt")
    assert "arguments" not in told["run"]
    (tmp_path / "run.json").write_text("[]")
    assert set(lineage_of(str(tmp_path / "best.safetensors"))) == {"weights", "weights_sha256"}, "not a run of ours"


def test_weights_rounded_to_half_are_the_same_model_in_every_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = every_block(["a"])
    whole = export(model, tmp_path / "whole", input_size=64, check=False)
    half = export(model, tmp_path / "half", input_size=64, half_weights=True)
    assert half.files["model.safetensors"].bytes < 0.6 * whole.files["model.safetensors"].bytes
    loaded = load(half.path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    difference = compare("the graph", *onnx_runner(half.onnx.read_bytes()), cases(loaded, 64))
    assert difference.score < 1e-5
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert not torch.equal(loaded(images), model.eval()(images)), "nothing was rounded"
    next(p for p in model.parameters() if p.ndim == 4).data[0] = 1e5
    with pytest.raises(ExportError, match=r"half weights: model\..*weight holds numbers that are too large"):
        export(model, tmp_path / "half", input_size=64, half_weights=True)
    assert load(half.path), "the bundle that was there is intact"


def test_the_command_writes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(every_block(["a", "b", "c"]), tmp_path / "w.safetensors")
    arguments = ["--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out"), "--imgsz", "96"]
    assert main([*arguments, "--name", "three", "--no-check"]) == 0
    bundle = Bundle.load(tmp_path / "out")
    assert (bundle.name, bundle.input_size, len(bundle.names)) == ("three", 96, 3)
    assert bundle.lineage["weights"] == "w.safetensors"
    assert len(bundle.lineage["weights_sha256"]) == 64
    printed = capsys.readouterr()
    assert f"wrote the bundle three ({bundle.hash}) to {tmp_path}/out: model.onnx, model.safetensors" in printed.out
    assert "three.safetensors" not in printed.err
    assert "w.safetensors: every-block, 3 classes" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nowhere"], "nowhere"),
        (["--imgsz", "100"], "input size 100"),
        (["--weights", "{folder}/junk.pt"], "junk.pt"),
        (["--nms", "--conf", "0"], "confidence 0.0 is not above 0"),
        (["--nms", "--iou", "1.5"], "IoU 1.5 is not above 0 and at most 1"),
        (["--nms", "--max-det", "0"], "0 detections are less than 1"),
        (["--data", "{folder}/gone"], "gone"),
        (["--out", "{folder}/broken"], "broken exists and is not a bundle"),
        (["--data", "{folder}/broken"], "broken: none of its images can be decoded"),
    ],
)
def test_mistakes_end_the_command_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    save(every_block(["a", "b", "c"]), tmp_path / "w.safetensors")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    write_yolo(tmp_path / "broken", truth(images=2))
    for picture in (tmp_path / "broken").rglob("*.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    all_of_them = ["--weights", "{folder}/w.safetensors", "--out", "{folder}/out", *arguments]
    assert main([a.format(folder=tmp_path) for a in all_of_them]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [["--images", "0"], ["--format", "coreml"], ["--format"], []])
def test_options_that_cannot_be_are_refused_by_the_parser(option: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--weights", "x", *(["--out", "y"] if option else []), *option])
    assert end.value.code == 2


def test_rounding_is_judged_by_pytorch_s_own() -> None:
    """A network that has hardly learnt magnifies it: to ask for more of a file than of PyTorch would be no check."""
    exact = np.array([[[10.0], [10], [50], [50], [0.5]]])
    images = np.zeros((1, 32, 32, 3), np.uint8)

    def found(own: float, file: float) -> Difference:
        case = Case("it", images, (exact + own).astype(np.float32), lambda: exact)
        return compare("the file", "engine", lambda _: (exact + file).astype(np.float32), [case])

    assert found(0.001, -0.003).score == pytest.approx(0.004, rel=1e-3)
    for own, file in ((0.001, 0.005), (0.0, 0.001), (0.001, float("nan"))):
        with pytest.raises(ExportError, match="differs from PyTorch on it"):
            found(own, file)


def test_double_precision_is_nearer_to_the_model_than_any_bound(tiny: Detector) -> None:
    for case in cases(tiny, 64):
        assert case.exact is not None
        np.testing.assert_allclose(case.exact(), case.expected, rtol=0, atol=1e-3)
