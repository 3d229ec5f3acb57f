"""Running it: settings read anew by signal and by request, JSON logs of all processes, an end in order."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from server_process import ServerProcess, wait_for
from tiny_model import tiny_bundle
from websockets.exceptions import ConnectionClosed

from server.testing.camera import Camera, Mount
from server.testing.synthetic import make_clip

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def clip() -> Path:
    return make_clip(width=320, height=192, fps=10, frames=30, gop=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "tiny").path


def lines(server: ServerProcess) -> list[dict[str, Any]]:
    return [json.loads(line) for line in server.log]


def test_settings_change_while_frames_flow_and_a_broken_file_changes_nothing(
    model: Path, tmp_path: Path, clip: Path
) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("log_format: json\nmax_streams: 2\n")
    with (
        Camera({"/a": Mount(clip)}) as camera,
        ServerProcess(model, tmp_path / "data", "--config", str(file)) as server,
    ):
        server.add(id="a", url=camera.url("/a"))
        wait_for(lambda: server.ledger("a")["completed"] >= 3, 20, "detections")

        file.write_text("log_format: json\nmax_streams: 1\nconfidence: 1.0\nthreads: 1\n")
        os.kill(server.process.pid, signal.SIGHUP)
        reloaded = wait_for(
            lambda: [line for line in lines(server) if line.get("state") == "reloaded"], 10, "the reload"
        )[0]
        assert reloaded["changed"] == {"max_streams": 1, "confidence": 1.0}
        assert reloaded["restart"] == ["threads"]
        assert server.http.post("/streams", json={"url": camera.url("/a")}).status_code == 503
        seen = server.ledger("a")["completed"]
        wait_for(lambda: server.ledger("a")["completed"] >= seen + 3, 20, "detections after the reload")
        (last,) = server.http.get("/streams/a/detections?limit=1").json()
        assert last["detections"] == [], "a confidence of 1 lets nothing through"
        assert server.status("a")["reconnects"] == 0

        file.write_text("log_format: json\nconfidence: none\n")
        refused = server.http.post("/settings/reload")
        assert (refused.status_code, refused.json()["code"]) == (422, "settings_refused")
        assert server.http.get("/settings").json()["settings"]["confidence"] == 1.0
        assert server.http.get("/streams/a").status_code == 200
        assert {line.get("process") for line in lines(server)} >= {None, "worker"}
        states = [line["state"] for line in lines(server) if line.get("stream") == "a" and "state" in line]
        assert states == ["running"], "one line a change"


def test_sigterm_answers_what_is_in_the_house_and_closes_the_ledgers(model: Path, tmp_path: Path, clip: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("log_format: json\n")
    with (
        Camera({"/a": Mount(clip)}) as camera,
        ServerProcess(model, tmp_path / "data", "--config", str(file)) as server,
    ):
        server.add(id="a", url=camera.url("/a"))
        wait_for(lambda: server.ledger("a")["completed"] >= 3, 20, "detections")
        messages = server.messages("/streams/a/detections", timeout=20)
        results = [next(messages)]  # its state: from now on it listens
        completed_before = server.ledger("a")["completed"]
        results += [next(messages) for _ in range(4)]
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            results.extend(messages)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1001, "going away, not torn off"
        assert server.process.wait(10) == 0
        (ledger,) = [line["ledger"] for line in lines(server) if "ledger" in line]
        dropped = sum(n for reasons in ledger["dropped"].values() for n in reasons.values())
        assert ledger["in_flight"] == 0
        assert ledger["received"] == ledger["completed"] + dropped
        seqs = [r["seq"] for r in results if r["type"] == "result"]
        assert ledger["completed"] <= completed_before + len(seqs), "what was answered last has reached the client"
        assert not [line for line in lines(server) if line["level"] == "error"], lines(server)
