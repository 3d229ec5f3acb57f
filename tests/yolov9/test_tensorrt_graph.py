"""What TensorRT is fed, run by ONNX Runtime: half precision where it belongs, int8 as TensorRT takes it, and on the
device a suppression that equals the host's."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_model import random_model, tiny_bundle

from yolov9.engines import EngineError, Limits
from yolov9.engines.tensorrt.engine import pick
from yolov9.engines.tensorrt.graph import engine_graph
from yolov9.engines.tensorrt.half import body, opset, to_half
from yolov9.engines.tensorrt.suppression import add_suppression
from yolov9.geometry import Letterbox
from yolov9.postprocess import postprocess

HALF, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
SIZE = 640


def session(model, optimised=True):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if not optimised:  # its fusions for int8 do not know scales in half precision
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model if isinstance(model, bytes) else model.SerializeToString(), options)


def pictures(count, height=128, width=128, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height // 32, width // 32, 3), np.uint8).repeat(32, 1).repeat(32, 2)


def types(model):
    """Tensor -> element type."""
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    found = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def small(nodes, weights, output=("y", [1, 4, None, None]), inputs=(("x", [1, 4, None, None]),), version=17):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "small", [value(n, FLOAT, s) for n, s in inputs], [value(output[0], FLOAT, output[1])],
        [numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return model


def kernel(out=4, into=4, seed=0):
    return np.random.default_rng(seed).normal(0, 0.2, (out, into, 3, 3)).astype(np.float32)


def conv(x, y, w="w"):
    return helper.make_node("Conv", [x, w], [y], name=f"conv/{y}", pads=[1, 1, 1, 1])


class TestHalf:
    def test_the_body_is_half_and_both_ends_are_not(self):
        model = onnx.load_from_string(random_model(3))
        half = to_half(model)
        kinds = types(half)
        convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
        assert len(convolutions) == 6
        assert {kinds[name] for node in convolutions for name in (*node.input, *node.output)} == {HALF}
        between = [n for n in half.graph.node if n.output[0].startswith(("gate", "act"))]
        assert {kinds[node.output[0]] for node in between} == {HALF}
        assert kinds["nchw"] == FLOAT, "0..1 is made of pixels in single precision"
        assert kinds["scores"] == kinds["x2"] == kinds["grid"] == FLOAT, "scores and boxes are made in single precision"
        casts = [n for n in half.graph.node if n.op_type == "Cast" and n.name]
        assert [c.name for c in casts] == ["nchw/to_half", "logits/to_float"], "one on each side, none in between"

    def test_it_computes_the_same_within_its_precision(self):
        model = onnx.load_from_string(random_model(3))
        images = pictures(3)
        exact, rough = (session(m).run(None, {"images": images})[0] for m in (model, to_half(model)))
        assert np.array_equal(exact[:, :4], rough[:, :4])
        difference = np.abs(exact - rough)[:, 4:].max()
        assert 1e-6 < difference < 5e-3

    def test_what_goes_in_is_left_as_it_was(self):
        model = onnx.load_from_string(random_model(3))
        before = model.SerializeToString()
        to_half(model)
        assert model.SerializeToString() == before

    def test_coordinates_are_finer_than_half_precision_knows(self):
        """A tail that multiplies by 600 keeps quarters of a pixel; half precision has steps of half a pixel there."""
        nodes = [conv("x", "c"), helper.make_node("Mul", ["c", "big"], ["y"])]
        model = to_half(small(nodes, {"w": kernel(), "big": np.float32(600.0)}))
        x = np.random.default_rng(0).random((1, 4, 8, 8), np.float32)
        y = session(model).run(None, {"x": x})[0]
        large = y[np.abs(y) > 256]
        assert np.any(large % 0.25 != 0)

    def test_a_constant_that_both_ends_share_is_had_in_both_types(self):
        nodes = [
            conv("x", "a"), helper.make_node("Add", ["a", "s"], ["b"]), conv("b", "c"),
            helper.make_node("Add", ["c", "s"], ["y"]),
        ]  # fmt: skip
        half = to_half(small(nodes, {"w": kernel(), "s": np.float32(0.1)}))
        kinds = types(half)
        first, last = (node for node in half.graph.node if node.op_type == "Add")
        assert (kinds[first.input[1]], kinds[last.input[1]]) == (HALF, FLOAT)
        assert len(half.graph.initializer) == 3

    def test_inputs_that_are_no_values_keep_their_types(self):
        """The scales of Resize are always single precision; Shape and Cast take anything."""
        nodes = [
            conv("x", "a"),
            helper.make_node("Resize", ["a", "", "scales"], ["b"]),
            helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.float32(2))),
            helper.make_node("Mul", ["b", "two"], ["d"]),
            conv("d", "c"),
            helper.make_node("Shape", ["c"], ["shape"]),
            helper.make_node("Reshape", ["c", "shape"], ["y"]),
        ]
        model = small(nodes, {"w": kernel(), "scales": np.array([1, 1, 2, 2], np.float32)})
        half = to_half(model)
        kinds = types(half)
        assert (kinds["scales"], kinds["b"], kinds["d"], kinds["y"]) == (FLOAT, HALF, HALF, FLOAT)
        x = np.random.default_rng(0).random((1, 4, 8, 8), np.float32)
        exact, rough = (session(m).run(None, {"x": x})[0] for m in (model, half))
        assert np.abs(exact - rough).max() < 5e-3

    def test_a_cast_in_the_body_follows(self):
        nodes = [conv("x", "a"), helper.make_node("Cast", ["a"], ["b"], to=FLOAT), conv("b", "y")]
        assert types(to_half(small(nodes, {"w": kernel()})))["b"] == HALF

    def test_an_output_that_a_convolution_gives_stays_single_precision(self):
        half = to_half(small([conv("x", "y")], {"w": kernel()}))
        assert types(half)["y"] == FLOAT
        assert half.graph.output[0].name == "y"

    def test_a_weight_that_is_too_large_is_named(self):
        weight = kernel()
        weight[0, 0, 0, 0] = 1e5
        with pytest.raises(EngineError, match="weight 'w' reaches 100000, more than half precision can hold"):
            to_half(small([conv("x", "y")], {"w": weight}))

    def test_an_operator_that_onnx_does_not_know_is_named(self):
        nodes = [conv("x", "a"), helper.make_node("Twist", ["a"], ["b"], name="odd", domain="my"), conv("b", "y")]
        model = small([conv("x", "y")], {"w": kernel()})
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.opset_import.append(helper.make_opsetid("my", 1))
        with pytest.raises(EngineError, match="node 'odd': there is no operator Twist"):
            to_half(model)


class TestBody:
    def test_it_is_what_lies_between_convolutions(self):
        nodes = [
            helper.make_node("Mul", ["x", "x"], ["front"]), conv("front", "a"), helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Shape", ["a"], ["s"]), conv("b", "c"), helper.make_node("Relu", ["c"], ["tail"]),
        ]  # fmt: skip
        assert body(nodes) == {1, 2, 4}

    def test_quantisers_before_the_first_belong_to_it(self):
        nodes = [
            helper.make_node("Mul", ["x", "x"], ["f"]),
            helper.make_node("QuantizeLinear", ["f", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["w"]),
            conv("d", "y"),
        ]
        assert body(nodes) == {1, 2, 3, 4}


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """random_model as ONNX Runtime quantises it, symmetrically: bundle's `int8.onnx`."""
    return quantise(tmp_path_factory.mktemp("int8"), ActivationSymmetric=True, WeightSymmetric=True)


