"""Three rows of the fault matrix, as people run it; the whole of it is `python -m server.chaos`."""

from __future__ import annotations

import json

import pytest

from server.chaos.cli import main

pytestmark = pytest.mark.system


@pytest.mark.parametrize("case", ["fin-udp-h264", "refused-tcp-h264"])
def test_a_fault_is_done_to_a_real_server_and_judged(case, tmp_path, capsys):
    # The witnesses' latency needs samples and a quiet machine: that verdict is left to the command.
    main(["--only", case, "--phase", "0.3", "--hold-at-most", "0.5", "--json", str(tmp_path / "out.json")])
    (line,) = json.loads((tmp_path / "out.json").read_text())["cases"]
    assert [fault for fault in line["faults"] if "p99" not in fault] == [], line
    assert line["seen_s"] <= line["seen_bound_s"]
    assert line["back_s"] <= line["back_bound_s"]
    assert line["reads"] > 5
    assert (line["unbalanced"], line["torn"], line["errors"]) == (0, 0, 0)
    assert line["results"] == line["completed"] > 20
    assert "1 cases" in capsys.readouterr().out
