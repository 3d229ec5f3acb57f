"""Which channels go, how many, and what the rest makes up for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from prune_models import deafen, small
from torch import Tensor, nn

from yolov9.nn.channels import ConvolutionChannels
from yolov9.nn.cost import gflops, parameters
from yolov9.nn.head import REG_MAX
from yolov9.nn.model import Detector
from yolov9.nn.widths import table, widths
from yolov9.pruning import latency, pruner
from yolov9.pruning.criteria import DEFAULTS, NEED_PICTURES, Criterion, by_input, cotangent, raw_outputs, score
from yolov9.pruning.latency import Stopwatch
from yolov9.pruning.pictures import Pictures, find
from yolov9.pruning.pruner import Options, Pruned, Target, prune
from yolov9.pruning.repair import repair
from yolov9.pruning.selection import Plan
from yolov9.pruning.spaces import Cost, PruneError, network
from yolov9.pruning.surgery import remove

SIZE = 64


@pytest.fixture(scope="module")
def whole() -> Detector:
    """gelan-t, half as wide."""
    return small("gelan-t", 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of noise, tall and wide."""
    made = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i, shape in enumerate([(64, 64), (64, 48), (48, 64), (64, 64), (64, 64), (64, 48)]):
        Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8)).save(made / f"{i}.png")
    return made


@pytest.fixture(scope="module")
def pictures(folder: Path) -> Pictures:
    return Pictures(find(folder), SIZE, 6)


# --- what a channel is worth


@pytest.mark.parametrize("criterion", [c for c in DEFAULTS if c not in ("bn", "random")])
def test_a_channel_that_nobody_reads_is_worth_nothing_and_goes_first(
    whole: Detector, pictures: Pictures, criterion: Criterion
) -> None:
    net = network(whole, SIZE, SIZE)
    space = max(net.spaces, key=lambda s: s.rows)
    gone = torch.zeros(net.channels.count, dtype=torch.bool)
    gone[space.parts[0][3::5]] = True
    deaf = deafen(copy.deepcopy(whole), net.channels, gone)
    net = network(deaf, SIZE, SIZE)
    scores = score(net, criterion, pictures)
    assert scores[gone.numpy()].max() == 0
    assert (scores >= 0).all()
    assert scores[space.parts[0]].max() > 0
    plan = Plan(net, scores, normalisation=DEFAULTS[criterion])
    plan.until(lambda p: p.channels >= gone.sum())
    assert plan.gone[gone.numpy()].all()


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_magnitude_takes_the_smallest_weights_normalisation_folded_in(whole: Detector, criterion: Criterion) -> None:
    model = copy.deepcopy(whole)
    net = network(model, SIZE, SIZE)
    block = model.get_submodule("model.4.cv1")
    ids = net.channels.convolutions["model.4.cv1.conv"].outputs
    with torch.no_grad():
        block.conv.weight[2] *= 1e-3  # small where it is made,
        block.bn.running_var[5] = 1e6  # small once it is normalised,
        block.conv.weight[7] *= 1e-3  # small, but for what the normalisation makes of it
        block.bn.weight[7] *= 1e3
    scores = score(net, criterion)[ids]
    assert set(np.argsort(scores)[:2].tolist()) == {2, 5}
    assert scores[2] < 0.01 * np.median(scores)


def test_slimming_takes_the_smallest_scales(whole: Detector) -> None:
    net = network(whole, SIZE, SIZE)
    norm = whole.get_submodule("model.4.cv1.bn")
    scores = score(net, "bn")[net.channels.norms["model.4.cv1.bn"]]
    assert isinstance(norm, nn.BatchNorm2d)
    np.testing.assert_allclose(scores, norm.weight.detach().abs().numpy(), rtol=1e-6)
    with pytest.raises(PruneError, match="not fused"):
        score(network(copy.deepcopy(whole).fuse(), SIZE, SIZE), "bn")


