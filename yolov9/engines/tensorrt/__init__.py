"""NVIDIA TensorRT, or TensorRT for RTX: engines built from a bundle's graph, cached, and run.

    api          the one place where `tensorrt` and `tensorrt_rtx` are told apart
    cuda         the few calls of the CUDA driver that running takes
    graph        what the builder is fed: `half` precision, device-side `suppression`
    recipe       what makes an engine the one that is wanted; its key
    build        graph -> serialised engine
    cache        engine files on disk: sealed, locked, bounded
    provide      graph, build and cache together: `build_engine`, `site`, `provide`
    background   `provide` in a process of its own, `python -m yolov9.engines.tensorrt`
    runtime      a serialised engine on a device
    engine       `TensorRtEngine`, see `yolov9.engines.base.Engine`

Nothing is imported before it is needed: neither TensorRT, nor onnx (needed to build only), nor the driver.
"""
