"""From a checkpoint to a bundle: the graph's contract, its agreement with PyTorch, and the command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from yolov9.bundle import Bundle
from yolov9.export import ExportError, ServingGraph, compare, export, main, pictures, to_onnx
from yolov9.nn.architecture import parse
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector, build
from yolov9.weights import load, save

EVERY_BLOCK = """
backbone:
  copy:   {block: Identity}
  stem:   {block: Conv, from: image, channels: 8, kernel: 3, stride: 2}
  early:  {block: ELAN1, channels: 8, hidden: 8, branch: 4}
  down2:  {block: AConv, channels: 8}
  down3:  {block: AConv, channels: 16}
  link:   {block: CBLinear, from: down2, widths: [8, 16]}
  deep:   {block: CBLinear, from: down3, widths: [8, 16]}
  second: {block: Conv, from: image, channels: 8, kernel: 3, stride: 2}
  fuse1:  {block: CBFuse, from: [link, deep, second], split: 0}
  next2:  {block: ADown, channels: 16}
  fuse2:  {block: CBFuse, from: [link, deep, next2], split: 1}
  stage:  {block: RepNCSPELAN4, channels: 16, hidden: 16, branch: 8, repeats: 2}
  next3:  {block: ADown, channels: 16}
neck:
  spp:  {block: SPPELAN, channels: 16, hidden: 8}
  up:   {block: Upsample}
  join: {block: Concat, from: [up, stage]}
head:
  out:  {block: Detect, from: [join, spp]}
"""


@pytest.fixture(scope="module")
def tiny() -> Detector:
    """Small, with every block of the ten architectures, and trained-looking statistics."""
    torch.manual_seed(5)
    model = Detector(parse("tiny", EVERY_BLOCK), {0: "cat", 1: "dog"}, Towers())
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_var is not None
            nn.init.normal_(m.bias, std=0.3)
            m.running_var.uniform_(0.3, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def graph(tiny: Detector) -> bytes:
    import copy

    return to_onnx(copy.deepcopy(tiny).fuse(), {"name": "tiny", "input_size": "128"})


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
    np.testing.assert_allclose(given[:, 4:], expected[:, 4:], atol=1e-5)


def test_anchors_fold_away_once_openvino_knows_the_shape(graph: bytes, tiny: Detector) -> None:
    import openvino as ov

    core = ov.Core()
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
    assert compare(graph, tiny, 128).score < 1e-5
    model = onnx.load_from_string(graph)
    bias = next(t for t in model.graph.initializer if t.name.endswith("cv3.0.2.bias"))
    bias.raw_data = (np.frombuffer(bias.raw_data, np.float32) + 0.05).astype(np.float32).tobytes()
    with pytest.raises(
        ExportError, match=r"the graph differs from PyTorch at 128x96, batch 1: scores by .* \(logits by 0\.05"
    ):
        compare(model.SerializeToString(), tiny, 128)
    bias.raw_data = np.full(2, np.nan, np.float32).tobytes()
    with pytest.raises(ExportError, match="scores by nan"):
        compare(model.SerializeToString(), tiny, 128)


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
    assert bundle.lineage["check"]["score"] <= 1e-4
    assert any("checked in" in line for line in lines)
    loaded = load(bundle.path)
    assert (loaded.name, loaded.names) == ("gelan-t", {0: "cat", 1: "dog"})
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model.eval()(images)), (
            "the auxiliary branch was pruned exactly, before fusing"
        )


def test_the_command_writes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(build("gelan-t", 3), tmp_path / "w.safetensors")
    arguments = ["--weights", str(tmp_path / "w.safetensors"), "--out", str(tmp_path / "out"), "--imgsz", "96"]
    assert main([*arguments, "--name", "three", "--no-check"]) == 0
    bundle = Bundle.load(tmp_path / "out")
    assert (bundle.name, bundle.input_size, len(bundle.names)) == ("three", 96, 3)
    assert bundle.lineage["weights"] == "w.safetensors"
    assert len(bundle.lineage["weights_sha256"]) == 64
    printed = capsys.readouterr()
    assert f"wrote the bundle three ({bundle.hash}) to {tmp_path}/out: model.onnx, model.safetensors" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nowhere"], "nowhere"),
        (["--weights", "{folder}/w.safetensors", "--imgsz", "100"], "input size 100"),
        (["--weights", "{folder}/junk.pt"], "junk.pt"),
    ],
)
def test_mistakes_end_the_command_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    save(build("gelan-t", 3), tmp_path / "w.safetensors")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    assert main([a.format(folder=tmp_path) for a in arguments] + ["--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
