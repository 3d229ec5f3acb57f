"""A server with a camera and a real broker, which is away for a while: no event is lost, states are retained."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_process import ServerProcess, wait_for
from tiny_model import tiny_bundle

from server.testing.camera import Camera, Mount
from server.testing.synthetic import coded, draw

paho = pytest.importorskip("paho.mqtt.client", reason="the extra `mqtt` is not installed")
pytest.importorskip("aiomqtt", reason="the extra `mqtt` is not installed")
# Debian has it beside the commands of users.
MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
pytestmark = [pytest.mark.system, pytest.mark.skipif(MOSQUITTO is None, reason="mosquitto is not installed")]

WIDTH, HEIGHT, FPS = 320, 192, 10
MAT = {"name": "mat", "points": [[0.3, 0.5], [0.6, 0.5], [0.6, 1.0], [0.3, 1.0]], "dwell_s": 1.0}


class Mosquitto:
    """Keeps sessions and retained messages over `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._config = folder / "mosquitto.conf"
        self._config.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence true\n"
            f"persistence_location {folder}/\nlog_dest none\nuser {folder.owner()}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert MOSQUITTO is not None
        self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._config)], stderr=subprocess.DEVNULL)
        wait_for(self._answers, 10, "the broker")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Listener:
    """A subscriber with a session of its own, which the broker keeps while it is away."""

    def __init__(self, port: int) -> None:
        self.got: list[tuple[str, bytes]] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, "listener", clean_session=False)
        self._client.on_message = lambda client, data, message: self.got.append((message.topic, message.payload))
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self._client.reconnect_delay_set(1, 1)
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(10)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def last(self, topic: str) -> bytes | None:
        return next((payload for at, payload in reversed(self.got) if at == topic), None)

    def numbers(self) -> set[int]:
        return {json.loads(payload)["id"] for at, payload in self.got if at == "yolov9/yard/events"}

    def zones(self) -> set[str]:
        """Topics of the zones that Home Assistant was told of."""
        return {json.loads(payload)["state_topic"] for at, payload in self.got if "/binary_sensor/" in at}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    folder = tmp_path / "broker"
    folder.mkdir()
    broker = Mosquitto(folder)
    broker.start()
    yield broker
    broker.stop()


def pictures() -> Iterator[Any]:
    """A red square at the beginning only, away for longer than a track waits."""
    for number in range(6 * FPS):
        picture = draw(WIDTH, HEIGHT, number)
        picture[HEIGHT // 5 :] = 96
        if number < 2 * FPS:
            picture[128:160, 128:160] = np.array((230, 20, 20))
        yield picture


def numbers_of(server: ServerProcess) -> set[int]:
    changes = server.http.get("/changes", params={"limit": 500}).json()["changes"]
    return {change["id"] for change in changes}


def test_a_broker_that_was_away_misses_nothing(
    tmp_path: Path, broker: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLOV9_MQTT_URL", f"mqtt://someone:s3cret-word@127.0.0.1:{broker.port}")
    clip = coded("mqtt-1", pictures(), width=WIDTH, height=HEIGHT, fps=FPS, gop=10, quality=18)
    model = tiny_bundle(tmp_path / "tiny", input_size=WIDTH).path
    listener = Listener(broker.port)
    with Camera({"/yard": Mount(clip)}) as camera, ServerProcess(model, tmp_path / "data") as server:
        server.add(id="yard", url=camera.url("/yard"), zones=[MAT])
        wait_for(listener.numbers, 20, "the first event")
        broker.stop()
        before = numbers_of(server)
        wait_for(lambda: len(numbers_of(server) - before) >= 2, 20, "events while the broker is away")
        broker.start()
        missed = numbers_of(server)
        wait_for(lambda: missed <= listener.numbers(), 20, "all events")
        # States and detections are told beside the events, at a pace of their own.
        (config,) = wait_for(listener.zones, 20, "the zone's configuration")
        assert wait_for(lambda: listener.last(config), 10, "the zone's occupancy") in (b"0", b"1")
        running = b'{"state":"running"}'
        wait_for(lambda: listener.last("yolov9/yard/state") == running, 10, "the stream's state")
        result = wait_for(lambda: listener.last("yolov9/yard/detections"), 10, "detections")
        assert json.loads(result)["stream"] == "yard"
        wait_for(lambda: listener.last("yolov9/status") == b"online", 10, "the server's status")
        server.process.kill()
        wait_for(lambda: listener.last("yolov9/status") == b"offline", 20, "the last will")
    listener.close()
    assert "s3cret-word" not in "".join(server.log)
