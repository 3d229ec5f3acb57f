"""All ten architectures: counts as published, layout of the reference, training and inference sides of one network."""

from __future__ import annotations

import contextlib
import copy
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import yolov9
from yolov9.nn.architecture import (
    IMAGE,
    MAX_TEXT,
    ArchitectureError,
    IdentityLayer,
    architecture,
    from_dict,
    names,
    parse,
)
from yolov9.nn.cost import gflops, parameters
from yolov9.nn.head import RawOutputs, Towers
from yolov9.nn.model import Detector, build, class_names

SIZES = "tsmce"
ALL = [f"{family}-{size}" for family in ("gelan", "yolov9") for size in SIZES]
TRAINING = [f"yolov9-{size}" for size in SIZES]

PUBLISHED = [
    # name, class tower, parameters, fused, GFLOPs of the fused model at 640x640
    ("gelan-t", 128, 2_442_640, 2_407_632, 9.82),
    ("gelan-t", None, 2_036_560, 2_001_840, 7.71),  # None: the default
    ("gelan-s", None, 7_226_208, 7_105_888, 26.38),
    ("gelan-m", None, 20_124_000, 19_978_672, 76.31),
    ("gelan-c", None, 25_498_752, 25_288_768, 102.14),
    ("gelan-e", None, 58_114_432, 57_345_920, 188.95),
    ("yolov9-t", 128, 3_717_680, 3_674_576, 16.16),
    ("yolov9-s", None, 9_804_512, 9_659_168, 39.05),
    ("yolov9-m", None, 32_878_432, 32_667_400, 131.32),
    ("yolov9-c", None, 51_182_080, 50_880_768, 237.63),
    ("yolov9-e", None, 69_529_664, 68_669_632, 241.34),
]


@pytest.mark.parametrize(("name", "width", "count", "fused", "cost"), PUBLISHED)
def test_counts_are_the_published_ones(name: str, width: int | None, count: int, fused: int, cost: float) -> None:
    model = skeleton(name, width)
    assert parameters(model) == count
    assert parameters(model.fuse()) == fused
    assert gflops(model) == pytest.approx(cost, abs=0.0051)  # published with two digits


def test_these_are_all_architectures() -> None:
    assert names() == sorted(ALL)


# Layer number -> numbers of its sources, where it is not just the layer before it. -1 is the image.
NECK = {11: (10, 6), 14: (13, 4), 17: (16, 12), 20: (19, 9), 22: (15, 18, 21)}
COMPOSITE = {24: 7, 25: 9, 26: -1, 30: (23, 24, 25, 29), 33: (24, 25, 32), 36: (25, 35), 38: (16, 19, 22, 31, 34, 37)}
TWO_BACKBONES = {
    10: 1, 11: 3, 12: 5, 13: 7, 14: 9, 15: -1, 16: (10, 11, 12, 13, 14, 15), 18: (11, 12, 13, 14, 17),
    21: (12, 13, 14, 20), 24: (13, 14, 23), 27: (14, 26),
}  # fmt: skip
SOURCES = {
    "gelan-t": NECK,
    "gelan-s": NECK,
    "gelan-m": NECK,
    "gelan-c": NECK,
    "gelan-e": {1: -1, **TWO_BACKBONES, 31: (30, 25), 34: (33, 22), 37: (36, 32), 40: (39, 29), 42: (35, 38, 41)},
    "yolov9-t": {**NECK, 22: 8, 24: (23, 6), 27: (26, 4), 29: (15, 18, 21, 28, 25, 22)},
    "yolov9-m": {1: -1, 12: (11, 7), 15: (14, 5), 18: (17, 13), 21: (20, 10), 23: 5, **COMPOSITE},
    "yolov9-e": {
        1: -1, **TWO_BACKBONES, 29: 9, 31: (30, 7), 34: (33, 5), 36: 28, 38: (37, 25), 41: (40, 22), 44: (43, 39),
        47: (46, 36), 49: (42, 45, 48, 35, 32, 29),
    },
}  # fmt: skip
SOURCES["yolov9-s"], SOURCES["yolov9-c"] = SOURCES["yolov9-t"], SOURCES["yolov9-m"]


