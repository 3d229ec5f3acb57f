"""The page about cameras: its examples are streams that would be served, and it names every reason and kind."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from server.addresses import SOURCE_SCHEMES
from server.ingest.source import Reason
from server.media import Rules, resolve
from server.streams import StreamDefinition

PAGE = (Path(__file__).parents[2] / "docs" / "cameras.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```json\n(.*?)^```$", PAGE, re.M | re.S)


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_are_streams(example: str, tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    definition = StreamDefinition.model_validate(json.loads(example))
    rules = Rules([tmp_path], pipelines=True)
    assert resolve(definition.url, rules)
    assert definition.detect_url is None or resolve(definition.detect_url, rules)


def test_nothing_is_left_out() -> None:
    assert len(EXAMPLES) >= 10
    named = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))
    assert {str(reason) for reason in Reason} - {"error"} <= named
    assert all(f"`{scheme}:" in PAGE for scheme in SOURCE_SCHEMES)
