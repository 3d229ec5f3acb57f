"""Which class of a model is which of a data set."""

from __future__ import annotations

import pytest

from yolov9.data import DataError, match_classes


def table(*names):
    return dict(enumerate(names))


def test_names_pair_whatever_their_order():
    match = match_classes(table("car", "person", "dog"), table("person", "bus", "car"))
    assert match.to_data == {0: 2, 1: 0}
    assert match.missing == ["bus"]
    assert match.unused == ["dog"]
    assert not match.by_id


def test_case_blanks_and_dashes_do_not_count():
    match = match_classes(table("Traffic Light", "STOP_SIGN", "hotdog"), table("traffic_light", "stop-sign", "hot dog"))
    assert match.to_data == {0: 0, 1: 1, 2: 2}


def test_there_are_no_aliases():
    match = match_classes(table("car", "motorcycle"), table("car", "motorbike"))
    assert match.to_data == {0: 0}
    assert (match.missing, match.unused) == (["motorbike"], ["motorcycle"])


def test_exact_names_go_first_and_unclear_ones_pair_with_nothing():
    match = match_classes(table("Car", "car"), table("car", "dog"))
    assert match.to_data == {1: 0}
    match = match_classes(table("CAR", "dog"), table("car", "Car", "dog"))
    assert match.to_data == {1: 2}
    assert match.missing == ["car", "Car"]


def test_a_model_without_names_pairs_by_number_if_there_are_as_many():
    match = match_classes(table("class0", "class1"), table("cat", "dog"))
    assert match.by_id
    assert match.to_data == {0: 0, 1: 1}
    for model, data in ((table("class0"), table("cat", "dog")), (table("class0", "x"), table("cat", "dog"))):
        with pytest.raises(DataError, match=r"no class in common: the model has class0.*, the data cat, dog"):
            match_classes(model, data)
