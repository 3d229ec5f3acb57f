"""Of all tests. Here and not further down, since what is collected first may already bring torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

# The models of these tests are small: a second thread gains nothing, and OpenMP's threads wait for each other in busy
# loops, which beside any other work on the machine makes a test twenty times as slow. Processes of tests inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples in every run, and no limit for one of them: on a busy machine any line may take a second.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


class Learnt(NamedTuple):
    """A training from nothing by the command: what it learnt from, the run's folder, what it said, how long it took."""

    data: Path
    out: Path
    stdout: str
    seconds: float


@pytest.fixture(scope="session")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Learnt:
    """Eight pictures, by heart. For all tests that need a model which has learnt something: it takes half a minute."""
    from test_training_run import BY_HEART, draw_data

    folder = tmp_path_factory.mktemp("learnt")
    data, out = draw_data(folder / "d", 8), folder / "r"
    command = [sys.executable, "-m", "yolov9.train", "--data", str(data), "--epochs", "120", "--val-every", "20",
               "--out", str(out), *BY_HEART]  # fmt: skip
    began = time.monotonic()
    trained = subprocess.run(command, capture_output=True, text=True, timeout=110)
    assert trained.returncode == 0, trained.stderr
    return Learnt(data, out, trained.stdout, time.monotonic() - began)
