"""Blocks and head against their formulas, written out plainly."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from yolov9.nn import blocks
from yolov9.nn.architecture import Computation
from yolov9.nn.head import DFL, Detect, RawOutputs, Towers, anchors
from yolov9.nn.reversible import MINIMAL_GAMMA, Reversible


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def trained(module: nn.Module) -> nn.Module:
    """In eval mode, with statistics that batch normalisation would have after training: not the identity."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    return module.eval()


BLOCKS = [
    pytest.param(lambda: blocks.Conv(8, 16, 3), (16, 16, 16), id="Conv"),
    pytest.param(lambda: blocks.Conv(8, 16, 3, 2), (16, 8, 8), id="Conv-stride-2"),
    pytest.param(lambda: blocks.Conv(8, 16, 3, groups=4), (16, 16, 16), id="Conv-grouped"),
    pytest.param(lambda: blocks.RepConvN(8, 16), (16, 16, 16), id="RepConvN"),
    pytest.param(lambda: blocks.RepNCSP(8, 16, 2), (16, 16, 16), id="RepNCSP"),
    pytest.param(lambda: blocks.ELAN1(8, 12, 16, 4), (12, 16, 16), id="ELAN1"),
    pytest.param(lambda: blocks.RepNCSPELAN4(8, 12, 16, 6, 2), (12, 16, 16), id="RepNCSPELAN4"),
    pytest.param(lambda: blocks.Residual(8, 12), (12, 16, 16), id="Residual"),
    pytest.param(lambda: blocks.Res2(8, 10), (10, 16, 16), id="Res2"),
    pytest.param(lambda: blocks.Dark(8, 12), (12, 16, 16), id="Dark"),
    *(
        pytest.param(
            lambda c=c: blocks.GELAN(8, 12, 16, 6, computation=c, depth=3, repeats=2), (12, 16, 16), id=f"GELAN-{c}"
        )
        for c in get_args(Computation)
    ),
    pytest.param(lambda: blocks.AConv(8, 16), (16, 8, 8), id="AConv"),
    pytest.param(lambda: blocks.ADown(8, 16), (16, 8, 8), id="ADown"),
    pytest.param(lambda: blocks.SPPELAN(8, 12, 6), (12, 16, 16), id="SPPELAN"),
]


@pytest.mark.parametrize(("make", "shape"), BLOCKS)
def test_fusing_changes_rounding_only(make, shape) -> None:  # type: ignore[no-untyped-def]
    block, x = trained(make()), torch.randn(2, 8, 16, 16)
    with torch.no_grad():
        before = block(x)
        for m in list(block.modules()):
            if isinstance(m, blocks.Conv | blocks.RepConvN):
                m.fuse()
        after = block(x)
    assert before.shape == (2, *shape)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    assert (before - after).abs().max() < 1e-4


def test_convolution_has_the_paper_s_normalisation() -> None:
    conv = blocks.Conv(3, 8, 3)
    assert isinstance(conv.bn, nn.BatchNorm2d)
    assert (conv.bn.eps, conv.bn.momentum, conv.conv.bias) == (1e-3, 0.03, None)


def test_rep_conv_is_the_activated_sum_of_a_3x3_and_a_1x1_and_fuses_to_one_3x3() -> None:
    block, x = trained(blocks.RepConvN(4, 4)), torch.randn(1, 4, 6, 6)
    assert isinstance(block, blocks.RepConvN)
    with torch.no_grad():
        expected = F.silu(block.conv1(x) + block.conv2(x))  # no third, identity branch
        torch.testing.assert_close(block(x), expected)
        block.fuse()
        block.fuse()  # the second time changes nothing
    assert {k: tuple(t.shape) for k, t in block.state_dict().items()} == {
        "conv.weight": (4, 4, 3, 3),
        "conv.bias": (4,),
    }


def test_a_3x3_with_identity_normalisation_and_a_silent_1x1_is_the_fused_convolution() -> None:
    """How converters write a RepConvN that they found fused."""
    fused = trained(blocks.RepConvN(4, 4))
    assert isinstance(fused, blocks.RepConvN)
    fused.fuse()
    written = blocks.RepConvN(4, 4).eval()
    identity = {
        "conv1.conv.weight": fused.conv.weight, "conv1.bn.weight": torch.ones(4), "conv1.bn.bias": fused.conv.bias,
        "conv1.bn.running_mean": torch.zeros(4), "conv1.bn.running_var": torch.full((4,), 1 - 1e-3),
        "conv2.conv.weight": torch.zeros(4, 4, 1, 1), "conv2.bn.weight": torch.ones(4), "conv2.bn.bias": torch.zeros(4),
        "conv2.bn.running_mean": torch.zeros(4), "conv2.bn.running_var": torch.ones(4),
    }  # fmt: skip
    written.load_state_dict(identity)
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(written(x), fused(x))


