"""The choices that pruning has: sets of channels of which any may go, and what the network costs without them.

Channels that are made and read by the same convolutions at the same places are interchangeable: a *space*. A space is
what people call a width, except that a width which is cut in two, or joined from two, is two spaces. Where a grouped
convolution reads or makes channels, its groups are the *parts* of one space, and each must keep as many as the others.

Of a training model the main branch alone is pruned and paid for. The auxiliary one, which is never served, follows
where it reads what is removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt
from torch import nn

from yolov9.nn.architecture import DetectLayer
from yolov9.nn.channels import Channels, ConvolutionChannels, Ids, cut_of, trace
from yolov9.nn.model import Detector

_Token = tuple[str, str, int]
"""Where a channel occurs: module; out, in, cut or all of it; which group or part."""


class PruneError(Exception):
    """The model cannot be pruned as asked. One sentence."""


@dataclass(frozen=True)
class Space:
    """Interchangeable channels. Removing one *row* takes one channel of each part."""

    name: str
    """The first convolution that makes them, in the architecture's words; `stage3.cv1.conv#2` is its second space."""
    parts: tuple[Ids, ...]
    """One array of channel numbers for each group, all of one length; a single one where nothing is grouped."""

    @property
    def rows(self) -> int:
        return len(self.parts[0])

    @property
    def width(self) -> int:
        """Channels in all."""
        return self.rows * len(self.parts)


@dataclass(frozen=True)
class Network:
    """A detector, its channels, and the spaces that may be pruned."""

    model: Detector
    channels: Channels
    spaces: tuple[Space, ...]


def network(model: Detector, height: int = 640, width: int = 640, protect: Sequence[str] = ()) -> Network:
    """Follow the channels of `model` and sort them into spaces. `height`, `width`: of the picture that costs count for.

    `protect`: patterns (`stem*`, `model.22.*`, `detect.cv2.*`); the output channels of convolutions whose name matches,
    in the architecture's words or in the checkpoint's, stay. PruneError for a pattern that matches none; ChannelError.
    """
    channels = trace(model, height, width)
    labels = {name: label(model, name) for name in channels.convolutions}
    fixed = channels.fixed.copy()
    for pattern in protect:
        matching = [name for name in labels if any(_matches(n, pattern) for n in (name, labels[name]))]
        if not matching:
            raise PruneError(f"no layer is called {pattern!r}; there are {', '.join(list(labels.values())[:6])}, ...")
        for name in matching:
            fixed[channels.convolutions[name].outputs] = True
    return Network(model, channels, tuple(_spaces(model, channels, labels, fixed)))


def label(model: Detector, name: str) -> str:
    """A module's name in the architecture's words: `model.4.cv1.conv` of gelan-t is `stage3.cv1.conv`."""
    _, position, *rest = name.split(".")
    return ".".join((model.arch.layers[int(position)].name, *rest))


def auxiliary(model: Detector, name: str) -> bool:
    """Whether a module belongs to the auxiliary branch or its part of the head, and is not served."""
    _, position, *rest = name.split(".")
    layer = model.arch.layers[int(position)]
    first = isinstance(layer.layer, DetectLayer) and model.head.dual and rest[0] in ("cv2", "cv3")
    return layer.section == "auxiliary" or first


