"""`--batch auto`: as many pictures a step as fit the accelerator's memory, found by trying small ones."""

from __future__ import annotations

from collections.abc import Callable

import torch

from yolov9.nn.model import Detector
from yolov9.training.assigner import Truth
from yolov9.training.loss import DetectionLoss

CPU_BATCH = 16
"""Where memory is not what limits: a CPU is as fast with 16 as with more."""
_TRIED = (2, 4, 8)
_SHARE = 0.75
"""Of free memory: crowded pictures, allocator and other sizes of a multi-scale training want some, too."""
_MOST = 256
_BOXES = 30
"""Objects a picture while it is tried."""


def fitting(free: float, measure: Callable[[int], float], most: int = _MOST) -> int:
    """The largest batch whose memory, `measure(batch)` bytes extrapolated from small ones, fits `free` bytes.

    A multiple of 8 if there is room for 8, at least 1.
    """
    sizes = [measure(batch) for batch in _TRIED]
    each = max((sizes[-1] - sizes[0]) / (_TRIED[-1] - _TRIED[0]), 1.0)
    fixed = max(sizes[-1] - each * _TRIED[-1], 0.0)
    batch = min(int((_SHARE * free - fixed) / each), most)
    return max(batch // 8 * 8 if batch >= 8 else batch, 1)


def batch_size(model: Detector, size: int, device: torch.device, precision: str, say: Callable[[str], None]) -> int:
    """For a training at `size` pixels on `device`; the model stays as it is, but for statistics of normalisation."""
    if device.type != "cuda":
        say(f"batch: {CPU_BATCH}")
        return CPU_BATCH
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.to(device).train()
    loss = DetectionLoss(model.strides)
    half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)

    def measure(batch: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        images = torch.zeros(batch, 3, size, size, device=device)
        corner = torch.rand(batch * _BOXES, 2, device=device) * size / 2
        truth = Truth(
            torch.arange(batch, device=device).repeat_interleave(_BOXES),
            torch.zeros(batch * _BOXES, dtype=torch.int64, device=device),
            torch.cat((corner, corner + size / 4), 1),
        )
        with torch.autocast("cuda", dtype=half, enabled=half is not None):
            outputs = model(images)
        loss(outputs, truth).total.backward()  # type: ignore[no-untyped-call]
        model.zero_grad(set_to_none=True)
        return float(torch.cuda.max_memory_allocated(device))

    free = torch.cuda.mem_get_info(device)[0]
    found = fitting(free, measure)
    model.load_state_dict(state)
    say(f"batch: {found} ({free / 2**30:.1f} GiB free)")
    return found
