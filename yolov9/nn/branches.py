"""Main and auxiliary branches of an ablation, written out as layers. What they are for: `yolov9.nn.ablation`.

Pure functions from layers, as `Architecture.to_dict` gives them, to layers. They rely on the names that all packaged
files share: a backbone of stem1, stem2, stage2, down3, stage3, ... stage5, each after the other, and a neck that goes
from spp over top4 down to p3.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from yolov9.nn.architecture import IMAGE

Auxiliary = Literal["none", "deep_supervision", "reversible", "pgi"]
Integration = Literal["none", "fpn", "composite"]
Connection = Literal["composite", "columns"]
Main = Literal["plain", "composite", "columns"]
Layers = dict[str, dict[str, Any]]
_PYRAMID = (3, 4, 5)
"""Levels that have heads. The map of level l has a stride of 2**l."""
_FIRST = "first_"
"""Prefix of the layers of the first of two backbones."""


def main_backbone(backbone: Layers, main: Main) -> Layers:
    """The backbone of a main branch: plain, or a reversible pair whose second one has the plain one's names."""
    plain = _plain(backbone)
    if main == "plain":
        return plain
    first = {
        _FIRST + name: fields | {"from": [s if s == IMAGE else _FIRST + s for s in fields["from"]]}
        for name, fields in plain.items()
    }
    stages = _stages(first)
    # As gelan-e has it: dense connections between composites. Columns have those of RevCol.
    integration: Integration = "composite" if main == "composite" else "none"
    return first | _second_backbone(plain, "", main, stages, stages, integration)


def auxiliary_branch(
    sections: Mapping[str, Layers], auxiliary: Auxiliary, integration: Integration, reversible: Connection
) -> tuple[Layers, list[str]]:
    """The section `auxiliary` for a main branch, and the maps that the auxiliary heads read, finest first."""
    stages = _stages(sections["backbone"])
    if auxiliary == "deep_supervision":
        return _deep_supervision(sections, stages, integration)
    layers: Layers = {}
    sources = stages
    if integration == "fpn":
        layers, sources = _top_down(sections["neck"], stages, "fpn")
    plain = _plain(sections["backbone"])
    layers |= _second_backbone(plain, "aux_", reversible, stages, sources, integration)
    return layers, [f"aux{level}" for level in _PYRAMID]


def _deep_supervision(
    sections: Mapping[str, Layers], stages: Mapping[int, str], integration: Integration
) -> tuple[Layers, list[str]]:
    """Heads on the stages themselves, or on what an integration network makes of them."""
    if integration == "none":
        return {}, [stages[level] for level in _PYRAMID]
    if integration == "fpn":
        layers, maps = _top_down(sections["neck"], stages, "aux")
        return layers, [maps[level] for level in _PYRAMID]
    feeds = {level: [m for m in _PYRAMID if m > level] for level in _PYRAMID[:-1]}
    widths = {level: sections["backbone"][stages[level]]["channels"] for level in _PYRAMID}
    layers = _links("aux_link", feeds, stages, widths)
    for level in feeds:
        layers[f"aux{level}"] = _fuse("aux_link", feeds, level, stages[level])
    return layers, [*(f"aux{level}" for level in feeds), stages[_PYRAMID[-1]]]


def _plain(backbone: Layers) -> Layers:
    """The backbone as a chain of its own; the first one where there are two."""
    prefix = _prefix(backbone)
    plain: Layers = {}
    previous = IMAGE
    for name, fields in backbone.items():
        if re.fullmatch(rf"{prefix}(stem|stage|down)\d", name):
            name = name.removeprefix(prefix)
            plain[name] = fields | {"from": [previous]}
            previous = name
    return plain


def _stages(backbone: Layers) -> dict[int, str]:
    """Level -> the stage that the auxiliary branch takes: the first backbone's where there are two."""
    return {level: f"{_prefix(backbone)}stage{level}" for level in (2, *_PYRAMID)}


def _prefix(backbone: Layers) -> str:
    return _FIRST if f"{_FIRST}stage5" in backbone else ""


