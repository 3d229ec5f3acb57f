"""How a model is trained, as data: every number of the recipe, with its default for COCO from scratch.

The defaults are the published recipe's (`coco`). `--set NAME=VALUE` on the command line and `recipe.yaml` set the same
fields.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

AUTO = "auto"
_LONG = 10_000
"""Updates by batches of 64 from which on a training is long enough for SGD, whose steps are small and whose average is
over 10,000 of them. COCO's 500 epochs are 924,000, 60 epochs of 205 blood cell pictures are 192. Below, AdamW, with an
update for every batch, is far ahead."""


class RecipeError(ValueError):
    """A recipe that cannot be: one sentence that names the field."""


class Augmentation(BaseModel):
    """What is done to training pictures. Probabilities are 0..1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mosaic: float = Field(1.0, ge=0, le=1, description="probability of four pictures in one")
    mixup: float = Field(0.15, ge=0, le=1, description="probability of a second mosaic blended in")
    copy_paste: float = Field(0.3, ge=0, le=1, description="probability for each outlined object to be pasted again")
    hue: float = Field(0.015, ge=0, le=0.5, description="shift of the hue, share of the full circle")
    saturation: float = Field(0.7, ge=0, le=1, description="largest relative change")
    value: float = Field(0.4, ge=0, le=1, description="largest relative change of brightness")
    translate: float = Field(0.1, ge=0, le=0.9, description="shift, share of the input")
    scale: float = Field(0.9, ge=0, lt=1, description="scale from 1 - this to 1 + this")
    rotate: float = Field(0.0, ge=0, le=180, description="degrees")
    shear: float = Field(0.0, ge=0, le=60, description="degrees")
    flip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    flip_vertical: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    close: int = Field(15, ge=0, description="last epochs without mosaic, mixup and copy-paste")


class Recipe(BaseModel):
    """See the fields. Sums of the loss, learning rates and decay hold for a nominal batch of `nominal_batch`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = Field(0.01, gt=0, description="learning rate after the warm-up")
    final_lr: float = Field(0.01, gt=0, le=1, description="last learning rate, share of the first")
    schedule: Literal["linear", "cosine"] = "linear"
    momentum: float = Field(0.937, ge=0, lt=1, description="of SGD (Nesterov); beta1 of AdamW")
    weight_decay: float = Field(5e-4, ge=0, description="of convolutions' weights only")
    nominal_batch: int = Field(64, ge=1, description="smaller batches are accumulated to it")
    warmup_epochs: float = Field(3.0, ge=0)
    warmup_least_steps: int = Field(100, ge=0, description="the warm-up takes at least so many batches")
    warmup_bias_lr: float = Field(0.1, ge=0, description="where the learning rate of biases starts")
    warmup_momentum: float = Field(0.8, ge=0, lt=1)
    clip: float = Field(10.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.9999, ge=0, lt=1, description="decay of the averaged weights")
    ema_ramp: float = Field(2000.0, gt=0, description="updates over which the decay grows")
    box: float = Field(7.5, ge=0, description="gain of the box loss")
    cls: float = Field(0.5, ge=0, description="gain of the class loss")
    dfl: float = Field(1.5, ge=0, description="gain of the distribution focal loss")
    auxiliary: float = Field(0.25, ge=0, description="share of the auxiliary branch's loss")
    assign_topk: int = Field(10, ge=1, description="anchor points a box")
    assign_alpha: float = Field(0.5, ge=0, description="exponent of the score in the alignment")
    assign_beta: float = Field(6.0, ge=0, description="exponent of the CIoU in the alignment")
    multi_scale: float = Field(0.0, ge=0, lt=1, description="input size from 1 - this to 1 + this, batch by batch")
    augmentation: Augmentation = Augmentation()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.box + self.cls + self.dfl == 0:
            raise ValueError("box, cls, dfl: all gains are 0")
        return self

    def changed(self, settings: list[str]) -> Recipe:
        """With `name=value` set; fields of the augmentation go by their own name. RecipeError."""
        data = self.model_dump()
        for setting in settings:
            name, sep, text = setting.partition("=")
            target = data["augmentation"] if name in Augmentation.model_fields else data
            if not sep or name not in target or name == "augmentation":
                known = [n for n in (*Recipe.model_fields, *Augmentation.model_fields) if n != "augmentation"]
                raise RecipeError(f"--set {setting}: wants NAME=VALUE with a NAME of {', '.join(known)}")
            target[name] = text
        return _validated(data, "--set")


def recipe_names() -> list[str]:
    """Packaged recipes."""
    folder = files("configs") / "recipes"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml"))


def fitting_recipe(pictures: int, epochs: int) -> str:
    """The packaged recipe for so many pictures and epochs: `coco` for long trainings, `small` for the others."""
    return "coco" if pictures * epochs / 64 >= _LONG else "small"


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a YAML file, or a packaged one by its name; fields that it leaves out have their defaults.

    RecipeError, OSError.
    """
    packaged = str(path) in recipe_names()
    source = files("configs") / "recipes" / f"{path}.yaml" if packaged else Path(path)
    try:
        data = yaml.safe_load(source.read_text(encoding="utf-8")) or {}
    except FileNotFoundError:
        raise RecipeError(f"{path}: neither a file nor one of {', '.join(recipe_names())}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: wants fields with values")
    return _validated(data, str(path))


def _validated(data: dict[str, Any], where: str) -> Recipe:
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{where}: {'.'.join(map(str, first['loc'])) or 'recipe'}: {first['msg']}") from None
