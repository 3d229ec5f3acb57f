"""`python -m yolov9.prune`: every option does what the help says, and what cannot be is said in one line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import drawn_data
import pytest
from prune_models import small

import yolov9.prune as command
from yolov9.nn.cost import parameters
from yolov9.nn.model import Detector
from yolov9.nn.widths import table, widths
from yolov9.pruning import pruner
from yolov9.weights import load, save


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    model = small("gelan-t", 3)
    model.names = dict(enumerate(drawn_data.NAMES))
    save(model, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_data.write_yolo(tmp_path_factory.mktemp("data"), drawn_data.truth(images=6))


def run(weights: Path, out: Path, *words: str) -> int:
    return command.main(["--weights", str(weights), "--out", str(out), "--imgsz", "64", *words])


class Clock:
    """In the place of the stopwatch: a millisecond is a thousand parameters, and nothing runs."""

    engine = "a clock"

    def __init__(self, whole: Detector, engine: str, precision: str, input_size: int) -> None:
        self.given = engine, precision
        self.whole_ms = self(whole)

    def __call__(self, model: Detector) -> float:
        return parameters(model) / 1e3

    @contextmanager
    def running(self, model: Detector) -> Iterator[Any]:
        raise AssertionError("nothing is to be run")
        yield

    def close(self) -> None:
        pass


def test_with_a_data_set_it_prunes_repairs_and_measures(
    weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "p.safetensors"
    words = ["--flops", ".7", "--data", str(data), "--pictures", "2", "--limit", "2", "--engine", "torch"]
    assert run(weights, out, *words, "--precision", "fp32", "--steps", "1", "--no-measure", "--floor", ".2") == 0
    shown = capsys.readouterr()
    report = json.loads(out.with_suffix(".json").read_text())
    options = report["options"]
    assert (options["criterion"], options["repair"], options["pictures"]) == ("fisher", "weights", 2)
    assert (options["target"], options["steps"], options["per_cost"]) == ({"flops": 0.7}, 1, True)
    assert report["after"]["gflops"] < 0.75 * report["before"]["gflops"]
    assert report["after"]["parameters"] < report["before"]["parameters"]
    assert all(0 <= report[when]["map"] <= 1 for when in ("before", "after"))
    assert "latency_ms" not in report["after"]
    assert report["engine"].startswith("torch fp32")
    assert "of which pictures were used to prune" in report["note"]
    changed = {x["key"]: x["after"] for x in report["layers"] if x["before"] != x["after"]}
    model = load(out)
    assert changed
    assert all(table(model)["convolutions"][key] == after for key, after in changed.items())
    last = shown.out.splitlines()[-1]
    assert last == f"wrote {out} and the report {out.with_suffix('.json')}"
    assert "GFLOPs" in shown.out
    assert "step 1/1: repair (weights)" in shown.err
    assert "fisher, picture 2/2" in shown.err


def test_without_pictures_weights_alone_decide(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Stopwatch", Clock)
    out = tmp_path / "p.safetensors"
    words = ["--ratio", ".1", "--round", "16", "--scope", "layer", "--normalise", "mean", "--per-cost", "--seed", "5"]
    assert run(weights, out, *words, "--protect", "stem*", "detect.cv3") == 0
    report = json.loads(out.with_suffix(".json").read_text())
    assert (report["options"]["criterion"], report["options"]["repair"]) == ("l2", "none")
    assert (report["options"]["normalise"], report["options"]["seed"]) == ("mean", 5)
    assert report["engine"] == "a clock"
    assert report["after"]["latency_ms"] < report["before"]["latency_ms"]
    changed = [x for x in report["layers"] if x["before"][1] != x["after"][1]]
    assert not [x for x in changed if x["name"].startswith(("stem", "detect.cv3"))]
    assert {x["after"][1] % 16 for x in changed} == {0}
    assert widths(load(out))


def test_until_it_is_fast_enough(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "Stopwatch", Clock)
    monkeypatch.setattr(pruner, "_SEARCH_STEPS", 3)
    whole_ms = parameters(load(weights)) / 1e3
    wanted = 0.8 * whole_ms
    out = tmp_path / "p.safetensors"
    assert run(weights, out, "--latency", ".8x", "--no-measure", "--criterion", "l1", "--no-per-cost") == 0
    report = json.loads(out.with_suffix(".json").read_text())
    assert 0.8 * wanted < report["after"]["latency_ms"] <= wanted
    assert report["options"]["target"]["latency"] == pytest.approx(wanted)
    assert report["options"]["per_cost"] is False


def test_pictures_without_labels_will_do(weights: Path, data: Path, tmp_path: Path) -> None:
    images = next(p for p in sorted(data.parent.rglob("*.png"))).parent
    out = tmp_path / "p.safetensors"
    words = ["--criterion", "taylor", "--repair", "statistics", "--images", str(images), "--pictures", "3"]
    assert run(weights, out, "--flops", ".8", "--no-measure", *words) == 0
    report = json.loads(out.with_suffix(".json").read_text())
    assert (report["options"]["pictures"], report["options"]["repair"]) == (3, "statistics")
    assert "map" not in report["after"]


ERRORS: dict[str, tuple[list[str], str]] = {
    "no such weights": (["--ratio", ".3", "--weights", "/nowhere/w.safetensors"], "/nowhere/w.safetensors"),
    "another suffix": (["--ratio", ".3", "--out", "p.pt"], "p.pt: wants a name that ends in .safetensors"),
    "no such folder": (["--ratio", ".3", "--out", "nowhere/p.safetensors"], "in a folder that is there"),
    "a size that cannot be": (["--ratio", ".3", "--imgsz", "100"], "100"),
    "no such layer": (["--ratio", ".3", "--no-measure", "--protect", "stam*"], "no layer is called 'stam*'"),
    "no pictures": (["--ratio", ".3", "--images", "."], "no pictures there"),
    "no such data": (["--ratio", ".3", "--data", "nowhere"], "nowhere"),
    "a criterion without pictures": (["--ratio", ".3", "--no-measure", "--criterion", "fisher"], "needs pictures"),
    "fast enough already": (["--latency", "1000000ms"], "ms already"),
    "too much": (["--flops", ".001", "--no-measure"], "the target cannot be reached"),
}


@pytest.mark.parametrize("error", ERRORS)
def test_what_cannot_be_is_said_in_one_line(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "Stopwatch", Clock)
    words, said = ERRORS[error]
    assert run(weights, tmp_path / "p.safetensors", *words) == 2
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    assert said in last
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "one of the arguments --ratio --flops --latency is required"),
        (["--ratio", ".3", "--flops", ".5"], "not allowed with argument"),
        (["--ratio", "1.5"], "1.5 is not between 0 and 1"),
        (["--flops", "half"], "'half' is not a number"),
        (["--latency", "1.2x"], "neither milliseconds (12ms) nor a share of the time (.7x)"),
        (["--latency", "12"], "neither milliseconds"),
        (["--ratio", ".3", "--round", "0"], "0 is less than 1"),
        (["--ratio", ".3", "--steps", "two"], "'two' is not a whole number"),
        (["--ratio", ".3", "--criterion", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_words_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as left:
        run(Path("w"), tmp_path / "p.safetensors", *words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_an_interruption_is_no_traceback(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "prune", interrupted)
    assert run(weights, tmp_path / "p.safetensors", "--ratio", ".3", "--no-measure") == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not list(tmp_path.iterdir())
