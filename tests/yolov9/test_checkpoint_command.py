"""`python -m yolov9.weights`: inspect and convert, as a user calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import Call, Name, pickled, r2_state, torch_file, trained, write_r1, write_ultralytics

import yolov9
from yolov9.checkpoints import tensors
from yolov9.checkpoints.command import main
from yolov9.nn.cost import parameters

Output = pytest.CaptureFixture[str]


def test_inspect_says_what_a_training_checkpoint_holds(tmp_path: Path, capsys: Output) -> None:
    model = trained("yolov9-t", ["cat", "dog", "owl"])
    write_r1(tmp_path / "last.pt", model, ema=model, epoch=41, half=True)
    assert main(["inspect", str(tmp_path / "last.pt")]) == 0
    said = capsys.readouterr().out
    for line in (
        "layout        WongKinYiu/yolov9 (R1), training (main and auxiliary branch); the ema in it",
        "architecture  yolov9-t",
        "classes       3: cat, dog, owl",
        "head          class tower 64 wide, box tower 4 groups",
        f"parameters    {parameters(model):,} in float16",
        "fused         no",
        "auxiliary     yes, used in training only",
        "epoch         41",
    ):
        assert line in said.splitlines()


def test_inspect_as_json(tmp_path: Path, capsys: Output) -> None:
    model = trained("gelan-t", 80, class_width=80, box_groups=1)
    write_ultralytics(tmp_path / "w.pt", model)
    assert main(["inspect", "--json", str(tmp_path / "w.pt")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["names"].pop("79") == "class79"
    del found["names"]
    assert found == {
        "file": str(tmp_path / "w.pt"),
        "bytes": (tmp_path / "w.pt").stat().st_size,
        "layout": "ultralytics",
        "part": "model",
        "architecture": "gelan-t",
        "family": "gelan",
        "size": "t",
        "auxiliary": False,
        "fused": False,
        "classes": 80,
        "class_width": 80,
        "box_groups": 1,
        "depthwise": False,
        "parameters": parameters(model),
        "dtype": "float16",
        "epoch": None,
        "notes": [],
    }


def test_inspect_reads_no_tensors(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a file of any size is inspected in the same time."""
    write_r1(tmp_path / "w.pt", trained("gelan-t", 3))
    monkeypatch.setattr(tensors, "_read", lambda *_: pytest.fail("a tensor was read"))
    assert main(["inspect", str(tmp_path / "w.pt")]) == 0
    assert "gelan-t" in capsys.readouterr().out


def test_inspect_of_our_own_files_and_of_a_bundle(tmp_path: Path, capsys: Output) -> None:
    fused = trained("yolov9-t", 3).prune_auxiliary().fuse()
    yolov9.save(fused, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        assert main(["inspect", str(path)]) == 0
        said = capsys.readouterr().out
        assert "layout        yolov9.save" in said
        assert "fused         yes: for inference only" in said


@pytest.mark.parametrize("inference", [False, True])
def test_convert_writes_the_same_model_in_our_format(inference: bool, tmp_path: Path, capsys: Output) -> None:
    model = trained("yolov9-t", 3)
    torch.save(r2_state(model), tmp_path / "v9-t.pt")
    out = tmp_path / "new" / "w.safetensors"
    assert main(["convert", str(tmp_path / "v9-t.pt"), str(out), *(["--inference"] if inference else [])]) == 0
    said = capsys.readouterr().out
    assert "MultimediaTechLab/YOLO (R2), training (main and auxiliary branch)" in said
    assert f"wrote {out}: {'gelan-t' if inference else 'yolov9-t'} in float32" in said
    assert ("left the auxiliary branch out" in said) == inference
    loaded = yolov9.load(out)
    images = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        np.testing.assert_array_equal(loaded(images), model(images))


def test_convert_says_when_there_is_nothing_to_leave_out(tmp_path: Path, capsys: Output) -> None:
    write_r1(tmp_path / "w.pt", trained("gelan-t", 3), names=[str(n) for n in range(80)])
    assert main(["convert", "--inference", str(tmp_path / "w.pt"), str(tmp_path / "w.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "has no auxiliary branch to leave out" in said
    assert "note: names 80 classes where its head has 3" in said


def test_errors_are_one_sentence_and_status_2(tmp_path: Path, capsys: Output) -> None:
    torch_file(tmp_path / "bad.pt", pickled({"model": Call(Name("posix", "system"), ("true",))}))
    torch.save({"epoch": 1}, tmp_path / "empty.pt")
    out = str(tmp_path / "w.safetensors")
    for arguments, message in (
        (["inspect", str(tmp_path / "nowhere.pt")], "is neither a folder nor"),
        (["inspect", str(tmp_path / "bad.pt")], "bad.pt: asks for posix.system"),
        (["inspect", str(tmp_path / "empty.pt")], "empty.pt: holds no model"),
        (["inspect", str(tmp_path)], "has no model.safetensors"),
        (["convert", str(tmp_path / "bad.pt"), out], "posix.system"),
        (["convert", str(tmp_path / "empty.pt"), str(tmp_path / "w.pt")], "ends in .safetensors"),
        (["get", "yolov9-t"], "no published checkpoint is called 'yolov9-t'; nearest: yolov9-t-converted"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr()
        assert message in said.err
        assert said.err.count("\n") == 1
        assert "Traceback" not in said.err
    assert not Path(out).exists()


@pytest.mark.system
def test_the_module_is_runnable_and_get_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('torch is not here', name='torch')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = [sys.executable, "-m", "yolov9.weights"]
    listed = subprocess.run([*run, "get"], env=environment, capture_output=True, text=True, timeout=60)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "yolov9-c            GPL-3.0" in listed.stdout
    refused = subprocess.run([*run, "inspect", "x"], env=environment, capture_output=True, text=True, timeout=60)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: this needs torch: pip install 'yolov9-server[train]'\n"
