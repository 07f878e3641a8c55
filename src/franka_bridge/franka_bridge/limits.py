"""Every limit of the safety layer. All are required, none has a default here, and 0.0 is a limit like any other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from franka_bridge.errors import LimitError
from franka_bridge.poses import Pose, Vector


@dataclass(frozen=True)
class Bounds:
    """Largest norms of a velocity, its first and its second derivative (m or rad, per s, s^2, s^3)."""

    speed: float
    acceleration: float
    jerk: float


@dataclass(frozen=True)
class Limits:
    """What a published target must never exceed. SI units, base frame, norms of 3-vectors unless said otherwise.

    Raises LimitError, naming the limit, for a value that is NaN, infinite or negative, and for values that contradict
    each other.
    """

    workspace_min: tuple[float, ...]  # [3] m, corner of the box the tool centre point stays in
    workspace_max: tuple[float, ...]  # [3] m
    linear_speed: float  # m/s
    linear_acceleration: float  # m/s^2
    linear_jerk: float  # m/s^3
    angular_speed: float  # rad/s
    angular_acceleration: float  # rad/s^2
    angular_jerk: float  # rad/s^3
    emergency_linear_acceleration: float  # m/s^2, to brake with in an emergency stop
    emergency_linear_jerk: float  # m/s^3
    emergency_angular_acceleration: float  # rad/s^2
    emergency_angular_jerk: float  # rad/s^3
    homing_speed: float  # m/s
    homing_angular_speed: float  # rad/s
    max_delta_translation: float  # m, of one row of a chunk or one teleop command
    max_delta_rotation: float  # rad, likewise
    max_target_distance: float  # m, between the target and the measured pose
    max_target_angle: float  # rad, likewise
    max_measured_speed: float  # m/s; a measured pose that moves faster has jumped
    max_measured_angular_speed: float  # rad/s, likewise

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if name.startswith("workspace_"):
                _require_corner(name, value)
            else:
                _require_not_negative(name, value)
        for axis, low, high in zip("xyz", self.workspace_min, self.workspace_max, strict=True):
            if low > high:
                raise LimitError(f"workspace_min: {axis} is {low} m, above workspace_max, {high} m")
        for slower, faster in _ORDERED:
            if getattr(self, slower) > getattr(self, faster):
                raise LimitError(f"{slower}: {getattr(self, slower)} is above {faster}, {getattr(self, faster)}")
        for name in ("max_delta_rotation", "max_target_angle"):  # beyond pi the short way round is the other one
            if getattr(self, name) >= math.pi:
                raise LimitError(f"{name}: {getattr(self, name)} rad, expected less than pi")

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> Limits:
        """Limits out of a mapping by name; other names in it are left alone. LimitError for one that is missing."""
        return Limits(**_required(Limits, values))

    @property
    def linear(self) -> Bounds:
        return Bounds(self.linear_speed, self.linear_acceleration, self.linear_jerk)

    @property
    def angular(self) -> Bounds:
        return Bounds(self.angular_speed, self.angular_acceleration, self.angular_jerk)

    @property
    def emergency_linear(self) -> Bounds:
        return Bounds(self.linear_speed, self.emergency_linear_acceleration, self.emergency_linear_jerk)

    @property
    def emergency_angular(self) -> Bounds:
        return Bounds(self.angular_speed, self.emergency_angular_acceleration, self.emergency_angular_jerk)

    def clipped(self, position: Vector) -> Vector:
        """The point of the workspace box nearest to `position` [3] m. It moves continuously when `position` does."""
        return np.minimum(np.maximum(position, self.workspace_min), self.workspace_max)

    def near(self, target: Pose, measured: Pose) -> bool:
        """The two are no further apart than a target and a measured pose may be."""
        return target.distance(measured) <= self.max_target_distance and target.angle(measured) <= self.max_target_angle

    def outside(self, position: Vector, tolerance: float = 0.0) -> str | None:
        """Which coordinate is furthest outside the workspace box; None if none is by more than `tolerance` m."""
        excess = np.maximum(position - self.workspace_max, self.workspace_min - position)
        worst = int(np.argmax(excess))
        if excess[worst] <= tolerance:
            return None
        low, high = self.workspace_min[worst], self.workspace_max[worst]
        return f"{'xyz'[worst]} {position[worst]:.3f} m is outside {low} .. {high}"


@dataclass(frozen=True)
class Timeouts:
    """How old what the bridge relies on may be, in seconds of the ROS clock against header stamps.

    Raises LimitError, naming the timeout, for a value that is NaN, infinite or negative.
    """

    max_observation_age: float  # of a chunk's observation when the chunk arrives
    chunk_timeout: float  # after a chunk's last row was due, until the arm is stopped where it is
    pose_timeout: float  # of the measured pose
    robot_state_timeout: float  # of the robot's own state
    teleop_timeout: float  # of a teleop command
    clock_jump: float  # of the ROS clock ahead of real time, from one tick to the next

    def __post_init__(self) -> None:
        for field in fields(self):
            _require_not_negative(field.name, getattr(self, field.name))

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> Timeouts:
        """Timeouts out of a mapping by name; other names in it are left alone. LimitError for one that is missing."""
        return Timeouts(**_required(Timeouts, values))


# A limit that must not be above another one.
_ORDERED = (
    ("linear_acceleration", "emergency_linear_acceleration"),
    ("linear_jerk", "emergency_linear_jerk"),
    ("angular_acceleration", "emergency_angular_acceleration"),
    ("angular_jerk", "emergency_angular_jerk"),
    ("homing_speed", "linear_speed"),
    ("homing_angular_speed", "angular_speed"),
    ("linear_speed", "max_measured_speed"),
    ("angular_speed", "max_measured_angular_speed"),
)


def _required(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    names = [field.name for field in fields(kind)]
    for name in names:
        if values.get(name) is None:
            raise LimitError(f"{name}: not set; every limit is required (0.0 is a limit)")
    return {name: values[name] for name in names}


def _require_not_negative(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0.0:
        raise LimitError(f"{name}: {value!r}, expected a finite number of at least 0.0")


def _require_corner(name: str, value: Any) -> None:
    numbers = isinstance(value, (tuple, list)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value
    )
    if not numbers or len(value) != 3:
        raise LimitError(f"{name}: {value!r}, expected three finite numbers (x, y, z in m)")