def test_aggregation_joins_both_halves_and_both_blocks_in_order() -> None:
    block, x = trained(blocks.ELAN1(8, 8, 8, 4)), torch.randn(1, 8, 4, 4)
    assert isinstance(block, blocks.ELAN1)
    with torch.no_grad():
        y = block.cv1(x)
        second = block.cv2(y[:, 4:])
        expected = block.cv4(torch.cat([y[:, :4], y[:, 4:], second, block.cv3(second)], 1))
        torch.testing.assert_close(block(x), expected)


def convolved(x: Tensor, block: nn.Module, act: bool = True) -> Tensor:
    """A Conv in eval mode, from its tensors."""
    t = dict(block.state_dict())
    weight = t["conv.weight"]
    y = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
    scale = t["bn.weight"] / (t["bn.running_var"] + 1e-3).sqrt()
    y = (y - t["bn.running_mean"].view(-1, 1, 1)) * scale.view(-1, 1, 1) + t["bn.bias"].view(-1, 1, 1)
    return y * torch.sigmoid(y) if act else y


def csp(x: Tensor, m: nn.Module) -> Tensor:
    through, around = convolved(x, m.cv1), convolved(x, m.cv2)
    for unit in m.m:
        y = convolved(through, unit.cv1.conv1, act=False) + convolved(through, unit.cv1.conv2, act=False)
        through = through + convolved(F.silu(y), unit.cv2)
    return convolved(torch.cat([through, around], 1), m.cv3)


def residual(x: Tensor, m: nn.Module) -> Tensor:
    return shortcut(x, m) + convolved(convolved(convolved(x, m.cv1), m.cv2), m.cv3)


def res2(x: Tensor, m: nn.Module) -> Tensor:
    x1, x2, x3, x4 = convolved(x, m.cv1).chunk(4, 1)
    y2 = convolved(x2, m.m[0])
    y3 = convolved(x3 + y2, m.m[1])
    y4 = convolved(x4 + y3, m.m[2])
    return shortcut(x, m) + convolved(torch.cat([x1, y2, y3, y4], 1), m.cv2)


def dark(x: Tensor, m: nn.Module) -> Tensor:
    return shortcut(x, m) + convolved(convolved(x, m.cv1), m.cv2)


def shortcut(x: Tensor, m: nn.Module) -> Tensor:
    return x if isinstance(m.shortcut, nn.Identity) else convolved(x, m.shortcut, act=False)


UNITS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "conv": convolved, "res": residual, "res2": res2, "dark": dark
}  # fmt: skip


def test_every_computation_has_a_block_and_a_formula_here() -> None:
    assert set(blocks.COMPUTATIONS) == set(get_args(Computation)) == {"csp", *UNITS}


@pytest.mark.parametrize("computation", get_args(Computation))
@pytest.mark.parametrize(("c1", "c2", "repeats"), [(8, 8, 1), (8, 8, 3), (12, 8, 2), (4, 10, 1)])
def test_computations_are_their_formulas(computation: Computation, c1: int, c2: int, repeats: int) -> None:
    block, x = trained(blocks.COMPUTATIONS[computation](c1, c2, repeats)), torch.randn(2, c1, 7, 5)
    with torch.no_grad():
        if computation == "csp":
            assert len(block.m) == repeats
            expected = csp(x, block)
        else:
            assert len(block) == repeats
            expected = x
            for unit in block:
                expected = UNITS[computation](expected, unit)
        torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)
    assert expected.shape == (2, c2, 7, 5)


@pytest.mark.parametrize("computation", get_args(Computation))
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_stage_joins_both_halves_and_every_block_in_order(computation: Computation, depth: int) -> None:
    stage = trained(blocks.GELAN(6, 10, 8, 4, computation=computation, depth=depth, repeats=2))
    x = torch.randn(1, 6, 5, 5)
    assert {k.split(".")[0] for k in stage.state_dict()} == {f"cv{i}" for i in range(1, depth + 3)}
    with torch.no_grad():
        y = convolved(x, stage.cv1)
        maps = [y[:, :4], y[:, 4:]]
        for i in range(depth):
            inner, last = getattr(stage, f"cv{i + 2}")
            maps.append(convolved(inner(maps[-1]), last))
        expected = convolved(torch.cat(maps, 1), getattr(stage, f"cv{depth + 2}"))
        torch.testing.assert_close(stage(x), expected, rtol=1e-4, atol=1e-5)


