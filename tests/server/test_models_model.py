"""Classes of a model and what streams ask of them."""

from __future__ import annotations

import pytest

from server.models.model import class_thresholds, missing_classes

NAMES = {0: "person", 1: "car", 2: "dog"}


def test_thresholds_count_classes_as_the_model_does() -> None:
    thresholds = class_thresholds(NAMES, 0.4, ["dog", "person"], {"dog": 0.9})
    assert thresholds is not None
    assert thresholds.tolist() == pytest.approx([0.4, 2.0, 0.9])
    assert class_thresholds(NAMES, 0.4) is None


def test_a_class_that_the_model_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"classes: .*'cat'"):
        class_thresholds(NAMES, 0.4, ["cat"])
    with pytest.raises(ValueError, match=r"class_confidence: .*'cat'"):
        class_thresholds(NAMES, 0.4, None, {"cat": 0.5})
    assert missing_classes(NAMES, ["cat", "dog"], {"cat": 0.5, "bird": 0.5}) == ["cat", "bird"]
    assert missing_classes(NAMES, None, None) == []
