"""Actions are how the end effector moves from one sample to the next, in the conventions of an embodiment."""

from __future__ import annotations

import numpy as np
from molmoact_policy.embodiment import ROW, Delta, Embodiment
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation


def deltas_along(
    positions: NDArray[np.float64], quaternions: NDArray[np.float64], frame: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Translations (m) and rotation vectors (rad), [N - 1, 3] each, between poses [N, 3] and [N, 4] x y z w.

    frame: "base", or "end_effector": expressed in the pose that the step begins at.
    """
    rotations = Rotation.from_quat(quaternions)
    before, after = rotations[:-1], rotations[1:]
    translations = np.diff(positions, axis=0)
    if frame == "base":
        return translations, (after * before.inv()).as_rotvec()
    return before.inv().apply(translations), (before.inv() * after).as_rotvec()


def integrate(
    position: NDArray[np.float64], quaternion: NDArray[np.float64], deltas: list[Delta], frame: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The pose [3], [4] and those after every step, [N + 1, 3] and [N + 1, 4]: as franka_bridge runs a chunk."""
    positions, rotations = [position], [Rotation.from_quat(quaternion)]
    for delta in deltas:
        translation, turn, now = delta.translation, Rotation.from_rotvec(delta.rotation), rotations[-1]
        base = frame == "base"
        positions.append(positions[-1] + (translation if base else now.apply(translation)))
        rotations.append(turn * now if base else now * turn)
    return np.array(positions), np.array([rotation.as_quat() for rotation in rotations])


def action_rows(
    positions: NDArray[np.float64],
    quaternions: NDArray[np.float64],
    openings: NDArray[np.float64],
    embodiment: Embodiment,
) -> NDArray[np.float64]:
    """Rows [N - 1, 7 · A] for poses [N, A, 3] and [N, A, 4] and openings [N, A] (0..1) of A arms.

    The gripper of a row is the opening at the end of its step: what a bridge that runs the row has to reach.
    """
    arms = positions.shape[1]
    rows = np.empty((len(positions) - 1, ROW * arms))
    for arm in range(arms):
        steps = deltas_along(positions[:, arm], quaternions[:, arm], embodiment.frame)
        deltas = [Delta(*step) for step in zip(*steps, openings[1:, arm].tolist(), strict=True)]
        rows[:, ROW * arm : ROW * (arm + 1)] = embodiment.from_deltas(deltas)
    return rows


def state_rows(
    positions: NDArray[np.float64], quaternions: NDArray[np.float64], openings: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Rows [N, 8 · A]: position (m), quaternion x y z w, opening (0..1) of each arm.

    A quaternion and its negative are the same orientation: here the largest number of the first one is positive, and
    none jumps to its negative.
    """
    continuous = quaternions.copy()
    for arm in range(quaternions.shape[1]):
        track = continuous[:, arm]
        flips = np.sign(np.sum(track[1:] * track[:-1], axis=1))
        track[1:] *= np.cumprod(np.where(flips < 0, -1.0, 1.0))[:, None]
        track *= -1.0 if track[0, np.abs(track[0]).argmax()] < 0 else 1.0
    return np.concatenate([positions, continuous, openings[..., None]], 2).reshape(len(positions), -1)