def _top_down(neck: Layers, stages: Mapping[int, str], prefix: str) -> tuple[Layers, dict[int, str]]:
    """A second copy of the neck's way down, and its map of each level."""
    names = {"spp": f"{prefix}5", "top4": f"{prefix}4", "p3": f"{prefix}3"}
    names |= {name: f"{prefix}_{name}" for name in ("up4", "join4", "up3", "join3")}
    names |= {f"stage{level}": stage for level, stage in stages.items()}
    layers = {
        names[name]: fields | {"from": [names[source] for source in fields["from"]]}
        for name, fields in neck.items()
        if name in names
    }
    return layers, {5: names["spp"], 4: names["top4"], 3: names["p3"]}


def _second_backbone(
    plain: Layers,
    prefix: str,
    reversible: Connection,
    stages: Mapping[int, str],
    sources: Mapping[int, str],
    integration: Integration,
) -> Layers:
    """A backbone from the picture itself, which takes in another one's `stages` and is reversible with it.

    `sources`: what reaches it through CBLinear, by level: the stages, or what an integration network made of them. As
    the auxiliary branch (prefix `aux_`) its levels are called aux3, ..., in the main branch stage2, stage3, ...
    """
    columns = reversible == "columns"
    feeds = _column_feeds(integration) if columns else _composite_feeds(integration)
    link = "link" if stages[5] == "stage5" else f"{prefix}link"  # "link" may be taken by a pair in the main branch
    entries = {level: plain[f"stage{level}"]["from"][0] for level in feeds}
    widths = {level: plain[entry]["channels"] for level, entry in entries.items()}
    layers = _links(link, feeds, sources, widths)
    previous = IMAGE
    for name, fields in plain.items():
        level = int(name[-1]) if name.startswith("stage") else None
        if level in feeds:
            fuse = f"{prefix}fuse{level}"
            layers[fuse] = _fuse(link, feeds, level, previous)
            previous = fuse
        own = _own_name(name, level, prefix, columns)
        layers[own] = fields | {"from": [previous]}
        previous = own
        if columns and level is not None:
            previous = f"aux{level}" if prefix else name
            layers[previous] = {"block": "Reversible", "from": [stages[level], own]}
    return layers


def _own_name(name: str, level: int | None, prefix: str, columns: bool) -> str:
    if level is not None and columns:
        return f"{prefix}column{level}"
    return f"aux{level}" if prefix and level in _PYRAMID else prefix + name


def _composite_feeds(integration: Integration) -> dict[int, list[int]]:
    """Level of the second backbone -> levels of the first that are added at its entry."""
    dense = integration == "composite"
    return {level: [m for m in _PYRAMID if m == level or (dense and m > level)] for level in _PYRAMID}


def _column_feeds(integration: Integration) -> dict[int, list[int]]:
    """The same for columns: coarser levels only, or a stage could not be computed back from the column."""
    dense = integration == "composite"
    return {level: [m for m in _PYRAMID if m == level + 1 or (dense and m > level)] for level in (2, 3, 4)}


def _links(
    prefix: str, feeds: Mapping[int, list[int]], sources: Mapping[int, str], widths: Mapping[int, int]
) -> Layers:
    """A CBLinear for each source, with a map for every level that it feeds, finest first."""
    return {
        f"{prefix}{m}": {"block": "CBLinear", "from": [sources[m]], "widths": [widths[level] for level in fed]}
        for m in _PYRAMID
        if (fed := _fed(feeds, m))
    }


def _fuse(prefix: str, feeds: Mapping[int, list[int]], level: int, target: str) -> dict[str, Any]:
    """The CBFuse of a level: it has the same place among the maps of every source, since they are ordered alike."""
    sources = feeds[level]
    return {
        "block": "CBFuse",
        "from": [*(f"{prefix}{m}" for m in sources), target],
        "split": _fed(feeds, sources[0]).index(level),
    }


def _fed(feeds: Mapping[int, list[int]], source: int) -> list[int]:
    return [level for level, sources in feeds.items() if source in sources]
