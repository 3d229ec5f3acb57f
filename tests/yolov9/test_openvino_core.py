"""Signals after engines have come and gone: OpenVINO's alternative signal stacks must not be left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import random_model, tiny_bundle

pytest.importorskip("openvino")

SCRIPT = """
import gc, os, signal, sys
import numpy as np
from yolov9.bundle import Bundle
from yolov9.engines import create

bundle = Bundle.load(sys.argv[1])
first = create(bundle, "openvino", "fp32")
second = create(bundle, "openvino", "fp32", max_batch=2)
for engine in (first, second):
    engine.infer([np.zeros((64, 64, 3), np.uint8)])
first.close(); del first; gc.collect()  # not the last that came
second.close(); del second, engine; gc.collect()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
print("alive")
"""


def test_a_signal_is_handled_after_engines_have_come_and_gone(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "bundle", random_model(3), ("a", "b", "c"))
    done = subprocess.run([sys.executable, "-c", SCRIPT, bundle.path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["handled", "alive"]