def test_the_published_stage_is_the_default_one() -> None:
    torch.manual_seed(3)
    published = blocks.RepNCSPELAN4(6, 10, 8, 4, 2)
    torch.manual_seed(3)
    default = blocks.GELAN(6, 10, 8, 4, repeats=2)
    assert all(torch.equal(a, b) for a, b in zip(published.parameters(), default.parameters(), strict=True))
    assert list(published.state_dict()) == list(default.state_dict())


def test_a_reversible_sum_gives_its_first_input_back_whatever_gamma_is() -> None:
    block = Reversible(6).double()
    block.gamma.data[:, 0, 0] = torch.tensor([0.5, -0.5, 2, 0, 1e-9, -1e-9])
    previous, transformed = torch.randn(2, 6, 3, 4).double(), torch.randn(2, 6, 3, 4).double()
    with torch.no_grad():
        out = block([previous, transformed])
        torch.testing.assert_close(block.inverse(out, transformed), previous, rtol=1e-9, atol=1e-9)
        gamma = torch.tensor([0.5, -0.5, 2, MINIMAL_GAMMA, MINIMAL_GAMMA, -MINIMAL_GAMMA]).double().view(6, 1, 1)
        torch.testing.assert_close(out, transformed + gamma * previous, rtol=1e-9, atol=1e-9)


def test_gamma_learns_where_it_is_kept_from_zero_too() -> None:
    block = Reversible(2)
    block.gamma.data.zero_()
    previous = torch.ones(1, 2, 2, 2)
    block([previous, previous]).sum().backward()
    assert block.gamma.grad is not None
    assert block.gamma.grad.flatten().tolist() == [4, 4]