def test_draws_follow_the_seed(whole: Detector) -> None:
    net = network(whole, SIZE, SIZE)
    assert np.array_equal(score(net, "random", seed=3), score(net, "random", seed=3))
    assert not np.array_equal(score(net, "random", seed=3), score(net, "random", seed=4))


@pytest.mark.parametrize("criterion", NEED_PICTURES)
def test_scores_from_pictures_are_repeatable_and_leave_the_model_alone(
    whole: Detector, pictures: Pictures, criterion: Criterion
) -> None:
    model = copy.deepcopy(whole)
    model.model[2].requires_grad_(False)
    model.model[3].train()
    needed = {n: p.requires_grad for n, p in model.named_parameters()}
    modes = {n: m.training for n, m in model.named_modules()}
    state = copy.deepcopy(model.state_dict())
    net, seen = network(model, SIZE, SIZE), []
    first = score(net, criterion, pictures, seed=1, progress=lambda done, total: seen.append((done, total)))
    assert np.array_equal(first, score(net, criterion, pictures, seed=1))
    assert seen == [(i, 6) for i in range(1, 7)]
    assert {n: p.requires_grad for n, p in model.named_parameters()} == needed
    assert {n: m.training for n, m in model.named_modules()} == modes
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("groups", "outputs"), [(1, 6), (2, 8), (4, 4)])
def test_weight_times_gradient_is_the_derivative_by_a_gate(groups: int, outputs: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, outputs, 3, padding=1, groups=groups)
    x, gate = torch.rand(2, 4, 5, 5), torch.ones(4, requires_grad=True)
    conv(x * gate[:, None, None]).square().sum().backward()
    assert conv.weight.grad is not None
    assert gate.grad is not None
    channels = ConvolutionChannels(np.arange(4), np.arange(outputs), groups, 25)
    found = by_input((conv.weight.detach() * conv.weight.grad).double().numpy(), channels)
    np.testing.assert_allclose(found, gate.grad.numpy(), rtol=1e-4)


def test_what_goes_backwards_has_the_covariance_of_the_answers() -> None:
    """Fisher matrix of the logits: p(1-p) of a score, diag(p) - p p' of a side where the cell is sure of an object."""
    draws = 40_000
    logits = torch.randn(1, 4 * REG_MAX + 2, 1, 1, generator=torch.Generator().manual_seed(2))
    sent = cotangent(logits.expand(draws, -1, -1, -1), True, torch.Generator().manual_seed(3)).flatten(1)
    covariance = sent.T @ sent / draws
    scores = logits.flatten()[-2:].sigmoid()
    left = logits.flatten()[:REG_MAX].softmax(0)
    wanted = (left.diag() - torch.outer(left, left)) * scores.max()
    torch.testing.assert_close(covariance[:REG_MAX, :REG_MAX], wanted, rtol=0, atol=3e-3)
    torch.testing.assert_close(covariance.diagonal()[-2:], scores * (1 - scores), rtol=1e-4, atol=0)
    assert covariance[:REG_MAX, REG_MAX:].abs().max() < 3e-3  # a side says nothing of another


# --- how many


def test_operations_are_counted_as_by_the_network_itself() -> None:
    model = small("yolov9-t", 2)
    net = network(model, SIZE, SIZE)
    plan = Plan(net, score(net, "l2"), per_cost=True, round_to=4)
    main = copy.deepcopy(model).prune_auxiliary()
    assert Cost(net).gflops == pytest.approx(gflops(main, SIZE, SIZE), rel=1e-12)
    assert plan.until(lambda p: p.cost.gflops < 0.6 * Cost(net).gflops)
    remove(model, net.channels, plan.gone)
    assert plan.cost.gflops == pytest.approx(gflops(model.prune_auxiliary(), SIZE, SIZE), rel=1e-12)


