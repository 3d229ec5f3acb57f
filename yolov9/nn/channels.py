"""Which channels of a network are one and the same, so that they can only be removed together.

A channel is born in a convolution and lives on through normalisations, activations, pooling and resizing. A sum
(residual, RepConvN, CBFuse) makes two channels one; a concatenation or a cut moves them. `trace` runs the network on
the meta device and follows every single channel through it, instead of knowing the blocks: a block that is written
tomorrow is followed too, or refused by the name of the operation that is not understood. Nothing is guessed, since a
wrong guess would be a wrong network.

Removing channels is exact: what is left computes what the whole network computes where nobody reads them. That is what
the tests check, for every architecture.

Torch-Pruning's dependency graph (1.6.1), which follows layers through autograd, was tried first. It is exact about
plain convolutions, but a tenth of those in gelan-c, gelan-e and yolov9-t cannot be pruned with it: it raises IndexError
or leaves widths that no longer sum up where a block cuts its channels, and does not keep groups equal.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Ids = npt.NDArray[np.int64]
"""Numbers of channels, one for each position of a tensor along its channels."""
CUTS = ("split", "widths")
"""Attributes of blocks that say where channels are cut."""


class ChannelError(ValueError):
    """Channels that do not fit together or cannot be followed: one sentence with the operation."""


@dataclass(frozen=True)
class ConvolutionChannels:
    """Of one convolution: the channels that it reads and those that it makes."""

    inputs: Ids
    outputs: Ids
    groups: int
    pixels: int
    """Height times width of what it makes, for one picture."""

    @property
    def depthwise(self) -> bool:
        """Whether each channel is convolved by itself, so that what is made is what is read."""
        return self.groups == len(self.inputs) == len(self.outputs) and self.groups > 1


@dataclass(frozen=True)
class Channels:
    """Every channel of a network by number, 0 to count-1. Modules go by their names (`model.2.cv1.conv`)."""

    count: int
    convolutions: Mapping[str, ConvolutionChannels]
    norms: Mapping[str, Ids]
    scales: Mapping[str, Ids]
    """Parameters of shape (C, 1, 1) that multiply a map (`model.30.gamma`)."""
    cuts: Mapping[str, Ids]
    """Block -> the channels that it cuts as its attribute says (`CUTS`)."""
    fixed: npt.NDArray[np.bool_]
    """For each channel, whether it is one of the picture or of the head's outputs, which stay."""


def trace(model: nn.Module, height: int = 64, width: int = 64) -> Channels:
    """Follow the channels of a detector (left as it is), those of its auxiliary branch too.

    `height`, `width`: of the picture, for the `pixels` of the convolutions. ChannelError says what does not fit.
    """
    twin = copy.deepcopy(model).to("meta", torch.float32).train()
    image = torch.empty(1, 3, height, width, device="meta")
    mode = _Following(twin, image)
    try:
        with torch.no_grad(), mode:
            outputs = twin(image)
    except ChannelError:
        raise
    except RuntimeError as e:  # shapes that do not fit
        raise ChannelError(str(e).splitlines()[0]) from e
    return mode.result(_tensors(outputs))


def cut_of(block: nn.Module) -> str | None:
    """The attribute of `block` that says where it cuts channels: a list of widths."""
    return next((name for name in CUTS if isinstance(vars(block).get(name), list)), None)


