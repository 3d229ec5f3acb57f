"""`python -m yolov9.bench`: what is compared with what, cells in turns, cells that cannot be, the table."""

from __future__ import annotations

import json
import multiprocessing
import stat
import threading
from typing import ClassVar

import numpy as np
import openvino as ov
import pytest
from drawn_data import write_yolo
from openvino import opset13
from tiny_model import random_model, tiny_bundle

from yolov9 import bench
from yolov9.benchmark import machine, models, report, rounds
from yolov9.benchmark.cells import ROOF, Cell, Reference, reference, roof_cells, table
from yolov9.benchmark.rounds import CellError, Plan, Result, run
from yolov9.benchmark.worker import Evaluate, Failed, Job, Measure, Ready, Round, serve
from yolov9.bundle import INT8_ONNX, OPENVINO_MODEL, OPENVINO_WEIGHTS
from yolov9.engines import EngineError
from yolov9.engines.openvino import to_files

CELLS = table(["t"], [(64, 32), (32, 32)], [1, 4], ["openvino", "torch"], ["fp32", "bf16"], ["latency", "throughput"])
A, B, C, D = (Cell("t", 64, 32, 1, engine, "fp32", "latency") for engine in ("a", "b", "c", "d"))
NOBODY = Reference(engine="nobody")


@pytest.fixture
def bundle(tmp_path):
    return tiny_bundle(tmp_path / "tiny", random_model(3), names=["a", "b", "c"])


def openvino_int8(graph: bytes) -> tuple[bytes, bytes]:
    """`graph` with its convolutions' inputs in int8, as OpenVINO's own files."""
    model = ov.Core().read_model(graph)
    bounds = [opset13.constant(np.float32(v)) for v in (-4, 4)]
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            limited = opset13.fake_quantize(node.input_value(0), *bounds, *bounds, 256)
            node.input(0).replace_source_output(limited.output(0))
    return to_files(model, {})


class TestCells:
    def test_the_table_has_every_combination_and_neighbours_are_to_be_compared(self):
        assert len(CELLS) == len(set(CELLS)) == 32
        assert CELLS[0] == Cell("t", 64, 32, 1, "openvino", "fp32", "latency")
        assert [c.engine for c in CELLS[:8]] == ["openvino"] * 4 + ["torch"] * 4

    def test_a_baseline_is_the_cell_with_the_named_fields_changed(self):
        base = reference("openvino,bf16", CELLS)
        assert base.of(CELLS[-1]) == Cell("t", 32, 32, 4, "openvino", "bf16", "throughput")
        fixed = reference("b1,latency,64x32,torch,fp32,t", CELLS)
        assert {fixed.of(cell) for cell in CELLS} == {Cell("t", 64, 32, 1, "torch", "fp32", "latency")}
        assert str(fixed) == "t,torch,fp32,64x32,b1,latency"

    @pytest.mark.parametrize(("words", "message"), [("openvino,int4", "'int4'"), ("b16", "'b16'"), ("", "nothing")])
    def test_a_baseline_that_is_not_measured_is_refused(self, words, message):
        with pytest.raises(ValueError, match=message):
            reference(words, CELLS)


def ready(**more):
    return Ready(
        **{"precision": "fp32", "device": "CPU", "parallel": 1, "prepare_s": 1.0, "roof_operations": None, **more}
    )


def measured(cell, *rates, group=0, **more):
    """A result whose rounds had these rates: one call of 1000 / rate ms each."""
    taken = {(group, i): Round([1000 / r], r, 100_000_000 + i) for i, r in enumerate(rates) if r is not None}
    return Result(cell, ready(**more), rounds=taken)


