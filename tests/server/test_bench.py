"""The pure parts of the bench: figures, table, processes, messages; and the parts-alone on a tiny model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.bench import procfs
from server.bench.baseline import BaselineError, measure, video_alone
from server.bench.cli import describe, main, parser
from server.bench.machine import cpu_model, machine, versions
from server.bench.processes import BenchError, Server
from server.bench.procfs import Process, Usage, parse, pss_bytes, roles, snapshot
from server.bench.report import Measured, balances, latency_figures, mean, percentile, summarise, table
from server.bench.watcher import Message, Watcher
from server.testing.synthetic import make_clip

ENGINE = {
    "engine": "openvino", "precision": "bf16", "device": "a CPU", "why": "", "shape": [384, 640], "batch": 1,
    "parallel": 2, "images": 500, "images_per_s": 50.0, "cpu_s_per_image": 0.020,
}  # fmt: skip
VIDEO = {
    "codec": "h264", "width": 640, "height": 272, "frames": 1000, "frames_per_s": 500.0, "cpu_s_per_frame": 0.005,
}  # fmt: skip
CLIP = {
    "name": "a.mp4", "codec": "h264", "width": 640, "height": 272, "fps": 25.0, "frames": 250, "reorder_ms": 0.0,
}  # fmt: skip
ALONE = {
    "machine": {"cpu": "A CPU", "cores": 2}, "versions": {"server": "1", "av": "18"}, "clip": CLIP,
    "engine_alone": ENGINE, "video_alone": VIDEO,
}  # fmt: skip


def ledger(received, completed, in_flight=0, **ingest):
    return {
        "received": received,
        "completed": completed,
        "in_flight": in_flight,
        "dropped": {"ingest": ingest} if ingest else {},
    }


def latency(total, inference=20.0):
    return {"decode": 2.0, "queue": 0.5, "inference": inference, "postprocess": 0.5, "total": total}


@pytest.fixture
def measured():
    """Two streams in ten seconds: 240 of 300 frames detected, 60 dropped."""
    return Measured(
        window_s=10.0,
        first={"a": ledger(100, 90, rate_limit=10), "b": ledger(10, 10)},
        last={"a": ledger(250, 210, rate_limit=10, no_slot=30), "b": ledger(160, 130, no_slot=30)},
        final={"a": ledger(250, 210, rate_limit=10, no_slot=30), "b": ledger(160, 130, no_slot=30)},
        ledger_reads=80,
        latencies=[latency(23.0)] * 198 + [latency(100.0)] * 2,
        results={"a": 120, "b": 120},
        first_result_s=[0.5, 0.9],
        frames_sent={"a": 250, "b": 160},
        cpu_s={"server": 1.2, "inference": 4.8, "camera": 1.2},
        rss={"server": [100 << 20], "camera": [60 << 20, 50 << 20]},
        rss_first=200 << 20,
        rss_peak=210 << 20,
        pss=150 << 20,
    )


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([1, 50, 95, 99, 100]))
def test_percentile_is_the_smallest_value_that_enough_do_not_exceed(values, percent):
    value = percentile(values, percent)
    assert sum(v <= value for v in values) >= len(values) * percent / 100
    assert sum(v < value for v in values) < len(values) * percent / 100


def test_percentile_of_nothing_is_unknown():
    assert percentile([], 50) is None


def test_a_ledger_balances_or_not():
    assert balances(ledger(10, 5, 2, damaged=2, no_slot=1))
    assert not balances(ledger(10, 5, 2, damaged=2))


def test_rates_shares_and_drops_are_those_of_the_window(measured):
    figures = summarise(measured, ENGINE, VIDEO)
    assert figures["received_per_s"] == 30.0
    assert figures["detected_per_s"] == 24.0
    assert figures["detected_per_s_by_stream"] == {"min": 12.0, "max": 12.0}
    assert figures["of_engine_alone"] == pytest.approx(24 / 50)
    assert figures["dropped"] == {"ingest": {"no_slot": 60}}
    assert figures["first_result_s"] == {"p50": 0.5, "max": 0.9}
    assert figures["ledger"]["sent_by_cameras"] == figures["ledger"]["received"] == 410


def test_cost_is_held_against_the_parts_alone(measured):
    cpu = summarise(measured, ENGINE, VIDEO)["cpu"]
    assert cpu["s_per_detected_frame"] == pytest.approx(7.2 / 240)
    assert cpu["parts_alone_s"] == pytest.approx(0.025)
    assert cpu["ratio_to_parts"] == pytest.approx(0.030 / 0.025)
    assert cpu["ratio_to_work"] == pytest.approx(7.2 / (240 * 0.020 + 300 * 0.005))
    assert cpu["cores_used"] == pytest.approx(0.72)
    assert cpu["s_per_detected_frame_by_role"]["inference"] == pytest.approx(0.020)


def test_two_measurements_of_a_part_are_averaged():
    assert mean(ENGINE, ENGINE | {"images_per_s": 70.0, "images": 1}) == ENGINE | {"images_per_s": 60.0}


def test_latency_by_stage_and_its_drift():
    figures = latency_figures([latency(23.0)] * 98 + [latency(30.0)] * 2 + [latency(23.0)] * 50 + [latency(90.0)] * 50)
    assert figures["total"] == {"p50": 23.0, "p95": 90.0, "p99": 90.0}
    assert figures["inference"]["p99"] == 20.0
    assert figures["total_minus_inference_p50"] == 3.0
    assert figures["total_p99_by_half"] == [30.0, 90.0]
    assert latency_figures([])["total"]["p50"] is None


@pytest.mark.parametrize("known_pid", [True, False])
def test_table_says_what_was_measured(measured, known_pid):
    if not known_pid:
        measured.cpu_s = None
    report = ALONE | {
        "clip": CLIP | {"reorder_ms": 120.0},
        "figures": summarise(measured, ENGINE, VIDEO),
        "engine_alone_after": ENGINE,
        "video_alone_after": VIDEO,
    }
    lines = table(report).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)
    assert "detected 24.0 frames/s; by stream 12.00 to 12.00" in text
    assert "dropped ingest/no_slot 60" in text
    assert "a.mp4: h264 640x272, 25 fps; its B-frames make any decoder hold frames back, up to 120 ms" in text
    assert "410 sent by the cameras; 410 received = 340 completed + 70 dropped + 0 in flight" in text
    assert "total 23.0 23.0 100.0" not in text, "p99 of 200 results with two slow ones is still fast"
    assert "total 23.0 23.0 23.0" in text
    assert ("CPU 30.00 ms a detected frame (server 5.00, inference 20.00, camera 5.00)" in text) == known_pid
    assert ("camera 2 x 60 MB" in text) == known_pid
    assert max(map(len, lines)) < 150


def test_an_empty_run_has_a_table_too():
    empty = Measured(1.0, {"a": ledger(0, 0)}, {"a": ledger(0, 0)}, {"a": ledger(0, 0)}, cpu_s={"server": 0.1})
    assert "detected            0.0 frames/s" in table(ALONE | {"figures": summarise(empty, ENGINE, VIDEO)})


def test_results_are_counted_in_the_window_only():
    def message(stream, **more):
        return Message(type="result", stream=stream, status="ok", latency_ms=latency(20.0), **more)

    watcher = Watcher(Server("http://127.0.0.1:1", None))
    watcher.take(message("a"), 1.0)
    watcher.begin()
    watcher.take(message("a"), 2.0)
    watcher.take(message("b"), 3.0)
    watcher.take(Message(type="result", stream="b", status="error"), 3.5)
    watcher.take(Message(type="gap", stream="b", missed=7), 4.0)
    watcher.take(Message(type="state", stream="b"), 4.0)
    watcher.end()
    watcher.take(message("a"), 5.0)
    watcher.take(Message(type="gap", stream="b", missed=7), 5.0)
    assert watcher.first_at == {"a": 1.0, "b": 3.0}
    assert watcher.results == {"a": 1, "b": 2}
    assert (watcher.errors, watcher.gaps) == (1, 7)
    assert len(watcher.latencies) == 2, "an error has no latency of a detection"


def test_server_that_is_not_there():
    with pytest.raises(BenchError, match=r"WebSocket ws://127\.0\.0\.1:1/detections: .*refused"):
        Watcher(Server("http://127.0.0.1:1/", None)).__enter__()
    with pytest.raises(BenchError, match=r"GET /streams: .*refused"):
        Server("http://127.0.0.1:1", None).ask("GET", "/streams")


# Processes.


def process(pid, parent, cpu_s=0.0, rss=1, command=b"python"):
    return Process(pid, parent, cpu_s, rss, command)


def test_stat_of_a_process_with_a_nasty_name():
    numbers = ["0"] * 50
    numbers[0], numbers[8 + 2], numbers[9 + 2], numbers[18 + 2] = "7", "150", "50", "30"
    stat = b"42 (a) b) (c) S " + " ".join(numbers).encode()
    found = parse(42, stat, b"python\0-m\0server")
    tick = os.sysconf("SC_CLK_TCK")
    assert (found.pid, found.parent, found.cpu_s) == (42, 7, 200 / tick)
    assert found.rss_bytes == 30 * os.sysconf("SC_PAGE_SIZE")


def test_own_process_is_found_with_its_cost():
    before = snapshot()[os.getpid()]
    assert before.parent == os.getppid()
    assert before.rss_bytes > 10 << 20
    assert before.cpu_s == pytest.approx(sum(os.times()[:2]), abs=0.1)
    pss = pss_bytes([os.getpid()])
    assert pss is None or pss > 0
    assert pss_bytes([2**22 + 1]) == 0, "a process that is gone has no memory"


def test_roles_follow_from_the_tree():
    tree = {
        item.pid: item
        for item in (
            process(1, 0),
            process(10, 1),
            process(11, 10, command=b"python\0-m\0server.inference\x005"),
            process(12, 10, command=b"python\0-c\0..."),
            process(13, 12),
            process(14, 12),
            process(15, 11),
            process(20, 1),
        )
    }
    assert roles(10, tree) == {
        10: "server", 11: "inference", 12: "nursery", 13: "camera", 14: "camera", 15: "inference"
    }  # fmt: skip
    assert roles(99, tree) == {}


def test_usage_counts_processes_that_come_and_go():
    usage = Usage(10)
    nursery = process(12, 10)
    usage.sample({10: process(10, 1, cpu_s=5.0, rss=100), 12: nursery, 13: process(13, 12, cpu_s=1.0, rss=50)})
    usage.sample({10: process(10, 1, cpu_s=6.0, rss=300), 12: nursery, 13: process(13, 12, cpu_s=1.5, rss=60)})
    usage.sample({10: process(10, 1, cpu_s=7.0, rss=200), 12: nursery, 14: process(14, 12, cpu_s=0.25, rss=40)})
    assert usage.cpu_s() == {"server": 2.0, "nursery": 0.0, "camera": 0.75}
    assert usage.rss() == {"server": [200], "nursery": [1], "camera": [40]}
    assert (usage.rss_first, usage.rss_peak) == (151, 361)
    assert sorted(usage.pids) == [10, 12, 14]


def test_unreadable_memory_is_unknown(tmp_path, monkeypatch):
    def refuse(self):
        raise PermissionError

    monkeypatch.setattr(procfs.Path, "read_text", refuse)
    assert pss_bytes([1], tmp_path) is None


# The machine, the clip and the parts alone.


def test_clip_is_described_with_what_its_b_frames_cost():
    clip = {"width": 320, "height": 192, "fps": 50, "frames": 50, "gop": 5}
    plain, with_b = describe(make_clip(**clip)), describe(make_clip(**clip, b_frames=2))
    assert (plain["codec"], plain["width"], plain["frames"], plain["reorder_ms"]) == ("h264", 320, 50, 0.0)
    assert with_b["reorder_ms"] >= 20


def test_machine_and_versions_are_named():
    assert cpu_model("processor\t: 0\nmodel name\t: A CPU @ 3 GHz\n") == "A CPU @ 3 GHz"
    assert cpu_model("CPU implementer : 0x41\n") is None
    assert machine()["cores"] >= 1
    assert {"server", "python", "av", "numpy"} <= set(versions())


def test_video_alone_counts_whole_turns():
    clip = make_clip(width=320, height=192, fps=50, frames=50, gop=5)
    alone = video_alone(str(clip), 320, 0.05)
    assert alone.frames % 50 == 0
    assert (alone.codec, alone.width, alone.height) == ("h264", 320, 192)
    assert 0 < alone.cpu_s_per_frame < 0.1


@pytest.mark.system
def test_a_part_that_fails_says_why(tmp_path):
    with pytest.raises(BaselineError, match=r"video alone: .*nothing\.mp4"):
        measure("video", clip=str(tmp_path / "nothing.mp4"), input_size=320, seconds=0.1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--cameras", "0"],
        ["--seconds", "0"],
        ["--cameras", "-1"],
        ["--transport", "carrier-pigeon"],
        ["--size", "641x1"],
    ],
)
def test_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_missing_model_is_one_sentence(tmp_path, capsys):
    assert main(["--model", str(tmp_path / "nothing")]) == 1
    assert "nothing" in capsys.readouterr().err


def test_help_names_every_option():
    text = subprocess.run([sys.executable, "-m", "server.bench", "--help"], capture_output=True, text=True, check=True)
    assert all(action.option_strings[-1] in text.stdout for action in parser()._actions)
