"""int8 for OpenVINO: NNCF's post-training quantisation of the converted graph, `openvino/model.xml` in the bundle.

Converted first: x * sigmoid(x) becomes one operation, and what surrounds a convolution stays in its integer kernel.
Everything that follows the last convolutions stays in floating point. AP lost by GELAN-T on coco128, calibrated on
every other picture (the other 64 / all 128; differences below .3 are noise), and mean error of the boxes that count,
in percent of their size:

    preset       what follows the towers   AP lost     boxes
    PERFORMANCE  int8                     2.2 / 4.0
    PERFORMANCE  floating point           -.7 / .7      .76
    MIXED        floating point            .3 / .3      .52    (used)
    MIXED        floating point, biases not corrected   .6 / 1.6

All run equally fast: with unsigned activations after SiLU, which MIXED takes, nothing is recomputed. So does the rest
of the graph in bf16, which is why it is in fp32. Scores by level instead of all together, a channels-last tail, blocks
without splits and a stem on pairs of pixels were tried: each within 1 % of the CPU time of a picture.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence

import openvino as ov

from yolov9.data.inputs import Inputs
from yolov9.engines.openvino import to_files
from yolov9.quantization import QuantizeError

_WEIGHTED = frozenset({"Convolution", "GroupConvolution"})
_NOT_COMPUTED = frozenset({"Constant", "Parameter", "Result"})


def quantize_openvino(graph: bytes, inputs: Inputs, metadata: Mapping[str, str] | None = None) -> tuple[bytes, bytes]:
    """An ONNX graph -> XML and weights of the quantised model, with `metadata` in its rt_info. QuantizeError."""
    import nncf

    with _progress_on_stderr():
        model = ov.convert_model(io.BytesIO(graph))
        scope = nncf.IgnoredScope(names=after_the_last_convolutions(model), validate=False)
        try:
            quantised = nncf.quantize(
                model,
                nncf.Dataset(inputs),
                preset=nncf.QuantizationPreset.MIXED,
                subset_size=len(inputs),
                ignored_scope=scope,
            )
        except (RuntimeError, ValueError, nncf.ValidationError) as error:
            raise QuantizeError(f"NNCF cannot quantise the graph: {error}") from error
    return to_files(quantised, metadata or {})


def after_the_last_convolutions(model: ov.Model) -> list[str]:
    """Names of the operations that lead to no convolution, and are none: decoding, and all that it is made from."""
    leading: set[str] = set()
    for op in reversed(model.get_ordered_ops()):
        name = op.get_friendly_name()
        if op.get_type_name() in _WEIGHTED or name in leading:
            leading.add(name)
            leading.update(value.get_source_output().get_node().get_friendly_name() for value in op.inputs())
    return [
        name
        for op in model.get_ordered_ops()
        if (name := op.get_friendly_name()) not in leading and op.get_type_name() not in _NOT_COMPUTED
    ]


@contextlib.contextmanager
def _progress_on_stderr() -> Iterator[None]:
    """NNCF draws its bars on stdout, and logs every operation that it leaves out."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.setLevel(level)


def convolutions(model: ov.Model) -> Sequence[ov.Node]:
    """In the order in which they are computed."""
    return [op for op in model.get_ordered_ops() if op.get_type_name() in _WEIGHTED]
