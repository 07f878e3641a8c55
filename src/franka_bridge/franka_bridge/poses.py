"""Rigid poses: positions in metres, unit quaternions as (x, y, z, w), rotation vectors in radians.

Written out rather than taken from scipy because every tick needs a dozen of these on single poses: 1 to 3 µs each
here, 5 to 15 µs through `scipy.spatial.transform.Rotation` (see `benchmarks/bridge_tick.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

# Below this angle the closed forms of exp and log divide by nearly nothing; their series are exact to rounding there.
SMALL_ANGLE_RAD = 1e-8


def quaternion_multiply(a: Vector, b: Vector) -> Vector:
    """Rotation `b` followed by rotation `a`, [4] x y z w."""
    ax, ay, az, aw = a.tolist()
    bx, by, bz, bw = b.tolist()
    return np.array(
        (
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        )
    )


def quaternion_conjugate(q: Vector) -> Vector:
    """The inverse of a unit quaternion, [4] x y z w."""
    x, y, z, w = q.tolist()
    return np.array((-x, -y, -z, w))


def quaternion_exp(rotation_vector: Vector) -> Vector:
    """Unit quaternion [4] of a rotation vector [3] in radians."""
    x, y, z = rotation_vector.tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    scale = 0.5 if angle < SMALL_ANGLE_RAD else math.sin(0.5 * angle) / angle
    return np.array((x * scale, y * scale, z * scale, math.cos(0.5 * angle)))


def quaternion_log(q: Vector) -> Vector:
    """Rotation vector [3], norm 0..pi radians, of a unit quaternion [4]."""
    x, y, z, w = q.tolist()
    if w < 0.0:  # q and -q are one rotation; this one is the shorter way round
        x, y, z, w = -x, -y, -z, -w
    sine = math.sqrt(x * x + y * y + z * z)
    scale = 2.0 if sine < SMALL_ANGLE_RAD else 2.0 * math.atan2(sine, w) / sine
    return np.array((x * scale, y * scale, z * scale))


def rotate(q: Vector, v: Vector) -> Vector:
    """The vector `v` [3] turned by `q` [4]."""
    x, y, z, w = q.tolist()
    vx, vy, vz = v.tolist()
    tx, ty, tz = 2.0 * (y * vz - z * vy), 2.0 * (z * vx - x * vz), 2.0 * (x * vy - y * vx)
    return np.array((vx + w * tx + y * tz - z * ty, vy + w * ty + z * tx - x * tz, vz + w * tz + x * ty - y * tx))


def norm(v: Vector) -> float:
    """Euclidean length; three times as fast as numpy's on three numbers."""
    return math.sqrt(float(v @ v))


@dataclass(frozen=True)
class Pose:
    """A pose of the tool centre point in the arm's base frame."""

    position: Vector  # [3] m
    quaternion: Vector  # [4] x y z w, unit length

    @staticmethod
    def of(position: tuple[float, ...] | list[float], quaternion: tuple[float, ...] | list[float]) -> Pose:
        """Pose from plain numbers; normalises the quaternion. ValueError if one is not finite or it has no length."""
        p, q = np.array(position, dtype=np.float64), np.array(quaternion, dtype=np.float64)
        length = math.sqrt(float(q @ q))
        if p.shape != (3,) or q.shape != (4,):
            raise ValueError(f"a pose takes 3 + 4 numbers, not {p.size} + {q.size}")
        if not (math.isfinite(float(p.sum())) and math.isfinite(length)):
            raise ValueError("a number of the pose is NaN or infinite")
        if length < 1e-6:
            raise ValueError("the quaternion of the pose is zero")
        return Pose(p, q / length)

    def distance(self, other: Pose) -> float:
        """Metres between the two positions."""
        return norm(self.position - other.position)

    def angle(self, other: Pose) -> float:
        """Radians, 0..pi, between the two orientations."""
        return norm(self.rotation_to(other))

    def rotation_to(self, other: Pose) -> Vector:
        """Rotation vector [3] in the base frame that turns this orientation into the other's."""
        return quaternion_log(quaternion_multiply(other.quaternion, quaternion_conjugate(self.quaternion)))

    def moved(self, translation: Vector, rotation: Vector) -> Pose:
        """This pose after a translation [3] m and a rotation vector [3] rad in the base frame (on the left)."""
        q = quaternion_multiply(quaternion_exp(rotation), self.quaternion)
        return Pose(self.position + translation, q / math.sqrt(float(q @ q)))

    def moved_in_tool(self, translation: Vector, rotation: Vector) -> Pose:
        """This pose after a translation and a rotation expressed in its own frame (composed on the right)."""
        return self.moved(rotate(self.quaternion, translation), rotate(self.quaternion, rotation))

    def towards(self, other: Pose, fraction: float) -> Pose:
        """The pose at `fraction` (0..1) of the straight way to the other, turning at a constant rate."""
        return self.moved(fraction * (other.position - self.position), fraction * self.rotation_to(other))
