"""Crowds whose truth is known: people on a ground plane, a pinhole camera, and a detector with a detector's faults.

People walk in groups or alone, stop, turn, cross each other's way and hide one another. The detector misses those who
are hidden, small or unlucky (in spells: a person missed now is likely missed in the next frame), is unsure where it
sees little, moves boxes by noise of which a part stays from frame to frame, cuts boxes at what hides them, suppresses
one of two boxes that overlap too far, and sees things that are not there, some of them in the same place for a while.
Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WIDTH, HEIGHT, FOCAL = 1280, 720, 1000.0
FPS = 10.0
_VISIBLE = 0.1
"""The truth holds those of whom at least so much is seen, as pedestrian benchmarks count them."""
_SUPPRESSED_IOU = 0.65


@dataclass(frozen=True)
class Scene:
    """How full it is, how the camera stands and moves, how good the detector is."""

    people: int = 16
    seconds: float = 30.0
    camera_height: float = 4.0
    pitch: float = 0.2
    """Radians that the camera looks down."""
    depth: tuple[float, float] = (6.0, 28.0)
    """Metres from the camera between which people walk."""
    forward: float = 0.0
    """Metres a second that the camera moves."""
    sway: float = 0.0
    """Radians by which the camera swings to both sides."""
    miss: float = 0.08
    """Share of clearly visible people that the detector misses."""
    noise: float = 0.035
    """Standard deviation of a box's edges, in its size."""
    false_positives: float = 0.5
    """In a frame, on average."""


@dataclass(frozen=True)
class Frame:
    """`boxes` are x1, y1, x2, y2 in pixels."""

    time: float
    truth_ids: Ints
    truth_boxes: Floats
    boxes: Floats
    confidences: Floats


def sequence(scene: Scene, seed: int, fps: float = FPS) -> list[Frame]:
    """Frames of `scene` at `fps`; the same seed gives the same walks and faults."""
    rng = np.random.default_rng(seed)
    walks = _walks(scene, rng, fps)
    count = walks.shape[1]
    heights = rng.normal(1.7, 0.09, count)
    builds = rng.uniform(0.34, 0.46, count)
    detector = _Detector(scene, rng, count, fps)
    frames = []
    for index, positions in enumerate(walks):
        time = index / fps
        boxes, depths = _project(scene, positions, heights, builds, time)
        seen = _visible(boxes, depths)
        inside = (boxes[:, 2] > 0) & (boxes[:, 0] < WIDTH) & (boxes[:, 3] > 0) & (boxes[:, 1] < HEIGHT) & (depths > 1.5)
        ids = np.flatnonzero(inside & (seen >= _VISIBLE))
        found, confidences = detector.look(boxes, seen, depths, np.flatnonzero(inside))
        frames.append(Frame(time, ids, boxes[ids], found, confidences))
    return frames


