"""What a run tells: a line of results an epoch (CSV, TensorBoard where it is installed), and a bar while it runs."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yolov9.files import write_file

RESULTS = "results.csv"
_LINE_S = 15.0
"""Between lines of progress where the output is no terminal."""


class Journal:
    """`results.csv` of a run. An epoch that was written before a kill and is run again replaces its line."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RESULTS
        self._board: Any = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))

    def add(self, epoch: int, figures: Mapping[str, float]) -> None:
        rows = [row for row in read_results(self._path) if int(row["epoch"]) < epoch]
        rows.append({"epoch": str(epoch), **{key: f"{value:.6g}" for key, value in figures.items()}})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
        write_file(self._path, text.getvalue().encode())
        if self._board is not None:
            for key, value in figures.items():
                self._board.add_scalar(key, value, epoch)
            self._board.flush()

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


def read_results(path: Path) -> list[dict[str, str]]:
    """Rows of a `results.csv`; none if there is none."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


class Bar:
    """One epoch's progress on stderr: rewritten in place on a terminal, else a line now and then."""

    def __init__(self, title: str, batches: int, done: int, batch: int) -> None:
        self._title = title
        self._batches = batches
        self._batch = batch
        self._first = done
        self._began = time.monotonic()
        self._said = self._began
        self._terminal = sys.stderr.isatty()

    def step(self, done: int, text: str, later_epochs: int) -> None:
        """`later_epochs`: those that follow this one, for the time that is left."""
        now = time.monotonic()
        if now - self._said < (0.2 if self._terminal else _LINE_S) and done < self._batches:
            return
        self._said = now
        each = (now - self._began) / max(done - self._first, 1)
        left = each * (self._batches - done + later_epochs * self._batches)
        line = (
            f"{self._title} {done}/{self._batches} {text} {self._batch / each:.1f} images/s, "
            f"{_memory()}, left {int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d}"
        )
        print(f"\r{line}\x1b[K" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        if self._terminal and done == self._batches:
            print(file=sys.stderr)


def _memory() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return f"{pages * 4096 / 2**30:.1f} GiB"
