"""Removing channels is exact: what is left computes what the whole does once nobody reads those channels."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from prune_models import deafen, narrow, small, stirred
from torch import nn

from yolov9.nn.architecture import architecture, names
from yolov9.nn.channels import ChannelError, trace
from yolov9.nn.cost import parameters
from yolov9.nn.head import Towers
from yolov9.nn.model import Detector, build
from yolov9.pruning.criteria import raw_outputs
from yolov9.pruning.selection import Plan
from yolov9.pruning.spaces import Network, network
from yolov9.pruning.surgery import remove

ABLATIONS: list[dict[str, Any]] = [
    {"computation": "conv", "auxiliary": "reversible"},
    {"computation": "res", "auxiliary": "deep_supervision", "integration": "none"},
    {"computation": "res2", "depth": 3, "repeats": 2},
    {"computation": "dark", "auxiliary": "pgi", "integration": "fpn", "reversible": "columns"},
    {"main": "columns", "auxiliary": "deep_supervision", "integration": "composite"},
    {"main": "composite", "auxiliary": "pgi", "integration": "fpn"},
    {"auxiliary": "pgi", "integration": "composite", "reversible": "columns"},
]
"""Every word of every option at least once."""


def at_random(net: Network, share: float = 0.4, round_to: int = 1) -> Plan:
    """Channels of every space, whichever: exactness does not depend on which."""
    scores = np.random.default_rng(1).random(net.channels.count)
    plan = Plan(net, scores, scope="layer", round_to=round_to)
    total = sum(s.width for s in net.spaces)
    assert plan.until(lambda p: p.channels >= share * total)
    return plan


def assert_exact(model: Detector, share: float = 0.4) -> Detector:
    """Prune a copy of `model` at random; both branches give what the deafened whole gives. -> the pruned copy"""
    net = network(model, 64, 64)
    plan = at_random(net, share)
    pruned = copy.deepcopy(model)
    remove(pruned, net.channels, plan.gone)
    deaf = deafen(copy.deepcopy(model), net.channels, torch.from_numpy(plan.gone))
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, wanted, got = (
            [*(raw := raw_outputs(m.double(), images.double())).main, *raw.auxiliary] for m in (model, deaf, pruned)
        )
    assert len(wanted) == len(got) == len(before) == (6 if model.head.dual else 3)
    for expected, found in zip(wanted, got, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert max((a - b).abs().max() for a, b in zip(before, wanted, strict=True)) > 1e-3  # they were worth something
    return pruned.float()


@pytest.mark.parametrize("name", names())
def test_what_is_left_computes_what_the_whole_does_without_those_channels(name: str) -> None:
    assert_exact(small(name))


@pytest.mark.parametrize("options", ABLATIONS, ids=lambda o: "-".join(map(str, o.values())))
def test_ablations_are_pruned_as_exactly(options: dict[str, Any]) -> None:
    assert_exact(small("gelan-t", **options))


def test_the_towers_of_ultralytics_are_followed() -> None:
    towers = Towers(80, box_groups=1, depthwise=True)
    assert_exact(stirred(Detector(narrow(architecture("gelan-t"), 2), {0: "a", 1: "b"}, towers)))


def test_a_fused_model_is_pruned_as_exactly() -> None:
    assert_exact(small("yolov9-t").prune_auxiliary().fuse())


def test_a_pruned_model_is_pruned_again_as_exactly() -> None:
    assert_exact(assert_exact(small("gelan-t"), 0.2), 0.2)


def test_an_operation_that_is_not_understood_is_refused_by_its_name() -> None:
    model = build("gelan-t", 2)
    model.model[0] = nn.Sequential(model.model[0], nn.Softmax(1))
    with pytest.raises(ChannelError, match="through softmax"):
        trace(model)


def test_channels_of_picture_and_outputs_stay() -> None:
    model = build("gelan-t", 2)
    channels = trace(model)
    assert channels.fixed.sum() == 3 + 3 * (64 + 2)
    for name, conv in channels.convolutions.items():
        if name.endswith(("cv2.0.2", "cv3.0.2")):
            gone = np.zeros(channels.count, np.bool_)
            gone[conv.outputs[0]] = True
            with pytest.raises(ValueError, match="cannot be removed"):
                remove(model, channels, gone)


def test_groups_must_stay_equal() -> None:
    model = build("gelan-t", 2)
    channels = trace(model)
    gone = np.zeros(channels.count, np.bool_)
    gone[channels.convolutions["model.22.cv2.0.1.conv"].outputs[0]] = True
    with pytest.raises(ValueError, match=r"model\.22\.cv2\.0\.1\.conv: its 4 groups would keep \[15, 16, 16, 16\]"):
        remove(model, channels, gone)
    assert parameters(model) == parameters(build("gelan-t", 2))  # nothing was cut before it was refused


def test_what_is_refused_names_the_maps() -> None:
    model = build("gelan-t", 2)
    model.model[-1].cv2[0][0].conv = nn.Conv2d(48, 64, 3, padding=1)
    with pytest.raises(ChannelError):
        trace(model)