def scales_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with one number for each channel, outside of convolutions and normalisations."""
    return {name: p for name, p in model.named_parameters() if p.ndim == 3 and p.shape[1:] == (1, 1)}


class _Following(TorchFunctionMode):
    """Labels every tensor of a forward pass with its channels."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        super().__init__()
        modules = dict(model.named_modules())
        self._weights = {id(m.weight): n for n, m in modules.items() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)}
        self._lists = {id(vars(m)[a]): n for n, m in modules.items() if (a := cut_of(m)) is not None}
        self._origins = {id(p): (cast(Tensor, p), n) for n, p in scales_of(model).items()}
        self._parents = np.zeros(0, np.int64)
        self._used = 0
        self._labels: dict[int, tuple[Tensor, Ids]] = {}  # the tensors, too: an id lives as long as its object
        self._convolutions: dict[str, ConvolutionChannels] = {}
        self._norms: dict[str, Ids] = {}
        self._scales: dict[str, Ids] = {}
        self._cuts: dict[str, Ids] = {}
        self._image = self._new(image.shape[1])
        self._label(image, self._image)

    def result(self, outputs: Iterable[Tensor]) -> Channels:
        """Same channels get the same number, in order of birth."""
        roots = np.array([self._root(i) for i in range(self._used)], np.int64)
        numbers = np.cumsum(roots == np.arange(self._used))[roots] - 1  # a root is the first born of its channels
        count = int(numbers.max()) + 1
        fixed = np.zeros(count, np.bool_)
        for ids in (self._image, *(self._ids(t) for t in outputs)):
            if ids is None:
                raise ChannelError("an output does not depend on the picture")
            fixed[numbers[ids]] = True
        convolutions = {
            name: ConvolutionChannels(numbers[c.inputs], numbers[c.outputs], c.groups, c.pixels)
            for name, c in self._convolutions.items()
        }
        norms, scales, cuts = (
            {name: numbers[ids] for name, ids in found.items()} for found in (self._norms, self._scales, self._cuts)
        )
        return Channels(count, convolutions, norms, scales, cuts, fixed)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # It changes no shape, and on the meta device it would be three quarters of the time.
        result = torch.empty_like(args[0]) if func is F.batch_norm else func(*args, **kwargs)
        labelled = [ids for t in _tensors([args, kwargs]) if (ids := self._ids(t)) is not None]
        made = _tensors(result)
        if not made:  # a shape, a type
            return result
        if not labelled:
            self._derive(func, args, made)
            return result
        rule = _RULES.get(func)
        if rule is None:
            raise ChannelError(f"channels cannot be followed through {getattr(func, '__name__', func)}")
        for tensor, ids in zip(made, rule(self, args, kwargs, made), strict=True):
            self._label(tensor, ids)
        return result

    def convolution(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> list[Ids]:
        weight = args[1] if len(args) > 1 else kwargs["weight"]
        groups = args[6] if len(args) > 6 else kwargs.get("groups", 1)
        name, inputs = self._module(weight, "convolution"), self._of(args[0])
        if groups > 1 and groups == len(inputs) == len(weight):  # depthwise: each channel stays itself
            outputs = inputs
        else:
            outputs = self._new(len(weight))
        height, width = made[0].shape[-2:]
        self._convolutions[name] = ConvolutionChannels(inputs, outputs, groups, height * width)
        return [outputs]

    def norm(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> list[Ids]:
        ids, weight = self._of(args[0]), kwargs["weight"]
        name = self._module(weight, "normalisation")
        if len(weight) != len(ids):
            raise ChannelError(f"{name} normalises {len(weight)} channels of a map of {len(ids)}")
        self._norms[name] = ids
        return [ids]

    def same(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> list[Ids]:
        return [self._of(args[0])]

    def total(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> list[Ids]:
        left, right = (self._ids(x) if isinstance(x, Tensor) else None for x in args[:2])
        if left is None or right is None:
            raise ChannelError("channels cannot be followed through a sum with a constant")
        if len(left) != len(right):
            raise ChannelError(f"a sum of {len(left)} and {len(right)} channels")
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            a, b = self._root(a), self._root(b)
            self._parents[max(a, b)] = min(a, b)
        return [left]

    def scaled(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> list[Ids]:
        ids, factor = (args[0], args[1]) if self._ids(args[0]) is not None else (args[1], args[0])
        ids = self._of(ids)
        if isinstance(factor, Tensor):
            origin = self._origins.get(id(factor))
            if origin is None or factor.shape != (len(ids), 1, 1):
                raise ChannelError("channels cannot be followed through a product")
            self._scales[origin[1]] = ids
        return [ids]

    def joined(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> list[Ids]:
        if (args[1] if len(args) > 1 else kwargs.get("dim", 0)) != 1:
            raise ChannelError("maps are joined along another axis than their channels")
        return [np.concatenate([self._of(t) for t in args[0]])]

    def cut(self, args: Sequence[Any], kwargs: Mapping[str, Any], made: Sequence[Tensor]) -> list[Ids]:
        ids, sizes = self._of(args[0]), args[1] if len(args) > 1 else kwargs["split_size"]
        if (args[2] if len(args) > 2 else kwargs.get("dim", 0)) != 1:
            raise ChannelError("a map is cut along another axis than its channels")
        if id(sizes) not in self._lists:
            raise ChannelError(f"a map is cut into {sizes}, which is not the {' or '.join(CUTS)} of a block")
        self._cuts[self._lists[id(sizes)]] = ids
        return np.split(ids, np.cumsum(sizes)[:-1])

    def _derive(self, func: Callable[..., Any], args: Sequence[Any], made: Sequence[Tensor]) -> None:
        """What is computed channel by channel from a parameter stays in its order."""
        origins = {self._origins[id(t)][1] for t in _tensors(args) if id(t) in self._origins}
        if func in _BY_CHANNEL and len(origins) == 1:
            self._origins[id(made[0])] = made[0], origins.pop()

    def _module(self, weight: Any, kind: str) -> str:
        name: str | None = self._weights.get(id(weight))
        if name is None:
            raise ChannelError(f"a {kind} whose weights are not those of a module")
        if name in self._convolutions or name in self._norms:
            raise ChannelError(f"{name} is used twice")
        return name

    def _of(self, tensor: Any) -> Ids:
        ids = self._ids(tensor)
        if ids is None:
            raise ChannelError("a map that does not depend on the picture is mixed with one that does")
        return ids

    def _ids(self, tensor: Any) -> Ids | None:
        found = self._labels.get(id(tensor))
        return None if found is None else found[1]

    def _label(self, tensor: Tensor, ids: Ids) -> None:
        if tensor.ndim != 4 or tensor.shape[1] != len(ids):
            raise ChannelError(f"a map of shape {tuple(tensor.shape)} that has {len(ids)} channels")
        self._labels[id(tensor)] = tensor, ids

    def _new(self, count: int) -> Ids:
        ids = np.arange(self._used, self._used + count)
        self._used += count
        self._parents = np.concatenate((self._parents, ids))
        return ids

    def _root(self, i: int) -> int:
        while self._parents[i] != i:
            self._parents[i] = self._parents[self._parents[i]]
            i = int(self._parents[i])
        return i


_Rule = Callable[[_Following, Sequence[Any], Mapping[str, Any], Sequence[Tensor]], list[Ids]]
_SAME: tuple[Callable[..., Any], ...] = (
    F.silu, F.relu, F.leaky_relu, F.hardswish, F.avg_pool2d, F.max_pool2d, F.interpolate, F.dropout2d,
    Tensor.contiguous, Tensor.clone, Tensor.detach,
)  # fmt: skip
"""Each channel from itself, and 0 from 0."""
_BY_CHANNEL = {
    torch.where, Tensor.where, Tensor.abs, Tensor.neg, Tensor.lt, Tensor.gt, Tensor.__lt__, Tensor.__gt__, Tensor.add,
    Tensor.sub, Tensor.mul, Tensor.__sub__, Tensor.__mul__, Tensor.__add__, Tensor.detach,
}  # fmt: skip
"""Of parameters: each entry from the entries at the same place."""
_RULES: dict[Callable[..., Any], _Rule] = {
    torch.conv2d: _Following.convolution,
    F.batch_norm: _Following.norm,
    **dict.fromkeys(_SAME, _Following.same),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__), _Following.total),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _Following.scaled),
    torch.cat: _Following.joined,
    torch.split: _Following.cut,
    Tensor.split: _Following.cut,
}


def _tensors(tree: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists and tables, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, Mapping):
        tree = list(tree.values())
    return [t for branch in tree for t in _tensors(branch)] if isinstance(tree, list | tuple) else []