class TestFigures:
    def test_ratios_are_taken_round_by_round(self):
        """The machine gets four times slower in the last round: both do, and the ratio stays."""
        fast, slow = measured(A, 20, 40, 10), measured(B, 10, 20, 5)
        assert report.ratio(fast, slow, lambda r: r.images_per_s) == {"median": 2, "low": 2, "high": 2}

    def test_rounds_that_only_one_has_do_not_count(self):
        assert report.ratio(measured(A, 20, 40), measured(B, None, 10), lambda r: r.images_per_s)["median"] == 4
        assert report.ratio(measured(A, 20), measured(B, 10, group=1), lambda r: r.images_per_s) is None
        assert report.ratio(measured(A, 20), None, lambda r: r.images_per_s) is None

    def test_the_share_of_the_roof_is_that_of_the_precision_computed_in(self):
        (roof,) = roof_cells(["bf16"])
        results = {A: measured(A, 10, precision="bf16"), roof: measured(roof, 100, roof_operations=2e9)}
        figures = report.cell_figures(results[A], results, NOBODY, lambda cell: 5e9, None)
        assert figures["gflops"]["median"] == 50
        assert figures["of_roof"]["median"] == pytest.approx(50 / 200)
        assert figures["gflop_per_image"] == 5
        assert report.roof_figures(results[roof])["gflops"]["median"] == 200

    def test_percentiles_by_nearest_rank(self):
        assert [report.percentile([4, 1, 3, 2], p) for p in (50, 90, 100)] == [2, 4, 4]

    def test_accuracy_is_shared_by_what_cannot_differ_in_it(self):
        wide, square = Cell("t", 64, 32, 1, "a", "fp32", "latency"), Cell("t", 64, 64, 8, "a", "fp32", "throughput")
        small, other = Cell("t", 32, 32, 1, "a", "fp32", "latency"), Cell("t", 64, 32, 1, "a", "int8", "latency")
        assert report.evaluated_cells([wide, square, small, other]) == [wide, small, other]
        results = {wide: Result(wide, accuracy={"map": 0.4})}
        assert report.shared_accuracy(square, results) == {"map": 0.4}
        assert report.shared_accuracy(small, results) is None


class TestTable:
    def everything(self, **results):
        cells = [
            report.cell_figures(
                r, {r.cell: r for r in results.values()}, Reference(engine="a"), lambda cell: None, None
            )
            for r in results.values()
        ]
        settings = {
            "repeat": 3,
            "seconds": 1,
            "suppress": False,
            "baseline": "a",
            "data": "d",
            "split": "val",
            "limit": 9,
        }
        return {"command": "python -m yolov9.bench", "date": "today", "machine": machine.machine(2), "versions": {},
                "settings": settings, "roof": [], "cells": cells}  # fmt: skip

    def test_shows_figures_ratios_and_reasons(self):
        broken = Result(C, reason="c is not installed")
        text = report.markdown(self.everything(a=measured(A, 10, 12, 11), b=measured(B, 20, 24), c=broken))
        row = next(line for line in text.splitlines() if line.startswith("| t | b |"))
        assert row == "| t | b | fp32 | 64x32 | 1 | 45.8 (41.7-50.0) | 45.8 | 22.0 | 2.00 | - | 100 | - |"
        assert "Median of 2 to 3 rounds of 1 s" in text
        assert "AP: d, split val, the first 9 pictures alone" in text
        assert "| t | c | fp32 | 64x32 | 1 | - | - | - | - | - | - | 1 |" in text
        assert text.endswith("\nMissing:\n\n1. c is not installed\n")

    def test_each_reason_is_told_once_and_the_rows_refer_to_it(self):
        both = [Result(cell, reason="d is not installed") for cell in (D, Cell("t", 32, 32, 1, "d", "fp32", "latency"))]
        text = report.markdown(
            self.everything(a=measured(A, 10), c=Result(C, reason="c is not installed"), d=both[0], e=both[1])
        )
        ends = [line.split(" | ")[-1] for line in text.splitlines() if line.startswith("| t |")]
        assert ends == ["- |", "1 |", "2 |", "2 |"]
        assert text.endswith("1. c is not installed\n2. d is not installed\n")

    def test_accuracy_has_its_columns_and_what_prevents_it_is_told(self):
        found = report.cell_figures(measured(A, 10), {}, NOBODY, lambda cell: None, {"map": 0.38312, "map50": 0.531})
        without = report.cell_figures(measured(B, 10), {}, NOBODY, lambda cell: None, None)
        text = report.markdown({**self.everything(), "cells": [found, {**without, "accuracy_reason": "no boxes"}]})
        assert "| AP | AP50 | missing |" in text
        assert "| 38.31 | 53.10 | - |" in text
        assert "| - | - | 1 |" in text
        assert text.endswith("1. no AP: no boxes\n")

    def test_without_any_figures_there_is_no_table(self):
        text = report.markdown(self.everything(c=Result(C, reason="c is not installed")))
        assert "Nothing could be measured." in text
        assert "| model |" not in text
        assert "1. c is not installed" in text

    def test_both_modes_stand_in_one_row(self):
        through = Cell("t", 64, 32, 1, "a", "fp32", "throughput")
        text = report.markdown(self.everything(a=measured(A, 10), b=measured(through, 16)))
        rows = [line for line in text.splitlines() if line.startswith("| t |")]
        assert rows == ["| t | a | fp32 | 64x32 | 1 | 100.0 | 100.0 | 10.0 | 1.00 | 16.0 | 1.00 | - | 100 |"]


