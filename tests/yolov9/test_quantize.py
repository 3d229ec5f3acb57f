"""The command from a bundle in floating point to one with int8: what the files hold, what engines make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import openvino as ov
import pytest
from drawn_data import NAMES, truth, write_yolo
from onnx import TensorProto, numpy_helper
from small_detector import every_block

from yolov9.bundle import INT8_ONNX, Bundle
from yolov9.engines import EngineError, make
from yolov9.engines.tensorrt.graph import check_symmetric
from yolov9.export import export
from yolov9.quantization import QuantizeError, packages
from yolov9.quantization import run as runs
from yolov9.quantization.deviation import deviation
from yolov9.quantization.pictures import read_inputs
from yolov9.quantize import main
from yolov9.weights import save

pytest.importorskip("nncf", reason="nncf (extra quantize) is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime (extra quantize) is not installed")

SIZE = 96


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_yolo(tmp_path_factory.mktemp("data"), truth(images=12))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "drawn"
    model = every_block(NAMES, score=-1.0)
    return export(model, folder, input_size=SIZE, formats=["openvino"], check=False, lineage={"weights": "w"})


@pytest.fixture(scope="module")
def done(plain: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `int8`, the bundle that the command wrote, and `figures.json`."""
    folder = tmp_path_factory.mktemp("int8")
    arguments = ["--model", str(plain.path), "--data", str(data), "--out", str(folder / "int8"), "--images", "6"]
    assert main([*arguments, "--sensitivity", "--json", str(folder / "figures.json")]) == 0
    return folder


@pytest.fixture(scope="module")
def int8(done: Path) -> Bundle:
    return Bundle.load(done / "int8")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.uint8]:
    """One that was not calibrated on."""
    folder = tmp_path_factory.mktemp("other")
    write_yolo(folder, truth(seed=9, images=1))
    return read_inputs(sorted(folder.rglob("*.png")), SIZE)[0][0]


@pytest.fixture(scope="module")
def qdq(int8: Bundle) -> onnx.ModelProto:
    return onnx.load(int8.path / INT8_ONNX)


def test_the_bundle_has_every_precision_and_knows_where_int8_came_from(int8: Bundle, plain: Bundle) -> None:
    assert sorted(int8.files) == [
        "int8.onnx", "model.onnx", "model.safetensors", "openvino/model.bin", "openvino/model.xml",
    ]  # fmt: skip
    assert int8.onnx.read_bytes() == plain.onnx.read_bytes()
    assert int8.lineage["weights"] == "w"
    story = int8.lineage["int8"]
    assert (story["data"], story["of"], story["calibrated_on"], story["measured_on"]) == ("data.yaml", plain.hash, 6, 6)
    assert len(story["calibration_sha256"]) == 64
    assert {*story["made_with"]} == {"openvino", "nncf", "onnx", "onnxruntime"}
    assert story["before"].keys() == {"map", "map50", "map75"}
    for engine in ("openvino", "onnxruntime"):
        assert story["engines"][engine]["after"].keys() == {"map", "map50", "map75"}
        assert 0 < story["engines"][engine]["deviation"]["boxes"] < 0.03
        assert 0 < story["engines"][engine]["deviation"]["scores"] < 0.09


def test_the_figures_have_the_sensitivity_of_each_block(done: Path) -> None:
    figures = json.loads((done / "figures.json").read_text())
    assert figures["calibrated_on"] == 6
    parts = figures["sensitivity"]
    assert [part["scores"] for part in parts] == sorted((part["scores"] for part in parts), reverse=True)
    names = {part["name"] for part in parts}
    assert {"model.1", "model.11", "model.16/cv2.0", "model.16/cv3.1"} <= names
    assert all(1e-5 < part["scores"] < 0.09 and part["boxes"] < 0.03 for part in parts)
    boxes, scores = ({p["name"]: p[key] for p in parts} for key in ("boxes", "scores"))
    assert boxes["model.16/cv2.0"] > boxes["model.16/cv3.0"], "the tower of boxes moves boxes"
    assert scores["model.16/cv3.0"] > scores["model.16/cv2.0"], "and that of classes scores"


