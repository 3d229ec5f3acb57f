"""From pictures to a server that knows them, by README's commands: train, serve, detect."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server_process import ServerProcess

if TYPE_CHECKING:
    from conftest import Learnt


@pytest.mark.system
@pytest.mark.slow
def test_what_was_learnt_is_served(learnt: Learnt, tmp_path: Path) -> None:
    data, bundle = learnt.data, learnt.out / "bundle"
    assert f"python -m server --model {bundle}" in learnt.stdout
    with ServerProcess(bundle, tmp_path / "data") as server:
        picture = (data / "images" / "0.png").read_bytes()
        answer = server.http.post("/detect", content=picture, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    _, x, y, w, h = map(float, (data / "labels" / "0.txt").read_text().split("\n")[0].split())
    truth = [96 * (x - w / 2), 96 * (y - h / 2), 96 * (x + w / 2), 96 * (y + h / 2)]
    found = [d for d in answer.json()["detections"] if d["class"] == "square"]
    assert found, answer.text
    best = max(found, key=lambda d: d["confidence"])
    assert _iou(truth, best["box"]) > 0.6, (best, truth)


def _iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (sum((c[2] - c[0]) * (c[3] - c[1]) for c in (a, b)) - shared)
