"""Bundles are untrusted: what is wrong is refused by the name of file and field; what is whole round-trips."""

from __future__ import annotations

import hashlib
import json
import os

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tiny_model import colour_model, random_model, tiny_bundle

from yolov9.bundle import Bundle, BundleError, write_bundle
from yolov9.onnx_header import OnnxFormatError, read_header


@pytest.fixture
def folder(tmp_path):
    tiny_bundle(tmp_path / "tiny", safetensors=b"weights", lineage={"epochs": 3})
    return tmp_path / "tiny"


def rewrite(folder, change):
    """Change model.json through plain data."""
    path = folder / "model.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_graph(folder, data):
    """Put another graph in, with the right size and hash."""
    (folder / "model.onnx").write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    rewrite(folder, lambda m: m["files"].update({"model.onnx": entry}))


def test_what_is_written_is_read(folder):
    bundle = Bundle.load(folder)
    assert bundle.name == "tiny"
    assert bundle.names == {0: "red", 1: "blue"}
    assert (bundle.input_size, bundle.stride, bundle.precision) == (128, 32, "fp32")
    assert bundle.lineage == {"epochs": 3}
    assert bundle.onnx.read_bytes() == colour_model()
    assert bundle.safetensors is not None
    assert bundle.safetensors.read_bytes() == b"weights"
    assert bundle.path == folder


def test_names_may_be_a_list_or_a_table(tmp_path):
    listed = tiny_bundle(tmp_path / "a", names=["red", "blue"])
    table = tiny_bundle(tmp_path / "b", names={1: "blue", 0: "red"})
    assert listed.names == table.names == {0: "red", 1: "blue"}
    assert listed.hash == table.hash


