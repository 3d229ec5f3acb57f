"""What a broker keeps for one server: states, occupancy, counters, and how Home Assistant finds them. Pure.

The whole is computed each time, and `Retained` says what of it has changed: so a zone or a stream that is gone is
removed from the broker, and Home Assistant forgets its entity.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from server import __version__

ONLINE, OFFLINE = "online", "offline"
_ORIGIN = {"name": "yolov9-server", "sw_version": __version__}


@dataclass(frozen=True, slots=True)
class Shown:
    """One stream as it is told."""

    id: str
    state: str
    tracks: int = 0
    occupancy: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(zone, class) -> objects in it now"""
    crossings: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """(line, direction, class) -> times"""


class Retained:
    """What the broker holds, as far as it was told by this process."""

    def __init__(self) -> None:
        self._told: dict[str, bytes | None] = {}
        """None: it may hold something else."""

    def forget(self) -> None:
        """After a new connection: the broker may have lost everything."""
        self._told = dict.fromkeys(self._told)

    def changes(self, wanted: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
        """To be published, in order; nothing (b"") removes a topic."""
        gone = [(topic, b"") for topic in self._told if topic not in wanted]
        return gone + [(topic, payload) for topic, payload in wanted.items() if self._told.get(topic) != payload]

    def told(self, topic: str, payload: bytes) -> None:
        if payload:
            self._told[topic] = payload
        else:
            self._told.pop(topic, None)


def topic(*levels: str) -> str:
    """Levels below a prefix, which is taken as it is; in names, what has a meaning in topics is percent-encoded."""
    prefix, *names = levels
    return "/".join([prefix, *(quote(name, safe=" ") for name in names)])


def retained(shown: Iterable[Shown], prefix: str, discovery_prefix: str | None) -> dict[str, bytes]:
    """Topic -> payload, of all streams. `discovery_prefix` None: without Home Assistant."""
    wanted: dict[str, bytes] = {}
    for stream in shown:
        for at, payload, component, config in _entities(stream, prefix):
            if discovery_prefix is not None and config:
                wanted[_config_topic(discovery_prefix, component, config)] = _json(config)
            wanted[at] = payload
    return wanted


def _entities(stream: Shown, prefix: str) -> Iterable[tuple[str, bytes, str, dict[str, Any]]]:
    """(topic, payload, component, configuration for Home Assistant)"""
    common = _common(stream, prefix)
    at = topic(prefix, stream.id, "state")
    yield at, _json({"state": stream.state}), "", {}
    at = topic(prefix, stream.id, "objects")
    config = {"name": "Objects", "state_topic": at, "state_class": "measurement"}
    yield at, str(stream.tracks).encode(), "sensor", {**config, "unique_id": _unique(at), **common}
    for (zone, class_name), count in stream.occupancy.items():
        at = topic(prefix, stream.id, "zones", zone, class_name)
        config = {
            "name": f"{class_name} in {zone}",
            "state_topic": at,
            "device_class": "occupancy",
            "payload_on": "ON",
            "payload_off": "OFF",
            "value_template": "{{ 'ON' if value | int(0) > 0 else 'OFF' }}",
        }
        yield at, str(count).encode(), "binary_sensor", {**config, "unique_id": _unique(at), **common}
    for (line, direction, class_name), count in stream.crossings.items():
        at = topic(prefix, stream.id, "lines", line, direction, class_name)
        config = {"name": f"{class_name} {direction} over {line}", "state_topic": at, "state_class": "total_increasing"}
        yield at, str(count).encode(), "sensor", {**config, "unique_id": _unique(at), **common}


def _common(stream: Shown, prefix: str) -> dict[str, Any]:
    running = "{{ 'online' if value_json.state == 'running' else 'offline' }}"
    return {
        "availability": [
            {"topic": topic(prefix, "status")},
            {"topic": topic(prefix, stream.id, "state"), "value_template": running},
        ],
        "availability_mode": "all",
        "device": {
            "identifiers": [_unique(topic(prefix, stream.id))],
            "name": stream.id,
            "manufacturer": _ORIGIN["name"],
            "sw_version": __version__,
        },
        "origin": _ORIGIN,
    }


def _config_topic(discovery_prefix: str, component: str, config: Mapping[str, Any]) -> str:
    return f"{discovery_prefix}/{component}/{config['unique_id']}/config"


def _unique(at: str) -> str:
    """Readable, of the characters that Home Assistant takes, and different for each topic."""
    readable = re.sub(r"[^A-Za-z0-9]+", "_", at).strip("_")[:80]
    return f"{readable}_{hashlib.sha256(at.encode()).hexdigest()[:8]}"


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
