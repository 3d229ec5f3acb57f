"""HOTA and IDF1 of trackers on the crowds of `crowd.py`, at full, half and a quarter of the frame rate.

    python tests/server/tracking_scores.py            the tables of docs/tracking.md (minutes)

Parameters were tuned on the seeds TUNED; what is reported comes from the seeds REPORTED. Needs `trackeval` and, for
the comparison, `cjm-byte-track`; our tracker needs neither. The public tracker gets the frame rate that it really has.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from crowd import FPS, HEIGHT, WIDTH, Floats, Frame, Ints, Scene, iou, sequence

from server.analytics.tracker import NOBODY, Tracker

with contextlib.redirect_stdout(io.StringIO()):  # it prints its settings
    from trackeval.metrics import HOTA, Identity

    _METRICS = HOTA(), Identity({"PRINT_CONFIG": False})

SCENES = {
    "square": Scene(),
    "dense": Scene(people=26, depth=(6, 22)),
    "low camera": Scene(camera_height=1.8, pitch=0.02, depth=(4, 20), people=10),
    "poor detector": Scene(miss=0.25, noise=0.06, false_positives=2),
    "moving camera": Scene(camera_height=1.6, pitch=0.02, forward=1.2, depth=(6, 40)),
}
TUNED = (1, 2)
REPORTED = (11, 12, 13)
STEPS = (1, 2, 4)
"""Every frame, every second, every fourth."""

Tracked = list[tuple[Ints, Floats]]
"""For each frame: numbers and boxes."""


@dataclass(frozen=True)
class Score:
    hota: float
    idf1: float
    detection: float
    association: float


def ours(frames: Sequence[Frame], fps: float) -> Tracked:
    """Detections with the numbers of our tracker; those without one do not count as tracked."""
    tracker, tracked = Tracker(), []
    for frame in frames:
        ids = tracker.update(frame.boxes, frame.confidences, np.zeros(len(frame.boxes), np.int64), frame.time).ids
        tracked.append((ids[ids != NOBODY], frame.boxes[ids != NOBODY]))
    return tracked


def public_bytetrack(frames: Sequence[Frame], fps: float) -> Tracked:
    from cjm_byte_track.core import BYTETracker

    tracker, tracked = BYTETracker(frame_rate=fps), []
    for frame in frames:
        rows = np.concatenate([frame.boxes, frame.confidences[:, None]], axis=1)
        found = tracker.update(rows, (HEIGHT, WIDTH), (HEIGHT, WIDTH))
        ids = np.array([t.track_id for t in found], np.int64)
        tracked.append((ids, np.array([t.tlbr for t in found]).reshape(-1, 4)))
    return tracked


def score(runs: Sequence[tuple[Sequence[Frame], Tracked]]) -> Score:
    """Of all sequences together, as trackeval combines them."""
    results = [[metric.eval_sequence(_compared(frames, tracked)) for metric in _METRICS] for frames, tracked in runs]
    hota, identity = (
        metric.combine_sequences({index: result[which] for index, result in enumerate(results)})
        for which, metric in enumerate(_METRICS)
    )
    return Score(*(float(np.mean(x)) for x in (hota["HOTA"], identity["IDF1"], hota["DetA"], hota["AssA"])))


def scores(track: Callable[[Sequence[Frame], float], Tracked], scene: Scene, seeds: Sequence[int]) -> list[Score]:
    """One for each of STEPS, on the same walks and the same detections."""
    sequences = [sequence(scene, seed) for seed in seeds]
    return [score([(frames[::step], track(frames[::step], FPS / step)) for frames in sequences]) for step in STEPS]


def _compared(frames: Sequence[Frame], tracked: Tracked) -> dict[str, object]:
    truths = [frame.truth_ids.tolist() for frame in frames]
    numbers = [ids.tolist() for ids, _ in tracked]
    truth_index = {name: index for index, name in enumerate(sorted({i for ids in truths for i in ids}))}
    number_index = {name: index for index, name in enumerate(sorted({i for ids in numbers for i in ids}))}
    return {
        "gt_ids": [np.array([truth_index[i] for i in ids], int) for ids in truths],
        "tracker_ids": [np.array([number_index[i] for i in ids], int) for ids in numbers],
        "similarity_scores": [iou(frame.truth_boxes, boxes) for frame, (_, boxes) in zip(frames, tracked, strict=True)],
        "num_gt_dets": sum(map(len, truths)),
        "num_tracker_dets": sum(map(len, numbers)),
        "num_gt_ids": len(truth_index),
        "num_tracker_ids": len(number_index),
    }


def main() -> None:
    for name, track in (("This tracker", ours), ("Public ByteTrack (cjm-byte-track 0.0.6)", public_bytetrack)):
        print(f"\n{name}\n\n| scene | HOTA at 10 fps | 5 fps | 2.5 fps | IDF1 at 10 fps | 5 fps | 2.5 fps |")
        print("|---|---|---|---|---|---|---|")
        rows = []
        for scene, settings in SCENES.items():
            found = scores(track, settings, REPORTED)
            rows.append([s.hota for s in found] + [s.idf1 for s in found])
            _print_row(scene, rows[-1])
        mean = np.mean(rows, axis=0)
        _print_row("**mean**", mean)
        print(f"\nHOTA lost at half the rate: {1 - mean[1] / mean[0]:.1%}, at a quarter: {1 - mean[2] / mean[0]:.1%}")


def _print_row(name: str, values: Sequence[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |", flush=True)


def short(scene: Scene) -> Scene:
    """For tests: as hard, but over sooner."""
    return replace(scene, seconds=16.0)


if __name__ == "__main__":
    main()