@pytest.mark.parametrize("name", ALL)
def test_layers_are_wired_and_numbered_as_in_the_reference(name: str) -> None:
    layers = architecture(name).layers
    number = {IMAGE: -1} | {x.name: i for i, x in enumerate(layers)}
    wired = {}
    for i, x in enumerate(layers):
        found = tuple(number[s] for s in x.sources + x.auxiliary)
        if found != (i - 1,):
            wired[i] = found if len(found) > 1 else found[0]
    assert wired == SOURCES[name]


@pytest.mark.parametrize("name", ALL)
def test_keys_follow_the_reference(name: str) -> None:
    model = skeleton(name)
    keys, last = set(model.state_dict()), len(model.model) - 1
    branches = {"cv2", "cv3", "dfl"} | ({"cv4", "cv5", "dfl2"} if name.startswith("yolov9") else set())
    assert {k.split(".")[2] for k in keys if k.startswith(f"model.{last}.")} == branches
    assert {f"model.{last}.cv2.0.0.conv.weight", f"model.{last}.cv3.2.2.bias", f"model.{last}.dfl.conv.weight"} <= keys
    stem = "model.0" if "model.0.conv.weight" in keys else "model.1"
    assert model.state_dict()[f"{stem}.conv.weight"].shape[1] == 3
    stage = f"{stem[:-1]}{int(stem[-1]) + 4}"
    assert {f"{stage}.cv2.0.m.0.cv1.conv1.conv.weight", f"{stage}.cv3.1.bn.running_var", f"{stage}.cv4.bn.bias"} <= keys
    assert model.strides == (8, 16, 32)
    assert model.stride == 32
    assert model.name == name


@pytest.mark.parametrize("size", SIZES)
def test_a_training_file_is_the_inference_file_and_an_auxiliary_section(size: str) -> None:
    training, inference = architecture(f"yolov9-{size}"), architecture(f"gelan-{size}")
    assert training.inference == inference == inference.inference
    main = {x.name: x for x in training.layers[:-1] if x.section != "auxiliary"}
    for x in inference.layers[:-1]:
        assert main.pop(x.name) == x or x.sources == (IMAGE,)
    assert all(isinstance(x.layer, IdentityLayer) for x in main.values())
    assert training.layers[-1].sources == inference.layers[-1].sources


@pytest.mark.parametrize("name", TRAINING)
def test_the_auxiliary_branch_goes_without_a_trace_and_fusing_changes_rounding_only(name: str) -> None:
    model, images = trained(build(name, 3)), torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        whole = model(images)
        fused_whole = copy.deepcopy(model).fuse()(images)
        pruned = model.prune_auxiliary()(images)
        fused = model.fuse()(images)
    assert whole.shape == (2, 7, 12 * 8 + 6 * 4 + 3 * 2)
    assert model.name == name.replace("yolov9", "gelan")
    assert set(model.state_dict()) == set(skeleton(model.name, classes=3).fuse().state_dict())
    assert torch.equal(pruned, whole)
    assert torch.equal(fused, fused_whole)
    assert (fused - pruned)[:, 4:].abs().max() < 1e-4
    assert (fused - pruned)[:, :4].abs().max() < 2e-2  # pixels
    assert model.fused


@pytest.mark.parametrize("size", SIZES)
def test_an_inference_network_has_nothing_to_prune(size: str) -> None:
    model = skeleton(f"gelan-{size}")
    keys = list(model.state_dict())
    assert model.prune_auxiliary().arch is architecture(f"gelan-{size}")
    assert list(model.state_dict()) == keys


