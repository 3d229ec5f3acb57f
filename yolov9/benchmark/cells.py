"""What is measured: the cells of the table, and what each is compared with. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Mode = Literal["latency", "throughput"]
MODES: tuple[Mode, ...] = ("latency", "throughput")
ROOF = "roof"
"""The engine's name of a cell that measures what the machine can do at best, instead of a model."""


@dataclass(frozen=True, order=True)
class Cell:
    """One model in one engine, as it would be served. A process of its own."""

    model: str
    """Label, unique in the run."""
    width: int
    height: int
    batch: int
    engine: str
    precision: str
    """As asked for; auto is the engine's own choice."""
    mode: Mode

    def __str__(self) -> str:
        if self.engine == ROOF:
            return f"roof {self.precision}"
        return f"{self.model} {self.engine} {self.precision} {self.width}x{self.height} b{self.batch} {self.mode}"


@dataclass(frozen=True)
class Reference:
    """`--baseline`: the fields that a cell's baseline has instead of its own; the others are the cell's."""

    model: str | None = None
    width: int | None = None
    height: int | None = None
    batch: int | None = None
    engine: str | None = None
    precision: str | None = None
    mode: Mode | None = None

    def of(self, cell: Cell) -> Cell:
        fields = ("model", "width", "height", "batch", "engine", "precision", "mode")
        return replace(cell, **{f: getattr(self, f) for f in fields if getattr(self, f) is not None})

    def __str__(self) -> str:
        shape = f"{self.width}x{self.height}" if self.width else None
        batch = f"b{self.batch}" if self.batch else None
        return ",".join(x for x in (self.model, self.engine, self.precision, shape, batch, self.mode) if x)


def table(
    models: Sequence[str],
    shapes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    engines: Sequence[str],
    precisions: Sequence[str],
    modes: Sequence[Mode],
) -> list[Cell]:
    """Every combination, what is to be compared next to each other. `shapes`: (width, height)."""
    return [
        Cell(model, *shape, batch, engine, precision, mode)
        for model, shape, batch, engine, precision, mode in itertools.product(
            models, shapes, batches, engines, precisions, modes
        )
    ]


def reference(text: str, cells: Sequence[Cell]) -> Reference:
    """From words such as `openvino,bf16,640x640,b1`, in any order. ValueError for one that no cell has."""
    found: dict[str, str | int] = {}
    for word in filter(None, text.split(",")):
        for field in ("engine", "precision", "mode", "model", "shape", "batch"):
            fitting = [cell for cell in cells if _word(cell, field) == word]
            if fitting:
                cell = fitting[0]
                fields = ("width", "height") if field == "shape" else (field,)
                found.update({f: getattr(cell, f) for f in fields})
                break
        else:
            raise ValueError(
                f"baseline: {word!r} is no model, engine, precision, shape, batch (b1) or mode of this run"
            )
    if not found:
        raise ValueError("baseline: names nothing")
    return Reference(**found)  # type: ignore[arg-type]  # each value was read from the field of that name


def _word(cell: Cell, field: str) -> str:
    if field == "shape":
        return f"{cell.width}x{cell.height}"
    return f"b{cell.batch}" if field == "batch" else str(getattr(cell, field))


def roof_cells(precisions: Iterable[str]) -> list[Cell]:
    return [Cell(ROOF, 0, 0, 1, ROOF, precision, "latency") for precision in precisions]
