"""Which model the server begins with."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tiny_model import tiny_bundle

from server.models.start import MEMORY, given, remembered
from server.store import Store
from yolov9.packaged import ModelNotFound


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = Store(tmp_path / "data" / "streams.sqlite")
    yield made
    await made.close()


async def test_without_memory_it_is_the_packaged_one(store: Store, tmp_path: Path) -> None:
    assert (await remembered(store, tmp_path / "data")).name == "street-t"


async def test_the_active_one_is_found_by_its_name_wherever_the_data_folder_is(store: Store, tmp_path: Path) -> None:
    tiny_bundle(tmp_path / "data" / "models" / "mine")
    await store.remember(MEMORY, json.dumps({"name": "mine", "path": "/elsewhere/models/mine"}))
    first = await remembered(store, tmp_path / "data")
    assert (first.name, first.bundle.name) == ("mine", "tiny")


async def test_one_outside_of_the_data_folder_is_found_by_its_path_and_missing_it_is_no_end(
    store: Store, tmp_path: Path
) -> None:
    tiny_bundle(tmp_path / "runs" / "best")
    await store.remember(MEMORY, json.dumps({"name": "tiny", "path": str(tmp_path / "runs" / "best")}))
    assert (await remembered(store, tmp_path / "data")).name == "tiny"
    shutil.rmtree(tmp_path / "runs")
    assert (await remembered(store, tmp_path / "data")).name == "street-t"


def test_what_is_asked_for_may_be_a_folder_a_registered_or_a_packaged_model(tmp_path: Path) -> None:
    registered = tiny_bundle(tmp_path / "data" / "models" / "mine").path
    assert given("mine", tmp_path / "data").name == "mine"
    assert given(str(registered), tmp_path / "data").name == "mine", "as its registered name, by whatever way"
    assert given(str(tiny_bundle(tmp_path / "other").path), tmp_path / "data").name == "tiny"
    assert given("street-t", tmp_path / "data").name == "street-t"
    with pytest.raises(ModelNotFound, match="neither a folder nor a packaged model"):
        given("yours", tmp_path / "data")