def iou(a: Floats, b: Floats) -> Floats:
    """(n, 4) and (m, 4) boxes -> (n, m)."""
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = size.clip(0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clip(1e-9)


def _walks(scene: Scene, rng: np.random.Generator, fps: float) -> Floats:
    """(frames, people, 2): metres to the side and ahead on the ground. People come and go through the walls of a
    corridor as wide as the picture; one who left comes back as somebody else far away (a jump out of sight)."""
    frames, count = int(scene.seconds * fps), scene.people * 3
    near, far = scene.depth
    reach = far * WIDTH / FOCAL / 2
    groups = rng.integers(0, scene.people, count)
    heading = rng.choice([0.0, np.pi, np.pi / 2, -np.pi / 2], scene.people, p=[0.35, 0.35, 0.15, 0.15])[groups]
    heading = heading + rng.normal(0, 0.25, count)
    speed = rng.uniform(0.7, 1.7, scene.people)[groups] + rng.normal(0, 0.08, count)
    start = rng.uniform([-reach * 1.6, near], [reach * 1.6, far], (scene.people, 2))[groups]
    position = start + rng.normal(0, 0.6, (count, 2))
    standing = np.zeros(count)
    walks = np.empty((frames, count, 2))
    for index in range(frames):
        begins = (standing <= 0) & (rng.random(count) < 0.03 / fps)
        standing = np.where(begins, rng.exponential(3.0, count), standing - 1 / fps)
        turns = rng.random(count) < 0.04 / fps
        heading = heading + rng.normal(0, 0.35 / np.sqrt(fps), count) + np.where(turns, rng.normal(0, 1.2, count), 0)
        pace = np.where(standing > 0, 0.0, speed)
        position = position + np.stack([np.cos(heading), np.sin(heading)], 1) * (pace / fps)[:, None]
        ahead = scene.forward * index / fps
        turned = (position[:, 1] < near + ahead) & (np.sin(heading) < 0) & (scene.forward == 0)
        turned |= (position[:, 1] > far + ahead) & (np.sin(heading) > 0)
        heading = np.where(turned, -heading, heading)
        walks[index] = position
    return walks


def _project(scene: Scene, positions: Floats, heights: Floats, builds: Floats, time: float) -> tuple[Floats, Floats]:
    """Boxes of standing cylinders, and how far away they are."""
    yaw = scene.sway * np.sin(2 * np.pi * time / 7.0) + 0.3 * scene.sway * np.sin(2 * np.pi * time / 1.3)
    side, ahead = positions[:, 0], positions[:, 1] - scene.forward * time
    side, ahead = side * np.cos(yaw) - ahead * np.sin(yaw), side * np.sin(yaw) + ahead * np.cos(yaw)
    ahead = ahead.clip(0.5)
    sine, cosine = np.sin(scene.pitch), np.cos(scene.pitch)
    rows = []
    for level in (heights, np.zeros_like(heights)):
        drop = scene.camera_height - level
        rows.append(HEIGHT / 2 + FOCAL * (drop * cosine - ahead * sine) / (ahead * cosine + drop * sine))
    depth = ahead * cosine + scene.camera_height * sine
    column = WIDTH / 2 + FOCAL * side / depth
    half = (rows[1] - rows[0]) * builds / 2
    return np.stack([column - half, rows[0], column + half, rows[1]], 1), depth


def _visible(boxes: Floats, depths: Floats) -> Floats:
    """Share of each box that no nearer one hides and that is inside the picture, on a grid of points of the box."""
    steps = (np.arange(8) + 0.5) / 8
    shares = np.zeros(len(boxes))
    for index, (x1, y1, x2, y2) in enumerate(boxes):
        if x2 < 0 or x1 > WIDTH or depths[index] <= 1.5:
            continue
        x, y = (grid.ravel() for grid in np.meshgrid(x1 + steps * (x2 - x1), y1 + steps * (y2 - y1)))
        free = (x >= 0) & (x < WIDTH) & (y >= 0) & (y < HEIGHT)
        for a1, b1, a2, b2 in boxes[(depths < depths[index]) & (depths > 1.5)]:
            free &= ~((x > a1) & (x < a2) & (y > b1) & (y < b2))
        shares[index] = free.mean()
    return shares


class _Detector:
    def __init__(self, scene: Scene, rng: np.random.Generator, count: int, fps: float) -> None:
        self._scene, self._rng = scene, rng
        self._keep = 0.8 ** (FPS / fps)  # the share of a fault that stays until the next frame
        self._bias = rng.normal(0, 1, (count, 4))
        self._luck = rng.normal(0, 1, count)
        self._ghosts: list[list[float]] = []  # x, y, height, confidence, seconds left
        self._fps = fps

    def look(self, boxes: Floats, seen: Floats, depths: Floats, inside: Ints) -> tuple[Floats, Floats]:
        """(boxes, confidences) of one frame, confidence .1 and above."""
        rng, scene, keep = self._rng, self._scene, self._keep
        fresh = np.sqrt(1 - keep * keep)
        self._bias = keep * self._bias + fresh * rng.normal(0, 1, self._bias.shape)
        self._luck = keep * self._luck + fresh * rng.normal(0, 1, self._luck.shape)
        size = boxes[:, 3] - boxes[:, 1]
        clear = np.clip((seen - 0.15) / 0.5, 0, 1) * np.clip((size - 20) / 50, 0.1, 1)
        confidence = np.clip(0.12 + 0.72 * clear + 0.09 * self._luck + rng.normal(0, 0.06, len(boxes)), 0, 0.98)
        missed = (rng.random(len(boxes)) < scene.miss) | (self._luck < -1.8)
        offsets = (0.6 * self._bias + 0.8 * rng.normal(0, 1, boxes.shape)) * scene.noise
        extent = np.stack([boxes[:, 2] - boxes[:, 0], size], 1)
        moved = boxes + offsets * np.tile(extent, 2) * np.array([1.4, 1, 1.4, 1])
        hidden = (1 - seen).clip(0, 0.6) * (rng.random(len(boxes)) < 0.5)
        moved[:, 3] -= hidden * size * 0.6  # whoever is half hidden is hidden from below, mostly
        moved = moved.clip(0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
        chosen = inside[(confidence[inside] >= 0.1) & ~missed[inside] & (seen[inside] > 0.15)]
        found, scores = moved[chosen], confidence[chosen]
        ghosts, sure = self._see_ghosts()
        found, scores = np.concatenate([found, ghosts]), np.concatenate([scores, sure])
        found, scores = found[kept := (found[:, 2] - found[:, 0] > 4) & (found[:, 3] - found[:, 1] > 8)], scores[kept]
        return _suppress(found, scores)

    def _see_ghosts(self) -> tuple[Floats, Floats]:
        rng = self._rng
        self._ghosts = [[*ghost[:4], ghost[4] - 1 / self._fps] for ghost in self._ghosts if ghost[4] > 0]
        for _ in range(rng.poisson(self._scene.false_positives * 0.6)):
            lasting = rng.exponential(0.5) if rng.random() < 0.15 else 0.0
            confidence = rng.beta(2, 5) * 0.8 + 0.1
            self._ghosts.append([*rng.uniform([0, HEIGHT * 0.2, 40], [WIDTH, HEIGHT * 0.9, 200]), confidence, lasting])
        shown = [g for g in self._ghosts if rng.random() < 0.8]
        if not shown:
            return np.zeros((0, 4)), np.zeros(0)
        x, y, height, confidence, _ = np.array(shown).T
        boxes = np.stack([x - height * 0.2, y - height / 2, x + height * 0.2, y + height / 2], 1)
        boxes += rng.normal(0, self._scene.noise, boxes.shape) * height[:, None]
        return boxes, (confidence + rng.normal(0, 0.05, len(shown))).clip(0.1, 0.95)


def _suppress(boxes: Floats, scores: Floats) -> tuple[Floats, Floats]:
    order = np.argsort(-scores)
    boxes, scores = boxes[order], scores[order]
    overlap = iou(boxes, boxes)
    keep: list[int] = []
    for index in range(len(boxes)):
        if not (overlap[index, keep] > _SUPPRESSED_IOU).any():
            keep.append(index)
    return boxes[keep], scores[keep]
