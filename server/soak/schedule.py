"""Which fault happens when to which camera. Pure: the same seed gives the same run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

CAMERA_FAULTS: dict[str, tuple[float, float]] = {
    "fin": (0.0, 0.0),
    "rst": (0.0, 0.0),
    "bye": (0.0, 0.0),
    "stall": (0.5, 4.0),
    "loss": (1.0, 5.0),
    "corrupt": (1.0, 3.0),
    "pts_jump": (0.0, 0.0),
    "resolution": (2.0, 5.0),
    "process_killed": (0.0, 0.0),
    "process_stopped": (0.0, 0.0),
    "settings": (0.0, 0.0),
    "removed": (0.5, 2.0),
}
"""What happens to one camera -> how long it lasts, least and most seconds. `settings`: changed while it runs;
`removed`: deleted and added again."""
SERVER_FAULTS: dict[str, tuple[float, float]] = {
    "slow_client": (2.0, 5.0),
    "client_goes": (0.0, 0.0),
    "pictures": (0.0, 0.0),
    "swap": (0.0, 0.0),
}
"""What happens to the server. `swap`: the model is replaced while it runs; `pictures`: snapshots are asked for."""
_CALM_SHARE = 0.04
"""Nothing happens in the first and last part: there the levels are taken that are compared."""


@dataclass(frozen=True, slots=True, order=True)
class Planned:
    at_s: float
    """From the begin of the run."""
    fault: str
    camera: int | None
    """None: it concerns the server."""
    lasts_s: float


def plan(seed: int, seconds: float, cameras: int, faults: int, without: Sequence[str] = ()) -> list[Planned]:
    """`faults` of them, spread evenly with chance, each kind as often as the others. A camera has one at a time where
    that is possible."""
    rng = random.Random(seed)
    kinds = [kind for kind in (*CAMERA_FAULTS, *SERVER_FAULTS) if kind not in without]
    order: list[str] = []
    while len(order) < faults:
        turn = kinds[:]
        rng.shuffle(turn)
        order += turn
    begin, span = seconds * _CALM_SHARE, seconds * (1 - 2 * _CALM_SHARE)
    free_at = [0.0] * cameras
    planned = []
    for number, fault in enumerate(order[:faults]):
        at_s = begin + span * (number + rng.random()) / faults
        least, most = (CAMERA_FAULTS | SERVER_FAULTS)[fault]
        lasts_s = min(rng.uniform(least, most), max(0.0, begin + span - at_s))
        camera = None
        if fault in CAMERA_FAULTS:
            idle = [index for index in range(cameras) if free_at[index] <= at_s]
            camera = rng.choice(idle) if idle else min(range(cameras), key=lambda index: free_at[index])
            free_at[camera] = at_s + lasts_s
        planned.append(Planned(round(at_s, 3), fault, camera, round(lasts_s, 3)))
    return sorted(planned)