@pytest.mark.parametrize("name", ["gelan-t", "yolov9-t", "yolov9-m", "yolov9-e"])  # one of each way of wiring
def test_training_mode_gives_every_level_of_every_branch(name: str) -> None:
    model = skeleton(name, classes=5).train()
    raw = model(torch.empty(2, 3, 128, 64, device="meta"))
    assert isinstance(raw, RawOutputs)
    shapes = [(2, 69, 16, 8), (2, 69, 8, 4), (2, 69, 4, 2)]
    assert [tuple(t.shape) for t in raw.main] == shapes
    assert [tuple(t.shape) for t in raw.auxiliary] == (shapes if name.startswith("yolov9") else [])


def test_gradients_reach_every_weight_but_the_frozen_ones() -> None:
    torch.manual_seed(0)
    model = build("yolov9-t", 2)
    raw = model(torch.rand(2, 3, 64, 64))
    sum(t.square().mean() for t in raw.main + raw.auxiliary).backward()
    without = {k for k, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == {"model.29.dfl.conv.weight", "model.29.dfl2.conv.weight"}


def test_the_auxiliary_branch_is_not_run_at_inference() -> None:
    model, ran = skeleton("yolov9-c").eval(), []
    for x, module in zip(model.arch.layers, model.model, strict=True):
        module.register_forward_hook(lambda *_, x=x: ran.append(x.section))
    model(torch.empty(1, 3, 64, 64, device="meta"))
    assert "backbone" in ran
    assert "auxiliary" not in ran


@pytest.mark.parametrize(
    "shape", [(3, 64, 64), (1, 1, 64, 64), (1, 3, 60, 64), (1, 3, 64, 100)], ids=lambda s: "x".join(map(str, s))
)
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        skeleton("gelan-t")(torch.empty(shape, device="meta"))


def test_classes_are_a_number_a_list_or_a_table() -> None:
    assert class_names(2) == {0: "class0", 1: "class1"}
    assert class_names(["cat", "dog"]) == {0: "cat", 1: "dog"}
    assert class_names({1: "dog", 0: "cat"}) == {0: "cat", 1: "dog"}
    with torch.device("meta"):
        assert yolov9.build("gelan-t", ["cat", "dog"]).names == {0: "cat", 1: "dog"}


@pytest.mark.parametrize("classes", [0, [], {}, {1: "a", 2: "b"}, {0: "a", 2: "b"}, "person"])
def test_classes_that_are_no_table_are_refused(classes) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="classes"):
        build("gelan-t", classes)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ArchitectureError, match=r"'yolov9-x'.*gelan-t.*yolov9-e"):
        build("yolov9-x")
    with pytest.raises(ArchitectureError, match=r"gelan-t: head\.detect: box_groups 3"):
        build("gelan-t", box_groups=3)


TINY = """
backbone:
  a: {block: Conv, channels: 8, kernel: 3, stride: 2}
  b: {block: ADown, channels: 16}
  c: {block: RepNCSPELAN4, channels: 16, hidden: 16, branch: 8}
  d: {block: AConv, channels: 16}
neck:
  up: {block: Upsample}
  join: {block: Concat, from: [up, c]}
head:
  out: {block: Detect, from: [join, d]}
"""


