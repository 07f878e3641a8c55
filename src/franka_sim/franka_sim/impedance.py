"""Cartesian impedance control as crisp_controllers does it, one call per millisecond.

    tau = J' (K clip(e) - D v) + N (k_n (q_home - q) - 2 sqrt(k_n) dq) + coriolis,   N = I - J' (J J')^-1 J

The target passes a first-order filter, and tau may change by max_delta_tau per call. The model compensates gravity.
"""

from __future__ import annotations

import math

import numpy as np

from franka_sim.rotations import matrix_from_vector, vector_from_matrix
from franka_sim.scene import ControlConfig

TORQUE_LIMITS = np.array([87.0, 87.0, 87.0, 87.0, 12.0, 12.0, 12.0])  # Nm, Franka's data sheet
BRAKE_STIFFNESS = np.array([600.0] * 4 + [50.0] * 3)  # Nm/rad
BRAKE_DAMPING = np.array([50.0] * 4 + [1.0] * 3)  # Nm s/rad
REGULARISATION = 1e-4 * np.eye(6)  # keeps the nullspace projector finite in a singularity


class CartesianImpedance:
    """Follows a target pose given in the arm's base frame; holds its joint posture when told to `hold`.

    `translation_error` m and `rotation_error` rad are what the last torque saw: filtered target to measured pose.
    """

    def __init__(self, config: ControlConfig, home_posture: np.ndarray):
        self._config = config
        self._home = np.asarray(home_posture, dtype=float)
        self._stiffness = np.repeat(config.stiffness, 3)
        self._damping = np.repeat(config.damping, 3)
        self._error_clip = np.repeat(config.error_clip, 3)
        self._nullspace_damping = 2.0 * math.sqrt(config.nullspace_stiffness)
        self._tau = np.zeros(7)
        self.reset(np.zeros(3), np.eye(3))

    def reset(self, position: np.ndarray, rotation: np.ndarray) -> None:
        """The target is this pose, also for the filter; torques go on from the last one."""
        self.set_target(position, rotation)
        self._position, self._rotation = self.target_position, self.target_rotation
        self.translation_error = self.rotation_error = 0.0

    def set_target(self, position: np.ndarray, rotation: np.ndarray) -> None:
        """New target: position [3] m and rotation matrix [3, 3] in the base frame."""
        self.target_position, self.target_rotation = np.array(position, dtype=float), np.array(rotation, dtype=float)

    def torque(
        self,
        position: np.ndarray,
        rotation: np.ndarray,
        jacobian: np.ndarray,
        q: np.ndarray,
        dq: np.ndarray,
        coriolis: np.ndarray,
    ) -> np.ndarray:
        """Joint torques [7] Nm from measured pose, Jacobian [6, 7] (base frame), joint state and Coriolis torque."""
        self._filter_target()
        translation, turn = self._position - position, vector_from_matrix(self._rotation @ rotation.T)
        self.translation_error, self.rotation_error = math.hypot(*translation), math.hypot(*turn)
        error = np.concatenate([translation, turn])
        error = np.minimum(np.maximum(error, -self._error_clip), self._error_clip)
        task = jacobian.T @ (self._stiffness * error - self._damping * (jacobian @ dq))
        posture = self._config.nullspace_stiffness * (self._home - q) - self._nullspace_damping * dq
        wanted = task + posture - _task_part(jacobian, posture) + coriolis
        return self._limit(wanted)

    def hold(self, q_hold: np.ndarray, q: np.ndarray, dq: np.ndarray, coriolis: np.ndarray) -> np.ndarray:
        """Torques [7] that keep the joints at `q_hold`, at once and unfiltered: what brakes do."""
        self._tau = _within_limits(BRAKE_STIFFNESS * (q_hold - q) - BRAKE_DAMPING * dq + coriolis)
        return self._tau

    def _filter_target(self) -> None:
        share = self._config.target_filter
        self._position = self._position + share * (self.target_position - self._position)
        remaining = vector_from_matrix(self.target_rotation @ self._rotation.T)
        if remaining.any():
            self._rotation = matrix_from_vector(share * remaining) @ self._rotation

    def _limit(self, wanted: np.ndarray) -> np.ndarray:
        step = self._config.max_delta_tau
        tau = self._tau + np.minimum(np.maximum(wanted - self._tau, -step), step)
        self._tau = _within_limits(tau)
        return self._tau


def _within_limits(tau: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(tau, -TORQUE_LIMITS), TORQUE_LIMITS)


def _task_part(jacobian: np.ndarray, torque: np.ndarray) -> np.ndarray:
    """The part of a joint torque that would move the tool."""
    return jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + REGULARISATION, jacobian @ torque)
