"""The paper's ablations: published networks follow from options, gradients go where it says, inference is free."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import yolov9
from yolov9.nn.__main__ import main
from yolov9.nn.ablation import ablate, options
from yolov9.nn.architecture import IMAGE, Architecture, ArchitectureError, architecture, parse
from yolov9.nn.cost import gflops, parameters
from yolov9.nn.model import Detector, build
from yolov9.nn.reversible import Reversible
from yolov9.weights import WeightsError

SIZES = "tsmce"
LEVELS = (3, 4, 5)
BRANCHES: list[dict[str, Any]] = [
    {"auxiliary": "none"},
    *({"auxiliary": "deep_supervision", "integration": i} for i in ("none", "fpn", "composite")),
    *({"auxiliary": "reversible", "reversible": r} for r in ("composite", "columns")),
    *(
        {"auxiliary": "pgi", "integration": i, "reversible": r}
        for i in ("fpn", "composite")
        for r in ("composite", "columns")
    ),
]
AUXILIARY = BRANCHES[1:]
MAINS = ("plain", "composite", "columns")
NETWORKS = [*((b, "plain") for b in BRANCHES), *itertools.product(BRANCHES[::8], MAINS[1:])]
COMPUTATIONS = ("csp", "conv", "res", "res2", "dark")


def named(chosen: Any) -> str | None:
    """Id of a test; None leaves what is no table of options to pytest."""
    return "-".join(str(v) for v in chosen.values()) if isinstance(chosen, dict) else None


# --- what comes out


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("t", {"auxiliary": "deep_supervision", "integration": "fpn"}),
        ("s", {"auxiliary": "deep_supervision", "integration": "fpn"}),
        ("m", {"auxiliary": "pgi"}),
        ("c", {"auxiliary": "pgi", "integration": "composite", "reversible": "composite"}),
        ("e", {"auxiliary": "deep_supervision", "integration": "fpn", "main": "composite"}),
    ],
)
def test_the_published_training_networks_are_points_among_the_ablations(size: str, words: dict[str, Any]) -> None:
    assert ablate(f"gelan-{size}", **words) is architecture(f"yolov9-{size}")
    # Not by being looked up: with another stage, everything is derived anew, and is the file with that stage.
    expected = architecture(f"yolov9-{size}").to_dict()
    for layers in expected.values():
        for fields in layers.values():
            if fields["block"] == "RepNCSPELAN4":
                fields["repeats"] = 5
    derived = ablate(f"gelan-{size}", **words, repeats=5).to_dict()
    assert derived["auxiliary"] == expected["auxiliary"]
    assert list(derived["auxiliary"]) == list(expected["auxiliary"])  # and in this order
    assert derived["head"] == expected["head"]
    assert derived["neck"] == expected["neck"]
    for name, fields in derived["backbone"].items():
        assert expected["backbone"][name] == fields
    assert set(expected["backbone"]) - set(derived["backbone"]) <= {"image_copy"}


@pytest.mark.parametrize("size", SIZES)
def test_without_a_change_it_is_the_packaged_network(size: str) -> None:
    for name in (f"gelan-{size}", f"yolov9-{size}"):
        assert ablate(name) == ablate(name, computation="csp", depth=2) == architecture(name)
        assert ablate(name).packaged
    assert ablate(f"yolov9-{size}", auxiliary="none") == architecture(f"gelan-{size}")


@pytest.mark.parametrize("size", SIZES)
def test_every_combination_has_a_name_of_its_own_and_is_read_back_from_its_text(size: str) -> None:
    found: dict[str, Architecture] = {}
    for branches, main_branch in itertools.product(BRANCHES, MAINS):
        arch = ablate(f"yolov9-{size}", **branches, main=main_branch, computation="res2")
        assert arch.name not in found
        found[arch.name] = arch
        assert parse(arch.name, arch.to_yaml()) == arch
        assert arch.inference == ablate(f"gelan-{size}", main=main_branch, computation="res2")
    layers = [arch.layers for arch in found.values()]
    assert all(a != b for a, b in itertools.combinations(layers, 2))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("main_branch", MAINS)
def test_every_combination_fits_together(size: str, main_branch: Any) -> None:
    for branches in BRANCHES if main_branch == "plain" else BRANCHES[-1:]:
        model = skeleton(
            ablate(f"yolov9-{size}", **branches, main=main_branch, repeats=1)
        )  # checks channels and strides
        assert model.head.dual == (branches["auxiliary"] != "none")
    raw = model(torch.empty(1, 3, 64, 128, device="meta"))
    shapes = [(1, 67, 8, 16), (1, 67, 4, 8), (1, 67, 2, 4)]
    assert [tuple(t.shape) for t in raw.main] == [tuple(t.shape) for t in raw.auxiliary] == shapes


def test_names_say_what_was_changed() -> None:
    assert ablate("gelan-t", computation="res").name == "gelan-t-res"
    assert ablate("yolov9-c", depth=3, repeats=2).name == "yolov9-c-elan3-csp2"
    assert ablate("yolov9-c", integration="fpn").name == "yolov9-c_pgi-fpn"
    assert ablate("yolov9-e", main="plain", auxiliary="deep_supervision").name == "yolov9-e-plain-main_deep-supervision"
    assert ablate("yolov9-t", computation="dark", reversible="columns", auxiliary="pgi").name == (
        "yolov9-t-dark_pgi-composite-columns"
    )


def test_two_ways_to_say_one_thing_are_one_network() -> None:
    assert ablate("yolov9-t", auxiliary="pgi", integration="none") == ablate("gelan-t", auxiliary="reversible")
    assert ablate("yolov9-t", auxiliary="pgi") == ablate("yolov9-t", auxiliary="pgi", integration="composite")
    assert ablate("yolov9-c", integration="fpn") == ablate("gelan-c", auxiliary="pgi", integration="fpn")


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("yolov9-t", {"auxiliary": "pgj"}, "yolov9-t: auxiliary: .*'reversible' or 'pgi', not 'pgj'"),
        ("yolov9-t", {"integration": "pan"}, "integration: .*'composite', not 'pan'"),
        ("yolov9-t", {"auxiliary": "pgi", "reversible": "revnet"}, "reversible: .*'columns', not 'revnet'"),
        ("yolov9-t", {"main": "reversible"}, "main: .*'columns', not 'reversible'"),
        ("yolov9-t", {"computation": "ghost"}, "computation: .*'dark', not 'ghost'"),
        ("yolov9-t", {"depth": 0}, "depth: .*greater than 0, not 0"),
        ("yolov9-t", {"depth": True}, "depth: .*integer, not True"),
        ("yolov9-t", {"repeats": 33}, "repeats: .*32, not 33"),
        ("yolov9-t", {"colour": "red"}, "colour: no such option; there are auxiliary, integration, .*repeats"),
        ("gelan-t", {"integration": "fpn"}, "integration: fpn, but auxiliary is none"),
        ("yolov9-t", {"auxiliary": "reversible", "integration": "fpn"}, "integration: .* is auxiliary pgi"),
        ("yolov9-t", {"reversible": "columns"}, "reversible: no branch .* auxiliary is deep_supervision"),
        ("yolov9-x", {"depth": 3}, "no architecture is called 'yolov9-x'"),
    ],
)
def test_errors_name_the_option(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        build(name, 3, **given)


# --- counts


@pytest.mark.parametrize(
    ("changes", "millions", "giga"),
    [
        # Table 2 of the paper: computational blocks in GELAN-S, CSP depth 1
        ({"computation": "conv", "repeats": 1}, 6.2, 23.5),
        ({"computation": "res", "repeats": 1}, 5.4, 21.0),
        ({"computation": "dark", "repeats": 1}, 5.7, 21.8),
        ({"computation": "csp", "repeats": 1}, 5.9, 22.4),
        # Table 3: ELAN depth, CSP depth
        ({"depth": 2, "repeats": 2}, 6.5, 24.4),
        ({"depth": 3, "repeats": 1}, 7.1, 26.3),
        ({"depth": 2, "repeats": 3}, 7.1, 26.4),
    ],
    ids=named,
)
def test_stages_cost_what_the_paper_s_tables_say(changes: dict[str, Any], millions: float, giga: float) -> None:
    model = skeleton(ablate("gelan-s", **changes), classes=80).fuse()
    assert round(parameters(model) / 1e6, 1) == millions
    assert round(gflops(model), 1) == giga


def test_inference_pays_for_a_reversible_main_branch() -> None:
    plain, composite, columns = (costs(skeleton(ablate("gelan-t", main=m))) for m in MAINS)
    assert plain == costs(skeleton(architecture("gelan-t")))
    assert plain < composite
    assert plain < columns


@pytest.mark.parametrize(
    ("size", "branches", "main_branch"),
    [("t", AUXILIARY[0], "plain"), ("t", AUXILIARY[-1], "columns"), ("c", AUXILIARY[-1], "plain")],
    ids=named,
)
def test_inference_pays_nothing_for_an_auxiliary_branch(size: str, branches: Any, main_branch: Any) -> None:
    """Of other combinations it follows: what is left of any is `ablate("gelan-SIZE", ...)`, says a test above."""
    model = skeleton(ablate(f"yolov9-{size}", **branches, main=main_branch))
    whole = parameters(model)
    expected = costs(skeleton(ablate(f"gelan-{size}", main=main_branch)))
    assert costs(model.prune_auxiliary()) == expected
    assert parameters(model) < whole


# --- what is computed


@pytest.mark.parametrize(("branches", "main_branch"), NETWORKS, ids=named)
def test_pruning_changes_nothing_and_fusing_rounding_only(branches: dict[str, Any], main_branch: Any) -> None:
    model = trained(small(**branches, main=main_branch))
    images = torch.rand(2, 3, 64, 96)
    with torch.inference_mode():
        whole = model(images)
        pruned = model.prune_auxiliary()(images)
        fused = model.fuse()(images)
    assert torch.equal(whole, pruned)
    assert not any(x.section == "auxiliary" for x in model.arch.layers)
    assert model.fused
    assert (fused - pruned)[:, 4:].abs().max() < 1e-4
    assert (fused - pruned)[:, :4].abs().max() < 2e-2  # pixels


@pytest.mark.parametrize("computation", COMPUTATIONS)
@pytest.mark.parametrize(("depth", "repeats"), [(1, 2), (3, 1)])
def test_networks_of_any_block_and_depth_are_pruned_and_fused(computation: Any, depth: int, repeats: int) -> None:
    model = trained(build("yolov9-t", 3, computation=computation, depth=depth, repeats=repeats))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        whole = model(images)
        pruned = model.prune_auxiliary()(images)
        fused = model.fuse()(images)
    assert torch.equal(whole, pruned)
    assert (fused - pruned)[:, 4:].abs().max() < 1e-4
    assert (fused - pruned)[:, :4].abs().max() < 2e-2


def test_a_large_network_is_pruned_exactly_too() -> None:
    model = trained(build("yolov9-c", 3, auxiliary="pgi", integration="fpn", reversible="columns", computation="res"))
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(images), model.prune_auxiliary()(images))
    assert model.name == "gelan-c-res"


# --- gradients


@pytest.mark.parametrize(("branches", "main_branch"), NETWORKS, ids=named)
def test_gradients_reach_every_weight_but_the_frozen_ones(branches: dict[str, Any], main_branch: Any) -> None:
    torch.manual_seed(0)
    model = small(**branches, main=main_branch)
    raw = model(torch.rand(2, 3, 64, 64))
    sum(t.square().mean() for t in raw.main + raw.auxiliary).backward()
    without = {k for k, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert {".".join(k.split(".")[2:]) for k in without} <= {"dfl.conv.weight", "dfl2.conv.weight"}


@pytest.mark.parametrize("branches", AUXILIARY, ids=named)
def test_the_auxiliary_loss_alone_reaches_the_first_layer_and_leaves_neck_and_heads_alone(
    branches: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    model = small(**branches)
    raw = model(torch.rand(2, 3, 64, 64))
    sum(t.square().mean() for t in raw.auxiliary).backward()
    moved = {x.section for x, m in zip(model.arch.layers[:-1], model.model, strict=False) if has_gradient(m)}
    assert {"backbone"} <= moved <= {"backbone", "auxiliary"}
    assert has_gradient(model.model[0])
    assert not has_gradient(model.head.cv4)
    assert has_gradient(model.head.cv2)


# Stage of the backbone -> levels whose heads it hears of through the auxiliary branch
HEARD = {
    "deep_supervision-none": {3: {3}, 4: {4}, 5: {5}},
    "deep_supervision-fpn": {3: {3}, 4: {3, 4}, 5: {3, 4, 5}},
    "deep_supervision-composite": {3: {3}, 4: {3, 4}, 5: {3, 4, 5}},
    "reversible-composite": {3: {3, 4, 5}, 4: {4, 5}, 5: {5}},
    "reversible-columns": {3: {3, 4, 5}, 4: {3, 4, 5}, 5: {4, 5}},
    "pgi-fpn-composite": {3: {3, 4, 5}, 4: {3, 4, 5}, 5: {3, 4, 5}},
    "pgi-fpn-columns": {3: {3, 4, 5}, 4: {3, 4, 5}, 5: {3, 4, 5}},
    "pgi-composite-composite": {3: {3, 4, 5}, 4: {3, 4, 5}, 5: {3, 4, 5}},
    "pgi-composite-columns": {3: {3, 4, 5}, 4: {3, 4, 5}, 5: {3, 4, 5}},
}


@pytest.mark.parametrize("branches", AUXILIARY, ids=named)
@pytest.mark.parametrize("size", SIZES)
def test_multi_level_information_is_that_every_stage_hears_of_objects_of_every_size(
    branches: dict[str, Any], size: str
) -> None:
    arch = ablate(f"gelan-{size}", **branches)
    first = "first_" if size == "e" else ""
    heard = {}
    for level in LEVELS:
        reached = {f"{first}stage{level}"}
        for x in arch.layers:
            if x.section == "auxiliary" and reached & set(x.sources):
                reached.add(x.name)
        heard[level] = {i for i, name in zip(LEVELS, arch.layers[-1].auxiliary, strict=True) if name in reached}
    assert heard == HEARD[named(branches)]


@pytest.mark.parametrize("branches", AUXILIARY, ids=named)
def test_the_finest_head_s_gradient_reaches_the_coarsest_stage_only_if_levels_are_integrated(
    branches: dict[str, Any],
) -> None:
    torch.manual_seed(0)
    model = small(**branches)
    raw = model(torch.rand(2, 3, 64, 64))
    raw.auxiliary[0].square().mean().backward()
    stage5 = dict(zip((x.name for x in model.arch.layers), model.model, strict=True))["stage5"]
    assert has_gradient(stage5) == (3 in HEARD[named(branches)][5])


# --- reversibility


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(
    ("size", "given", "column", "lost"),
    [
        ("t", {"auxiliary": "reversible"}, "aux{}", "stage{}"),
        ("t", {"auxiliary": "pgi", "integration": "fpn"}, "aux{}", "stage{}"),
        ("t", {"auxiliary": "pgi", "integration": "composite"}, "aux{}", "stage{}"),
        ("c", {"auxiliary": "pgi", "integration": "fpn", "computation": "res"}, "aux{}", "stage{}"),
        ("t", {"main": "columns"}, "stage{}", "first_stage{}"),
    ],
    ids=["none", "fpn", "composite", "c-fpn", "main"],
)
def test_the_main_branch_s_stages_are_computed_back_from_a_column(
    size: str, given: dict[str, Any], column: str, lost: str, training: bool
) -> None:
    """From the column's four maps and the picture alone, whatever the integration network."""
    if "auxiliary" in given:
        given = given | {"reversible": "columns"}
    model = trained(build(f"gelan-{size}", 2, **{"repeats": 1} | given)).double().train(training)
    for module in model.modules():
        if isinstance(module, Reversible):
            nn.init.uniform_(module.gamma, -1.5, 1.5)
    image = torch.rand(2, 3, 64, 96).double()
    with torch.no_grad():
        maps = run(model, image)
        known = {IMAGE: image} | {column.format(level): maps[column.format(level)] for level in (2, *LEVELS)}
        section = "backbone" if "main" in given else "auxiliary"
        layers = {x.name: (x, m) for x, m in zip(model.arch.layers, model.model, strict=True) if x.section == section}
        for level in (5, 4, 3, 2):
            x, module = layers[column.format(level)]
            assert isinstance(module, Reversible)
            transformed = evaluate(x.sources[1], layers, known, not_yet=lost.partition("{")[0])
            known[lost.format(level)] = module.inverse(known[x.name], transformed)
    for level in (2, *LEVELS):
        name = lost.format(level)
        assert maps[name].std() > 1e-3
        torch.testing.assert_close(known[name], maps[name], rtol=1e-6, atol=1e-6)


