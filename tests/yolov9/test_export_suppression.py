"""NMS as standard operators: in ONNX Runtime and OpenVINO exactly what `yolov9.postprocess` finds."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from yolov9 import openvino_core
from yolov9.export.suppression import Suppression, add_suppression
from yolov9.geometry import Letterbox
from yolov9.postprocess import postprocess, to_source

CLASSES = 5
SIDE = 640
WHOLE = Letterbox.fit(SIDE, SIDE, SIDE, SIDE)


def graph(chosen: Suppression, classes: int = CLASSES) -> bytes:
    """Predictions themselves as the input, in the place of a network."""
    shape = ["batch", 4 + classes, "anchors"]
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Identity", ["raw"], ["predictions"])],
            "suppression",
            [helper.make_tensor_value_info("raw", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, shape)],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    add_suppression(model, classes, chosen)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def in_onnxruntime(data: bytes, predictions: np.ndarray) -> np.ndarray:
    ort = pytest.importorskip("onnxruntime")
    (found,) = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"raw": predictions})
    return np.asarray(found)


def in_openvino(data: bytes, predictions: np.ndarray) -> np.ndarray:

    core = openvino_core.core()
    compiled = core.compile_model(core.read_model(data, b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(compiled(predictions)[0])


def crowd(seed: int, batch: int = 2, anchors: int = 400, ties: bool = True) -> np.ndarray:
    """Boxes around a few centres, so that many overlap; scores mostly low, some equal (`ties`)."""
    random = np.random.default_rng(seed)
    centre = random.uniform(50, 590, (batch, 2, 12))[:, :, random.integers(0, 12, anchors)]
    centre += random.normal(0, 8, centre.shape)
    half = random.uniform(10, 60, (batch, 2, anchors))
    scores = random.uniform(0, 1, (batch, CLASSES, anchors)) ** 3
    if ties:
        scores[:, :, ::7] = np.round(scores[:, :, ::7], 1)
    return np.concatenate([centre - half, centre + half, scores], 1).astype(np.float32)


def check(found: np.ndarray, predictions: np.ndarray, chosen: Suppression) -> int:
    assert found.shape == (len(predictions), chosen.max_detections, 6)
    total = 0
    for rows, prediction in zip(found, predictions, strict=True):
        count = int((rows[:, 4] > 0).sum())
        assert not rows[count:].any(), "padding comes last and is zero"
        expected = postprocess(prediction, WHOLE, chosen.confidence, chosen.iou, max_detections=chosen.max_detections)
        np.testing.assert_allclose(to_source(rows[:count], WHOLE), expected, atol=1e-4)
        total += count
    return total


@pytest.mark.parametrize(("run", "ties"), [(in_onnxruntime, True), (in_openvino, False)])  # it orders them otherwise
@pytest.mark.parametrize("chosen", [Suppression(), Suppression(0.001, 0.45, 40), Suppression(0.5, 0.05, 7)], ids=str)
def test_it_finds_what_postprocess_finds(run, ties, chosen):
    data, scenes = graph(chosen), [crowd(seed, ties=ties) for seed in range(4)]
    assert sum(check(run(data, scene), scene, chosen) for scene in scenes) > 4 * 2 * 6


def test_a_batch_of_scenes_of_which_one_is_empty():
    chosen = Suppression()
    predictions = crowd(1, batch=3)
    predictions[1, 4:] = 0.1
    found = in_onnxruntime(graph(chosen), predictions)
    assert not found[1].any()
    assert check(found, predictions, chosen) > 10


@pytest.mark.parametrize("anchors", [1, 21, 300, 301])
def test_rows_are_padded_where_there_are_fewer_boxes(anchors):
    chosen = Suppression()
    predictions = crowd(2, batch=1, anchors=anchors)
    check(in_onnxruntime(graph(chosen), predictions), predictions, chosen)


def test_a_score_on_the_threshold_counts_and_of_equal_classes_the_first():
    predictions = np.zeros((1, 4 + CLASSES, 2), np.float32)
    predictions[0, :4] = np.array([[0, 100], [0, 100], [20, 120], [20, 120]])
    predictions[0, 4 + 3, 0] = predictions[0, 4 + 1, 0] = 0.25
    predictions[0, 4, 1] = np.nextafter(np.float32(0.25), np.float32(0))
    found = in_onnxruntime(graph(Suppression()), predictions)
    np.testing.assert_array_equal(found[0, 0], np.array([0, 0, 20, 20, 0.25, 1], np.float32))
    assert not found[0, 1:].any()


@settings(max_examples=25)
@given(st.integers(0, 2**31), st.floats(0.01, 0.9), st.floats(0.05, 0.95), st.integers(1, 60))
def test_any_limits(seed, confidence, iou, limit):
    chosen = Suppression(float(np.float32(confidence)), float(np.float32(iou)), limit)
    predictions = crowd(seed, batch=1, anchors=120)
    check(in_onnxruntime(graph(chosen), predictions), predictions, chosen)


def test_every_operator_is_a_standard_one():
    model = onnx.load_from_string(graph(Suppression()))
    assert all(node.domain in ("", "ai.onnx") for node in model.graph.node)
    assert sum(node.op_type == "NonMaxSuppression" for node in model.graph.node) == 1
    (output,) = model.graph.output
    assert [d.dim_param or d.dim_value for d in output.type.tensor_type.shape.dim] == ["batch", 300, 6]
