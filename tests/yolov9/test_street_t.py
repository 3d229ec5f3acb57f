"""The model that comes inside: whole, small, the same in every file, and it sees real road users."""

from __future__ import annotations

from collections.abc import Iterator

import av
import numpy as np
import pytest
import torch

import yolov9
from server.testing.footage import FootageMissing, bikes
from yolov9.bundle import OPENVINO_MODEL, Bundle
from yolov9.engines import choose
from yolov9.geometry import input_shape
from yolov9.letterbox import Letterboxer, displayed_size
from yolov9.packaged import DEFAULT, names, resolve
from yolov9.predictor import Predictor

CLASSES = {0: "bus", 1: "car", 2: "motorbike", 3: "person", 4: "truck"}


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.load(resolve(DEFAULT))


def test_it_is_whole_and_small(bundle: Bundle) -> None:
    assert DEFAULT in names()
    assert (bundle.name, bundle.names) == ("street-t", CLASSES)
    assert OPENVINO_MODEL in bundle.files, "int8 for the default engine"
    listed = sum(entry.bytes for entry in bundle.files.values())
    assert listed < 17e6
    extra = {p.relative_to(bundle.path).as_posix() for p in bundle.path.rglob("*") if p.is_file()} - set(bundle.files)
    assert extra == {"model.json", "README.md"}


def test_its_card_says_what_it_was_made_from(bundle: Bundle) -> None:
    card = (bundle.path / "README.md").read_text(encoding="utf-8")
    for needed in ("CC BY 4.0", "Universitas Tidar", "Vehicles-OpenImages", "COCO", bundle.hash):
        assert needed in card, needed
    assert "/" not in "".join(bundle.lineage["run"]["data"]), "names of data sets, no paths"
    assert bundle.lineage["metrics"]["map50"] >= 0.55


def test_weights_and_graph_are_one_model(bundle: Bundle) -> None:
    model = yolov9.load(DEFAULT)
    assert model.names == CLASSES
    frame = next(frames(1))
    pixels = np.empty((*input_shape(bundle.input_size, *displayed_size(frame)), 3), np.uint8)
    Letterboxer().write(frame, pixels)
    engine = choose(bundle, "openvino", "fp32").engine
    try:
        found = engine.infer([pixels])[0].copy()
    finally:
        engine.close()
    with torch.inference_mode():
        expected = model(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2).float() / 255)[0].numpy()
    assert np.abs(found[4:] - expected[4:]).max() < 1e-3
    assert np.abs(found[:4] - expected[:4]).max() < 0.1


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_it_sees_who_is_in_the_street(bundle: Bundle, precision: str) -> None:
    """Ten seconds of a street, which it was not trained on."""
    engine = choose(bundle, "openvino", precision).engine
    try:
        look = Predictor(engine, bundle.names, bundle.input_size, confidence=0.25)
        seen = [CLASSES[int(row[5])] for frame in frames(25) for row in look.frame(frame)]
    finally:
        engine.close()
    assert seen.count("person") >= 3
    assert seen.count("car") >= 3


def frames(count: int) -> Iterator[av.VideoFrame]:
    """So many, spread over the demo's footage."""
    try:
        clip = bikes()
    except FootageMissing as error:
        pytest.skip(str(error))
    with av.open(str(clip)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % (250 // count) == 0:
                yield frame
