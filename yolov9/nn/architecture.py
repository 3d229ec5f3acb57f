"""Architectures as data: `configs/models/NAME.yaml`, read and checked. Knows nothing of torch.

A file has sections of named layers: `backbone`, `neck`, `auxiliary` (training only) and `head`. A layer names its
block, the block's parameters and where its input comes `from`: names of earlier layers, `image`, or, if left out, the
layer before. The order in the file, across sections, is the layer's number in checkpoints (`model.N...`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError

IMAGE = "image"
"""The source that every architecture has: the input picture, 3 channels."""
Section = Literal["backbone", "neck", "auxiliary", "head"]
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class ArchitectureError(ValueError):
    """An architecture that cannot be built: one sentence with its name and the layer's."""


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sources: list[str] = Field(default=[], alias="from")


class IdentityLayer(_Layer):
    block: Literal["Identity"]


class ConvLayer(_Layer):
    block: Literal["Conv"]
    channels: PositiveInt
    kernel: PositiveInt = 1
    stride: Literal[1, 2] = 1


class DownLayer(_Layer):
    block: Literal["AConv", "ADown"]
    channels: PositiveInt


class StageLayer(_Layer):
    block: Literal["ELAN1", "RepNCSPELAN4"]
    channels: PositiveInt
    hidden: PositiveInt
    """Width after the first projection, split in two."""
    branch: PositiveInt
    """Width of each of the two computational blocks."""
    repeats: PositiveInt = 1
    """Bottlenecks in each computational block (RepNCSPELAN4)."""


class PyramidLayer(_Layer):
    block: Literal["SPPELAN"]
    channels: PositiveInt
    hidden: PositiveInt


class UpsampleLayer(_Layer):
    block: Literal["Upsample"]


class ConcatLayer(_Layer):
    block: Literal["Concat"]


class LinearLayer(_Layer):
    block: Literal["CBLinear"]
    widths: Annotated[list[PositiveInt], Field(min_length=1)]


class FuseLayer(_Layer):
    block: Literal["CBFuse"]
    split: Annotated[int, Field(ge=0)]
    """Which of each CBLinear's maps is added to the last source."""


class DetectLayer(_Layer):
    block: Literal["Detect"]
    auxiliary: list[str] = []
    """Levels of the auxiliary pyramid, finest first; none in an inference model."""


Layer = Annotated[
    IdentityLayer
    | ConvLayer
    | DownLayer
    | StageLayer
    | PyramidLayer
    | UpsampleLayer
    | ConcatLayer
    | LinearLayer
    | FuseLayer
    | DetectLayer,
    Field(discriminator="block"),
]
_LAYER: TypeAdapter[Layer] = TypeAdapter(Layer)


@dataclass(frozen=True)
class NamedLayer:
    """One layer of a network: its sources are complete (never empty)."""

    name: str
    section: Section
    sources: tuple[str, ...]
    layer: Layer

    @property
    def auxiliary(self) -> tuple[str, ...]:
        """What the head reads besides its sources."""
        return tuple(self.layer.auxiliary) if isinstance(self.layer, DetectLayer) else ()


@dataclass(frozen=True)
class Architecture:
    """A checked list of layers. Position in `layers` = number in checkpoints; the last one is the head."""

    name: str
    layers: tuple[NamedLayer, ...]

    @property
    def head(self) -> DetectLayer:
        head = self.layers[-1].layer
        assert isinstance(head, DetectLayer)
        return head

    @cached_property
    def last_reads(self) -> tuple[tuple[str, ...], ...]:
        """For each layer, the outputs that nobody reads after it: they can be freed."""
        reader: dict[str, int] = {}
        for position, x in enumerate(self.layers):
            reader |= dict.fromkeys(x.sources + x.auxiliary, position)
        return tuple(tuple(s for s, p in reader.items() if p == i) for i in range(len(self.layers)))

    @property
    def inference(self) -> str:
        """Name of the architecture that is left without the auxiliary branch (itself if there is none)."""
        return self.name.replace("yolov9-", "gelan-") if self.head.auxiliary else self.name


def names() -> list[str]:
    """Every packaged architecture, sorted: gelan-c, ..., yolov9-t."""
    folder = files("configs") / "models"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


