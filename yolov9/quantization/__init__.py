"""Post-training quantisation to int8: `python -m yolov9.quantize` is the command to it.

One file a concern: `packages` (what it needs), `pictures` (what is calibrated on), `ranges` (where to cut a tensor's
values), `qdq` (quantisers in an ONNX graph), `for_onnx` and `for_openvino` (calibration for each engine), `deviation`
and `sensitivity` (how far predictions move, in all and part by part), `run` (all of it, from bundle to bundle).
"""


class QuantizeError(Exception):
    """The model cannot be quantised, or is not good once it is. One sentence."""
