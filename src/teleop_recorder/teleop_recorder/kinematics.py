"""Forward kinematics of the Franka Research 3 with its hand, for leaders that are a copy of it (GELLO)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from teleop_recorder.teleop import TeleopError

JOINTS = 7
# Denavit-Hartenberg parameters in Craig's convention, as Franka publishes them: a m, d m, alpha rad.
DH = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
)
FLANGE_M = 0.107  # from joint 7
HAND_YAW_RAD = -math.pi / 4  # of the Franka hand on the flange
TCP_M = 0.1034  # from the flange, with the Franka hand

Matrix = NDArray[np.float64]


def tcp_pose(q: Sequence[float]) -> tuple[Matrix, Rotation]:
    """(position [3] m, rotation) of fr3_hand_tcp in fr3_link0, for joint angles [7] rad.

    Raises TeleopError for another number of angles, or one that is NaN or infinite.
    """
    if len(q) != JOINTS or not all(math.isfinite(angle) for angle in q):
        raise TeleopError(f"joint angles {list(q)}: expected {JOINTS} finite numbers")
    pose = np.eye(4)
    for angle, (a, d, alpha) in zip(q, DH, strict=True):
        pose = pose @ _link(a, d, alpha, angle)
    pose = pose @ _link(0.0, FLANGE_M + TCP_M, 0.0, HAND_YAW_RAD)
    return pose[:3, 3], Rotation.from_matrix(pose[:3, :3])


def _link(a: float, d: float, alpha: float, theta: float) -> Matrix:
    """[4, 4] from a link's frame to that of the link before it."""
    ca, sa, ct, st = math.cos(alpha), math.sin(alpha), math.cos(theta), math.sin(theta)
    return np.array(
        [
            [ct, -st, 0.0, a],
            [st * ca, ct * ca, -sa, -sa * d],
            [st * sa, ct * sa, ca, ca * d],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )
