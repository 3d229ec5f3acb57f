"""Cameras at low rates are daily bread: half the frames may cost little of HOTA, a quarter not much more."""

import pytest

pytest.importorskip("trackeval")

from tracking_scores import SCENES, ours, public_bytetrack, scores, short

SEEDS = (21, 22)


@pytest.mark.parametrize("scene", ["square", "low camera"])
def test_low_frame_rates_cost_little(scene: str) -> None:
    full, half, quarter = scores(ours, short(SCENES[scene]), SEEDS)
    assert full.hota > 0.5
    assert full.idf1 > 0.65
    assert half.hota > 0.95 * full.hota
    assert quarter.hota > 0.85 * full.hota


def test_no_worse_than_the_public_bytetrack_and_far_better_at_low_rates() -> None:
    pytest.importorskip("cjm_byte_track")
    scene = short(SCENES["square"])
    mine, theirs = scores(ours, scene, SEEDS[:1]), scores(public_bytetrack, scene, SEEDS[:1])
    assert mine[0].hota > theirs[0].hota - 0.02
    assert mine[1].hota > theirs[1].hota + 0.05
    assert mine[2].hota > theirs[2].hota + 0.15
