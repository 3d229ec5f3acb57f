"""What quantising needs beyond a server's installation, looked for before minutes of work begin."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from yolov9.quantization import QuantizeError

_NEEDED = {"openvino": ("openvino", "nncf"), "onnxruntime": ("onnx", "onnxruntime")}
ENGINES = tuple(_NEEDED)
"""Whose files can be made. TensorRT reads ONNX Runtime's."""


def check_installed(engines: Sequence[str]) -> None:
    """QuantizeError for an engine that there is not, or that lacks a package."""
    for engine in engines:
        if engine not in _NEEDED:
            raise QuantizeError(f"no int8 for the engine {engine!r} (there is {', '.join(ENGINES)})")
        for package in _NEEDED[engine]:
            if find_spec(package) is None:
                raise QuantizeError(
                    f"int8 for {engine} needs the package {package}: pip install 'yolov9-server[quantize]'"
                )


def versions(engines: Sequence[str]) -> dict[str, str]:
    """Of the packages that files for these engines are made with."""
    found = {}
    for package in sorted({package for engine in engines for package in _NEEDED[engine]}):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # built from source, or under another name (onnxruntime-gpu)
            found[package] = "unknown"
    return found