class Scripted:
    """Stands for `rounds._Process`: answers from a script and notes in which order it was asked."""

    log: ClassVar[list[str]] = []
    failing: ClassVar[dict[str, int]] = {}
    """Engine -> calls of measure that succeed; -1: not even ready."""
    open = 0
    most_open = 0

    def __init__(self, job):
        self.name = job.cell.engine
        self.calls = 0
        Scripted.open += 1
        Scripted.most_open = max(Scripted.most_open, Scripted.open)

    def ready(self):
        if self.failing.get(self.name) == -1:
            raise CellError("cannot")
        return ready()

    def measure(self, seconds):
        if self.calls == self.failing.get(self.name):
            raise CellError("died")
        self.calls += 1
        self.log.append(self.name)
        return Round([1.0], 1000.0, 1)

    def evaluate(self, request):
        self.log.append(f"evaluate {self.name}")
        if self.name == "b":
            raise CellError("no data")
        return {"map": 0.5}

    def close(self):
        Scripted.open -= 1


@pytest.fixture
def scripted(monkeypatch):
    for name, value in (("log", []), ("failing", {}), ("open", 0), ("most_open", 0)):
        monkeypatch.setattr(Scripted, name, value)
    monkeypatch.setattr(rounds, "_Process", Scripted)
    return Scripted


def plan(cells, always=(), base=NOBODY, together=8, repeat=2, evaluations=None):
    jobs = {cell: Job(cell, "", 1, "cpu", False) for cell in (*cells, *always)}
    return Plan(cells, always, base, jobs, together, repeat, 0.1, evaluations or {})


