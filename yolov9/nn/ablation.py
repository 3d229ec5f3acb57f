"""The paper's ablations: architectures derived from the packaged ones by options. Knows nothing of torch.

    ablate("yolov9-t", auxiliary="pgi", integration="composite", computation="res")

The main branch is that of gelan-t, -s, -m, -c or -e, its stages with another `computation`, `depth` or `repeats`. The
auxiliary branch is built from `auxiliary`, `integration` and `reversible`. It exists while training; what counts are
the gradients that it sends into the backbone's stages 3, 4 and 5 (strides 8, 16, 32):

- `none`: there is only the main heads' loss. Its gradients are computed from deep features, which have lost a part of
  the picture on their way (the information bottleneck, section 3.1 of the paper): early layers learn to fit what was
  left.
- `deep_supervision`: auxiliary heads on the stages themselves. Gradients enter half way, where less is lost. But the
  head of a level knows only objects of its size and takes all others for background: it tells its stage to forget
  them.
- `reversible`: an auxiliary backbone that starts from the picture again and takes in stage l at its own level l. Its
  heads see the whole picture, whatever the main branch has lost; so the gradients that reach stage l through that
  connection are reliable (3.2.1). Yet stage l hears from heads of its level and coarser ones only (in columns: one
  finer), stage 5 never from the finest.
- `pgi`: the reversible branch and, between the stages and its pyramid, an integration network: multi-level auxiliary
  information (3.2.2). Each stage feeds its own level and all finer ones, and gets gradients from the heads of all
  levels.

The integration network is `fpn` (the stages are merged from the top down, as in the neck; each result feeds its level)
or `composite` (each stage feeds each level directly: the dense composition of CBNet). The paper calls none, fpn and
composite PFH, FPN and CB. It can serve deep supervision, too: yolov9-t, -s and -e are that, with fpn.

A reversible branch is a `composite` of backbones (CBNet, DynamicDet: sums at the entry of each level, as in yolov9-m
and -c) or a column beside the main one (`columns`, RevCol, see `yolov9.nn.reversible`: the stages can be computed back
from it). A column takes in the next coarser stage at each level in any case; fpn merges what is coarser still into it,
composite adds it.

Inference pays nothing for all this: `Architecture.inference` is the main branch. `main` is what inference does pay
for: a `plain` backbone, or a reversible pair of backbones as the main branch itself, `composite` (as gelan-e has it)
or in `columns`. Beside such a pair, the auxiliary branch takes the stages of the first backbone, as yolov9-e does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Unpack

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from yolov9.nn.architecture import Architecture, ArchitectureError, Computation, architecture, from_dict, names
from yolov9.nn.branches import Auxiliary, Connection, Integration, Layers, Main, auxiliary_branch, main_backbone

_Count = Annotated[int, Field(gt=0, le=32)]


@with_config(ConfigDict(extra="forbid", strict=True))
class Options(TypedDict, total=False):
    """What an ablation changes; what is left out stays as it is in the packaged architecture."""

    auxiliary: Auxiliary
    integration: Integration
    """Left out beside `auxiliary`: composite for pgi, none for the others."""
    reversible: Connection
    """How the auxiliary backbone is joined to the main one."""
    main: Main
    """Whether the main branch is reversible itself: at inference, too."""
    computation: Computation
    """Of every stage but the first of T and S, which is ELAN as it was."""
    depth: _Count
    """ELAN depth: computational blocks in a stage."""
    repeats: _Count
    """CSP depth: units in a computational block."""


_OPTIONS: TypeAdapter[Options] = TypeAdapter(Options)
_OPTION_NAMES = ", ".join(Options.__annotations__)


@dataclass(frozen=True)
class _Branches:
    auxiliary: Auxiliary
    integration: Integration
    reversible: Connection
    main: Main


_PACKAGED = {
    "t": _Branches("deep_supervision", "fpn", "composite", "plain"),
    "s": _Branches("deep_supervision", "fpn", "composite", "plain"),
    "m": _Branches("pgi", "composite", "composite", "plain"),
    "c": _Branches("pgi", "composite", "composite", "plain"),
    "e": _Branches("deep_supervision", "fpn", "composite", "composite"),
}
"""What the file yolov9-SIZE is. Tests derive these files from these words."""


def ablate(name: str, **options: Unpack[Options]) -> Architecture:
    """The packaged architecture `name`, changed. What comes out as a packaged one is that one.

    It is called after what it is: gelan-t-res, yolov9-c_pgi-fpn, ... ArchitectureError names the option that is wrong.
    """
    if name not in names():
        return architecture(name)  # which says what there is
    family, size = name.split("-")
    packaged = _PACKAGED[size]
    branches = _branches(name, packaged, family == "yolov9", _checked(name, options))
    sections = architecture(f"gelan-{size}").to_dict()
    tags = _set_stages(sections, options)
    if branches.main != packaged.main:
        tags.append(f"{branches.main}-main")
        sections["backbone"] = main_backbone(sections["backbone"], branches.main)
    new = "-".join(("gelan" if branches.auxiliary == "none" else "yolov9", size, *tags))
    if branches.auxiliary != "none":
        auxiliary, levels = auxiliary_branch(sections, branches.auxiliary, branches.integration, branches.reversible)
        head = sections.pop("head")
        sections |= {"auxiliary": auxiliary} if auxiliary else {}
        sections["head"] = {k: fields | {"auxiliary": levels} for k, fields in head.items()}
        if replace(branches, main=packaged.main) != packaged:
            new += "_" + "-".join(_auxiliary_tags(branches))
    # An unchanged one comes from its file: there the layers are numbered as the reference numbers them.
    return architecture(new) if new in names() else from_dict(new, sections)


def options(words: Sequence[str]) -> Options:
    """Options from the words of a command line: `auxiliary=pgi depth=3`. ArchitectureError names the wrong one."""
    given: dict[str, Any] = {}
    for word in words:
        option, equals, value = word.partition("=")
        if not equals:
            raise ArchitectureError(f"{word!r} is not OPTION=VALUE, with the options {_OPTION_NAMES}")
        if option in given:
            raise ArchitectureError(f"{option}: given twice")
        given[option] = int(value) if value.isdecimal() else value
    return _checked("options", given)


def _checked(name: str, options: Any) -> Options:
    try:
        return _OPTIONS.validate_python(options)
    except ValidationError as e:
        first = e.errors()[0]
        option = first["loc"][0]
        if first["type"] == "extra_forbidden":
            raise ArchitectureError(f"{name}: {option}: no such option; there are {_OPTION_NAMES}") from e
        raise ArchitectureError(f"{name}: {option}: {first['msg']}, not {first['input']!r}") from e


def _branches(name: str, packaged: _Branches, trains: bool, given: Options) -> _Branches:
    """The branches that are asked for. Two ways to say one thing become one."""
    before = packaged if trains else _without(packaged)
    auxiliary = given.get("auxiliary", before.auxiliary)
    implied: Integration = "composite" if auxiliary == "pgi" else "none"
    integration = given.get("integration", implied if "auxiliary" in given else before.integration)
    main = given.get("main", before.main)
    if auxiliary == "none" and integration != "none":
        raise ArchitectureError(f"{name}: integration: {integration}, but auxiliary is none: nothing to integrate")
    if auxiliary == "reversible" and integration != "none":
        raise ArchitectureError(f"{name}: integration: a reversible branch with {integration} is auxiliary pgi")
    if auxiliary == "pgi" and integration == "none":
        auxiliary = "reversible"
    if auxiliary in ("none", "deep_supervision"):
        if "reversible" in given:
            raise ArchitectureError(f"{name}: reversible: no branch is reversible where auxiliary is {auxiliary}")
        return _Branches(auxiliary, integration, "composite", main)
    return _Branches(auxiliary, integration, given.get("reversible", before.reversible), main)


def _without(branches: _Branches) -> _Branches:
    return _Branches("none", "none", "composite", branches.main)


def _set_stages(sections: dict[str, Layers], options: Options) -> list[str]:
    """Change every stage of GELAN, in place; what was changed, as parts of a name."""
    computation, depth = options.get("computation", "csp"), options.get("depth", 2)
    tags = [computation] * (computation != "csp") + [f"elan{depth}"] * (depth != 2)
    stages = [f for layers in sections.values() for f in layers.values() if f["block"] == "RepNCSPELAN4"]
    repeats = options.get("repeats")
    if repeats is not None and any(stage["repeats"] != repeats for stage in stages):
        tags.append(f"csp{repeats}")
    for stage in stages:
        stage["repeats"] = repeats or stage["repeats"]
        if computation != "csp" or depth != 2:
            stage |= {"block": "GELAN", "computation": computation, "depth": depth}
    return tags


def _auxiliary_tags(branches: _Branches) -> list[str]:
    tags = [branches.auxiliary.replace("_", "-")]
    tags += [branches.integration] * (branches.integration != "none")
    return tags + ["columns"] * (branches.reversible == "columns")
