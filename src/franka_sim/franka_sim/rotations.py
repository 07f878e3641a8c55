"""The few rotations the simulator needs. Quaternions are x y z w, rotation vectors radians, matrices [3, 3]."""

from __future__ import annotations

import math

import numpy as np

TOOL_DOWN = np.diag([1.0, -1.0, -1.0])  # the tool's z points at the table, its x away from the robot


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrix of a quaternion of any length but zero."""
    x, y, z, w = np.asarray(quaternion, dtype=float) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def quaternion_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Unit quaternion x y z w with w >= 0 (Shepperd's method: the largest component first)."""
    m = np.asarray(matrix)
    diagonal = np.array([m[0, 0], m[1, 1], m[2, 2], m.trace()])
    largest = int(np.argmax(diagonal))
    if largest == 3:
        quaternion = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1], 1 + diagonal[3]])
    else:
        i, j, k = largest, (largest + 1) % 3, (largest + 2) % 3
        quaternion = np.empty(4)
        quaternion[i] = 1 + m[i, i] - m[j, j] - m[k, k]
        quaternion[j] = m[j, i] + m[i, j]
        quaternion[k] = m[k, i] + m[i, k]
        quaternion[3] = m[k, j] - m[j, k]
    quaternion /= np.linalg.norm(quaternion)
    return quaternion if quaternion[3] >= 0 else -quaternion


def matrix_from_vector(vector: np.ndarray) -> np.ndarray:
    """Exponential map (Rodrigues). Written out, like its inverse, because both run every simulated millisecond."""
    x, y, z = (float(component) for component in vector)
    angle = math.sqrt(x * x + y * y + z * z)
    if angle < 1e-8:
        sine, versine = 1.0, 0.5
    else:
        sine, versine = math.sin(angle) / angle, (1.0 - math.cos(angle)) / (angle * angle)
    xy, xz, yz = versine * x * y, versine * x * z, versine * y * z
    x2, y2, z2 = versine * x * x, versine * y * y, versine * z * z
    x, y, z = sine * x, sine * y, sine * z
    return np.array([[1 - y2 - z2, xy - z, xz + y], [xy + z, 1 - x2 - z2, yz - x], [xz - y, yz + x, 1 - x2 - y2]])


def vector_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Logarithm, angle in [0, pi]."""
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = np.asarray(matrix).tolist()
    x, y, z = m21 - m12, m02 - m20, m10 - m01
    sine, cosine = math.sqrt(x * x + y * y + z * z), m00 + m11 + m22 - 1.0  # both doubled
    if sine < 1e-4 and cosine < 0.0:  # near half a turn the axis is in the symmetric part
        axis = quaternion_from_matrix(matrix)[:3]
        return math.atan2(sine, cosine) / np.linalg.norm(axis) * axis
    share = 0.5 if sine < 1e-12 else math.atan2(sine, cosine) / sine
    return np.array([share * x, share * y, share * z])


def about_z(angle: float) -> np.ndarray:
    """Rotation matrix about z."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
