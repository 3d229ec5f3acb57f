"""Which object of this frame is which of the frames before: numbers that stay with objects.

Two-stage association as ByteTrack does it: sure detections choose their tracks first, unsure ones are for tracks that
were seen just now and found no sure one. What differs is the measure of distance: how improbable it is that a track's
object is where the detection is, after the seconds that have really passed (`server.analytics.motion`). Overlap of
boxes, the usual measure, knows no time: at 2.5 frames a second the boxes of somebody who walks hardly overlap, while
the filter's uncertainty has grown with the gap. Overlap only decides between candidates that are within reach.

Pure: no clock. Detections go in and their numbers come out; none is withheld or moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from server.analytics.assignment import Indices, assign
from server.analytics.motion import (
    MEASURED,
    Floats,
    begin,
    boxes_to_state,
    join,
    predict,
    select,
    sizes,
    state_to_boxes,
    update,
)

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NOBODY = 0
"""In place of a track's number: not confirmed."""


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """Tuned on crowds of tests/server/crowd.py; docs/tracking.md has what they reach on others."""

    sure: float = 0.3
    """Detections of at least this confidence choose their tracks first."""
    start: float = 0.3
    """A track begins with a detection of at least this confidence."""
    evidence: float = 0.7
    """A track is confirmed once the confidences of its detections add up to so much, and there are two of them."""
    gate: float = 25.0
    """Cost above which a sure detection is out of reach of a track."""
    gate_unsure: float = 30.0
    """The same for unsure ones, whose boxes are less exact."""
    shape: float = 0.15
    """Weight of width and height in the squared Mahalanobis distance: what half hides an object changes its shape."""
    vagueness: float = 1.3
    """Weight of the track's own uncertainty: of two tracks in reach the one seen lately is the more probable."""
    apart: float = 7.0
    """Cost of boxes that do not overlap at all."""
    unsure_noise: float = 2.5
    """How much larger the deviation of an unsure detection's box is."""
    lost_s: float = 3.0
    """A confirmed track that is not seen for so long ends."""
    tentative_s: float = 0.45
    """An unconfirmed one, if it was missed in a frame."""
    duplicate_iou: float = 0.6
    """A detection that overlaps one with a track by so much begins none: it is the same object twice."""


class Update(NamedTuple):
    """What became of a frame."""

    ids: Ints
    """The track of each detection, NOBODY if it has none that is confirmed."""
    ended: list[int]
    """Confirmed tracks that are no more."""


