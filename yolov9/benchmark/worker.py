"""The process of one cell: makes its engine, runs it for a while whenever it is asked to, and says what it took.

A process for each cell: memory is the cell's own, threads and settings of one engine do not touch another, and an
engine that crashes takes only its cell with it. Nothing heavy is imported at the top: what is loaded, is counted.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from yolov9.benchmark.cells import ROOF, Cell
from yolov9.benchmark.machine import peak_memory

_LEAST_RUNS = 3
"""In a round, however long they take."""


@dataclass(frozen=True)
class Job:
    """Everything that the process needs to know."""

    cell: Cell
    bundle: str
    """Folder; empty for the roof."""
    threads: int
    device: str
    suppress: bool
    """Suppression is part of an inference, as the server does it."""


@dataclass(frozen=True)
class Ready:
    precision: str
    """What the engine really computes in."""
    device: str
    parallel: int
    prepare_s: float
    """From the start of the process' own work to the end of the first inference."""
    roof_operations: int | None


@dataclass(frozen=True)
class Failed:
    reason: str


@dataclass(frozen=True)
class Round:
    """What one turn took."""

    milliseconds: list[float]
    """Of each call; with several callers of all of them."""
    images_per_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Measure:
    seconds: float


@dataclass(frozen=True)
class Evaluate:
    data: str
    split: str
    limit: int | None
    input_size: int


def serve(connection: Connection, job: Job) -> None:
    """Main function of the process. Answers Ready or Failed, then Round to each Measure, figures or Failed to each
    Evaluate, until the other end closes."""
    if threading.current_thread() is threading.main_thread():
        # Ctrl-C goes to all processes of the terminal: the one that measures ends the others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        began = time.perf_counter()
        engine = _engine(job)
        run = _call(engine, job)
        run()
        connection.send(
            Ready(engine.precision, engine.device, engine.parallel, time.perf_counter() - began,
                  getattr(engine, "operations", None))
        )  # fmt: skip
        while True:
            request = connection.recv()
            if isinstance(request, Measure):
                connection.send(_measure(run, engine.parallel, job.cell, request.seconds))
            elif isinstance(request, Evaluate):
                connection.send(_evaluate(engine, job.bundle, request))
    except (EOFError, BrokenPipeError):
        return
    except Exception as error:  # whatever an engine raises is the cell's result, not a crash
        connection.send(Failed(reason(error)))


def reason(error: Exception) -> str:
    """One line for the table. Errors of ours are sentences; others need their name."""
    kind = type(error)
    text = " ".join(str(error).split()) or kind.__name__
    return text if kind.__module__.startswith("yolov9.") else f"{kind.__name__}: {text}"


def _engine(job: Job) -> Any:
    cell = job.cell
    if cell.engine == ROOF:
        from yolov9.benchmark.roof import Roof

        return Roof(cell.precision, job.threads, job.device)
    from yolov9.bundle import Bundle
    from yolov9.engines import make

    bundle = Bundle.load(job.bundle)
    if cell.engine.startswith("torch-"):
        from yolov9.benchmark.torch_variants import TorchVariant

        return TorchVariant(
            bundle, cell.engine, precision=cell.precision, device=job.device, threads=job.threads, max_batch=cell.batch
        )
    return make(
        bundle, cell.engine, cell.precision,
        threads=job.threads, max_batch=cell.batch, mode=cell.mode, device=job.device,
    )  # fmt: skip


def _call(engine: Any, job: Job) -> Callable[[], object]:
    """One inference of the cell's batch of random pictures: nothing to be found, so suppression has its least work."""
    import numpy as np

    cell = job.cell
    random = np.random.default_rng(0)
    images = [random.integers(0, 256, (cell.height, cell.width, 3), np.uint8) for _ in range(cell.batch)]
    if not job.suppress or cell.engine == ROOF:
        return lambda: engine.infer(images)
    from yolov9.engines.base import Limits, SuppressingEngine
    from yolov9.geometry import Letterbox
    from yolov9.postprocess import postprocess

    if isinstance(engine, SuppressingEngine):
        return lambda: engine.detect(images, [Limits()] * len(images))
    box = Letterbox.fit(cell.width, cell.height, cell.width, cell.height)
    return lambda: [postprocess(prediction, box, 0.25, 0.7) for prediction in engine.infer(images)]


def _measure(run: Callable[[], object], callers: int, cell: Cell, seconds: float) -> Round:
    """Call again and again for `seconds`, from `callers` threads in throughput mode."""
    count = callers if cell.mode == "throughput" else 1
    spent: list[list[float]] = [[] for _ in range(count)]
    errors: list[Exception] = []
    at_once = threading.Barrier(count + 1)

    def work(mine: list[float]) -> None:
        try:
            run()  # what lay in the caches was another cell's
            at_once.wait()
            before = time.perf_counter()
            until = before + seconds
            while before < until or len(mine) < _LEAST_RUNS:
                run()
                after = time.perf_counter()
                mine.append(after - before)
                before = after
        except threading.BrokenBarrierError:
            pass  # another thread has failed
        except Exception as error:  # handed to the thread that waits
            errors.append(error)
            at_once.abort()

    threads = [threading.Thread(target=work, args=(mine,)) for mine in spent]
    for thread in threads:
        thread.start()
    try:
        at_once.wait()
    except threading.BrokenBarrierError:
        pass  # the error is raised below
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    # Each caller's own rate: they end at different times, and a rate over the longest would be too low.
    rate = sum(len(mine) / sum(mine) for mine in spent) * cell.batch
    return Round([1e3 * t for mine in spent for t in mine], rate, peak_memory())


def _evaluate(engine: Any, bundle: str, request: Evaluate) -> dict[str, float]:
    from yolov9.bundle import Bundle
    from yolov9.data import open_dataset
    from yolov9.val import evaluate

    dataset = open_dataset(request.data, request.split)
    report = evaluate(
        engine, dataset, names=Bundle.load(bundle).names, input_size=request.input_size, limit=request.limit
    )
    return dict(report.metrics)
