"""The soak, as people run it, and so short that no trend can be seen: that everything comes back can."""

from __future__ import annotations

import json

import pytest

from server.soak.cli import main

pytestmark = pytest.mark.system


def test_a_short_run_with_faults_leaves_nothing_behind(tmp_path, capsys):
    arguments = ["--minutes", "0.1", "--cameras", "2", "--faults", "8", "--fps", "10", "--seed", "1"]
    # Heartbeats and back-off take their time; the long run has them.
    for fault in ("process_stopped", "swap", "stall", "bye"):
        arguments += ["--without", fault]
    status = main([*arguments, "--json", str(tmp_path / "out.json"), "--markdown", str(tmp_path / "out.md")])
    out, err = capsys.readouterr()
    assert status == 0, out + err
    figures = json.loads((tmp_path / "out.json").read_text())["figures"]
    assert sum(figures["faults_done"].values()) == 8
    assert figures["faults"] == figures["unaccounted"] == []
    assert (figures["unbalanced"], figures["torn"], figures["errors"]) == (0, 0, 0)
    assert figures["reads"] >= 6
    assert figures["frames"] >= figures["completed"] > 30
    for level in (*figures["with_streams"].values(), *figures["empty"].values()):
        assert level["after"] <= level["before"]
    assert "8 faults" in (tmp_path / "out.md").read_text()
