"""Where boxes will be: a Kalman filter over measured seconds, for all tracks at once.

A box is centre x, top y, width, height: what hides a part of an object hides its lower part, mostly, and then the lower
edge that a detector reports jumps while the upper one stays. Each of the four moves with a velocity of its own that
changes at random, so the filter is four independent filters of two states (value, velocity), and everything is a few
array operations.

All deviations are in units of the box's size (the square root of its area): a near object moves more pixels a second
than a far one. Uncertainty grows with the time that has really passed, so a low or uneven frame rate needs no other
numbers than a high one. Pure.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

TOP = 0.25
Floats = npt.NDArray[np.float64]

ACCELERATION = np.array([0.30, 0.20, 0.10, 0.10])
"""Deviation of a person's velocity after one second, sizes a second: people stop and turn, boxes keep their shape."""
SPEED = np.array([1.1, 0.32, 0.12, 0.12])
"""Deviation of the velocity of a person who has just appeared, sizes a second."""
QUICK_ACCELERATION = np.array([1.0, 0.6, 0.5, 0.5])
QUICK_SPEED = np.array([1.5, 0.8, 0.5, 0.5])
"""The same for what is quicker than people. A car that comes closer grows and gains speed in the picture."""
MEASURED = np.array([0.075, 0.075, 0.11, 0.11])
"""Deviation of a detector's box, sizes."""
SETTLING_S = np.array([6.0, 6.0, 0.8, 0.8])
"""A velocity that is not measured any more fades with this time constant: nothing grows or drifts for ever."""


class Motion(NamedTuple):
    """Rows are tracks; columns are centre x, top y, width, height."""

    value: Floats
    velocity: Floats
    """Pixels a second."""
    variance: Floats
    """Of the value, pixels squared."""
    covariance: Floats
    """Of value and velocity."""
    velocity_variance: Floats
    acceleration: Floats
    """Deviation of the velocity after one second, in sizes a second."""


def boxes_to_state(boxes: Floats) -> Floats:
    """(n, 4) x1, y1, x2, y2 -> centre x, top y, width, height."""
    size = boxes[:, 2:] - boxes[:, :2]
    return np.concatenate([boxes[:, :1] + size[:, :1] / 2, boxes[:, 1:2], size], axis=1)


def state_to_boxes(state: Floats) -> Floats:
    """The other way round; widths and heights of at least one pixel."""
    size = np.maximum(state[:, 2:], 1.0)
    corner = state[:, :2] - size * (0.5, 0.0)
    return np.concatenate([corner, corner + size], axis=1)


def sizes(state: Floats) -> Floats:
    """(n, 1): the square root of the area, at least one pixel."""
    return np.sqrt(np.maximum(state[:, 2] * state[:, 3], 1.0))[:, None]


def begin(state: Floats, quick: npt.NDArray[np.bool_]) -> Motion:
    """Tracks of boxes seen for the first time: at rest, as far as anyone knows. `quick`: which may be no people."""
    size = sizes(state)
    zero = np.zeros_like(state)
    speed, acceleration = (
        np.where(quick[:, None], fast, slow)
        for fast, slow in ((QUICK_SPEED, SPEED), (QUICK_ACCELERATION, ACCELERATION))
    )
    return Motion(state, zero, (size * MEASURED) ** 2, zero, (size * speed) ** 2, acceleration)


def predict(motion: Motion, seconds: float) -> Motion:
    """The tracks `seconds` (0 or more) later."""
    value, velocity, variance, covariance, velocity_variance, acceleration = motion
    power = (sizes(value) * acceleration) ** 2
    fade = np.exp(-seconds / SETTLING_S)
    reach = SETTLING_S * (1 - fade)  # the way of a fading velocity of 1
    # What a velocity that is pushed at random and fades (Ornstein-Uhlenbeck) adds in that time, exactly: two steps add
    # what one of the same length does.
    settled = SETTLING_S * (1 - fade**2) / 2
    pushed = SETTLING_S**2 * (seconds - 2 * reach + settled)
    return Motion(
        value + velocity * reach,
        velocity * fade,
        variance + 2 * reach * covariance + reach**2 * velocity_variance + power * pushed,
        (covariance + reach * velocity_variance) * fade + power * reach**2 / 2,
        velocity_variance * fade**2 + power * settled,
        acceleration,
    )


def update(motion: Motion, rows: npt.NDArray[np.intp], state: Floats, noise: Floats) -> None:
    """Take boxes in for the tracks `rows`, in place. `noise`: (n, 1) factor on the deviation of the detector."""
    value, velocity, variance, covariance, velocity_variance, _ = (column[rows] for column in motion)
    innovation = variance + (sizes(state) * MEASURED * noise) ** 2
    gain, velocity_gain = variance / innovation, covariance / innovation
    residual = state - value
    motion.value[rows] = value + gain * residual
    motion.velocity[rows] = velocity + velocity_gain * residual
    motion.variance[rows] = variance * (1 - gain)
    motion.covariance[rows] = covariance * (1 - gain)
    motion.velocity_variance[rows] = velocity_variance - velocity_gain * covariance


def select(motion: Motion, rows: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Motion:
    return Motion(*(column[rows] for column in motion))


def join(first: Motion, second: Motion) -> Motion:
    return Motion(*(np.concatenate(pair) for pair in zip(first, second, strict=True)))