def test_a_bundle_without_weights_has_none(tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny")
    assert bundle.safetensors is None
    (tmp_path / "tiny" / "model.safetensors").write_bytes(b"not listed")
    assert Bundle.load(tmp_path / "tiny").safetensors is None


def test_files_of_engines_lie_in_folders_of_their_own(tmp_path):
    bundle = tiny_bundle(tmp_path / "tiny", extra={"openvino/model.xml": b"<x/>", "openvino/model.bin": b"1"})
    assert bundle.file("openvino/model.xml") == tmp_path / "tiny" / "openvino" / "model.xml"
    assert bundle.file("openvino/other") is None


def test_a_graph_in_int8_is_checked_like_the_other(tmp_path):
    def extra(data):
        return {"extra": {"int8.onnx": data}}

    assert tiny_bundle(tmp_path / "a", **extra(colour_model())).file("int8.onnx") == tmp_path / "a" / "int8.onnx"
    with pytest.raises(BundleError, match=r"b/int8\.onnx: "):
        tiny_bundle(tmp_path / "b", **extra(b"junk"))
    with pytest.raises(BundleError, match=r"c/int8\.onnx: predicts 3 classes, but model\.json names 2"):
        tiny_bundle(tmp_path / "c", **extra(random_model(3)))
    model = onnx.load_from_string(random_model(2))
    tensor = model.graph.initializer[0]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    with pytest.raises(BundleError, match=r"d/int8\.onnx: keeps weights in other files"):
        tiny_bundle(tmp_path / "d", **extra(model.SerializeToString()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_the_hash_is_stable_and_follows_what_the_model_computes(tmp_path):
    first = tiny_bundle(tmp_path / "a")
    assert len(first.hash) == 12
    assert tiny_bundle(tmp_path / "b", name="other", lineage={"by": "me"}).hash == first.hash
    assert tiny_bundle(tmp_path / "c", input_size=256).hash != first.hash
    assert tiny_bundle(tmp_path / "d", names=["rot", "blau"]).hash != first.hash
    assert tiny_bundle(tmp_path / "e", model=random_model(2)).hash != first.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), r"format: version 2"),
        (lambda m: m.pop("format"), r"missing required field `format`"),
        (lambda m: m.update(extra=1), r"unknown field `extra`"),
        (lambda m: m.pop("lineage"), r"missing required field `lineage`"),
        (lambda m: m.update(input_size="640"), r"Expected `int`, got `str` - at `\$.input_size`"),
        (lambda m: m.update(input_size=100), r"input_size: 100"),
        (lambda m: m.update(input_size=0), r"input_size: 0"),
        (lambda m: m.update(input_size=-32), r"input_size: -32"),
        (lambda m: m.update(input_size=32 * 10**9), r"input_size"),
        (lambda m: m.update(stride=16), r"stride: 16"),
        (lambda m: m.update(precision="fp8"), r"precision"),
        (lambda m: m.update(name="../evil"), r"name: '../evil'"),
        (lambda m: m.update(name=""), r"name: ''"),
        (lambda m: m.update(names=[]), r"names: 0 classes"),
        (lambda m: m.update(names=["red", "red"]), r"names: 'red' occurs twice"),
        (lambda m: m.update(names=["red", "a\nb"]), r"names\[1\]"),
        (lambda m: m.update(names=["red", ""]), r"names\[1\]"),
        (lambda m: m.update(names={"0": "red", "2": "blue"}), r"names: the ids"),
        (lambda m: m.update(names={"x": "red"}), r"names"),
        (lambda m: m.update(names=["red", "blue", "green"]), r"predicts 2 classes, but model.json names 3"),
        (lambda m: m.update(files={}), r"files: model.onnx is not among them"),
        (lambda m: m["files"].update({"../up": m["files"]["model.onnx"]}), r"'../up' is not a plain relative path"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["model.onnx"]}), r"'/etc/passwd'"),
        (lambda m: m["files"].update({"a/./b": m["files"]["model.onnx"]}), r"'a/./b'"),
        (lambda m: m["files"].update({"gone.bin": m["files"]["model.onnx"]}), r"gone.bin: missing"),
        (lambda m: m["files"]["model.onnx"].update(sha256="0" * 64), r"model.onnx: SHA-256 is"),
        (lambda m: m["files"]["model.onnx"].update(sha256="x"), r"sha256: not 64"),
        (lambda m: m["files"]["model.onnx"].update(bytes=5), r"model.onnx: has \d+ bytes, but model.json says 5"),
        (lambda m: m["files"]["model.onnx"].update(bytes=0), r"bytes: 0"),
        (lambda m: m["files"]["model.onnx"].update(bytes=1 << 60), r"bytes: \d+ is not"),
    ],
)
def test_a_wrong_manifest_is_refused_by_field(folder, change, message):
    rewrite(folder, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"format": 1', b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000]
)
def test_a_manifest_that_is_no_json_object_is_refused(folder, text):
    (folder / "model.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"model\.json"):
        Bundle.load(folder)


def test_a_deeply_nested_lineage_is_refused_and_not_a_crash(folder):
    text = (folder / "model.json").read_text().replace('"epochs": 3', '"a": ' + "[" * 50_000 + "]" * 50_000)
    (folder / "model.json").write_text(text)
    with pytest.raises(BundleError, match=r"model\.json"):
        Bundle.load(folder)


def test_a_huge_manifest_is_not_read(folder):
    with (folder / "model.json").open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(BundleError, match="larger than"):
        Bundle.load(folder)


def test_a_folder_that_is_none_and_one_without_manifest_are_refused(tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.load(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"model\.json: missing"):
        Bundle.load(tmp_path)


@pytest.mark.parametrize("file", ["model.onnx", "model.safetensors"])
def test_a_changed_byte_is_noticed(folder, file):
    data = bytearray((folder / file).read_bytes())
    data[3] ^= 1
    (folder / file).write_bytes(data)
    with pytest.raises(BundleError, match=f"{file}: SHA-256"):
        Bundle.load(folder)


@pytest.mark.parametrize("name", ["model.onnx", "model.json"])
def test_a_link_out_of_the_folder_is_refused(folder, name, tmp_path):
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(BundleError, match=name):
        Bundle.load(folder)


def test_a_link_inside_the_folder_and_a_link_to_the_folder_are_fine(folder, tmp_path):
    (folder / "model.onnx").rename(folder / "data")
    (folder / "model.onnx").symlink_to("data")
    (tmp_path / "link").symlink_to(folder)
    assert Bundle.load(tmp_path / "link").name == "tiny"


def test_a_pipe_does_not_make_it_wait(folder):
    (folder / "model.onnx").unlink()
    os.mkfifo(folder / "model.onnx")
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.load(folder)


def in_initializer(model):
    return model.graph.initializer[0]


def in_constant_node(model):
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))
    return model.graph.node[-1].attribute[0].t


def in_a_branch(model):
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    branch = helper.make_graph([], "branch", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=branch, else_branch=branch))
    return model.graph.node[-1].attribute[0].g.initializer[0]


def in_a_function(model):
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    node = helper.make_node("Constant", [], ["x"], value=tensor)
    model.functions.append(helper.make_function("d", "f", [], ["x"], [node], [helper.make_opsetid("", 18)]))
    return model.functions[0].node[0].attribute[0].t


def in_a_sparse_initializer(model):
    model.graph.sparse_initializer.add()
    return model.graph.sparse_initializer[0].values


@pytest.mark.parametrize(
    "place", [in_initializer, in_constant_node, in_a_branch, in_a_function, in_a_sparse_initializer]
)
@pytest.mark.parametrize("location", ["../../secret", "weights.bin", "/etc/passwd"])
def test_weights_in_other_files_are_refused_wherever_they_are_named(folder, place, location):
    model = onnx.load_from_string(colour_model())
    tensor = place(model)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    replace_graph(folder, model.SerializeToString())
    with pytest.raises(BundleError, match=r"model\.onnx: keeps weights in other files"):
        Bundle.load(folder)


def graph(inputs, outputs):
    nodes = [helper.make_node("Identity", [i.name], [o.name]) for i, o in zip(inputs, outputs, strict=True)]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs)).SerializeToString()


