"""A detector: the layers of an architecture, run in order, and what one does with a trained one.

`build` makes a new model. Checkpoints are `yolov9.weights`' business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, Unpack, assert_never

from torch import Tensor, nn

from yolov9.nn import blocks
from yolov9.nn.ablation import Options, ablate
from yolov9.nn.architecture import (
    IMAGE,
    Architecture,
    ArchitectureError,
    ConcatLayer,
    ConvLayer,
    DetectLayer,
    DownLayer,
    FuseLayer,
    GelanLayer,
    IdentityLayer,
    Layer,
    LinearLayer,
    PyramidLayer,
    ReversibleLayer,
    StageLayer,
    UpsampleLayer,
)
from yolov9.nn.head import Detect, RawOutputs, Towers
from yolov9.nn.reversible import Reversible

if TYPE_CHECKING:
    from yolov9.detection import Picture

Classes = int | Sequence[str] | Mapping[int, str]
"""How many, or their names in order, or {id: name} with ids 0, 1, 2, ..."""


def build(
    name: str | Architecture,
    classes: Classes = 80,
    *,
    class_width: int | None = None,
    box_groups: int = 4,
    **options: Unpack[Options],
) -> Detector:
    """A new model with random weights, in training mode.

    `name`: an architecture such as `gelan-t` (inference) or `yolov9-t` (training, with the auxiliary branch), or one of
    your own (`yolov9.nn.architecture.parse`).
    `class_width`, `box_groups`: of the head's towers, for layouts of other implementations.
    `options`: the paper's ablations, such as `auxiliary="pgi", computation="res"`: see `yolov9.nn.ablation`.
    ArchitectureError or ValueError say what does not fit.
    """
    if isinstance(name, str):
        arch = ablate(name, **options)
    elif options:
        raise ArchitectureError(f"{name.name}: {', '.join(options)}: options are for packaged architectures")
    else:
        arch = name
    towers = Towers(class_width, box_groups)
    return Detector(arch, class_names(classes), towers, towers)


def class_names(classes: Classes) -> dict[int, str]:
    """{id: name} with ids 0..n-1. A number gives class0, class1, ...; ValueError for anything that is not a table."""
    if isinstance(classes, int):
        names = {i: f"class{i}" for i in range(classes)}
    elif isinstance(classes, Mapping):
        names = {int(i): str(classes[i]) for i in sorted(classes)}
    elif isinstance(classes, str):
        raise ValueError(f"classes: wants a number, a list or a table of names, not the one name {classes!r}")
    else:
        names = {i: str(c) for i, c in enumerate(classes)}
    if not names or list(names) != list(range(len(names))):
        raise ValueError(f"classes: ids want to be 0, 1, 2, ... without gaps, not {list(names)[:8]}")
    return names


class Detector(nn.Module):
    """`model(images)`: (B, 3, H, W) float RGB in 0..1, H and W multiples of `stride`.

    In eval mode gives (B, 4 + classes, A): x1, y1, x2, y2 in input pixels, then scores in 0..1; the auxiliary branch is
    not run. In training mode gives `RawOutputs` for a loss.
    """

    def __init__(
        self, arch: Architecture, names: Mapping[int, str], towers: Towers, auxiliary_towers: Towers | None = None
    ) -> None:
        super().__init__()
        self.names = dict(names)
        """{class id: name}"""
        self.arch = arch
        self.model = _modules(arch, len(names), towers, auxiliary_towers or towers)

    @property
    def name(self) -> str:
        """The architecture's: gelan-t, ..., yolov9-e."""
        return self.arch.name

    @property
    def head(self) -> Detect:
        head = self.model[-1]
        assert isinstance(head, Detect)
        return head

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels a cell, finest level first."""
        return self.head.strides

    @property
    def stride(self) -> int:
        """The coarsest: height and width of an input are multiples of it."""
        return max(self.strides)

    @property
    def fused(self) -> bool:
        """Whether batch normalisation is folded away: for inference only."""
        return not any(isinstance(m, nn.BatchNorm2d) for m in self.modules())

    def __call__(self, images: Tensor) -> Any:
        return super().__call__(images)

    def forward(self, images: Tensor) -> Tensor | RawOutputs:
        if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] % self.stride or images.shape[3] % self.stride:
            raise ValueError(
                f"images of shape {tuple(images.shape)}, not (B, 3, H, W) with H and W multiples of {self.stride}"
            )
        outputs: dict[str, Any] = {IMAGE: images}
        for position, named in enumerate(self.arch.layers):
            if named.section == "auxiliary" and not self.training:
                continue
            sources = [outputs[s] for s in named.sources]
            if isinstance(named.layer, DetectLayer):
                auxiliary = [outputs[s] for s in named.auxiliary] if self.training else []
                result: Tensor | RawOutputs = self.head(sources, auxiliary)
                return result
            takes_list = isinstance(named.layer, ConcatLayer | FuseLayer | ReversibleLayer)
            outputs[named.name] = self.model[position](sources if takes_list else sources[0])
            for done in self.arch.last_reads[position]:
                del outputs[done]
        raise AssertionError("an architecture ends with its head")

    def prune_auxiliary(self) -> Self:
        """Take the auxiliary branch away, in place: yolov9-t becomes gelan-t, with the same weights and outputs."""
        if self.arch.head.auxiliary:
            modules = {x.name: m for x, m in zip(self.arch.layers, self.model, strict=True)}
            self.arch = self.arch.inference
            self.model = nn.ModuleList(modules[x.name] for x in self.arch.layers)
            self.head.drop_auxiliary()
        return self

    def detect(
        self,
        pictures: Picture | list[Picture],
        confidence: float = 0.25,
        iou: float = 0.7,
        *,
        input_size: int = 640,
    ) -> Any:
        """Detections in a picture: (n, 6) float32 with x1, y1, x2, y2 in its pixels, confidence, class id; best first.

        A picture is (h, w, 3) uint8 RGB, a Pillow image or the path of an image file; a list of them gives a list.
        `input_size`: long side of what the model sees, a multiple of 32; a 16:9 picture runs at 640x384.
        """
        from yolov9.detection import detect  # with it come PyAV and Pillow, which a network does without

        if isinstance(pictures, list):
            return detect(self, pictures, confidence, iou, input_size)
        return detect(self, [pictures], confidence, iou, input_size)[0]

    def fuse(self) -> Self:
        """Fold batch normalisation and RepConvN into single convolutions, in place. Outputs move by rounding only."""
        for module in list(self.modules()):
            if isinstance(module, blocks.RepConvN | blocks.Conv):
                module.fuse()
        return self


@dataclass(frozen=True)
class _Output:
    """What a layer gives: channels of its map and input pixels a cell. CBLinear gives several maps, `maps` wide."""

    channels: int
    stride: int
    maps: tuple[int, ...] = ()


def _modules(arch: Architecture, classes: int, towers: Towers, auxiliary_towers: Towers) -> nn.ModuleList:
    """A module for each layer, by number. Follows channels and strides through the network and checks that they fit."""
    outputs = {IMAGE: _Output(3, 1)}
    modules = nn.ModuleList()
    for named in arch.layers:
        inputs = [outputs[s] for s in named.sources]
        try:
            if not isinstance(named.layer, FuseLayer) and any(x.maps for x in inputs):
                raise ValueError("only CBFuse reads CBLinear")
            if isinstance(named.layer, DetectLayer):
                auxiliary = [outputs[s] for s in named.auxiliary]
                modules.append(_detect(inputs, auxiliary, classes, towers, auxiliary_towers))
            else:
                module, outputs[named.name] = _block(named.layer, inputs)
                modules.append(module)
        except ValueError as e:
            raise ArchitectureError(f"{arch.name}: {named.section}.{named.name}: {e}") from e
    return modules


def _block(layer: Layer, inputs: Sequence[_Output]) -> tuple[nn.Module, _Output]:
    """Module of one layer that is not the head, and what it gives."""
    c1, stride = inputs[0].channels, inputs[0].stride
    match layer:
        case IdentityLayer():
            return nn.Identity(), inputs[0]
        case ConvLayer(channels=c2):
            return blocks.Conv(c1, c2, layer.kernel, layer.stride), _Output(c2, stride * layer.stride)
        case DownLayer(block="AConv", channels=c2):
            return blocks.AConv(c1, c2), _Output(c2, stride * 2)
        case DownLayer(channels=c2):
            if c1 % 2:
                raise ValueError(f"ADown cannot split {c1} channels in two")
            return blocks.ADown(c1, c2), _Output(c2, stride * 2)
        case StageLayer(block="ELAN1", channels=c2):
            return blocks.ELAN1(c1, c2, layer.hidden, layer.branch), _Output(c2, stride)
        case StageLayer(channels=c2):
            stage = blocks.RepNCSPELAN4(c1, c2, layer.hidden, layer.branch, layer.repeats)
            return stage, _Output(c2, stride)
        case GelanLayer(channels=c2):
            options = layer.model_dump(include={"computation", "depth", "repeats"})
            return blocks.GELAN(c1, c2, layer.hidden, layer.branch, **options), _Output(c2, stride)
        case PyramidLayer(channels=c2):
            return blocks.SPPELAN(c1, c2, layer.hidden), _Output(c2, stride)
        case UpsampleLayer():
            if stride % 2:
                raise ValueError(f"Upsample of a map of stride {stride}")
            return nn.Upsample(scale_factor=2, mode="nearest"), _Output(c1, stride // 2)
        case ConcatLayer():
            if len({x.stride for x in inputs}) != 1:
                raise ValueError(f"Concat joins maps of different strides {[x.stride for x in inputs]}")
            return blocks.Concat(), _Output(sum(x.channels for x in inputs), stride)
        case LinearLayer(widths=widths):
            return blocks.CBLinear(c1, widths), _Output(0, stride, tuple(widths))
        case FuseLayer(split=split):
            *linears, target = inputs
            if target.maps or not all(x.maps for x in linears):
                raise ValueError("CBFuse reads CBLinear, and one map to add to as the last source")
            if any(x.maps[split : split + 1] != (target.channels,) for x in linears):
                maps = [list(x.maps) for x in linears]
                raise ValueError(f"CBFuse adds map {split} of {maps} to a map of {target.channels} channels")
            return blocks.CBFuse(split), target
        case ReversibleLayer():
            if len(inputs) != 2 or inputs[0] != inputs[1]:
                shapes = [(x.channels, x.stride) for x in inputs]
                raise ValueError(f"Reversible adds two maps of one shape, not (channels, stride) {shapes}")
            return Reversible(c1), inputs[0]
        case DetectLayer():
            raise AssertionError("the head is built by _detect")
    assert_never(layer)


def _detect(
    main: Sequence[_Output], auxiliary: Sequence[_Output], classes: int, towers: Towers, auxiliary_towers: Towers
) -> Detect:
    strides = [x.stride for x in main]
    if auxiliary and [x.stride for x in auxiliary] != strides:
        raise ValueError(f"auxiliary levels of strides {[x.stride for x in auxiliary]}, main ones of {strides}")
    channels, more = [x.channels for x in main], [x.channels for x in auxiliary]
    return Detect(channels, strides, classes, towers, more, auxiliary_towers)