def test_a_file_of_one_s_own_builds() -> None:
    model = Detector(parse("tiny", TINY), {0: "a"}, Towers()).eval()
    assert model.strides == (4, 8)
    with torch.inference_mode():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5, 80)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("channels: 8,", "channels: 0,", r"tiny: backbone\.a: channels: .*greater than 0"),
        ("channels: 8,", "channels: eight,", r"backbone\.a: channels: .*integer"),
        ("stride: 2}", "stride: 3}", r"backbone\.a: stride"),
        ("stride: 2}", "strides: 2}", r"backbone\.a: strides: Extra"),
        ("channels: 8,", "", r"backbone\.a: channels: .*required"),
        ("block: Conv,", "block: Convolution,", r"backbone\.a: block: .*'Conv'"),
        ("block: Conv,", "", r"backbone\.a: block"),
        ("hidden: 16", "hidden: 15", r"backbone\.c: hidden: 15 cannot be split"),
        ("ADown, channels: 16", "ADown, channels: 17", r"backbone\.b: channels: 17 cannot be split"),
        ("from: [up, c]", "from: [up, e]", r"neck\.join: from: 'e' is neither image nor an earlier layer"),
        ("from: [up, c]", "from: [up, out]", r"neck\.join: from: 'out'"),
        ("from: [up, c]", "from: up", r"neck\.join: from: Concat takes several sources, not 1"),
        ("{block: AConv,", "{block: AConv, from: [b, c],", r"backbone\.d: from: AConv takes one source, not 2"),
        ("from: [up, c]", "from: [up, d]", r"neck\.join: Concat joins maps of different strides \[4, 8\]"),
        ("channels: 8,", "channels: 7,", r"backbone\.b: ADown cannot split 7 channels"),
        ("  up:", "  a:", r"neck\.a: the name is taken"),
        ("  up:", "  Up:", r"neck\.Up: the name"),
        ("  b:", "  a:", r"'a' is given twice"),
        ("neck:", "nick:", "sections backbone, neck, auxiliary and head"),
        ("head:", "auxiliary:", "sections backbone, neck, auxiliary and head"),
        ("block: Detect, from: [join, d]", "block: Conv, channels: 1", "wants one Detect, as the last layer"),
        ("from: [join, d]}", "from: [join, d], auxiliary: [c]}", r"head\.out: auxiliary: wants 2 levels"),
        ("from: [join, d]}", "from: [join, d], auxiliary: [c, a]}", "auxiliary levels of strides"),
        ("neck:", "auxiliary:", "a layer of the main branch reads the auxiliary branch"),
        ("{block: Upsample}", "{block: CBLinear, widths: [16]}", r"neck\.join: only CBFuse reads CBLinear"),
        (
            "{block: Concat, from: [up, c]}",
            "{block: CBFuse, split: 0, from: [b, a]}",
            r"neck\.join: CBFuse reads CBLinear, and one map to add to",
        ),
        ("{block: Upsample}", "{block: Upsample, from: image}", r"neck\.up: Upsample of a map of stride 1"),
        ("backbone:", "backbone: [", "not valid YAML"),
        ("hidden: 16", "hidden: 16, repeats: 33", r"backbone\.c: repeats: .*32"),
        ("RepNCSPELAN4, channels: 16, hidden: 16", "GELAN, channels: 16, hidden: 15", r"c: hidden: 15 cannot be split"),
        ("RepNCSPELAN4,", "GELAN, depth: 0,", r"backbone\.c: depth: .*greater than 0"),
        ("RepNCSPELAN4,", "GELAN, computation: transformer,", r"backbone\.c: computation: .*'res2' or 'dark'"),
        ("RepNCSPELAN4,", "RepNCSPELAN4, computation: res,", r"backbone\.c: computation: Extra"),
        (
            "{block: Upsample}",
            "{block: Reversible, from: c}",
            r"neck\.up: from: Reversible takes several sources, not 1",
        ),
        ("{block: Upsample}", "{block: Reversible, from: [c, a]}", r"neck\.up: Reversible .*\[\(16, 4\), \(8, 2\)\]"),
        ("{block: Upsample}", "{block: Reversible, from: [c, b, c]}", r"neck\.up: Reversible adds two maps"),
    ],
)
def test_mistakes_in_a_file_are_named(old: str, new: str, message: str) -> None:
    text = TINY.replace(old, new, 1)
    assert text != TINY
    with pytest.raises(ArchitectureError, match=message):
        Detector(parse("tiny", text), {0: "a"}, Towers())