value = helper.make_tensor_value_info
IMAGES = value("images", TensorProto.UINT8, ["b", "h", "w", 3])
PREDICTIONS = value("predictions", TensorProto.FLOAT, ["b", 6, "a"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not protobuf at all", "model.onnx: "),
        (b"\x00" * 64, "model.onnx: "),
        (graph([value("x", TensorProto.UINT8, ["b", "h", "w", 3])], [PREDICTIONS]), r"has inputs \['x'\]"),
        (graph([IMAGES, IMAGES], [PREDICTIONS, PREDICTIONS]), "has inputs"),
        (graph([value("images", TensorProto.FLOAT, ["b", "h", "w", 3])], [PREDICTIONS]), "is not uint8"),
        (graph([value("images", TensorProto.UINT8, ["b", 3, "h", "w"])], [PREDICTIONS]), r"not uint8 of shape"),
        (graph([IMAGES], [value("predictions", TensorProto.FLOAT16, ["b", 6, "a"])]), "is not float32"),
        (graph([IMAGES], [value("predictions", TensorProto.FLOAT, ["b", 84, "a"])]), "predicts 80 classes"),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused(folder, data, message):
    replace_graph(folder, data)
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_the_header_agrees_with_the_onnx_package():
    header = read_header(random_model(5))
    model = onnx.load_from_string(random_model(5))
    assert [i.name for i in header.inputs] == [i.name for i in model.graph.input]
    assert header.inputs[0].shape == (None, None, None, 3)
    assert header.outputs[0].shape == (None, 9, None)
    assert not header.external_data


@settings(max_examples=200)
@given(st.data())
def test_damaged_graphs_are_refused_or_read_but_never_crash(data):
    model = bytearray(colour_model())
    for _ in range(data.draw(st.integers(1, 5))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(model)))
    for damaged in (bytes(model), bytes(model[:cut])):
        try:
            assert read_header(damaged).outputs
        except OnnxFormatError:
            pass


def test_deep_nesting_is_refused():
    message = b""
    for _ in range(100):  # graph within attribute within node within graph ...
        for key in (0x32, 0x2A, 0x0A):
            length = len(message)
            varint = bytes([length & 0x7F | (0x80 if length > 0x7F else 0), *([length >> 7] if length > 0x7F else [])])
            message = bytes([key]) + varint + message
    with pytest.raises(OnnxFormatError, match="nested"):
        read_header(b"\x3a" + bytes([len(message) & 0x7F | 0x80, len(message) >> 7]) + message)


def test_an_existing_bundle_is_replaced_as_a_whole(folder):
    (folder / "left-over").write_text("of the old one")
    tiny_bundle(folder, model=random_model(2), name="second")
    assert Bundle.load(folder).name == "second"
    assert sorted(p.name for p in folder.iterdir()) == ["model.json", "model.onnx"]
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_a_folder_that_is_no_bundle_is_never_overwritten(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("precious")
    with pytest.raises(BundleError, match="not overwritten"):
        tiny_bundle(tmp_path / "photos")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(BundleError, match="not overwritten"):
        tiny_bundle(tmp_path / "file")
    assert (tmp_path / "photos" / "a.jpg").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a b"}, "name"),
        ({"input_size": 65}, "input_size"),
        ({"names": ["one"]}, "predicts 2 classes"),
        ({"model": b"rubbish"}, "model.onnx"),
        ({"lineage": {"f": object()}}, "model.json"),
        ({"extra": {"../x": b"1"}}, "'../x'"),
        ({"extra": {"model.json": b"1"}}, "'model.json'"),
    ],
)
def test_a_bad_bundle_is_not_written_and_the_old_one_stays(folder, options, message):
    before = Bundle.load(folder)
    with pytest.raises(BundleError, match=message) as caught:
        tiny_bundle(folder, **options)
    assert ".tmp" not in str(caught.value)
    assert Bundle.load(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_a_failing_disk_leaves_the_old_bundle_and_no_rubbish(folder, monkeypatch):
    before = Bundle.load(folder)

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        tiny_bundle(folder, name="second")
    assert Bundle.load(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["tiny"]


def test_a_failing_rename_puts_the_old_bundle_back(folder, monkeypatch):
    before = Bundle.load(folder)
    rename = type(folder).rename

    def fails_for_new(self, target):
        if self.name.endswith(".tmp"):
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(type(folder), "rename", fails_for_new)
    with pytest.raises(OSError, match="Input/output"):
        tiny_bundle(folder, name="second")
    assert Bundle.load(folder) == before


def test_write_bundle_returns_what_load_does(tmp_path):
    made = write_bundle(
        tmp_path / "deep" / "down",
        name="m",
        names=["red", "blue"],
        input_size=64,
        precision="fp32",
        onnx=colour_model(),
    )
    assert made == Bundle.load(tmp_path / "deep" / "down")