def run(model: Detector, image: Tensor) -> dict[str, Any]:
    """Every layer's output by name, the head's excepted."""
    outputs: dict[str, Any] = {IMAGE: image}
    for x, module in zip(model.arch.layers[:-1], model.model, strict=False):
        sources = [outputs[s] for s in x.sources]
        outputs[x.name] = module(sources if len(sources) > 1 else sources[0])
    return outputs


def evaluate(name: str, layers: dict[str, Any], known: dict[str, Any], not_yet: str) -> Any:
    """A layer's output from what is known. Fails if that takes a map of the other column that is not known yet."""
    if name in known:
        return known[name]
    assert name in layers, f"{name} is of the main branch and not known yet"
    assert not name.startswith(not_yet), f"{name} is not known yet"
    x, module = layers[name]
    sources = [evaluate(s, layers, known, not_yet) for s in x.sources]
    return module(sources if len(sources) > 1 else sources[0])


# --- files and words


@pytest.mark.parametrize(
    "given",
    [
        {"auxiliary": "pgi", "integration": "fpn", "reversible": "columns", "computation": "res2", "depth": 3},
        {"auxiliary": "none", "main": "composite", "computation": "conv"},
        {"auxiliary": "deep_supervision"},
    ],
    ids=named,
)
def test_weights_of_an_ablated_network_say_what_they_are_of(tmp_path: Path, given: dict[str, Any]) -> None:
    model = trained(build("yolov9-t", ["cat", "dog"], **given))
    yolov9.save(model, tmp_path / "w.safetensors")
    again = yolov9.load(tmp_path / "w.safetensors")
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(again(images), model(images))
        yolov9.save(model.prune_auxiliary().fuse(), tmp_path / "fused.safetensors")
        assert torch.equal(yolov9.load(tmp_path / "fused.safetensors")(images), model(images))
    assert (again.arch, again.names) == (ablate("yolov9-t", **given), {0: "cat", 1: "dog"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("backbone: [", "its architecture: any: not valid YAML"),
        (ablate("gelan-t", computation="dark").to_yaml(), "of its tensors are .* of another shape"),
        (ablate("yolov9-t", auxiliary="pgi").to_yaml(), "no architecture has 23 layers"),
    ],
)
def test_a_wrong_description_in_a_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    from safetensors.torch import save_file

    state = {k: t.contiguous() for k, t in build("gelan-t", 2, computation="res").state_dict().items()}
    save_file(state, tmp_path / "w.safetensors", {"name": "any", "class_width": "64", "architecture": text})
    with pytest.raises(WeightsError, match=rf"w\.safetensors: .*{message}"):
        yolov9.load(tmp_path / "w.safetensors")