def test_spatial_pyramid_pools_serially() -> None:
    block, x = trained(blocks.SPPELAN(4, 4, 2)), torch.randn(1, 4, 20, 20)
    assert isinstance(block, blocks.SPPELAN)
    with torch.no_grad():
        y = block.cv1(x)
        pools = [F.max_pool2d(y, k, 1, k // 2) for k in (5, 9, 13)]  # two of 5 reach as far as one of 9, three as 13
        torch.testing.assert_close(block(x), block.cv5(torch.cat([y, *pools], 1)))


def test_adown_averages_then_convolves_one_half_and_pools_the_other() -> None:
    block, x = trained(blocks.ADown(4, 6)), torch.randn(1, 4, 8, 8)
    assert isinstance(block, blocks.ADown)
    with torch.no_grad():
        y = F.avg_pool2d(x, 2, 1)
        expected = torch.cat([block.cv1(y[:, :2]), block.cv2(F.max_pool2d(y[:, 2:], 3, 2, 1))], 1)
        torch.testing.assert_close(block(x), expected)


def test_composite_links_add_their_map_resized_to_the_last_source() -> None:
    linear = blocks.CBLinear(4, [2, 3])
    maps = linear(torch.randn(1, 4, 2, 2))
    assert [m.shape[1] for m in maps] == [2, 3]
    target = torch.randn(1, 3, 4, 4)
    kept = target.clone()
    fused = blocks.CBFuse(1)([maps, target])
    torch.testing.assert_close(fused, target + maps[1].repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert torch.equal(target, kept)


def test_distance_is_the_expectation_over_sixteen_bins() -> None:
    logits = torch.full((1, 4, 16, 3), -50.0)
    logits[0, 0, 0], logits[0, 1, 15], logits[0, 2, 4:6], logits[0, 3] = 50, 50, 50, 0
    distance = DFL()(logits.flatten(1, 2))
    expected = torch.tensor([0, 15, 4.5, 7.5]).view(1, 4, 1).expand(1, 4, 3)
    torch.testing.assert_close(distance, expected)


def test_anchors_are_cell_centres_row_by_row_level_by_level() -> None:
    points, strides = anchors([torch.empty(1, 1, 2, 3), torch.empty(1, 1, 1, 1)], (8, 16))
    expected = [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [0.5, 1.5], [1.5, 1.5], [2.5, 1.5], [0.5, 0.5]]
    assert points.T.tolist() == expected
    assert strides.tolist() == [[8] * 6 + [16]]


def test_a_head_decodes_boxes_around_its_anchors_in_input_pixels() -> None:
    head = Detect([64, 64, 64], [8, 16, 32], 3, Towers()).eval()
    silent(head)
    for box in head.cv2:
        box[-1].bias.data = (
            torch.full((4, 16), -99.0).index_fill(1, torch.tensor(2), 99.0).flatten()
        )  # 2 strides each way
    head.cv3[1][-1].bias.data = torch.tensor([-99.0, 0.0, 99.0])
    out = head([torch.zeros(2, 64, 8, 12), torch.zeros(2, 64, 4, 6), torch.zeros(2, 64, 2, 3)])
    assert out.shape == (2, 7, 96 + 24 + 6)
    assert out[0, :4, 0].tolist() == [4 - 16, 4 - 16, 4 + 16, 4 + 16]
    second = 96 + 6 + 1  # level 1, row 1, column 1
    assert out[1, :4, second].tolist() == [24 - 32, 24 - 32, 24 + 32, 24 + 32]
    assert out[1, 4:, second].tolist() == pytest.approx([0, 0.5, 1], abs=1e-6)


def test_boxes_keep_fp32_digits_when_the_towers_compute_in_half_precision() -> None:
    head = Detect([64], [8], 1, Towers()).eval()
    silent(head)
    levels = [torch.zeros(1, 64, 1, 160)]
    exact = head(levels)
    rough = head.half()([levels[0].half()])
    assert rough.dtype == torch.float32
    assert (rough - exact)[:, :4].abs().max() < 1e-2  # in half precision x = 1276 is 1276 or 1277


def test_a_training_head_gives_raw_outputs_of_both_branches_and_an_inference_head_of_one() -> None:
    channels, levels = [64, 96], [torch.randn(1, 64, 4, 4), torch.randn(1, 96, 2, 2)]
    head = Detect(channels, [8, 16], 5, Towers(), channels, Towers()).train()
    raw = head(levels, levels)
    assert isinstance(raw, RawOutputs)
    assert (
        [tuple(t.shape) for t in raw.main] == [tuple(t.shape) for t in raw.auxiliary] == [(1, 69, 4, 4), (1, 69, 2, 2)]
    )
    head.drop_auxiliary()
    alone = head(levels)
    assert isinstance(alone, RawOutputs)
    assert alone.auxiliary == []
    assert [tuple(t.shape) for t in alone.main] == [(1, 69, 4, 4), (1, 69, 2, 2)]


def test_the_first_branch_of_the_layout_is_the_auxiliary_one() -> None:
    head = Detect([64], [8], 5, Towers(class_width=64), [96], Towers(class_width=96))
    assert (head.cv2[0][0].conv.in_channels, head.cv4[0][0].conv.in_channels) == (96, 64)
    assert (head.cv3[0][-1].in_channels, head.cv5[0][-1].in_channels) == (96, 64)
    main = head.cv4, head.cv5, head.dfl2
    head.drop_auxiliary()
    assert (head.cv2, head.cv3, head.dfl) == main
    assert not [k for k in head.state_dict() if k.startswith(("cv4", "cv5", "dfl2"))]


def test_initial_biases_expect_few_objects() -> None:
    head = Detect([64, 96], [8, 16], 10, Towers())
    for box, cls, stride in zip(head.cv2, head.cv3, (8, 16), strict=True):
        assert torch.all(box[-1].bias == 1)
        assert cls[-1].bias.tolist() == pytest.approx([math.log(5 / 10 / (640 / stride) ** 2)] * 10)


@pytest.mark.parametrize(
    ("p3", "classes", "towers", "expected"),
    [
        (64, 80, Towers(), Towers(80, 4)),
        (64, 3, Towers(), Towers(64, 4)),
        (64, 365, Towers(), Towers(100, 4)),
        (128, 80, Towers(), Towers(128, 4)),
        (64, 80, Towers(128, 1), Towers(128, 1)),
    ],
)
def test_tower_widths(p3: int, classes: int, towers: Towers, expected: Towers) -> None:
    assert towers.resolve(p3, classes) == expected


@pytest.mark.parametrize("towers", [Towers(class_width=0), Towers(box_groups=0), Towers(box_groups=3)])
def test_impossible_towers_are_refused(towers: Towers) -> None:
    with pytest.raises(ValueError, match=r"class_width|box_groups"):
        towers.resolve(64, 80)


def silent(head: Detect) -> None:
    """Towers that give their last bias whatever they see."""
    for tower in [*head.cv2, *head.cv3]:
        last: Tensor = tower[-1].weight
        nn.init.zeros_(last)
