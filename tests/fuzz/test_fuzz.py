"""The short form of fuzzing: the corpus, with what once failed, and some hundred changed inputs for each target."""

from __future__ import annotations

import time

import pytest

from .mutation import cases
from .targets import CORPUS, TARGETS, corpus

CASES = {"zip": 40, "tar": 30, "data-yaml": 50, "websocket": 200, "yolo": 200, "onnx": 200, "pickle": 300}
"""Of the slow ones; the others do 600."""
CASE_S = 2.0
"""CPU seconds. A case takes a millisecond."""


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_inputs_get_an_answer_or_the_documented_error(name: str) -> None:
    with TARGETS[name]() as check:
        for number, data in enumerate(cases(corpus(name), CASES.get(name, 600))):
            began = time.process_time()
            try:
                check(data)
            except Exception as error:
                raise AssertionError(f"{name}: case {number}: {data[:200]!r}") from error
            spent = time.process_time() - began
            assert spent < CASE_S, f"{name}: case {number} took {spent:.1f} s of CPU: {data[:200]!r}"


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert all(len(corpus(name)) >= 2 for name in TARGETS)
    assert sum(len(data) for name in TARGETS for data in corpus(name)) < 300_000


def test_the_same_seed_gives_the_same_cases() -> None:
    seeds = [b"one", b"another one"]
    assert list(cases(seeds, 50, seed=3)) == list(cases(seeds, 50, seed=3))
    assert list(cases(seeds, 50, seed=3)) != list(cases(seeds, 50, seed=4))
    assert list(cases(seeds, 0)) == seeds
