"""Architectures as data: `configs/models/NAME.yaml`, read and checked. Knows nothing of torch.

A file has sections of named layers: `backbone`, `neck`, `auxiliary` (training only) and `head`. A layer names its
block, the block's parameters and where its input comes `from`: names of earlier layers, `image`, or, if left out, the
layer before. The order in the file, across sections, is the layer's number in checkpoints (`model.N...`).

`Architecture.to_yaml` writes such a file, so that weights can say what network they are of; `parse` reads it back.
Other architectures than the packaged ones come from `yolov9.nn.ablation` or from a file of one's own. A file may come
from a stranger: its size and every count in it are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib.resources import files
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

IMAGE = "image"
"""The source that every architecture has: the input picture, 3 channels."""
Section = Literal["backbone", "neck", "auxiliary", "head"]
Computation = Literal["csp", "conv", "res", "res2", "dark"]
"""What computes inside a stage of GELAN: RepNCSP, 3x3 convolution, bottleneck of ResNet, of Res2Net, of Darknet."""
MAX_TEXT = 1 << 16
"""Characters in a file. The longest packaged one has 6,000."""
_MAX_LAYERS = 512
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_Width = Annotated[int, Field(gt=0, le=1 << 14)]
_Count = Annotated[int, Field(gt=0, le=32)]


class ArchitectureError(ValueError):
    """An architecture that cannot be built: one sentence with its name and the layer's, safe to show on a terminal."""

    def __init__(self, text: str) -> None:
        super().__init__("".join(c if c.isprintable() else "?" for c in text[:500]))


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sources: list[str] = Field(default=[], alias="from")


class IdentityLayer(_Layer):
    block: Literal["Identity"]


class ConvLayer(_Layer):
    block: Literal["Conv"]
    channels: _Width
    kernel: Annotated[int, Field(gt=0, le=31)] = 1
    stride: Literal[1, 2] = 1


class DownLayer(_Layer):
    block: Literal["AConv", "ADown"]
    channels: _Width


class StageLayer(_Layer):
    block: Literal["ELAN1", "RepNCSPELAN4"]
    channels: _Width
    hidden: _Width
    """Width after the first projection, split in two."""
    branch: _Width
    """Width of each of the two computational blocks."""
    repeats: _Count = 1
    """Bottlenecks in each computational block (RepNCSPELAN4): the CSP depth."""


class GelanLayer(_Layer):
    block: Literal["GELAN"]
    channels: _Width
    hidden: _Width
    """Width after the first projection, split in two."""
    branch: _Width
    """Width of each computational block."""
    computation: Computation = "csp"
    depth: _Count = 2
    """Computational blocks in a row: the ELAN depth."""
    repeats: _Count = 1
    """Units in each computational block: the CSP depth."""


class PyramidLayer(_Layer):
    block: Literal["SPPELAN"]
    channels: _Width
    hidden: _Width


class UpsampleLayer(_Layer):
    block: Literal["Upsample"]


class ConcatLayer(_Layer):
    block: Literal["Concat"]


class LinearLayer(_Layer):
    block: Literal["CBLinear"]
    widths: Annotated[list[_Width], Field(min_length=1, max_length=32)]


class FuseLayer(_Layer):
    block: Literal["CBFuse"]
    split: Annotated[int, Field(ge=0)]
    """Which of each CBLinear's maps is added to the last source."""


class ReversibleLayer(_Layer):
    """Its sources: a level of the column before, and what the other levels make of it."""

    block: Literal["Reversible"]


class DetectLayer(_Layer):
    block: Literal["Detect"]
    auxiliary: list[str] = []
    """Levels of the auxiliary pyramid, finest first; none in an inference model."""


Layer = Annotated[
    IdentityLayer
    | ConvLayer
    | DownLayer
    | StageLayer
    | GelanLayer
    | PyramidLayer
    | UpsampleLayer
    | ConcatLayer
    | LinearLayer
    | FuseLayer
    | ReversibleLayer
    | DetectLayer,
    Field(discriminator="block"),
]
_LAYER: TypeAdapter[Layer] = TypeAdapter(Layer)