def test_every_quantiser_is_symmetric(qdq: onnx.ModelProto, int8: Bundle) -> None:
    check_symmetric(qdq, int8.path / INT8_ONNX)  # as TensorRT wants it
    constants = {t.name: t for t in qdq.graph.initializer}
    quantisers = [n for n in qdq.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert len(quantisers) > 60
    for node in quantisers:
        zero = constants[node.input[2]]
        assert zero.data_type in (TensorProto.INT8, TensorProto.INT32)
        assert not numpy_helper.to_array(zero).any()
        assert (numpy_helper.to_array(constants[node.input[1]]) > 0).all()


def test_weights_are_int8_by_channel_but_for_the_first_and_the_last_ones(qdq: onnx.ModelProto) -> None:
    constants = {t.name: t for t in qdq.graph.initializer}
    maker = {name: node for node in qdq.graph.node for name in node.output}
    exact = []
    for node in qdq.graph.node:
        if node.op_type != "Conv":
            continue
        source = maker.get(node.input[1])
        if source is None:
            exact.append(node.name)
            continue
        assert source.op_type == "DequantizeLinear"
        weight = constants[source.input[0]]
        assert weight.data_type == TensorProto.INT8
        assert constants[source.input[1]].dims == [weight.dims[0]]
        assert np.abs(numpy_helper.to_array(weight).astype(int)).max() <= 127
    towers = [
        f"/detector/model.16/{tower}.{level}/{tower}.{level}.2/Conv" for tower in ("cv2", "cv3") for level in (0, 1)
    ]
    assert sorted(exact) == ["/detector/model.1/conv/Conv", *towers, "/detector/model.7/conv/Conv"]


def test_decoding_is_in_floating_point_in_onnx(qdq: onnx.ModelProto) -> None:
    """From the result back to the convolutions there is no quantiser."""
    maker = {name: node for node in qdq.graph.node for name in node.output}
    seen = before(maker, "predictions")
    assert {"Softmax", "Sigmoid", "ReduceSum", "Concat"} <= seen
    assert not {"QuantizeLinear", "DequantizeLinear"} & seen


def before(maker: dict[str, onnx.NodeProto], tensor: str) -> set[str]:
    kinds: set[str] = set()
    waiting, known = [tensor], set()
    while waiting:
        name = waiting.pop()
        node = maker.get(name)
        if node is None or name in known:
            continue
        known.add(name)
        if node.op_type != "Conv":
            kinds.add(node.op_type)
            waiting.extend(node.input)
    return kinds


def test_decoding_is_in_floating_point_in_openvino_and_swish_one_operation(int8: Bundle) -> None:
    model = ov.Core().read_model(str(int8.path / "openvino" / "model.xml"))
    kinds: list[str] = []
    waiting, known = [model.get_results()[0].input_value(0).get_node()], set()
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() in known or "Convolution" in op.get_type_name():
            continue
        # A tower's bias is added behind its convolution.
        known.add(op.get_friendly_name())
        kinds.append(op.get_type_name())
        waiting.extend(value.get_source_output().get_node() for value in op.inputs())
    assert {"Softmax", "Sigmoid", "ReduceSum"} <= {*kinds}
    assert "FakeQuantize" not in kinds
    everything = [op.get_type_name() for op in model.get_ops()]
    assert everything.count("Sigmoid") == 1
    assert everything.count("Swish") > 30
    assert everything.count("FakeQuantize") > 50
    assert json.loads(str(model.get_rt_info()["yolov9"]["names"].value)) == {str(i): n for i, n in enumerate(NAMES)}


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_engines_take_int8_by_themselves_and_the_rest_when_asked(
    name: str, int8: Bundle, plain: Bundle, image: npt.NDArray[np.uint8]
) -> None:
    images = [image]
    chosen, exact, before = make(int8, name), make(int8, name, "fp32"), make(plain, name, "fp32")
    assert (chosen.precision, exact.precision) == ("int8", "fp32")
    np.testing.assert_array_equal(exact.infer(images), before.infer(images))
    found, expected = chosen.infer(images).copy(), before.infer(images)
    moved = deviation([expected], [found])
    assert 0 < moved.boxes < 0.03
    assert 0 < moved.scores < 0.09
    with pytest.raises(EngineError, match="int8 was asked for, but"):
        make(plain, name, "int8")
    for engine in (chosen, exact, before):
        engine.close()


def test_unsigned_activations_on_x86_change_nothing(
    int8: Bundle, image: npt.NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [image]
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    engine = make(int8, "onnxruntime", "int8")
    unsigned = engine.infer(images)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    signed = make(int8, "onnxruntime", "int8").infer(images)
    np.testing.assert_allclose(unsigned[:, 4:], signed[:, 4:], atol=0.02)
    np.testing.assert_allclose(unsigned[:, :4], signed[:, :4], atol=0.5)


def test_it_can_be_done_in_place_from_a_checkpoint_for_one_engine(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(every_block(["horse"], score=-1.0), tmp_path / "w.safetensors")
    arguments = ["--data", str(data), "--out", str(tmp_path / "b"), "--engine", "onnxruntime", "--images", "2"]
    assert main(["--weights", str(tmp_path / "w.safetensors"), "--imgsz", "64", *arguments]) == 0
    bundle = Bundle.load(tmp_path / "b")
    assert sorted(bundle.files) == ["int8.onnx", "model.onnx", "model.safetensors"]
    assert (bundle.lineage["int8"]["before"], bundle.lineage["int8"]["measured_on"]) == ({}, 0)
    assert "AP is not measured: " in capsys.readouterr().err, "its only class is not in the data"
    first = bundle.lineage["int8"]["calibration_sha256"]
    unlabelled = data.parent / "images" / "val"
    assert main(["--weights", str(tmp_path / "b"), *arguments, "--images", "3", "--data", str(unlabelled)]) == 0
    assert "AP is not measured: the pictures have no labels" in capsys.readouterr().err
    again = Bundle.load(tmp_path / "b")
    assert again.lineage["int8"]["calibrated_on"] == 3
    assert again.lineage["int8"]["calibration_sha256"] != first
    with pytest.raises(EngineError, match=r"has no model in int8"):
        make(again, "openvino", "int8")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("MAX_SCORE", 0.0, "onnxruntime in int8 differs from fp32 in boxes by "),
        ("MAX_AP_LOST", -1.0, "onnxruntime in int8 has AP 0."),
    ],
)
def test_what_is_too_far_off_is_not_written(
    setting: str,
    value: float,
    message: str,
    plain: Bundle,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runs, setting, value)
    arguments = ["--weights", str(plain.path), "--data", str(data), "--out", str(tmp_path / "b"), "--images", "2"]
    assert main([*arguments, "--engine", "onnxruntime", "--limit", "4"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {message}")
    assert "(--no-check writes it)" in error
    assert [*tmp_path.iterdir()] == []
    if setting == "MAX_SCORE":
        assert main([*arguments, "--engine", "onnxruntime", "--no-check"]) == 0
        assert Bundle.load(tmp_path / "b").lineage["int8"]["measured_on"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "nowhere"], "nowhere"),
        (["--weights", "{folder}/junk.pt"], "junk.pt"),
        (["--weights", "{folder}/quantised"], "is quantised already"),
        (["--data", "{folder}/gone"], "gone"),
        (["--data", "{folder}/junk.pt"], "junk.pt"),
        (["--imgsz", "100"], "input size 100"),
        (["--out", "{folder}/full"], "full exists and is not a bundle"),
        (["--engine", "onnxruntime", "--sensitivity"], "--sensitivity is measured in OpenVINO"),
    ],
)
def test_mistakes_end_the_command_before_it_begins(
    arguments: list[str], message: str, plain: Bundle, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk.pt").write_bytes(b"junk")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("...")
    quantised = tmp_path / "quantised"
    quantised.symlink_to(_as_int8(plain, tmp_path / "made"))
    usual = ["--weights", str(plain.path), "--data", str(data), "--out", "{folder}/out"]
    assert main([a.format(folder=tmp_path) for a in (*usual, *arguments)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not (tmp_path / "out").exists()


def _as_int8(bundle: Bundle, folder: Path) -> Path:
    """The same bundle, whose graph is said to be in int8."""
    folder.mkdir()
    for name in bundle.files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((bundle.path / name).read_bytes())
    manifest = json.loads((bundle.path / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps({**manifest, "precision": "int8"}))
    return folder


def test_pictures_that_cannot_be_decoded_are_left_out_and_none_is_an_error(
    plain: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_yolo(tmp_path / "data", truth(images=2))
    for picture in (tmp_path / "data").rglob("*.png"):
        picture.write_bytes(picture.read_bytes()[:60])
    arguments = ["--weights", str(plain.path), "--data", str(file), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-check"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert any(line.startswith("left out: ") and "0000.png" in line for line in errors)
    assert errors[-1].startswith("error: none of ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("package", ["nncf", "onnxruntime"])
def test_a_package_that_is_missing_is_named_first(
    package: str, plain: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = packages.find_spec
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else find(name))
    assert main(["--weights", str(plain.path), "--data", str(data), "--out", "out"]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"needs the package {package}: pip install 'yolov9-server[quantize]'\n")


def test_an_engine_that_there_is_not(plain: Bundle, tmp_path: Path) -> None:
    with pytest.raises(QuantizeError, match=r"no int8 for the engine 'torch' \(there is openvino, onnxruntime\)"):
        runs.quantize(plain, tmp_path / "b", [], engines=["torch"])


@pytest.mark.parametrize(
    "option", [["--images", "0"], ["--limit", "0"], ["--engine", "tensorrt"], ["--sensitivity", "x"]]
)
def test_options_that_cannot_be_are_refused_by_the_parser(option: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--weights", "x", "--data", "d", "--out", "y", *option])
    assert end.value.code == 2
