"""`--weights W --engine E` of every command: a model that is ready to run, whatever W is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from yolov9 import packaged
from yolov9.bundle import MANIFEST, Bundle, BundleError
from yolov9.engines import Choice, Engine, EngineError, choose

if TYPE_CHECKING:
    from yolov9.nn.model import Detector

CHECKPOINT_SIZE = 640
"""Input size of a checkpoint, which does not state one."""
_ALIASES = {"onnx": "onnxruntime"}
"""What people call an engine by."""


class ModelError(Exception):
    """The model cannot be had, or not run as asked. One sentence."""


class Opened(NamedTuple):
    engine: Engine
    why: str
    """For people: why this engine."""
    names: dict[int, str]
    input_size: int
    """Long side in pixels for which the model is made."""


def open_model(
    weights: str,
    engine: str = "auto",
    precision: str = "auto",
    *,
    device: str | None = None,
    max_batch: int | None = None,
) -> Opened:
    """A bundle's folder, a packaged or published name, or a checkpoint -> its engine, to be closed by the caller.

    The options are those of `yolov9.engines.choose`; a checkpoint runs in PyTorch alone. ModelError.
    """
    engine = _ALIASES.get(engine, engine)
    try:
        path = packaged.resolve(weights)
        if (path / MANIFEST).is_file():
            bundle = Bundle.load(path)
            choice = choose(bundle, engine, precision, device=device, max_batch=max_batch)
            return Opened(*choice, bundle.names, bundle.input_size)
    except (packaged.ModelNotFound, BundleError, EngineError) as error:
        raise ModelError(str(error)) from None
    if engine not in ("auto", "torch"):
        raise ModelError(f"{weights} is a checkpoint, which only the engine torch runs; make a bundle of it with: "
                         f"python -m yolov9.export --weights {weights} --out BUNDLE")  # fmt: skip
    model = load_checkpoint(path)
    choice = _in_torch(model, precision, device, max_batch)
    return Opened(*choice, model.names, CHECKPOINT_SIZE)


def _in_torch(model: Detector, precision: str, device: str | None, max_batch: int | None) -> Choice:
    from yolov9.engines.torch import TorchEngine

    try:
        return Choice(TorchEngine(model, precision=precision, device=device, max_batch=max_batch), "a checkpoint")
    except EngineError as error:
        raise ModelError(str(error)) from None


def load_checkpoint(path: Path) -> Detector:
    """The model in PyTorch. ModelError, also where PyTorch is not installed."""
    try:
        from yolov9.weights import WeightsError, load
    except ImportError as error:
        raise ModelError(f"{path} is a checkpoint, which needs PyTorch: pip install 'yolov9-server[train]'") from error
    try:
        return load(path)
    except (WeightsError, OSError) as error:
        raise ModelError(str(error)) from None
