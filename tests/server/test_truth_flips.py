"""What becomes of flipped bits: counted right, and all of them noticed where the camera sends picture hashes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from server.testing.synthetic import Codec
from server.testing.truth.clips import pattern_clip
from server.testing.truth.flips import DAMAGES, changed, damaged, measure, read_units


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize(("codec", "picture_hash"), [("h264", False), ("hevc", False), ("hevc", True)])
def test_each_damaged_frame_is_noticed_harmless_or_missed(codec: Codec, picture_hash: bool, damage: str) -> None:
    clip = pattern_clip(frames=10, fps=25, codec=codec, gop=5, width=320, height=192, picture_hash=picture_hash)
    found = measure("small", clip, codec, damage, trials=20, seed=1)
    assert found["noticed"] + found["harmless"] + found["missed"] == found["hit"] == 20
    if picture_hash:
        assert found["missed"] == 0
    if picture_hash or codec == "h264":
        assert found["noticed"] > 5


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_damage_leaves_headers_and_length_alone(codec: Codec, damage: str) -> None:
    _, units = read_units(pattern_clip(frames=10, fps=25, codec=codec, gop=5, width=320, height=192), codec)
    for seed, unit in enumerate(units):
        harmed = damaged(unit, codec, damage, random.Random(seed))
        off = [place for place, (a, b) in enumerate(zip(unit.data, harmed.data, strict=True)) if a != b]
        assert 1 <= len(off) <= 4
        assert min(off) > 4
        assert (harmed.keyframe, harmed.pts) == (unit.keyframe, unit.pts)


def test_what_one_cannot_see_is_no_change() -> None:
    picture = np.full((192, 320), 100, np.uint8)
    other = picture.copy()
    other[50:53, 70:73] += 20
    assert not changed(other, picture)
    other[48:64, 64:80] += 4
    assert changed(other, picture)