class TestRounds:
    def test_cells_take_turns(self, scripted):
        results: dict[Cell, Result] = {}
        run(plan([A, B, C], repeat=3), lambda line: None, results)
        assert scripted.log == ["a", "b", "c"] * 3
        assert [*results[A].rounds] == [(0, 0), (0, 1), (0, 2)]
        assert scripted.open == 0

    def test_a_group_has_its_baseline_and_the_roof_with_it(self, scripted):
        (roof,) = roof_cells(["fp32"])
        results: dict[Cell, Result] = {}
        run(plan([A, B, C, D], [roof], Reference(engine="a"), together=3, repeat=1), lambda line: None, results)
        assert scripted.log == ["a", "b", "c", ROOF, "d", "a", ROOF]
        assert [*results[A].rounds] == [(0, 0), (1, 0)]
        assert [*results[D].rounds] == [(1, 0)]
        assert scripted.most_open == 4

    def test_a_baseline_that_comes_later_is_measured_early_and_once(self, scripted):
        results: dict[Cell, Result] = {}
        run(plan([A, B, C], base=Reference(engine="c"), together=2, repeat=1), lambda line: None, results)
        assert scripted.log == ["a", "c", "b", "c"]

    def test_a_cell_that_cannot_be_is_a_reason_and_takes_no_place(self, scripted):
        scripted.failing = {"a": -1, "b": -1}
        said: list[str] = []
        results: dict[Cell, Result] = {}
        run(plan([A, B, C, D], together=2, repeat=1), said.append, results)
        assert scripted.log == ["c", "d"]
        assert results[A].reason == "cannot"
        assert any("no figures: cannot" in line for line in said)
        assert scripted.open == 0

    def test_a_cell_that_dies_keeps_what_it_has_and_the_others_go_on(self, scripted):
        scripted.failing = {"b": 1}
        results: dict[Cell, Result] = {}
        run(plan([A, B], repeat=3), lambda line: None, results)
        assert scripted.log == ["a", "b", "a", "a"]
        assert len(results[B].rounds) == 1
        assert results[B].reason == "died"

    def test_nothing_at_all_can_be_measured(self, scripted):
        scripted.failing = {"a": -1}
        results: dict[Cell, Result] = {}
        run(plan([A], roof_cells(["fp32"])), lambda line: None, results)
        assert scripted.log == []

    def test_accuracy_comes_after_the_rounds(self, scripted):
        request = Evaluate("data", "val", None, 64)
        results: dict[Cell, Result] = {}
        run(plan([A, B, C], repeat=1, evaluations={A: request, B: request}), lambda line: None, results)
        assert scripted.log == ["a", "b", "c", "evaluate a", "evaluate b"]
        assert results[A].accuracy == {"map": 0.5}
        assert results[B].accuracy_reason == "no data"
        assert results[B].reason is None

    def test_processes_are_ended_when_it_is_interrupted(self, scripted, monkeypatch):
        def interrupted(self, seconds):
            raise KeyboardInterrupt

        monkeypatch.setattr(Scripted, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(plan([A, B]), lambda line: None, {})
        assert scripted.open == 0


def talk(job, *requests):
    """The answers of a worker that runs in a thread here."""
    ours, theirs = multiprocessing.Pipe()
    thread = threading.Thread(target=serve, args=(theirs, job))
    thread.start()
    answers = [ours.recv()]
    for request in requests:
        ours.send(request)
        answers.append(ours.recv())
    ours.close()
    thread.join(20)
    assert not thread.is_alive()
    return answers


class TestWorker:
    @pytest.mark.parametrize("suppress", [False, True])
    @pytest.mark.parametrize("mode", ["latency", "throughput"])
    def test_measures_calls_and_rates(self, bundle, mode, suppress):
        job = Job(Cell("tiny", 64, 32, 2, "onnxruntime", "fp32", mode), str(bundle.path), 2, "cpu", suppress)
        ready, taken = talk(job, Measure(0.05))
        assert (ready.precision, ready.parallel) == ("fp32", 2 if mode == "throughput" else 1)
        assert len(taken.milliseconds) >= 3
        mean = sum(taken.milliseconds) / len(taken.milliseconds)
        assert taken.images_per_s == pytest.approx(ready.parallel * 2 * 1000 / mean, rel=0.5)
        assert taken.peak_bytes > 10_000_000

    @pytest.mark.parametrize(
        ("engine", "precision", "message"),
        [
            ("onnxruntime", "bf16", "bf16 was asked for, but the bundle is fp32"),
            ("torch", "fp32", "has no model.safetensors"),
            ("torch-eager", "fp32", "has no model.safetensors, which torch-eager needs"),
            ("torch-compile", "fp16", "no fp16 on cpu"),
            ("tensorrt", "fp16", "does not run on the device 'cpu'"),
            (ROOF, "fp8", "does not compute in fp8"),
        ],
    )
    def test_what_an_engine_cannot_do_is_a_reason(self, bundle, engine, precision, message):
        job = Job(Cell("tiny", 64, 32, 1, engine, precision, "latency"), str(bundle.path), 1, "cpu", False)
        (answer,) = talk(job)
        assert isinstance(answer, Failed)
        assert message in answer.reason

    def test_an_evaluation_counts_what_the_engine_finds(self, tmp_path):
        """The colour model reports red cells: the one car that fills a cell, and nothing else."""
        made = {"a.png": ((128, 128), [(32, 32, 64, 64, 0)]), "b.png": ((128, 128), [])}
        data = write_yolo(tmp_path / "data", made)
        tiny = tiny_bundle(tmp_path / "colours", names=["car", "truck"])
        job = Job(Cell("tiny", 128, 128, 1, "onnxruntime", "fp32", "latency"), str(tiny.path), 1, "cpu", False)
        _, figures = talk(job, Evaluate(str(data), "val", None, 128))
        assert figures["map"] == pytest.approx(1)
        assert figures["map50"] == pytest.approx(1)

    def test_an_evaluation_that_fails_says_why(self, bundle, tmp_path):
        job = Job(Cell("tiny", 64, 64, 1, "onnxruntime", "fp32", "latency"), str(bundle.path), 1, "cpu", False)
        _, answer = talk(job, Evaluate(str(tmp_path / "nowhere"), "val", None, 64))
        assert isinstance(answer, Failed)
        assert "nowhere" in answer.reason


class TestModels:
    def test_operations_are_counted_in_the_graph(self, bundle):
        """Five 3x3 convolutions of 8 channels that halve 64x32, then 1x1 to 3 classes."""
        cells = [32 * 16, 16 * 8, 8 * 4, 4 * 2, 2 * 1]
        expected = sum(2 * n * 8 * 9 * (3 if i == 0 else 8) for i, n in enumerate(cells)) + 2 * 2 * 3 * 8
        assert models.operations(bundle, 64, 32) == expected

    def test_labels_are_unique(self, bundle, tmp_path):
        opened = models.open_models([str(bundle.path)] * 2, [], tmp_path / "scratch", lambda line: None)
        assert [m.label for m in opened] == ["tiny", "tiny-2"]

    def test_random_weights_keep_signals_in_a_range_that_is_computed_fast(self):
        import torch

        from yolov9.nn.model import build

        model = build("gelan-t", 2)
        models._settle(model)
        seen = []
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.register_forward_hook(lambda m, given, out: seen.append(float(given[0].std())))
        with torch.no_grad():
            model.eval()(torch.rand(1, 3, 64, 64))
        assert min(seen) > 1e-2
        assert max(seen) < 1e2

    @pytest.mark.parametrize("arguments", [(["nowhere"], []), ([], ["gelan-z"])])
    def test_models_that_are_not_there(self, arguments, tmp_path):
        with pytest.raises(models.BenchError, match=r"nowhere|gelan-z"):
            models.open_models(*arguments, tmp_path, lambda line: None)


class TestMachine:
    def test_flags_that_matter_are_told(self, monkeypatch, tmp_path):
        info = tmp_path / "cpuinfo"
        info.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_vnni amx_int8 sse\n")
        monkeypatch.setattr("yolov9.engines.cpu._CPU_INFO", info)
        found = machine.machine(3)
        assert (found["cpu"], found["flags"], found["threads"]) == ("Some CPU", ["avx2", "avx512_vnni", "amx_int8"], 3)

    def test_gpus_are_asked_of_their_driver(self, monkeypatch, tmp_path):
        program = tmp_path / "nvidia-smi"
        program.write_text(
            "#!/bin/sh\ncase $1 in\n*memory.used) echo '1024 MiB';;\n*) echo 'NVIDIA H100, 1 MiB, 580, 9.0';;\nesac\n"
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        assert machine.gpus()[0]["name"] == "NVIDIA H100"
        assert machine.gpu_memory_used() == 1 << 30
        program.write_text("#!/bin/sh\nexit 9\n")
        assert machine.gpus() == []
        assert machine.gpu_memory_used() is None


class TestCommand:
    @pytest.mark.system
    def test_measures_in_processes_and_writes_what_it_found(self, bundle, tmp_path, capsys):
        arguments = ["--weights", str(bundle.path), "--engines", "openvino,onnxruntime", "--precisions", "fp32,int8"]
        arguments += ["--shapes", "64x32", "--modes", "latency", "--seconds", "0.05", "--repeat", "2", "--threads", "1"]
        arguments += ["--json", str(tmp_path / "out" / "b.json"), "--markdown", str(tmp_path / "b.md")]
        assert bench.main(arguments) == 0
        printed = capsys.readouterr()
        assert "round 2 of 2: 2 cells" in printed.err
        assert "Median of 2 rounds" in printed.out
        assert str(tmp_path / "b.md") in printed.out
        text = (tmp_path / "b.md").read_text()
        assert text in printed.out
        assert "| tiny | openvino | fp32 | 64x32 | 1 |" in text
        assert "| tiny | openvino | int8 | 64x32 | 1 | - |" in text
        written = json.loads((tmp_path / "out" / "b.json").read_text())
        cells = {(c["engine"], c["precision"]): c for c in written["cells"]}
        assert len(cells) == 4
        assert cells["onnxruntime", "fp32"]["speed_to_baseline"]["median"] > 0
        assert cells["onnxruntime", "fp32"]["baseline"] == "tiny openvino fp32 64x32 b1 latency"
        assert cells["openvino", "fp32"]["speed_to_baseline"]["median"] == 1
        assert cells["openvino", "fp32"]["peak_bytes"] > cells["onnxruntime", "fp32"]["peak_bytes"] / 10
        assert "int8" in cells["openvino", "int8"]["reason"]
        assert written["models"][0]["hash"] == bundle.hash

    @pytest.mark.system
    def test_accuracy_is_a_column_and_an_engine_that_is_missing_a_row_with_a_reason(self, tmp_path, capsys):
        """The colour model finds the one car, which fills a cell. There is no TensorRT for the device `cpu`."""
        made = {"a.png": ((64, 64), [(32, 32, 64, 64, 0)]), "b.png": ((64, 64), [])}
        data = write_yolo(tmp_path / "data", made)
        tiny = tiny_bundle(tmp_path / "colours", names=["car", "truck"])
        arguments = ["--weights", str(tiny.path), "--engines", "tensorrt,onnxruntime", "--precisions", "fp32"]
        arguments += ["--shapes", "64x64", "--modes", "latency", "--seconds", "0.05", "--repeat", "1", "--threads", "1"]
        arguments += ["--data", str(data), "--limit", "2", "--baseline", "onnxruntime"]
        arguments += ["--json", str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]
        assert bench.main(arguments) == 0
        lines = (tmp_path / "b.md").read_text().splitlines()
        heads, missing, found = ([c.strip() for c in line.split("|")[1:-1]] for line in lines if line.startswith("| "))
        row = dict(zip(heads, found, strict=True))
        assert (row["engine"], row["AP"], row["AP50"], row["missing"]) == ("onnxruntime", "100.00", "100.00", "-")
        assert missing == ["tiny", "tensorrt", "fp32", "64x64", "1", *["-"] * (len(heads) - 6), "1"]
        assert lines[-1] == "1. tensorrt: does not run on the device 'cpu'"
        assert any(line.startswith("AP: ") and "the first 2 pictures" in line for line in lines)
        tensorrt, onnxruntime = json.loads((tmp_path / "b.json").read_text())["cells"]
        assert onnxruntime["accuracy"]["map"] == pytest.approx(1)
        assert onnxruntime["reason"] is None
        assert tensorrt["reason"] == "tensorrt: does not run on the device 'cpu'"
        assert (tensorrt["ms_p50"], tensorrt["accuracy"]) == (None, None)

    @pytest.mark.system
    def test_a_bundle_with_int8_files_has_rows_in_int8(self, tmp_path, capsys):
        """As `python -m yolov9.quantize` leaves it: model.onnx in fp32, and int8 for each engine beside it."""
        graph = random_model(3)
        xml, weights = openvino_int8(graph)
        extra = {INT8_ONNX: graph, OPENVINO_MODEL: xml, OPENVINO_WEIGHTS: weights}
        tiny = tiny_bundle(tmp_path / "tiny", graph, names=["a", "b", "c"], extra=extra)
        arguments = ["--weights", str(tiny.path), "--engines", "openvino,onnxruntime", "--precisions", "fp32,int8"]
        arguments += ["--shapes", "64x64", "--modes", "latency", "--seconds", "0.05", "--repeat", "1", "--threads", "1"]
        assert bench.main([*arguments, "--json", str(tmp_path / "b.json")]) == 0
        cells = json.loads((tmp_path / "b.json").read_text())["cells"]
        assert [(c["engine"], c["computes_in"], c["reason"]) for c in cells] == [
            (engine, precision, None) for engine in ("openvino", "onnxruntime") for precision in ("fp32", "int8")
        ]
        printed = capsys.readouterr().out
        assert "| tiny | openvino | int8 | 64x64 | 1 |" in printed
        assert "missing" not in printed

    @pytest.mark.system
    def test_a_process_that_is_killed_is_a_reason(self, bundle):
        cell = Cell("tiny", 32, 32, 1, "onnxruntime", "fp32", "latency")
        process = rounds._Process(Job(cell, str(bundle.path), 1, "cpu", False))
        process.ready()
        process._process.kill()
        with pytest.raises(CellError, match="signal 9"):
            process.measure(0.05)
        process.close()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "give --weights or --model"),
            (["--weights", "nowhere"], "nowhere"),
            (["--model", "gelan-z"], "gelan-z"),
        ],
    )
    def test_bad_input_is_one_sentence(self, arguments, message, capsys):
        assert bench.main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert message in error
        assert error.count("\n") == 1

    def test_data_that_cannot_be_read_are_refused_before_anything_runs(self, bundle, tmp_path, capsys):
        missing = tmp_path / "nowhere"
        assert bench.main(["--weights", str(bundle.path), "--data", str(missing)]) == 2
        assert capsys.readouterr().err == f"error: {missing}: no such file or folder\n"

    def test_an_unknown_baseline_is_refused_before_anything_runs(self, bundle, capsys):
        assert bench.main(["--weights", str(bundle.path), "--baseline", "openvino,fp64"]) == 2
        assert "'fp64'" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "arguments",
        [
            ["--engines", "tensorflow"], ["--precisions", "fp4"], ["--shapes", "640"], ["--shapes", "640x100"],
            ["--batches", "0"], ["--batches", "1,x"], ["--modes", "fast"], ["--seconds", "0"], ["--repeat", "0"],
        ],
    )  # fmt: skip
    def test_options_that_cannot_be(self, arguments, capsys):
        with pytest.raises(SystemExit) as ended:
            bench.main(["--model", "gelan-t", *arguments])
        assert ended.value.code == 2
        assert arguments[0] in capsys.readouterr().err


def test_the_roof_computes_what_it_claims():
    from yolov9.benchmark.roof import Roof

    roof = Roof("fp32", 1, "cpu")
    roof.infer([])
    assert roof.operations == 2 * 9 * 256 * 256 * 40 * 40 * 8
    with pytest.raises(EngineError, match="no CUDA device"):
        Roof("fp16", 1, "cuda")
