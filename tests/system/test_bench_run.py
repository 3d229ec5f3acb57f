"""The bench, as people run it: on real cameras, a real server and a model that costs next to nothing."""

from __future__ import annotations

import json

import pytest
from tiny_model import tiny_bundle

from server.bench.cli import main
from server.testing.synthetic import make_clip

pytestmark = pytest.mark.system


def test_cameras_and_server_agree_on_every_frame(tmp_path, capsys):
    model = tiny_bundle(tmp_path / "tiny").path
    clip = make_clip(width=320, height=192, fps=10, frames=30, gop=10)
    arguments = ["--model", str(model), "--clip", str(clip), "--cameras", "2", "--transport", "udp"]
    arguments += ["--seconds", "2", "--warm-up", "0.2", "--alone-seconds", "0.2", "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out.json").read_text())
    figures, ledger = report["figures"], report["figures"]["ledger"]
    assert ledger["unbalanced_reads"] == 0
    assert ledger["reads"] >= 10
    assert ledger["sent_by_cameras"] == ledger["received"] >= 40
    assert ledger["received"] == ledger["completed"] + ledger["dropped"] + ledger["in_flight"]
    assert figures["errors"] == figures["websocket_missed"] == 0
    assert figures["received_per_s"] == pytest.approx(20, rel=0.15)
    assert set(figures["cpu"]["s_per_detected_frame_by_role"]) == {"server", "inference", "nursery", "camera"}
    assert figures["memory_bytes"]["by_role"]["camera"]["processes"] == 2
    assert figures["latency_ms"]["total"]["p50"] > 0
    assert report["engine_of_server"]["name"] == "tiny"
    assert "detected" in capsys.readouterr().out


def test_every_frame_of_a_file_is_detected(tmp_path, capsys):
    model = tiny_bundle(tmp_path / "tiny").path
    clip = make_clip(width=320, height=192, fps=10, frames=30, gop=10)
    arguments = ["--model", str(model), "--every-frame", str(clip), "--seconds", "2", "--warm-up", "0.2"]
    arguments += ["--alone-seconds", "0.2", "--again", "--json", str(tmp_path / "out.json")]
    assert main(arguments) == 0, capsys.readouterr().err
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["figures"]["dropped"] == {}
    assert report["figures"]["detected_per_s"] > 20, "a file is not paced"
    assert report["figures"]["ledger"]["unbalanced_reads"] == 0
    assert {"engine_alone_after", "video_alone_after"} <= set(report)
