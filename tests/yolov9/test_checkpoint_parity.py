"""Real checkpoints of the references, with the outputs that the references gave: the same outputs here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

import yolov9
from yolov9.nn.head import Towers
from yolov9.weights import open_checkpoint

SHARED = os.environ.get("YOLOV9_SHARED")
SAMPLES = Path(SHARED or "", "samples")
pytestmark = pytest.mark.skipif(not SHARED, reason="needs YOLOV9_SHARED, a folder with samples/*.pt and *.npz")


@pytest.mark.parametrize("pruned", [False, True], ids=["as it is", "for inference"])
@pytest.mark.parametrize(
    ("file", "name", "layout", "towers"),
    [
        ("r1-gelan-t-converted", "gelan-t", "r1", Towers(128, 4)),
        ("r1-yolov9-t-final", "yolov9-t", "r1", Towers(128, 4)),
        ("r2-v9-t", "yolov9-t", "r2", Towers(80, 4)),
    ],
)
def test_outputs_equal_the_reference(file: str, name: str, layout: str, towers: Towers, pruned: bool) -> None:
    assert open_checkpoint(SAMPLES / f"{file}.pt").layout == layout
    model = yolov9.load(SAMPLES / f"{file}.pt")
    assert (model.name, model.head.towers, len(model.names)) == (name, towers, 80)
    if pruned:
        model = model.prune_auxiliary().fuse()
    sample = np.load(SAMPLES / f"{file}.npz")
    with torch.inference_mode():
        output = model(torch.from_numpy(sample["image"]).float()).numpy()
    difference = np.abs(output - sample["output"])
    assert difference[:, :4].max() < 1e-2
    assert difference[:, 4:].max() < 1e-4


def test_a_genuine_ultralytics_checkpoint() -> None:
    model = yolov9.load(SAMPLES / "ultralytics-yolov9t-ball.pt")
    assert (model.name, model.names, model.head.towers) == ("gelan-t", {0: "ball"}, Towers(64, 1, True))
    with torch.inference_mode():
        assert torch.isfinite(model(torch.rand(1, 3, 64, 96))).all()