class Tracker:
    """The objects of one camera. Times are seconds of any clock that suits the frames."""

    def __init__(self, settings: TrackerSettings | None = None) -> None:
        self.settings = settings or TrackerSettings()
        # One row for each track, in all of these.
        self._motion = begin(np.empty((0, 4)), np.empty(0, bool))
        self._ids = np.empty(0, np.int64)
        self._classes = np.empty(0, np.int64)
        self._seen_at = np.empty(0)
        self._evidence = np.empty(0)
        self._hits = np.empty(0, np.int64)
        self._last_id = NOBODY
        self._now = -np.inf

    def __len__(self) -> int:
        """Confirmed tracks that have not ended."""
        return int(np.count_nonzero(self._ids))

    def update(
        self, boxes: Floats, confidences: Floats, classes: Ints, now: float, quick: Mask | None = None
    ) -> Update:
        """The next frame: (n, 4) boxes x1, y1, x2, y2 in pixels, and their confidences and class ids. `quick`: which
        are of a class that moves quicker than people; None: none.

        A frame from before the newest one (answers may overtake each other) gets its numbers and changes nothing.
        """
        if not len(boxes) and not self._ids.size:  # most cameras see nothing most of the time
            self._now = max(now, self._now)
            return Update(self._ids, [])
        state = boxes_to_state(boxes)
        settings = self.settings
        before, late = self._now, now < self._now
        ended: list[int] = []
        if not late:
            if before > -np.inf:
                self._motion = predict(self._motion, now - before)
            self._now = now
            ended = self._end_lost(now, before)
        cost = self._cost(boxes, state, classes)
        owners = np.full(len(boxes), -1, np.intp)
        confirmed = self._ids != NOBODY
        sure = confidences >= settings.sure
        self._associate(cost, confirmed, sure, settings.gate, owners)
        self._associate(cost, confirmed & (self._seen_at >= before), ~sure, settings.gate_unsure, owners)
        if not late:
            self._associate(cost, ~confirmed, np.ones_like(sure), settings.gate, owners)
            self._take(owners, state, confidences, sure, now)
        ids = np.full(len(boxes), NOBODY, np.int64)
        owned = owners >= 0
        ids[owned] = self._ids[owners[owned]]
        if not late:
            quick = np.zeros_like(sure) if quick is None else quick
            self._begin(boxes, state, confidences, classes, quick, owned, now)
        return Update(ids, ended)

    def expire(self, now: float) -> list[int]:
        """No frame comes: the confirmed tracks that end by that."""
        return self._end_lost(now, now) if now >= self._now else []

    def seen_at(self, track_id: int) -> float | None:
        """When a confirmed track was seen last; None if it has ended."""
        rows = np.flatnonzero(self._ids == track_id)
        return float(self._seen_at[rows[0]]) if rows.size else None

    def _end_lost(self, now: float, before: float) -> list[int]:
        """`before`: the time of the frame before. A tentative track may wait for its second frame, however slow the
        camera is; a confirmed one is given as long as the camera needs to show it at all."""
        settings = self.settings
        unseen = now - self._seen_at
        confirmed = self._ids != NOBODY
        kept = np.where(confirmed, unseen <= settings.lost_s, unseen <= settings.tentative_s)
        kept |= (self._seen_at >= before) & (unseen <= settings.lost_s)
        ended: list[int] = self._ids[confirmed & ~kept].tolist()
        if not kept.all():
            self._motion = select(self._motion, kept)
            self._ids, self._classes, self._hits = self._ids[kept], self._classes[kept], self._hits[kept]
            self._seen_at, self._evidence = self._seen_at[kept], self._evidence[kept]
        return ended

    def _cost(self, boxes: Floats, state: Floats, classes: Ints) -> Floats:
        """(tracks, detections), 0 and above; infinite between different classes."""
        settings, motion = self.settings, self._motion
        measured = (sizes(motion.value) * MEASURED) ** 2
        spread = motion.variance + measured
        squared = (state - motion.value[:, None]) ** 2 / spread[:, None]
        cost: Floats = squared[..., :2].sum(2) + settings.shape * squared[..., 2:].sum(2)
        cost += settings.vagueness * np.log(spread / measured).sum(1, keepdims=True)
        cost += settings.apart * (1 - iou(state_to_boxes(motion.value), boxes))
        cost[self._classes[:, None] != classes] = np.inf
        return cost

    @staticmethod
    def _associate(cost: Floats, tracks: Mask, detections: Mask, limit: float, owners: Indices) -> None:
        """Give the chosen detections that have no owner yet to the chosen tracks that own nothing yet."""
        free = tracks.copy()
        free[owners[owners >= 0]] = False
        rows, columns = np.flatnonzero(free), np.flatnonzero(detections & (owners < 0))
        paired, chosen = assign(cost[np.ix_(rows, columns)], limit)
        owners[columns[chosen]] = rows[paired]

    def _take(self, owners: Indices, state: Floats, confidences: Floats, sure: Mask, now: float) -> None:
        """Detections become part of their tracks, and some tracks confirmed."""
        settings = self.settings
        owned = owners >= 0
        rows = owners[owned]
        update(self._motion, rows, state[owned], np.where(sure[owned], 1.0, settings.unsure_noise)[:, None])
        self._seen_at[rows] = now
        self._hits[rows] += 1
        self._evidence[rows] += confidences[owned]
        enough = (self._hits[rows] >= 2) & (self._evidence[rows] >= settings.evidence) & (self._ids[rows] == NOBODY)
        for row in rows[enough]:
            self._last_id += 1
            self._ids[row] = self._last_id

    def _begin(
        self, boxes: Floats, state: Floats, confidences: Floats, classes: Ints, quick: Mask, owned: Mask, now: float
    ) -> None:
        candidates = np.flatnonzero(~owned & (confidences >= self.settings.start))
        candidates = candidates[np.argsort(-confidences[candidates], kind="stable")]
        others = np.concatenate([np.flatnonzero(owned), candidates])
        twice = iou(boxes[candidates], boxes[others]) > self.settings.duplicate_iou
        twice &= classes[candidates][:, None] == classes[others]
        twice &= np.tri(candidates.size, others.size, others.size - candidates.size - 1, dtype=bool)  # surer ones only
        new = candidates[~twice.any(axis=1)]
        if not new.size:
            return
        self._motion = join(self._motion, begin(state[new], quick[new]))
        self._ids = np.concatenate([self._ids, np.full(new.size, NOBODY, np.int64)])
        self._classes = np.concatenate([self._classes, classes[new]])
        self._seen_at = np.concatenate([self._seen_at, np.full(new.size, now)])
        self._evidence = np.concatenate([self._evidence, confidences[new]])
        self._hits = np.concatenate([self._hits, np.ones(new.size, np.int64)])


def iou(a: Floats, b: Floats) -> Floats:
    """(n, 4) and (m, 4) boxes x1, y1, x2, y2 -> (n, m)."""
    width = np.minimum(a[:, None, 2], b[:, 2]) - np.maximum(a[:, None, 0], b[:, 0])
    height = np.minimum(a[:, None, 3], b[:, 3]) - np.maximum(a[:, None, 1], b[:, 1])
    shared = width.clip(0) * height.clip(0)
    first, second = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    together: Floats = shared / np.maximum(first[:, None] + second - shared, 1e-9)
    return together