def quantise(folder, activation="QInt8", **extra):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"images": pictures(2, seed=i)} for i in range(4)])

        def get_next(self):
            return next(self.batches, None)

    (folder / "m.onnx").write_bytes(random_model(3, width=16))
    quantize_static(
        folder / "m.onnx", folder / "q.onnx", Pictures(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=getattr(QuantType, activation), weight_type=QuantType.QInt8,
        op_types_to_quantize=["Conv"], extra_options=extra,
    )  # fmt: skip
    return (folder / "q.onnx").read_bytes()


def int8_bundle(folder, graph):
    return tiny_bundle(folder, random_model(3, width=16), ("a", "b", "c"), extra={"int8.onnx": graph})


def exchanged(bundle, graph):
    """The same bundle, whose graph became another one after it was checked."""
    (bundle.path / "int8.onnx").write_bytes(graph)
    return bundle


class TestInt8:
    def test_the_convolutions_stay_quantised_and_the_rest_is_half(self, quantised, tmp_path):
        model = onnx.load_from_string(engine_graph(int8_bundle(tmp_path / "b", quantised), "int8", 8))
        kinds = types(model)
        made_by = {node.output[0]: node for node in model.graph.node}
        convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
        assert len(convolutions) == 6
        for node in convolutions:
            assert [made_by[name].op_type for name in node.input[:2]] == ["DequantizeLinear"] * 2
            assert {kinds[name] for name in (*node.input, *node.output)} == {HALF}
        assert opset(model) >= 19
        assert not any(tensor.data_type == TensorProto.INT32 for tensor in model.graph.initializer), (
            "biases are floating point"
        )

    def test_it_computes_what_the_quantised_graph_does(self, quantised, tmp_path):
        images = pictures(2)
        graph = engine_graph(int8_bundle(tmp_path / "b", quantised), "int8", 8)
        thresholds = {"minimum": np.full((2, 3), 0.5, np.float32), "share": np.full((2, 1), 0.4, np.float32)}
        wanted = session(quantised, optimised=False).run(None, {"images": images})[0]
        given = session(graph, optimised=False).run(["predictions"], {"images": images, **thresholds})[0]
        exact = session(random_model(3, width=16)).run(None, {"images": images})[0]
        # A value that half precision moves across the border between two integers costs a step, as quantising does.
        ours, theirs = (np.abs(one - exact)[:, 4:].mean() for one in (given, wanted))
        assert 1e-4 < ours < 1.5 * theirs

    @pytest.mark.parametrize("activation", ["QInt8", "QUInt8"])
    def test_what_is_not_symmetric_is_refused_by_name(self, tmp_path, activation):
        graph = quantise(tmp_path, activation)
        with pytest.raises(EngineError, match=r"int8\.onnx: node '.*Linear' is not quantised symmetrically"):
            engine_graph(int8_bundle(tmp_path / "b", graph), "int8", 8)

    def test_weights_in_other_files_are_refused(self, quantised, tmp_path):
        model = onnx.load_from_string(quantised)
        tensor = model.graph.initializer[0]
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", "../../secret"
        tensor.ClearField("raw_data")
        with pytest.raises(EngineError, match="keeps weights in other files"):
            engine_graph(exchanged(int8_bundle(tmp_path / "b", quantised), model.SerializeToString()), "int8", 8)

    def test_junk_is_refused(self, quantised, tmp_path):
        with pytest.raises(EngineError, match=r"int8\.onnx: "):
            engine_graph(exchanged(int8_bundle(tmp_path / "b", quantised), b"junk"), "int8", 8)


CLASSES, PICKED = 3, 24


def suppressor(rounds, candidates=PICKED, classes=CLASSES):
    """(B, 4+nc, A) -> the same, and what is suppressed of it."""
    shape = ["batch", 4 + classes, "anchors"]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["images"], ["predictions"])], "s",
        [helper.make_tensor_value_info("images", FLOAT, shape)],
        [helper.make_tensor_value_info("predictions", FLOAT, shape)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    add_suppression(model, classes, candidates, rounds)
    onnx.checker.check_model(model, full_check=True)
    return session(model)


@pytest.fixture(scope="module")
def sessions():
    return {rounds: suppressor(rounds) for rounds in (2, 8)}


def run(made, predictions, limits):
    minimum = np.stack(
        [np.full(CLASSES, x.confidence) if x.class_thresholds is None else x.class_thresholds for x in limits]
    ).astype(np.float32)
    share = np.array([[np.float32(x.iou / (1 + x.iou))] for x in limits], np.float32)
    _, candidates, summary = made.run(None, {"images": predictions, "minimum": minimum, "share": share})
    return candidates, summary


def crowd(rng, anchors):
    """(4+nc, A): boxes in a few clusters, so that they overlap in chains; scores without ties."""
    centres = rng.uniform(100, 500, (4, 2))[rng.integers(0, 4, anchors)] + rng.normal(0, 12, (anchors, 2))
    sides = rng.uniform(30, 120, (anchors, 2))
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], 1).T
    scores = rng.permutation(np.linspace(0.01, 0.99, anchors * CLASSES)).reshape(CLASSES, anchors)
    return np.concatenate([corners, scores]).astype(np.float32)