LAYER = "{block: Conv, channels: 8}"
HEAD = "head: {out: {block: Detect, from: [a, b]}}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [1]\nb: *a\n", "aliases are not read"),
        ("x: &x {a: 1}\ny: {<<: [*x, *x]}\n", "aliases are not read"),
        ("[" * 20_000, "not valid YAML"),
        ("? [a, b]\n: c\n", "not valid YAML"),
        ("backbone: !!bool maybe\n", "not valid YAML"),
        ("backbone: !!int ''\n", "not valid YAML"),
        ("backbone: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("backbone: {a: {block: Conv, channels: " + "9" * 5000 + "}}\n" + HEAD, "not valid YAML"),
        ("backbone: {a: {block: Conv, channels: 99999}}\n" + HEAD, r"backbone\.a: channels: .*16384"),
        ("#" * 70_000, "70000 characters, but an architecture has at most 65536"),
        ("backbone:\n" + "".join(f"  a{i}: {LAYER}\n" for i in range(513)) + HEAD, "more than 512 layers"),
        ('backbone: {a: {block: "\\e[31m"}}\n' + HEAD, r"block: .*\?\[31m"),
    ],
)
def test_a_stranger_s_file_is_refused_in_one_harmless_sentence(text: str, message: str) -> None:
    with pytest.raises(ArchitectureError, match=message) as error:
        parse("theirs", text)
    assert len(str(error.value)) <= 500
    assert str(error.value).isprintable()


@given(st.text(alphabet=st.sampled_from("abc019{}[]:,-!&*?<>#'\"|~. \n\t"), max_size=60))
def test_any_text_is_an_architecture_or_an_error(text: str) -> None:
    for whole in (text, TINY.replace("channels: 16", text, 1), TINY.replace("backbone", text, 1)):
        with contextlib.suppress(ArchitectureError):
            assert parse("any", whole).layers


@pytest.mark.parametrize("name", ALL)
def test_an_architecture_is_read_back_from_its_text(name: str) -> None:
    arch = architecture(name)
    assert arch.packaged
    assert parse(name, arch.to_yaml()) == from_dict(name, arch.to_dict()) == arch
    assert not parse("other", arch.to_yaml()).packaged
    assert not parse(name, TINY).packaged
    assert len(arch.to_yaml()) < MAX_TEXT / 4


def test_what_is_left_of_a_file_of_one_s_own_keeps_its_name_and_layers() -> None:
    text = TINY.replace("head:", "auxiliary:\n  e: {block: Identity, from: d}\nhead:").replace(
        "[join, d]", "[join, d], auxiliary: [c, e]"
    )
    whole, left = parse("my_net", text), parse("my_net", TINY)
    assert whole.inference == left
    assert left.inference is left
    torch.manual_seed(0)
    model, images = Detector(whole, {0: "a"}, Towers()), torch.rand(1, 3, 32, 32)
    assert len(model(images).auxiliary) == 2
    with torch.inference_mode():
        before = model.eval()(images)
        assert torch.equal(model.prune_auxiliary()(images), before)


def test_an_architecture_of_one_s_own_is_built_without_options() -> None:
    assert build(parse("tiny", TINY), 2).name == "tiny"
    with pytest.raises(ArchitectureError, match="tiny: depth: options are for packaged architectures"):
        build(parse("tiny", TINY), 2, depth=3)


def test_composite_links_must_have_the_width_that_they_are_added_to() -> None:
    links = "  link: {block: CBLinear, from: c, widths: [16, 8]}\n  fuse: {block: CBFuse, from: [link, c], split: 0}\n"
    text = TINY.replace("neck:\n", "neck:\n" + links).replace("Upsample}", "Upsample, from: d}")
    with torch.inference_mode():
        model = Detector(parse("tiny", text), {0: "a"}, Towers()).eval()
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5, 80)
    for split in (1, 2):
        with pytest.raises(
            ArchitectureError, match=rf"neck\.fuse: CBFuse adds map {split} of \[\[16, 8\]\] to .* 16 ch"
        ):
            Detector(parse("tiny", text.replace("split: 0", f"split: {split}")), {0: "a"}, Towers())