@pytest.mark.parametrize(("kind", "value", "round_to"), [("ratio", 0.25, 16), ("flops", 0.7, 8)])
def test_targets_are_met_to_one_step_in_round_widths(kind: Any, value: float, round_to: int) -> None:
    whole = small("gelan-s", 2)  # 16 and more channels wide nearly everywhere
    said: list[str] = []
    options = Options(criterion="l2", round_to=round_to)
    result = prune(whole, Target(kind, value), options, input_size=SIZE, say=said.append)
    if kind == "flops":
        assert value - 0.05 < result.gflops[-1] / result.gflops[0] <= value
    else:
        assert value <= 1 - result.channels[-1] / result.channels[0] < value + 0.02
    before, after = ({s.name: s.width for s in network(m, SIZE, SIZE).spaces} for m in (whole, result.model))
    changed = {name: width for name, width in after.items() if width != before[name]}
    assert changed
    assert all(width % round_to == 0 for width in changed.values())
    assert all(10 * width >= before[name] for name, width in after.items())  # the floor
    assert said[-1].startswith("step 1/1: ")


def test_a_share_of_every_layer(whole: Detector) -> None:
    result = prune(whole, Target("ratio", 0.5), Options(criterion="l1", scope="layer", round_to=1), input_size=SIZE)
    before, after = ({s.name: s.rows for s in network(m, SIZE, SIZE).spaces} for m in (whole, result.model))
    assert all(abs(rows / before[name] - 0.5) <= 1 / before[name] for name, rows in after.items())


def test_several_steps_come_to_the_same_target(whole: Detector, pictures: Pictures) -> None:
    options = Options(steps=2, round_to=4)
    result = prune(whole, Target("flops", 0.7), options, pictures=pictures, input_size=SIZE)
    shares = [g / result.gflops[0] for g in result.gflops]
    assert len(shares) == 3
    assert all(wanted - 0.06 < share <= wanted for share, wanted in zip(shares[1:], (0.85, 0.7), strict=True))
    for name, conv in result.model.named_modules():  # what is kept is told in positions of the whole
        if isinstance(conv, nn.Conv2d) and name in result.kept:
            assert len(result.kept[name].outputs) == conv.out_channels
            assert len(result.kept[name].inputs) == conv.in_channels


def test_protected_layers_keep_their_outputs(whole: Detector) -> None:
    options = Options(criterion="l2", protect=("stem*", "model.4.cv1", "detect.cv2.0"))
    result = prune(whole, Target("ratio", 0.4), options, input_size=SIZE)
    before, after = (table(m)["convolutions"] for m in (whole, result.model))
    kept = [n for n in before if n.startswith(("model.0.", "model.1.", "model.4.cv1.", "model.22.cv2.0."))]
    assert len(kept) == 6
    assert all(before[n][1] == after[n][1] for n in kept)
    assert before["model.6.cv1.conv"] != after["model.6.cv1.conv"]


def test_the_model_that_is_given_stays_as_it_is(whole: Detector) -> None:
    state = copy.deepcopy(whole.state_dict())
    result = prune(whole, Target("ratio", 0.3), Options(criterion="l2"), input_size=SIZE)
    assert widths(result.model)
    assert widths(whole) == {}
    assert all(torch.equal(state[k], v) for k, v in whole.state_dict().items())


def by_weight(model: Detector) -> float:
    """In the place of milliseconds: thousands of parameters, of which the answer is known."""
    return parameters(model) / 1e3


def test_a_latency_is_searched_for(whole: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pruner, "_SEARCH_STEPS", 4)
    wanted = 0.75 * by_weight(whole)
    options = Options(criterion="l2", steps=2, round_to=4)
    result = prune(whole, Target("latency", wanted), options, input_size=SIZE, measure=by_weight)
    assert 0.85 * wanted < by_weight(result.model) <= wanted


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        (Target("flops", 0.01), Options(criterion="l2"), "cannot be reached: .* of the operations are left"),
        (Target("latency", 1e9), Options(criterion="l2"), "not more than 1000000000.00 ms already"),
        (Target("latency", 1e-9), Options(criterion="l2"), "cannot be reached: not even with"),
        (Target("flops", 1.5), Options(criterion="l2"), "flops 1.5: wants a share between 0 and 1"),
        (Target("ratio", 0.5), Options(criterion="fisher"), "the criterion fisher needs pictures"),
        (Target("ratio", 0.5), Options(criterion="l2", protect=("*",)), "nothing may be pruned"),
        (Target("ratio", 0.5), Options(criterion="l2", protect=("stam*",)), "no layer is called 'stam\\*'; there are"),
        (Target("ratio", 0.5), Options(criterion="l2", floor=2), "floor wants a share"),
    ],
)
def test_what_cannot_be_had_is_said(whole: Detector, target: Target, options: Options, words: str) -> None:
    with pytest.raises(PruneError, match=words):
        prune(whole, target, options, input_size=SIZE, measure=by_weight)


