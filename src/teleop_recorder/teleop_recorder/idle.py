"""Frames in which nothing happens: taught, they teach a policy to stand still. Which they are is a declared rule."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teleop_recorder.motion_labels import deltas_along


@dataclass(frozen=True)
class IdleRule:
    """An arm is idle while it is slower than all of these; only stretches longer than `longer_than` are removed.

    linear_speed: m/s. angular_speed: rad/s. gripper_speed: openings (0..1) per second. longer_than: s.
    """

    linear_speed: float = 0.005
    angular_speed: float = 0.02
    gripper_speed: float = 0.05
    longer_than: float = 0.5

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is {value}, expected 0 or more")


def kept_frames(
    positions: NDArray[np.float64],
    quaternions: NDArray[np.float64],
    openings: NDArray[np.float64],
    rate: float,
    rule: IdleRule,
) -> NDArray[np.bool_]:
    """Which of the frames [N] stay, for poses [N, A, 3] and [N, A, 4] and openings [N, A] of A arms at `rate` Hz.

    Of an idle stretch its first and its last frame stay, so the first and last of all do, too, and the step between
    them is what the arm drifted meanwhile: the path remains whole.
    """
    idle = np.ones(len(positions) - 1, bool)  # [N - 1] steps
    for arm in range(positions.shape[1]):
        translations, rotations = deltas_along(positions[:, arm], quaternions[:, arm], "base")
        idle &= np.linalg.norm(translations, axis=1) * rate < rule.linear_speed
        idle &= np.linalg.norm(rotations, axis=1) * rate < rule.angular_speed
        idle &= np.abs(np.diff(openings[:, arm])) * rate < rule.gripper_speed
    keep = np.ones(len(positions), bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], idle, [False]]).astype(np.int8)))
    for first, last in edges.reshape(-1, 2):  # frames at both ends of a stretch of idle steps
        if (last - first) / rate > rule.longer_than:
            keep[first + 1 : last] = False
    return keep
