"""What a broker keeps: Home Assistant's documented fields, and what changes of it."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from server.connect.discovery import Retained, Shown, retained, topic

YARD = Shown("yard", "running", 2, {("gate/#1", "person"): 1, ("Tür", "car"): 0}, {("kerb", "in", "car"): 3})
CONFIG_TOPIC = re.compile(r"homeassistant/(sensor|binary_sensor)/[A-Za-z0-9_-]+/config")


def configs(wanted: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    return {at: json.loads(payload) for at, payload in wanted.items() if at.startswith("homeassistant/")}


def test_topics() -> None:
    wanted = retained([YARD], "yolov9", None)
    assert wanted == {
        "yolov9/yard/state": b'{"state":"running"}',
        "yolov9/yard/objects": b"2",
        "yolov9/yard/zones/gate%2F%231/person": b"1",
        "yolov9/yard/zones/T%C3%BCr/car": b"0",
        "yolov9/yard/lines/kerb/in/car": b"3",
    }


def test_configurations_have_what_home_assistant_documents() -> None:
    """https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery, of binary_sensor and sensor."""
    wanted = retained([YARD], "site/yolov9", "homeassistant")
    found = configs(wanted)
    assert len(found) == 4
    assert len({config["unique_id"] for config in found.values()}) == 4
    for at, config in found.items():
        assert CONFIG_TOPIC.fullmatch(at)
        assert config["state_topic"] in wanted
        assert config["name"]
        assert config["device"]["identifiers"]
        assert config["device"]["name"] == "yard"
        assert config["origin"]["name"] == "yolov9-server"
        assert [a["topic"] for a in config["availability"]] == ["site/yolov9/status", "site/yolov9/yard/state"]
        assert config["availability_mode"] == "all"
        if "/binary_sensor/" in at:
            assert config["device_class"] == "occupancy"
            assert (config["payload_on"], config["payload_off"]) == ("ON", "OFF")
            assert "'ON' if" in config["value_template"]
        else:
            assert config["state_class"] in ("measurement", "total_increasing")
    assert len({json.dumps(config["device"]) for config in found.values()}) == 1


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_no_name_breaks_a_topic(names: list[str]) -> None:
    at = topic("yolov9", *names)
    assert at.count("/") == len(names)
    assert not set(at) & {"+", "#", "\0"}


def test_what_has_changed_is_told_and_what_is_gone_removed() -> None:
    kept = Retained()
    first = {"a": b"1", "b": b"2"}
    for at, payload in kept.changes(first):
        kept.told(at, payload)
    assert kept.changes(first) == []
    assert kept.changes({"b": b"3"}) == [("a", b""), ("b", b"3")]
    kept.forget()
    assert kept.changes({"b": b"2"}) == [("a", b""), ("b", b"2")]
    kept.told("a", b"")
    kept.told("b", b"2")
    assert kept.changes({"b": b"2"}) == []