def test_a_model_that_was_broken_is_named(whole: Detector) -> None:
    model = copy.deepcopy(whole)
    with torch.no_grad():
        model.get_submodule("model.4.cv1.conv").weight[0, 0] = float("nan")
    with pytest.raises(PruneError, match="not finite"):
        prune(model, Target("ratio", 0.3), Options(criterion="l2"), input_size=SIZE)


# --- what the rest can make up for


def distance(a: Detector, b: Detector, images: Tensor) -> float:
    with torch.no_grad():
        pairs = zip(raw_outputs(a, images).main, raw_outputs(b, images).main, strict=True)
        return sum(float((x - y).square().mean()) for x, y in pairs)


@pytest.mark.parametrize(("weights", "fused"), [(True, False), (True, True), (False, False)])
def test_repair_brings_answers_back_on_pictures_that_it_has_not_seen(
    whole: Detector, weights: bool, fused: bool
) -> None:
    model = copy.deepcopy(whole).fuse() if fused else whole
    state = copy.deepcopy(model.state_dict())
    cut: Pruned = prune(model, Target("ratio", 0.3), Options(criterion="random"), input_size=SIZE)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(32, 3, 64, 64, generator=generator) * torch.rand(32, 3, 1, 1, generator=generator)
    seen, unseen = images.split(16)
    before = distance(cut.model, model, unseen)
    repair(cut.model, model, cut.whole, cut.kept, seen, weights=weights)
    assert distance(cut.model, model, unseen) < (0.5 if weights else 0.8) * before
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


# --- pictures, and time


def test_pictures_come_in_batches_of_one_shape(pictures: Pictures) -> None:
    batches = list(pictures.batches(2))
    assert sum(len(b) for b in batches) == len(pictures) == 6
    assert all(len(b) <= 2 and b.min() >= 0 and b.max() <= 1 and b.dtype == torch.float32 for b in batches)
    assert pictures.windows(32, 4).shape == (3, 3, 32, 32)  # every second one
    assert pictures.windows(96, 6).shape == (6, 3, 96, 96)  # padded
    assert torch.equal(pictures.windows(32, 4, seed=1), pictures.windows(32, 4, seed=1))


def test_pictures_that_cannot_be_read_are_named_and_left_out(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    said: list[str] = []
    assert len(Pictures([tmp_path / "a.jpg", folder / "0.png"], SIZE, 9, said.append)) == 1
    assert len(said) == 1
    assert "a.jpg" in said[0]
    with pytest.raises(PruneError, match="none of the pictures can be read"):
        Pictures([tmp_path / "a.jpg"], SIZE, 9)
    (tmp_path / "list.txt").write_text(f"{folder / '0.png'}\n\n{folder / '1.png'}\n")
    assert find(tmp_path / "list.txt") == [folder / "0.png", folder / "1.png"]
    with pytest.raises(PruneError, match="no pictures there"):
        find(tmp_path / "nowhere")


def test_a_stopwatch_runs_models_in_turns(whole: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    watch = Stopwatch(whole, "torch", "fp32", SIZE)
    try:
        assert watch.engine.startswith("torch fp32 on ")
        assert 0.2 < watch(whole) / watch.whole_ms < 5  # the machine may be busy
    finally:
        watch.close()
    with pytest.raises(PruneError, match="the model cannot be run: "):
        Stopwatch(whole, "torch", "int8", SIZE)