def on_the_host(prediction, limit):
    whole = Letterbox.fit(SIZE, SIZE, SIZE, SIZE)
    return postprocess(
        prediction, whole, limit.confidence, limit.iou, limit.class_thresholds, max_detections=limit.max_detections
    )


limits_of_a_picture = st.builds(
    Limits,
    confidence=st.floats(0.05, 0.95),
    iou=st.floats(0.05, 0.95),
    class_thresholds=st.none()
    | st.lists(st.sampled_from([0.1, 0.5, 0.9, 2.0]), min_size=CLASSES, max_size=CLASSES).map(
        lambda values: np.array(values, np.float32)
    ),
    max_detections=st.integers(1, 30),
)


class TestSuppression:
    @settings(max_examples=150)
    @given(
        seed=st.integers(0, 2**32 - 1), anchors=st.integers(1, 24), rounds=st.sampled_from([2, 8]),
        limits=st.lists(limits_of_a_picture, min_size=1, max_size=3),
    )  # fmt: skip
    def test_it_equals_the_hosts_whatever_the_pictures_limits(self, sessions, seed, anchors, rounds, limits):
        """Few rounds leave some pictures unsettled: the host then ends with the same result."""
        rng = np.random.default_rng(seed)
        predictions = np.stack([crowd(rng, anchors) for _ in limits])
        candidates, summary = run(sessions[rounds], predictions, limits)
        for prediction, rows, (count, changed, total), limit in zip(
            predictions, candidates, summary, limits, strict=True
        ):
            assert np.isfinite(total)
            assert count <= PICKED
            found = pick(rows, bool(changed), limit)
            found[:, :4] = found[:, :4].clip(0, SIZE)
            np.testing.assert_array_equal(found, on_the_host(prediction, limit))

    def chain(self, length):
        """Boxes in a row, each overlapping the next only, ever less likely: the longest chain that there can be."""
        x = np.arange(length) * 40.0
        boxes = np.stack([x, x * 0, x + 100, x * 0 + 100])
        scores = np.zeros((CLASSES, length))
        scores[1] = np.linspace(0.9, 0.5, length)
        return np.concatenate([boxes, scores]).astype(np.float32)[None]

    def test_a_chain_takes_a_round_a_link_and_what_is_left_is_said(self, sessions):
        limit = Limits(0.25, 0.3)
        for length, rounds, settled in ((3, 8, True), (7, 8, True), (12, 8, False), (5, 2, False)):
            prediction = self.chain(length)
            candidates, summary = run(sessions[rounds], prediction, [limit])
            assert (summary[0, 1] == 0) == settled
            found = pick(candidates[0], not settled, limit)
            assert list(found[:, 0]) == list(np.arange(0, length, 2) * 40.0)

    def test_more_boxes_than_are_picked_are_counted(self, sessions):
        prediction = crowd(np.random.default_rng(0), 300)[None]
        candidates, summary = run(sessions[8], prediction, [Limits(0.25)])
        assert summary[0, 0] == (prediction[0, 4:].max(0) >= 0.25).sum() > PICKED
        best = np.sort(prediction[0, 4:].max(0))[::-1][:PICKED]
        np.testing.assert_array_equal(candidates[0, 4], best)

    @pytest.mark.parametrize("row", [1, 4])
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_one_bad_value_anywhere_shows_in_its_picture_alone(self, sessions, row, value):
        predictions = np.stack([crowd(np.random.default_rng(i), 300) for i in range(2)])
        predictions[1, row, 250] = value
        _, summary = run(sessions[8], predictions, [Limits()] * 2)
        assert list(np.isfinite(summary[:, 2])) == [True, False]

    def test_a_number_of_candidates_that_cannot_be_counted_in_half_precision_is_refused(self):
        with pytest.raises(EngineError, match="5000 candidates"):
            suppressor(8, candidates=5000)


def test_a_graph_for_an_engine_has_all_inputs_and_outputs(tmp_path):
    bundle = tiny_bundle(tmp_path / "b", random_model(3), ("a", "b", "c"))
    model = onnx.load_from_string(engine_graph(bundle, "fp16", 8))
    assert [value.name for value in model.graph.input] == ["images", "minimum", "share"]
    assert [value.name for value in model.graph.output] == ["predictions", "candidates", "summary"]
    batch = {value.type.tensor_type.shape.dim[0].dim_param for value in model.graph.input}
    assert len(batch) == 1


def test_without_onnx_it_says_what_to_install(tmp_path, monkeypatch):
    import sys

    bundle = tiny_bundle(tmp_path / "b", random_model(3), ("a", "b", "c"))
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(EngineError, match="pip install onnx"):
        engine_graph(bundle, "fp16", 8)