def test_options_come_from_the_words_of_a_command_line_or_from_yaml() -> None:
    assert options(["auxiliary=pgi", "depth=3"]) == {"auxiliary": "pgi", "depth": 3}
    recipe = yaml.safe_load("model: yolov9-t\nablation: {auxiliary: pgi, integration: fpn, depth: 3}\n")
    assert ablate(recipe["model"], **recipe["ablation"]).name == "yolov9-t-elan3_pgi-fpn"
    for words, message in (
        (["depth"], "'depth' is not OPTION=VALUE"),
        (["depth=3", "depth=3"], "depth: given twice"),
        (["depth=many"], "depth: .*not 'many'"),
        (["hue=1"], "hue: no such option"),
    ):
        with pytest.raises(ArchitectureError, match=message):
            options(words)


def test_the_command_tells_counts_and_writes_the_architecture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["yolov9-t", "auxiliary=pgi", "--yaml", str(tmp_path / "a.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "training: yolov9-t_pgi-composite" in shown
    assert "inference: gelan-t " in shown
    assert "2,036,560     2,001,840           7.71" in shown  # the published counts of gelan-t
    assert f"wrote {tmp_path / 'a.yaml'}: " in shown
    text = (tmp_path / "a.yaml").read_text()
    assert parse("yolov9-t_pgi-composite", text) == ablate("yolov9-t", auxiliary="pgi")
    assert main(["gelan-t", "--classes", "3"]) == 0
    assert "training" not in capsys.readouterr().out


@pytest.mark.parametrize("words", [["yolov9-t", "auxiliary=x"], ["yolov9-z"], ["gelan-t", "--classes", "0"]])
def test_the_command_answers_mistakes_with_one_sentence(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def small(**given: Any) -> Detector:
    """A quick one: T with stages of CSP depth 1."""
    return build("gelan-t", 3, **given, repeats=1)


def skeleton(arch: Architecture, classes: int = 3) -> Detector:
    """In training mode, without memory for its weights."""
    with torch.device("meta"):
        return build(arch, classes)


def costs(model: Detector) -> tuple[float, int]:
    return gflops(model, 64, 64), parameters(model)


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


def has_gradient(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())
