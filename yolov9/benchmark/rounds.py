"""Runs the cells in turns: A B C A B C ..., each in a process of its own. One measures while the others wait, and what
else the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from yolov9.benchmark.cells import Cell, Reference
from yolov9.benchmark.machine import gpu_memory_used
from yolov9.benchmark.worker import Evaluate, Failed, Job, Measure, Ready, Round, serve

_PREPARE_TIMEOUT_S = 1800
"""TensorRT tries kernels for many minutes, inductor compiles for some."""
_EVALUATE_TIMEOUT_S = 6 * 3600
_SLOWEST_CALL_S = 120
"""A round takes its seconds, and at least a few calls more."""
_END_TIMEOUT_S = 10

Say = Callable[[str], None]
Taken = tuple[int, int]
"""(group, round): what was measured in the same one is compared."""


@dataclass
class Result:
    """What became of a cell."""

    cell: Cell
    ready: Ready | None = None
    reason: str | None = None
    """Why it has no figures, or no more of them."""
    rounds: dict[Taken, Round] = field(default_factory=dict)
    gpu_bytes: int | None = None
    """By which the GPU's memory in use grew while it was made ready and ran once."""
    accuracy: dict[str, float] = field(default_factory=dict)
    accuracy_reason: str | None = None


@dataclass(frozen=True)
class Plan:
    """What to measure, and how."""

    cells: Sequence[Cell]
    """In the table's order."""
    always: Sequence[Cell]
    """Measured in every group: the roof."""
    reference: Reference
    """A cell's baseline is measured in the same group as the cell."""
    jobs: Mapping[Cell, Job]
    together: int
    """Cells of a group, for which there must be memory; one baseline more at most."""
    repeat: int
    seconds: float
    evaluations: Mapping[Cell, Evaluate]
    """After the rounds, in the cell's own process."""


class CellError(Exception):
    """The process has failed or ended."""


def run(plan: Plan, say: Say, results: dict[Cell, Result]) -> None:
    """Measure everything into `results`, so that what there is remains after a KeyboardInterrupt."""
    waiting = list(plan.cells)
    group = 0
    while waiting:
        with ExitStack() as stack:
            alive: dict[Cell, _Process] = {}

            def start(cell: Cell, stack: ExitStack = stack, alive: dict[Cell, _Process] = alive) -> None:
                result = results.setdefault(cell, Result(cell))
                if cell in alive or result.reason is not None:  # there already, or tried before in another group
                    return
                process = _start(plan.jobs[cell], result, say)
                if process is not None:
                    stack.callback(process.close)
                    alive[cell] = process

            while waiting and len(alive) < plan.together:
                cell = waiting.pop(0)
                if not (cell in results and results[cell].rounds):  # else it has served as a baseline before
                    start(cell)
                    base = plan.reference.of(cell)
                    if cell in alive and base in plan.jobs:
                        start(base)
            if alive:
                for cell in plan.always:
                    start(cell)
                left = f"; left for later: {_cells(len(waiting))}" if waiting else ""
                say(f"measuring {_cells(len(alive))} in turns{left}")
                _rounds(plan, group, alive, results, say)
        group += 1


def _rounds(plan: Plan, group: int, alive: dict[Cell, _Process], results: dict[Cell, Result], say: Say) -> None:
    """All of one group, then its evaluations."""
    for turn in range(plan.repeat):
        say(f"round {turn + 1} of {plan.repeat}: {_cells(len(alive))}, {plan.seconds:g} s each")
        for cell, process in list(alive.items()):
            try:
                results[cell].rounds[group, turn] = process.measure(plan.seconds)
            except CellError as error:
                _give_up(results[cell], str(error), say)
                del alive[cell]
    for cell, process in alive.items():
        if cell in plan.evaluations and not results[cell].accuracy:
            _evaluate(process, plan.evaluations[cell], results[cell], say)


def _cells(count: int) -> str:
    return f"{count} cell{'s' if count != 1 else ''}"


def _start(job: Job, result: Result, say: Say) -> _Process | None:
    before = gpu_memory_used() if job.device != "cpu" else None
    process = _Process(job)
    try:
        result.ready = ready = process.ready()
    except CellError as error:
        process.close()
        _give_up(result, str(error), say)
        return None
    except BaseException:  # an interrupt: nobody else knows of it yet
        process.close()
        raise
    after = gpu_memory_used() if before is not None else None
    if before is not None and after is not None:
        result.gpu_bytes = max(after - before, 0)
    say(f"{job.cell}: ready after {ready.prepare_s:.1f} s ({ready.precision} on {ready.device})")
    return process


def _give_up(result: Result, reason: str, say: Say) -> None:
    result.reason = reason
    say(f"{result.cell}: no figures: {reason}")


def _evaluate(process: _Process, request: Evaluate, result: Result, say: Say) -> None:
    say(f"{result.cell}: accuracy on {request.data} at {request.input_size}")
    try:
        result.accuracy = process.evaluate(request)
    except CellError as error:
        result.accuracy_reason = str(error)
        say(f"{result.cell}: no accuracy: {error}")


class _Process:
    """The other end of `worker.serve`."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._connection: Connection = ours
        self._process = context.Process(target=serve, args=(theirs, job), daemon=True, name=f"bench {job.cell}")
        self._process.start()
        theirs.close()

    def ready(self) -> Ready:
        answer = self._answer(_PREPARE_TIMEOUT_S)
        assert isinstance(answer, Ready)
        return answer

    def measure(self, seconds: float) -> Round:
        answer = self._ask(Measure(seconds), seconds + 4 * _SLOWEST_CALL_S)
        assert isinstance(answer, Round)
        return answer

    def evaluate(self, request: Evaluate) -> dict[str, float]:
        answer = self._ask(request, _EVALUATE_TIMEOUT_S)
        assert isinstance(answer, dict)
        return answer

    def close(self) -> None:
        """End it: politely, then not."""
        self._connection.close()
        self._process.join(_END_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()

    def _ask(self, request: object, timeout: float) -> object:
        try:
            self._connection.send(request)
        except OSError:  # it has ended: `_answer` says how
            pass
        return self._answer(timeout)

    def _answer(self, timeout: float) -> object:
        """CellError for Failed, silence and the end of the process."""
        try:
            if not self._connection.poll(timeout):
                raise CellError(f"no answer within {timeout:.0f} s")
            answer: object = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(_END_TIMEOUT_S)
            raise CellError(_ending(self._process.exitcode)) from None
        if isinstance(answer, Failed):
            raise CellError(answer.reason)
        return answer


def _ending(code: int | None) -> str:
    if code is not None and code < 0:
        return f"its process was ended by signal {-code}" + (" (out of memory?)" if code == -9 else "")
    return f"its process ended with status {code}"
