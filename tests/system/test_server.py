"""The whole way: a real camera, a real server process, real clients."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from server_process import ServerProcess, wait_for
from tiny_model import tiny_bundle

from server.testing.camera import Camera, Mount
from server.testing.synthetic import make_clip

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def clip() -> Path:
    return make_clip(width=320, height=192, fps=10, frames=30, gop=10)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("model") / "tiny").path


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[ServerProcess]:
    with ServerProcess(model, tmp_path / "data") as running:
        yield running


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_camera_in_detections_out(server: ServerProcess, clip: Path, transport: str) -> None:
    with Camera({"/door": Mount(clip)}, username="viewer", password="p@ss:w/rd") as camera:
        server.add(
            id="door", url=camera.url("/door", credentials=False), username="viewer", password="p@ss:w/rd",
            transport=transport,
        )  # fmt: skip
        results = []
        for message in server.messages("/streams/door/detections"):
            if message["type"] == "result":
                results.append(message)
            if len(results) == 20:
                break
        seqs = [r["seq"] for r in results]
        assert seqs == sorted(set(seqs))
        for result in results:
            spent = result["latency_ms"]
            assert result["status"] == "ok"
            assert (result["width"], result["height"]) == (320, 192)
            stages = sum(spent[stage] for stage in ("decode", "queue", "inference", "postprocess"))
            assert spent["total"] == pytest.approx(stages, abs=0.01)
        status = server.status("door")
        assert (status["state"], status["codec"], status["client"], status["transport"]) == (
            "running", "h264", "native", transport,
        )  # fmt: skip
        ledger = server.ledger("door")
        assert ledger["completed"] >= 20
        assert "p@ss" not in server.http.get("/streams").text
        picture = server.http.get("/streams/door/snapshot.jpg", params={"annotate": True})
        assert picture.status_code == 200
        assert picture.content[:2] == b"\xff\xd8"
        assert 'yolov9_stream_frames_received_total{stream="door"}' in server.http.get("/metrics").text
    assert "p@ss" not in "".join(server.log)


def test_streams_come_back_after_a_restart_and_after_kill_9(model: Path, tmp_path: Path, clip: Path) -> None:
    with Camera({"/door": Mount(clip)}) as camera:
        with ServerProcess(model, tmp_path / "data") as server:
            server.add(id="door", url=camera.url("/door"))
            wait_for(lambda: server.ledger("door")["completed"] >= 3, 20, "detections")
            below = set(server.children())
            server.process.kill()
            server.process.wait(5)
            wait_for(lambda: not below & set(_alive(below)), 10, "the end of all processes of the killed server")
        with ServerProcess(model, tmp_path / "data") as server:
            wait_for(lambda: server.ledger("door")["completed"] >= 3, 20, "detections after the restart")
            assert server.terminate() < 5
            (line,) = [line for line in server.log if "closed ledger=" in line]
            assert "'in_flight': 0" in line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_camera_process_costs_only_its_own_camera(
    server: ServerProcess, clip: Path, number: signal.Signals
) -> None:
    with Camera({"/a": Mount(clip), "/b": Mount(clip)}) as camera:
        server.add(id="a", url=camera.url("/a"))
        wait_for(lambda: server.ledger("a")["completed"] >= 3, 20, "detections of a")
        before = set(server.children())
        server.add(id="b", url=camera.url("/b"))
        wait_for(lambda: server.ledger("b")["completed"] >= 3, 20, "detections of b")
        (pid,) = set(server.children()) - before
        os.kill(pid, number)
        wait_for(lambda: server.status("b")["reason"] == "process_lost", 15, "the loss of b")
        had = server.ledger("b")
        wait_for(lambda: server.ledger("b")["completed"] > had["completed"] + 3, 20, "detections of b again")
        assert server.status("a")["reconnects"] == 0
        assert server.ledger("a")["dropped"].get("ingest", {}).get("process_lost", 0) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_worker_gives_errors_and_comes_back(
    server: ServerProcess, clip: Path, number: signal.Signals
) -> None:
    with Camera({"/a": Mount(clip)}) as camera:
        server.add(id="a", url=camera.url("/a"))
        wait_for(lambda: server.ledger("a")["completed"] >= 3, 20, "detections")
        assert server.http.get("/readyz").status_code == 200
        (line,) = [line for line in server.log if "state=starting" in line]
        os.kill(int(line.partition("pid=")[2].split()[0]), number)
        wait_for(lambda: server.http.get("/readyz").status_code == 503, 15, "red readiness")
        wait_for(lambda: server.http.get("/readyz").status_code == 200, 30, "readiness again")
        had = server.ledger("a")
        wait_for(lambda: server.ledger("a")["completed"] > had["completed"] + 3, 20, "detections again")
        lost = server.ledger("a")["dropped"].get("inference", {})
        assert set(lost) <= {"worker_lost", "hung"}
        assert sum(lost.values()) >= (number == signal.SIGSTOP), "the frame that hung is an error"
        assert server.status("a")["reconnects"] == 0, "the camera has nothing to do with it"


def test_an_image_is_detected_through_the_same_batching_and_bad_input_is_named(server: ServerProcess) -> None:
    picture = io.BytesIO()
    red = Image.new("RGB", (640, 384), (90, 90, 90))
    red.paste((250, 0, 0), (0, 0, 640, 384))
    red.save(picture, "PNG")
    png = {"Content-Type": "image/png"}
    wait_for(lambda: server.http.get("/readyz").status_code == 200, 30, "readiness")
    answer = server.http.post("/detect", content=picture.getvalue(), headers=png)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["width"], body["height"]) == (640, 384)
    assert {d["class"] for d in body["detections"]} == {"red"}
    only_blue = server.http.post("/detect", content=picture.getvalue(), headers=png, params={"classes": "blue"})
    assert only_blue.json()["detections"] == []
    for classes in ("cat", "re\x00d"):
        refused = server.http.post("/detect", content=picture.getvalue(), headers=png, params={"classes": classes})
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_field"), classes
    cut = server.http.post("/detect", content=picture.getvalue()[:100], headers=png)
    assert (cut.status_code, cut.json()["errors"][0]["field"]) == (422, "image")


def test_settings_change_while_a_stream_runs(server: ServerProcess, clip: Path) -> None:
    with Camera({"/a": Mount(clip, fps=20)}) as camera:
        server.add(id="a", url=camera.url("/a"))
        wait_for(lambda: server.ledger("a")["completed"] >= 3, 20, "detections")
        assert server.http.patch("/streams/a", json={"max_fps": 2, "classes": ["red"]}).status_code == 200
        wait_for(lambda: server.ledger("a")["dropped"].get("ingest", {}).get("rate_limit", 0) >= 10, 15, "the limit")
        assert server.status("a")["reconnects"] == 0
        refused = server.http.patch("/streams/a", json={"classes": ["cat"]})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "classes")
        assert server.http.get("/streams/a").json()["classes"] == ["red"]


def test_an_address_that_does_not_answer_says_why_and_disturbs_nobody(server: ServerProcess, clip: Path) -> None:
    with Camera({"/a": Mount(clip)}) as camera:
        server.add(id="a", url=camera.url("/a"))
        server.add(id="dead", url="rtsp://127.0.0.1:9/none")
        server.add(id="lost", url=camera.url("/missing"))
        wait_for(lambda: server.status("dead")["reason"] == "refused", 10, "refused")
        wait_for(lambda: server.status("lost")["reason"] == "not_found", 10, "not_found")
        wait_for(lambda: server.ledger("a")["completed"] >= 5, 10, "detections")
        assert server.http.delete("/streams/dead").status_code == 204
        assert server.http.get("/streams/dead").status_code == 404


def test_the_ledger_balances_at_thousands_of_reads_through_load_kills_and_reconnects(
    server: ServerProcess, clip: Path
) -> None:
    with Camera({f"/{n}": Mount(clip, fps=25) for n in range(4)}) as camera:
        for n in range(4):
            server.add(id=str(n), url=camera.url(f"/{n}"), max_fps=20 if n == 3 else None)
        wait_for(lambda: server.ledger("3")["completed"] >= 3, 30, "detections")
        reads = 0
        for round_ in range(10):
            for _ in range(60):
                for n in range(4):
                    server.ledger(str(n))  # asserts that it balances
                    reads += 1
            match round_:
                case 1:
                    camera.kill("/0", reset=True)
                case 3:
                    camera.faults("/1").loss = 0.05
                case 5:
                    camera.bye("/2")
                case 7:
                    os.kill(max(server.children()), signal.SIGKILL)  # the camera process started last
        assert reads >= 2000
        camera.stop()
        wait_for(lambda: all(server.status(str(n))["state"] == "backoff" for n in range(4)), 15, "the loss of all")
        for n in range(4):
            wait_for(lambda n=n: server.ledger(str(n))["in_flight"] == 0, 10, "the last frame")


def test_every_frame_of_a_file_is_detected_once(model: Path, tmp_path: Path, clip: Path) -> None:
    with ServerProcess(model, tmp_path / "data", "--media", str(clip.parent)) as server:
        server.add(id="file", url=clip.name, every_frame=True)
        wait_for(lambda: server.status("file")["state"] == "stopped", 20, "the end of the file")
        wait_for(lambda: server.ledger("file")["in_flight"] == 0, 10, "the last frame")
        assert server.status("file")["reason"] == "ended"
        assert server.ledger("file") == {"received": 30, "completed": 30, "in_flight": 0, "dropped": {}}


def _alive(pids: set[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and ") Z " not in _stat(pid)]


def _stat(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ") Z "
