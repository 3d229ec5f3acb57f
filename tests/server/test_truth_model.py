"""The bundle that reads the pattern says what `pattern.read` says, through an engine and the post-processing."""

from __future__ import annotations

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.testing.truth.model import stamp_of, truth_bundle
from server.testing.truth.pattern import CERTAINTY, COUNTERS, draw, read
from yolov9.engines import Engine, create
from yolov9.geometry import Letterbox, input_shape
from yolov9.letterbox import Letterboxer
from yolov9.postprocess import postprocess

WIDTH, HEIGHT, INPUT = 640, 360, 320


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    bundle = truth_bundle(tmp_path_factory.mktemp("model") / "truth", WIDTH, HEIGHT, INPUT)
    engine = create(bundle, "onnxruntime", "fp32", threads=1)
    engine.prepare(*input_shape(INPUT, WIDTH, HEIGHT))
    return engine


@given(
    counter=st.integers(0, COUNTERS - 2),
    time=st.floats(0, 1e7),
    torn=st.none() | st.tuples(st.integers(0, 21), st.integers(0, 39)),
)
@settings(max_examples=60)
def test_the_model_reads_what_is_burnt_in_and_nothing_of_a_torn_picture(engine, counter, time, torn):
    picture, other = np.zeros((2, HEIGHT, WIDTH, 3), np.uint8)
    draw(picture, counter, time)
    if torn is not None:
        draw(other, counter + 1, time + 0.04)
        y, x = 16 * torn[0], 16 * torn[1]
        picture[y : y + 16, x:] = other[y : y + 16, x:]
    shape = input_shape(INPUT, WIDTH, HEIGHT)
    image = np.empty((*shape, 3), np.uint8)
    Letterboxer().write(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p"), image)
    blank = np.zeros_like(image)
    prediction, of_blank = engine.infer([image, blank])
    letterbox = Letterbox.fit(WIDTH, HEIGHT, shape[1], shape[0])
    found, nothing = (
        [
            {"box": row[:4].tolist(), "confidence": float(row[4]), "class_id": int(row[5])}
            for row in postprocess(p, letterbox, CERTAINTY)
        ]
        for p in (prediction, of_blank)
    )
    assert stamp_of(found, WIDTH, HEIGHT) == read(image)
    assert stamp_of(nothing, WIDTH, HEIGHT) is None
    if torn is None:
        stamp = stamp_of(found, WIDTH, HEIGHT)
        assert stamp is not None
        assert stamp.counter == counter