def test_detect_answers_in_pixels_of_each_picture_and_in_their_order() -> None:
    model = every_anchor_detects()
    wide, tall = np.zeros((90, 160, 3), np.uint8), np.zeros((200, 100, 3), np.uint8)
    found = model.detect([wide, tall, PIL.Image.fromarray(wide)], confidence=0.5, iou=1.0, input_size=64)
    assert [f.shape[1] for f in found] == [6, 6, 6]
    assert np.array_equal(found[0], found[2])
    for picture, detections in zip([wide, tall], found, strict=False):
        assert detections[:, 2].max() <= picture.shape[1]
        assert detections[:, 3].max() <= picture.shape[0]
        assert (detections[:, 4] > 0.99).all()
        assert (detections[:, 5] == 1).all()
    # 160x90 lies in 64x64 at scale .4, 14 rows below the top; the cell around (36, 36) reports 8 pixels to each side.
    assert any(np.allclose(row[:4], [70, 35, 110, 75], atol=1e-3) for row in found[0])
    assert np.array_equal(model.detect(tall, 0.5, 1.0, input_size=64), found[1])
    assert not model.training


def test_detect_keeps_the_mode_and_needs_rgb_bytes() -> None:
    model = every_anchor_detects().train()
    before = copy.deepcopy(model.state_dict())
    model.detect(np.zeros((64, 64, 3), np.uint8), input_size=64)
    assert model.training
    assert all(torch.equal(before[k], t) for k, t in model.state_dict().items())
    with pytest.raises(ValueError, match=r"not \(h, w, 3\) uint8 RGB"):
        model.detect(np.zeros((64, 64), np.uint8))


def test_detect_reads_files_upright(tmp_path) -> None:  # type: ignore[no-untyped-def]
    image = PIL.Image.new("RGB", (100, 50))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    image.save(tmp_path / "turned.jpg", exif=exif)
    found = every_anchor_detects().detect(str(tmp_path / "turned.jpg"), 0.5, 1.0, input_size=64)
    assert found[:, 3].max() > 50 >= found[:, 2].max()


def test_importing_the_package_brings_no_torch() -> None:
    code = (
        "import sys, yolov9, yolov9.nn.architecture as a; assert 'torch' not in sys.modules; dir(yolov9); "
        "assert len(a.names()) == 10; assert 'torch' not in sys.modules; yolov9.build; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_without_torch_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import yolov9; yolov9.load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert "ImportError: yolov9.load needs torch: pip install 'yolov9-server[train]'" in done.stderr
    assert not hasattr(yolov9, "nothing")


def skeleton(name: str, width: int | None = None, classes: int = 80) -> Detector:
    """A model without memory for its weights: shapes only, made in no time."""
    with torch.device("meta"):
        return build(name, classes, class_width=width)


def trained(model: Detector) -> Detector:
    """In eval mode, with statistics and biases that are not those of a new model."""
    torch.manual_seed(1)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.8, 1.2)
            nn.init.normal_(m.bias, std=0.1)
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_(std=0.1)
            m.running_var.uniform_(0.5, 1.5)
        elif isinstance(m, nn.Conv2d) and m.bias is not None:
            nn.init.normal_(m.bias)
    return model.eval()


def every_anchor_detects() -> Detector:
    """gelan-t whose every cell reports class 1 in a box of one stride around its centre."""
    model = build("gelan-t", 2)
    for box, cls in zip(model.head.cv2, model.head.cv3, strict=True):
        nn.init.zeros_(box[-1].weight)
        nn.init.zeros_(cls[-1].weight)
        box[-1].bias.data = torch.full((4, 16), -99.0).index_fill(1, torch.tensor(1), 99.0).flatten()
        cls[-1].bias.data = torch.tensor([-99.0, 9.0])
    return model.eval()
