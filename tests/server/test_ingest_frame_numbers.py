"""H.264 frame numbers and the NAL units in front of a picture."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_streams import CODINGS, codec_of, encoded

from server.ingest.frame_numbers import FrameNumbers
from server.ingest.nal import START_CODE, ParameterSets, is_reference, leading_units, nal_type

H264 = [name for name in CODINGS if codec_of(name) == "h264"]


@pytest.mark.parametrize("coding", H264)
def test_a_whole_stream_has_no_gap(coding: str) -> None:
    numbers = FrameNumbers()
    assert all(numbers.follows(unit.data) for unit in encoded(coding))


@pytest.mark.parametrize("coding", H264)
def test_a_lost_reference_shows_at_the_next_picture(coding: str) -> None:
    units = encoded(coding)
    for lost in range(1, 19):
        numbers = FrameNumbers()
        found = [n for n, unit in enumerate(units) if n != lost and not numbers.follows(unit.data)]
        if not units[lost].reference:
            assert found == []
        elif not units[lost + 1].keyframe:
            assert found[0] == lost + 1


def test_pictures_that_none_refers_to_may_be_missing() -> None:
    units = encoded("b")
    numbers = FrameNumbers()
    assert any(not unit.reference for unit in units)
    assert all(numbers.follows(unit.data) for unit in units if unit.reference)


def test_nothing_is_expected_after_a_restart() -> None:
    units = encoded("open-gop")
    start = [n for n, unit in enumerate(units) if unit.keyframe][2]
    numbers = FrameNumbers()
    assert all(numbers.follows(unit.data) for unit in units[:5])
    numbers.restart()
    assert all(numbers.follows(unit.data) for unit in units[start:])


def test_parameter_sets_may_come_out_of_band() -> None:
    first = encoded("p")[0].data
    sets = [nal for nal in leading_units("h264", first) if nal_type("h264", nal) in (7, 8)]
    bare = [unit.data[unit.data.rfind(START_CODE) :] for unit in encoded("p")[:6]]
    numbers = FrameNumbers(b"".join(START_CODE + nal for nal in sets))
    assert all(numbers.follows(data) for data in bare[:3])
    assert not numbers.follows(bare[4])
    blind = FrameNumbers()
    assert blind.follows(bare[0])
    assert blind.follows(bare[4]), "what cannot be read is left to the decoder"


@given(st.binary(max_size=200))
def test_garbage_is_left_to_the_decoder(data: bytes) -> None:
    numbers = FrameNumbers(encoded("p")[0].data)
    numbers.restart()
    assert numbers.follows(data)
    for codec in ("h264", "hevc"):
        list(leading_units(codec, START_CODE + data))
        ParameterSets(codec, START_CODE + data).extradata()
        is_reference(codec, data)


@pytest.mark.parametrize("coding", ["p", "hevc"])
def test_parameter_sets_are_kept_once_and_in_order(coding: str) -> None:
    codec = codec_of(coding)
    kept = ParameterSets(codec, b"")
    for unit in encoded(coding):
        kept.remember(unit.data)
    kinds = [nal_type(codec, nal) for nal in leading_units(codec, kept.extradata())]
    assert kinds == ([7, 8] if codec == "h264" else [32, 33, 34])


def test_a_changed_set_replaces_the_old_one() -> None:
    kept = ParameterSets("h264", encoded("p")[0].data)
    before = kept.extradata()
    kept.remember(encoded("p", 20, 128, 192)[0].data)
    assert len(list(leading_units("h264", kept.extradata()))) == 2
    assert kept.extradata() != before


def test_nothing_behind_the_first_slice_is_looked_at() -> None:
    data = encoded("slices")[0].data
    kinds = [nal_type("h264", nal) for nal in leading_units("h264", data)]
    assert kinds[-1] == 5
    assert kinds.count(5) == 1
    assert data.count(START_CODE) > len(kinds)
