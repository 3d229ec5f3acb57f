"""The parts of quantising by themselves: ranges, the QDQ writer, how far predictions moved, which pictures."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from drawn_data import truth, write_yolo
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_model import colour_model, random_model

from yolov9.data import DataError
from yolov9.data.inputs import spread
from yolov9.quantization import QuantizeError, qdq
from yolov9.quantization.deviation import deviation
from yolov9.quantization.pictures import read_inputs
from yolov9.quantization.ranges import STEPS, Histogram
from yolov9.quantization.sensitivity import part_name
from yolov9.quantize import split

ort = pytest.importorskip("onnxruntime", reason="onnxruntime (extra quantize) is not installed")


def squared_error(values: np.ndarray, threshold: float) -> float:
    scale = threshold / STEPS
    return float(((np.clip(np.round(values / scale), -STEPS, STEPS) * scale - values) ** 2).mean())


class TestRanges:
    def test_an_outlier_is_clipped(self) -> None:
        values = np.random.default_rng(0).normal(0, 1, 50_000).astype(np.float32)
        values[7] = 100
        histogram = Histogram()
        histogram.add(values)
        assert histogram.largest == 100
        assert squared_error(values, histogram.threshold()) < squared_error(values, 100) * 1.01

    def test_uniform_values_keep_their_range(self) -> None:
        histogram = Histogram()
        histogram.add(np.linspace(-2, 2, 10_001, dtype=np.float32))
        assert histogram.threshold() == pytest.approx(2, rel=0.02)

    @settings(max_examples=30)
    @given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6), st.integers(0, 100))
    def test_the_threshold_is_within_the_values_whatever_comes_first(self, sizes: list[float], seed: int) -> None:
        random = np.random.default_rng(seed)
        histogram = Histogram()
        for size in sizes:
            histogram.add(random.uniform(-size, size, 300).astype(np.float32))
        assert 0 < histogram.threshold() <= histogram.largest <= histogram.limit * (1 + 1e-6)
        assert histogram.counts.sum() == 300 * len(sizes)

    def test_zeros_have_a_scale_and_what_is_not_finite_has_none(self) -> None:
        histogram = Histogram()
        histogram.add(np.zeros(10, np.float32))
        assert histogram.threshold() > 0
        for value in (np.nan, np.inf):
            with pytest.raises(ValueError, match="a value is not finite"):
                histogram.add(np.array([1, value], np.float32))


class TestQdq:
    def test_the_first_and_the_last_convolutions_stay_exact(self) -> None:
        model = onnx.load_from_string(random_model())
        chosen = qdq.plan(model)
        assert chosen.convolutions == ("conv1", "conv2", "conv3", "conv4")
        assert chosen.tensors[:2] == ("conv0", "gate0")
        assert chosen.tensors[-1] == "act4"
        assert not {"logits", "scores", "nchw"} & {*chosen.tensors}

    def test_it_computes_nearly_the_same(self) -> None:
        model = onnx.load_from_string(random_model())
        chosen = qdq.plan(model)
        images = np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3), np.uint8)
        names = sorted(set(chosen.scale_of.values()))
        measuring = onnx.ModelProto()
        measuring.CopyFrom(model)
        measuring.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
        thresholds = {n: float(np.abs(v).max()) for n, v in zip(names, run(measuring, images, names), strict=True)}
        found = qdq.insert(model, chosen, thresholds)
        exact, rounded = run(model, images)[0], run(found, images)[0]
        assert 0 < np.abs(exact - rounded)[:, 4:].max() < 0.05
        np.testing.assert_array_equal(exact[:, :4], rounded[:, :4])

    def test_corrections_go_into_the_biases(self) -> None:
        model = onnx.load_from_string(random_model())
        chosen = qdq.plan(model)
        thresholds = dict.fromkeys(chosen.tensors, 4.0)
        plain = qdq.insert(model, chosen, thresholds)
        moved = qdq.insert(model, chosen, thresholds, {"conv2": np.full(8, 0.25, np.float32)})
        assert bias(moved, "conv1") == pytest.approx(bias(plain, "conv1"))
        assert bias(moved, "conv2") == pytest.approx(bias(plain, "conv2") + 0.25, abs=1e-3)

    def test_a_graph_without_anything_between_is_refused(self) -> None:
        with pytest.raises(ValueError, match="there is nothing to quantise"):
            qdq.plan(onnx.load_from_string(colour_model()))

    def test_an_opset_without_scales_by_channel_is_refused(self) -> None:
        model = onnx.load_from_string(random_model())
        model.opset_import[0].version = 12
        chosen = qdq.plan(model)
        with pytest.raises(ValueError, match="opset 12: scales by channel exist since 13"):
            qdq.insert(model, chosen, dict.fromkeys(chosen.tensors, 1.0))

    def test_a_channel_of_zeros_stays_zero(self) -> None:
        weight = np.zeros((2, 1, 3, 3), np.float32)
        weight[1] = 0.5
        steps = qdq.scales(weight)
        assert (steps > 0).all()
        np.testing.assert_allclose(qdq.rounded(weight, steps.reshape(2, 1, 1, 1)) * steps.reshape(2, 1, 1, 1), weight)

    def test_the_calibration_names_what_is_not_finite(self) -> None:
        from yolov9.quantization.for_onnx import quantize_onnx

        model = onnx.load_from_string(random_model())
        weight = next(t for t in model.graph.initializer if t.name == "w2")
        weight.CopyFrom(numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), "w2"))
        with pytest.raises(QuantizeError, match=r"the ONNX graph cannot be quantised: .*2: a value is not finite"):
            quantize_onnx(model.SerializeToString(), [np.zeros((1, 64, 64, 3), np.uint8)])


def run(model: onnx.ModelProto, images: np.ndarray, names: list[str] | None = None) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(value) for value in session.run(names, {"images": images})]


def bias(model: onnx.ModelProto, convolution: str) -> np.ndarray:
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    return constants[f"{convolution}/bias/stored"] * constants[f"{convolution}/bias/scale"].astype(np.float64)


class TestDeviation:
    def predictions(self, moved: float = 0.0, score: float = 0.0) -> np.ndarray:
        made = np.zeros((1, 6, 2), np.float32)
        made[0, :, 0] = 10, 10, 30, 30, 0.9, 0.1
        made[0, :, 1] = 0, 0, 5, 5, 0.0, 0.0  # says nothing: does not count
        made[0, :4, 0] += moved
        made[0, :4, 1] += 50
        made[0, 4, 0] += score
        return made

    def test_boxes_relative_to_their_size_and_the_largest_score(self) -> None:
        found = deviation([self.predictions()], [self.predictions(2, -0.05)])
        assert found.boxes == pytest.approx(0.1)
        assert found.scores == pytest.approx(0.05)
        assert str(found) == "boxes by 10.00% of their size, scores by 0.0500"

    def test_the_same_is_zero_and_shapes_must_agree(self) -> None:
        assert deviation([self.predictions()], [self.predictions()]).boxes == 0
        with pytest.raises(ValueError, match="shapes"):
            deviation([self.predictions()], [self.predictions()[:, :5]])

    def test_what_is_not_finite_stays_so(self) -> None:
        assert np.isnan(deviation([self.predictions()], [self.predictions(np.nan)]).boxes)


class TestPictures:
    def test_spread_is_even_and_takes_no_more_than_there_are(self) -> None:
        assert spread(range(10), 5) == [0, 2, 4, 6, 8]
        assert spread(range(3), 7) == [0, 1, 2]

    def test_they_have_the_shapes_that_they_have_in_the_server(self, tmp_path) -> None:
        write_yolo(tmp_path, truth(images=4))
        inputs = read_inputs(sorted(tmp_path.rglob("*.png")), 160)
        assert [images.shape for images in inputs] == [
            (1, 128, 160, 3), (1, 160, 128, 3), (1, 96, 160, 3), (1, 160, 160, 3),
        ]  # fmt: skip
        with pytest.raises(QuantizeError, match="none of 0 images can be decoded"):
            read_inputs([], 160)

    def test_calibration_and_measurement_share_no_picture(self, tmp_path) -> None:
        file = write_yolo(tmp_path, truth(images=10))
        calibration, measured, notes = split(file, 128)
        assert measured is not None
        assert len(calibration) == len(measured.items) == 5
        assert not {*calibration} & {item.image for item in measured.items}
        assert notes == ["5 images are calibrated on: the others of 10 measure it"]
        assert len(split(file, 2)[0]) == 2

    def test_a_training_split_is_calibrated_on_and_the_validation_split_measured(self, tmp_path) -> None:
        write_yolo(tmp_path, truth(images=6), "train")
        file = write_yolo(tmp_path, truth(1, images=4))
        file.write_text(file.read_text() + "train: images/train\n")
        calibration, measured, notes = split(file, 128)
        assert measured is not None
        assert {path.parent.name for path in calibration} == {"train"}
        assert {item.image.parent.name for item in measured.items} == {"val"}
        assert (len(calibration), len(measured.items), notes) == (6, 4, [])

    def test_a_folder_of_pictures_without_labels_is_calibrated_on(self, tmp_path) -> None:
        write_yolo(tmp_path, truth(images=6))
        folder = tmp_path / "images" / "val"
        calibration, measured, notes = split(folder, 3)
        assert [path.name for path in calibration] == ["0000.png", "0002.png", "0004.png"]
        assert (measured, notes) == (None, [])
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match="no data set is recognised there"):
            split(tmp_path / "empty", 3)

    def test_of_a_single_picture_that_is_said(self, tmp_path) -> None:
        calibration, measured, notes = split(write_yolo(tmp_path, truth(images=1)), 128)
        assert measured is not None
        assert [item.image for item in measured.items] == calibration
        assert notes[-1] == "AP is measured on the image that is calibrated on: there is no other"


@pytest.mark.parametrize(
    ("node", "block", "layer"),
    [
        ("/detector/model.4/cv2/cv2.0/m/m.0/cv1/conv/Conv/WithoutBiases", "model.4",
         "model.4/cv2/cv2.0/m/m.0/cv1/conv"),
        ("/detector/model.22/cv3.1/cv3.1.0/conv/Conv", "model.22/cv3.1", "model.22/cv3.1/cv3.1.0/conv"),
        ("Convolution_12", "Convolution_12", "Convolution_12"),
    ],
)  # fmt: skip
def test_parts_are_named_as_in_a_checkpoint(node: str, block: str, layer: str) -> None:
    assert part_name(node, "block") == block
    assert part_name(node, "layer") == layer