@dataclass(frozen=True)
class NamedLayer:
    """One layer of a network: its sources are complete (never empty), and those of `layer` are the same."""

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

    @cached_property
    def packaged(self) -> bool:
        """Whether this is the packaged architecture of its name: its name says it all."""
        return self.name in names() and self == architecture(self.name)

    @cached_property
    def inference(self) -> Architecture:
        """What is left without the auxiliary branch (itself if there is none): the layers of the same names.

        Where that is a packaged architecture, it is taken with its numbers: yolov9-c, whose first layer does nothing,
        becomes gelan-c, which has no such layer.
        """
        if not self.head.auxiliary:
            return self
        *main, head = (x for x in self.layers if x.section != "auxiliary")
        left = Architecture(
            # yolov9-t_pgi-fpn, as ablations are called, is a gelan-t with an auxiliary branch
            re.sub(r"^yolov9-([^_]+)(_.*)?$", r"gelan-\1", self.name),
            (*main, replace(head, layer=head.layer.model_copy(update={"auxiliary": []}))),
        )
        same = (a for a in map(architecture, names()) if a._working() == left._working())
        return next(same, left)

    def _working(self) -> list[NamedLayer]:
        """The layers that do something: all but identities that nobody reads."""
        read = {s for x in self.layers for s in x.sources}
        return [x for x in self.layers if x.name in read or not isinstance(x.layer, IdentityLayer)]

    def to_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """{section: {layer: {"block": ..., "from": [...], ...}}} in order, nothing left out: what a file says."""
        sections: dict[str, dict[str, dict[str, Any]]] = {}
        for x in self.layers:
            fields = {"block": x.layer.block, "from": [*x.sources]} | x.layer.model_dump(exclude={"sources", "block"})
            sections.setdefault(x.section, {})[x.name] = fields
        return sections

    def to_yaml(self) -> str:
        """The text of a file, one line a layer. `parse(name, text)` gives an equal architecture."""
        lines = []
        for section, layers in self.to_dict().items():
            lines.append(f"{section}:")
            for name, fields in layers.items():
                text = yaml.safe_dump(fields, default_flow_style=True, sort_keys=False, width=10**6)
                lines.append(f"  {name}: {text.strip()}")
        return "\n".join(lines) + "\n"


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
    if len(text) > MAX_TEXT:
        raise ArchitectureError(f"{name}: {len(text)} characters, but an architecture has at most {MAX_TEXT}")
    try:
        data = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
    except Exception as e:  # scalars that are not what their tag says fail in PyYAML with KeyError, IndexError, ...
        raise ArchitectureError(f"{name}: not valid YAML: {' '.join(str(e).split())}") from e
    return from_dict(name, data)


def from_dict(name: str, data: Any) -> Architecture:
    """Architecture from what a file called `name` says. ArchitectureError names the layer and the parameter."""
    if not isinstance(data, dict) or set(data) - set(get_args(Section)) or not {"backbone", "head"} <= set(data):
        raise ArchitectureError(
            f"{name}: wants the sections backbone, neck, auxiliary and head, each with named layers"
        )
    layers: list[NamedLayer] = []
    if sum(len(section) for section in data.values() if isinstance(section, dict)) > _MAX_LAYERS:
        raise ArchitectureError(f"{name}: more than {_MAX_LAYERS} layers")
    for section, layer_name, fields in _entries(name, data):
        where = f"{name}: {section}.{layer_name}"
        if not _NAME.fullmatch(layer_name) or layer_name == IMAGE or layer_name in {x.name for x in layers}:
            raise ArchitectureError(f"{where}: the name is taken or is not lower case letters, digits and _")
        layer = _layer(where, fields)
        sources = tuple(layer.sources) or (layers[-1].name if layers else IMAGE,)
        layers.append(NamedLayer(layer_name, section, sources, layer.model_copy(update={"sources": [*sources]})))
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
    if isinstance(layer, StageLayer | GelanLayer) and layer.hidden % 2:
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
    several = isinstance(new.layer, ConcatLayer | FuseLayer | ReversibleLayer | DetectLayer)
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


class _PlainLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which PyYAML keeps the last in silence, and aliases, which can grow."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "aliases are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
