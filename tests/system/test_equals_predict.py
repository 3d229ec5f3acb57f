"""What the server says of a frame over RTSP is what `yolov9.predict` says of it in the file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from server_process import ServerProcess
from tiny_model import tiny_bundle

from server.testing.camera import Camera, Mount

pytestmark = pytest.mark.system

FPS, FRAMES = 10, 24


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red and a blue square on grey, at another place in each frame, with B frames."""
    path = tmp_path_factory.mktemp("clip") / "squares.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"bf": "2", "g": "8", "crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 640, 384, "yuv420p"
        for index in range(FRAMES):
            picture = np.full((384, 640, 3), 90, np.uint8)
            x, y = 20 * index, 160 + 60 * (index % 3)
            picture[20:180, x : x + 160] = (240, 20, 20)
            picture[y : y + 160, 460 - x : 620 - x] = (20, 20, 240)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def test_results_over_rtsp_equal_those_of_predict(clip: Path, tmp_path: Path) -> None:
    model = tiny_bundle(tmp_path / "tiny", input_size=256).path
    command = [sys.executable, "-m", "yolov9.predict", "--weights", str(model), "--source", str(clip), "--no-save"]
    subprocess.run([*command, "--out", str(tmp_path), "--json", str(tmp_path / "p.json")], check=True, timeout=60)
    predicted = [frame["detections"] for frame in json.loads((tmp_path / "p.json").read_text())]
    assert len(predicted) == FRAMES
    with Camera({"/door": Mount(clip)}) as camera, ServerProcess(model, tmp_path / "data") as server:
        server.add(id="door", url=camera.url("/door"))
        results: list[dict[str, Any]] = []
        for message in server.messages("/streams/door/detections"):
            if message["type"] == "result":
                results.append(message)
            if len(results) == 2 * FRAMES:
                break
    # The camera's clock starts anywhere: the place in the clip is the one at which all agree.
    places = [round((r["pts"] - results[0]["pts"]) * FPS) for r in results]
    wrong = [
        sum(
            not _agree(r["detections"], predicted[(first + place) % FRAMES])
            for r, place in zip(results, places, strict=True)
        )
        for first in range(FRAMES)
    ]
    assert sorted(wrong)[0] == 0, f"frames that differ, by place: {wrong}"
    assert sorted(wrong)[1] >= FRAMES // 4, "the clip must tell its frames apart"
    assert sum(d["confidence"] > 0.5 for r in results for d in r["detections"]) > 100


def _agree(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> bool:
    """Every detection above .5 of either side has a counterpart above .4 of its class with IoU above .95."""
    return all(
        any(a["class"] == b["class"] and b["confidence"] > 0.4 and _iou(a["box"], b["box"]) > 0.95 for b in others)
        for some, others in ((ours, theirs), (theirs, ours))
        for a in some
        if a["confidence"] > 0.5
    )


def _iou(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    inner = width * height
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)