@cache
def architecture(name: str) -> Architecture:
    """The packaged architecture of that name. ArchitectureError if there is none or its file is wrong."""
    if name not in names():
        raise ArchitectureError(f"no architecture is called {name!r}; there are {', '.join(names())}")
    return parse(name, (files("configs") / "models" / f"{name}.yaml").read_text(encoding="utf-8"))


def parse(name: str, text: str) -> Architecture:
    """Architecture from the YAML of a file called `name`. ArchitectureError names the layer and the parameter."""
    try:
        data = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as e:
        raise ArchitectureError(f"{name}: not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(data, dict) or set(data) - set(get_args(Section)) or not {"backbone", "head"} <= set(data):
        raise ArchitectureError(
            f"{name}: wants the sections backbone, neck, auxiliary and head, each with named layers"
        )
    layers: list[NamedLayer] = []
    for section, layer_name, fields in _entries(name, data):
        where = f"{name}: {section}.{layer_name}"
        if not _NAME.fullmatch(layer_name) or layer_name == IMAGE or layer_name in {x.name for x in layers}:
            raise ArchitectureError(f"{where}: the name is taken or is not lower case letters, digits and _")
        layer = _layer(where, fields)
        sources = tuple(layer.sources) or (layers[-1].name if layers else IMAGE,)
        layers.append(NamedLayer(layer_name, section, sources, layer))
        _check_sources(where, layers)
    _check_head(name, layers)
    return Architecture(name, tuple(layers))


def _entries(name: str, data: dict[Section, Any]) -> Iterator[tuple[Section, str, Any]]:
    for section, layers in data.items():
        if not isinstance(layers, dict) or not layers:
            raise ArchitectureError(f"{name}: section {section} wants named layers")
        for layer_name, fields in layers.items():
            yield section, str(layer_name), fields


def _layer(where: str, fields: Any) -> Layer:
    """One checked layer; `from: a` is short for `from: [a]`."""
    if isinstance(fields, dict) and isinstance(fields.get("from"), str):
        fields = {**fields, "from": [fields["from"]]}
    try:
        layer = _LAYER.validate_python(fields)
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:]) or "block"
        raise ArchitectureError(f"{where}: {field}: {first['msg']}") from e
    if isinstance(layer, StageLayer) and layer.hidden % 2:
        raise ArchitectureError(f"{where}: hidden: {layer.hidden} cannot be split in two")
    if isinstance(layer, DownLayer) and layer.block == "ADown" and layer.channels % 2:
        raise ArchitectureError(f"{where}: channels: {layer.channels} cannot be split in two")
    return layer


def _check_sources(where: str, layers: list[NamedLayer]) -> None:
    """Sources exist, their number fits the block, and no main layer reads the auxiliary branch."""
    *earlier, new = layers
    sections = {IMAGE: "backbone"} | {x.name: x.section for x in earlier}
    for source in new.sources + new.auxiliary:
        if source not in sections:
            raise ArchitectureError(f"{where}: from: {source!r} is neither {IMAGE} nor an earlier layer")
    if new.section != "auxiliary" and any(sections[s] == "auxiliary" for s in new.sources):
        raise ArchitectureError(f"{where}: from: a layer of the main branch reads the auxiliary branch")
    several = isinstance(new.layer, ConcatLayer | FuseLayer | DetectLayer)
    if several != (len(new.sources) > 1):
        raise ArchitectureError(
            f"{where}: from: {new.layer.block} takes {'several sources' if several else 'one source'}, "
            f"not {len(new.sources)}"
        )


def _check_head(name: str, layers: list[NamedLayer]) -> None:
    heads = [x for x in layers if isinstance(x.layer, DetectLayer)]
    if len(heads) != 1 or layers[-1] is not heads[0] or heads[0].section != "head":
        raise ArchitectureError(f"{name}: wants one Detect, as the last layer, in the section head")
    head = heads[0]
    if head.auxiliary and len(head.auxiliary) != len(head.sources):
        raise ArchitectureError(f"{name}: head.{head.name}: auxiliary: wants {len(head.sources)} levels, as from has")


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice: plain PyYAML keeps the last one in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