class Cost:
    """Operations of the main branch's convolutions, kept up to date while rows are taken away."""

    def __init__(self, of: Network) -> None:
        convolutions = of.channels.convolutions
        modules = dict(of.model.named_modules())
        self._names = {name: i for i, name in enumerate(convolutions)}
        self._inputs = np.array([len(c.inputs) for c in convolutions.values()], np.float64)
        self._outputs = np.array([len(c.outputs) for c in convolutions.values()], np.float64)
        self._unit = np.array(
            [0.0 if auxiliary(of.model, n) else _unit(modules[n], c) for n, c in convolutions.items()]
        )
        self._rows = self._per_row(of)

    @property
    def gflops(self) -> float:
        """2 x multiply-adds of one picture, in billions."""
        return float((self._inputs * self._outputs * self._unit).sum() / 1e9)

    def saved(self, space: int, rows: int) -> float:
        """GFLOPs that removing so many rows of that space saves now."""
        at, inputs, outputs = self._rows[space]
        before = self._inputs[at] * self._outputs[at]
        after = (self._inputs[at] - rows * inputs) * (self._outputs[at] - rows * outputs)
        return float(((before - after) * self._unit[at]).sum() / 1e9)

    def remove(self, space: int, rows: int) -> None:
        at, inputs, outputs = self._rows[space]
        self._inputs[at] -= rows * inputs
        self._outputs[at] -= rows * outputs

    def _per_row(self, of: Network) -> list[tuple[Ids, npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
        """For each space: convolutions, and the inputs and outputs that each loses with one row."""
        owner = np.full(of.channels.count, -1, np.int64)
        for number, space in enumerate(of.spaces):
            owner[np.concatenate(space.parts)] = number
        lost: list[dict[int, tuple[float, float]]] = [{} for _ in of.spaces]
        for name, conv in of.channels.convolutions.items():
            inputs = np.bincount(owner[conv.inputs] + 1, minlength=len(of.spaces) + 1)[1:]
            outputs = np.bincount(owner[conv.outputs] + 1, minlength=len(of.spaces) + 1)[1:]
            for number in np.flatnonzero(inputs + outputs).tolist():
                rows = of.spaces[number].rows
                lost[number][self._names[name]] = inputs[number] / rows, outputs[number] / rows
        return [
            (np.array(list(x), np.int64), np.array([i for i, _ in x.values()]), np.array([o for _, o in x.values()]))
            for x in lost
        ]


def _unit(conv: nn.Module, channels: ConvolutionChannels) -> float:
    """Operations for each pair of an input and an output channel."""
    assert isinstance(conv, nn.Conv2d)
    return 2 * channels.pixels * conv.kernel_size[0] * conv.kernel_size[1] / conv.groups


def _matches(name: str, pattern: str) -> bool:
    """Whole name, or any number of its leading parts."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _spaces(
    model: Detector, channels: Channels, labels: dict[str, str], fixed: npt.NDArray[np.bool_]
) -> Iterator[Space]:
    cells, of_channel = _cells(model, channels)
    ties = _ties(channels, cells, of_channel)
    namesakes: dict[str, int] = defaultdict(int)
    for members in ties:
        parts = tuple(cells[m] for m in members)
        if len({len(part) for part in parts}) > 1 or any(fixed[part].any() for part in parts):
            continue
        makers = [n for n, c in channels.convolutions.items() if parts[0][0] in c.outputs]
        if all(auxiliary(model, n) for n in makers):
            continue
        name = labels[makers[0]]
        namesakes[name] += 1
        yield Space(name if namesakes[name] == 1 else f"{name}#{namesakes[name]}", parts)


def _cells(model: Detector, channels: Channels) -> tuple[list[Ids], Ids]:
    """Channels by where they occur, and for each channel the number of its cell."""
    places: list[set[_Token]] = [set() for _ in range(channels.count)]

    def note(ids: Ids, name: str, role: str, pieces: Sequence[int]) -> None:
        for piece, part in enumerate(np.split(ids, np.cumsum(pieces)[:-1])):
            for channel in part.tolist():
                places[channel].add((name, role, piece))

    modules = dict(model.named_modules())
    for name, conv in channels.convolutions.items():
        for role, ids in (("in", conv.inputs), ("out", conv.outputs)):
            note(ids, name, role, [len(ids) // conv.groups] * conv.groups)
    for name, ids in (*channels.norms.items(), *channels.scales.items()):
        note(ids, name, "all", [len(ids)])
    for name, ids in channels.cuts.items():
        attribute = cut_of(modules[name])
        assert attribute is not None
        note(ids, name, "cut", getattr(modules[name], attribute))
    numbers: dict[frozenset[_Token], int] = {}
    of_channel = np.array([numbers.setdefault(frozenset(p), len(numbers)) for p in places], np.int64)
    return [np.flatnonzero(of_channel == n) for n in range(len(numbers))], of_channel


def _ties(channels: Channels, cells: list[Ids], of_channel: Ids) -> list[list[int]]:
    """Cells that must stay equally wide, together; those that cannot be told apart group by group are left out."""
    tied = list(range(len(cells)))
    impossible: set[int] = set()
    for conv in channels.convolutions.values():
        if conv.groups == 1 or conv.depthwise:
            continue
        for ids in (conv.inputs, conv.outputs):
            found = [np.unique(of_channel[group]) for group in np.split(ids, conv.groups)]
            if any(len(group) > 1 for group in found):  # several spaces in a group: none is tied to one of another's
                impossible.update(int(cell) for group in found for cell in group)
                continue
            first, *others = (int(group[0]) for group in found)
            for other in others:
                tied = [tied[first] if t == tied[other] else t for t in tied]
    families: dict[int, list[int]] = defaultdict(list)
    for cell, family in enumerate(tied):
        families[family].append(cell)
    return [members for members in families.values() if not impossible.intersection(members)]
