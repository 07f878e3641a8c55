"""Jerk-limited motion of one arm's target: where the target may be one tick from now.

Ruckig (Berscheid & Kröger 2021) plans each coordinate on its own, time-optimally, to rest at the goal. The limits here
are norms of vectors, so the coordinates have to share them:

- Acceleration and jerk get 1/sqrt(3) of the norm each. Whatever the three do, the norm holds, and because these shares
  never change, a coordinate that can stop in time now can stop in time at the next tick.
- Speed is shared by direction (`_shares`), so that a straight line along any axis may use all of it.

The workspace box needs nothing of its own: the goal is inside it, every coordinate comes to rest without overshooting
an interval it could have stopped in before, and a box is nothing but three intervals.
"""

from __future__ import annotations

import math

import numpy as np
from ruckig import ControlInterface, InputParameter, Result, Ruckig, RuckigError, Synchronization, Trajectory

from franka_bridge.errors import MotionError
from franka_bridge.limits import Bounds, Limits
from franka_bridge.poses import Pose, Vector, norm

AXES = 3
SHARE = 1.0 / math.sqrt(AXES)
# Least part of the squared speed any coordinate gets, so that none is ever frozen by the direction of the others: 3 %
# of the speed limit.
LEAST_SQUARED_SHARE = 1e-3
# Slower than this is at rest: a tenth of a micrometre in a second.
REST = 1e-7
ZERO = np.zeros(AXES)


class _Vector3Motion:
    """Velocity and acceleration of a 3-vector that moves within `Bounds`, on a fixed period in seconds."""

    def __init__(self, bounds: Bounds, emergency: Bounds, period: float) -> None:
        self._bounds = bounds
        self._emergency = emergency
        self._period = period
        self._frozen = 0.0 in (bounds.speed, bounds.acceleration, bounds.jerk)
        self._ruckig = Ruckig(AXES, period)
        self._trajectory = Trajectory(AXES)
        self._to_goal = self._input(ControlInterface.Position, bounds)
        self._to_rest = self._input(ControlInterface.Velocity, bounds)
        self._to_emergency_rest = self._input(ControlInterface.Velocity, emergency)
        self.velocity = ZERO
        self.acceleration = ZERO

    @staticmethod
    def _input(interface: ControlInterface, bounds: Bounds) -> InputParameter:
        request = InputParameter(AXES)
        request.control_interface = interface
        # Coordinates that wait for each other would not brake as early as each can, which the box relies on.
        request.synchronization = Synchronization.No
        # Velocity control knows no speed limit, but ruckig wants to see one.
        request.max_velocity = [bounds.speed or 1.0] * AXES
        request.max_acceleration = [(bounds.acceleration or 1.0) * SHARE] * AXES
        request.max_jerk = [(bounds.jerk or 1.0) * SHARE] * AXES
        return request

    @property
    def at_rest(self) -> bool:
        return norm(self.velocity) < REST and norm(self.acceleration) < REST

    def halt(self) -> None:
        """Be at rest, at once: for a target that follows something else."""
        self.velocity = ZERO
        self.acceleration = ZERO

    def advance(self, offset: Vector, speed: float) -> Vector:
        """Displacement [3] of the next period on the way to `offset` [3] from here, no faster than `speed`."""
        if self._frozen or speed == 0.0:
            return self.brake(emergency=False)
        request = self._to_goal
        request.max_velocity = self._shares(offset, speed)
        request.target_position = offset.tolist()
        displacement = self._step(request)
        # Ruckig finds no profile for some states within rounding of a limit. Braking for one period always exists.
        return self.brake(emergency=False) if displacement is None else displacement

    def brake(self, emergency: bool) -> Vector:
        """Displacement [3] of the next period on the shortest way to rest."""
        if self.at_rest:
            self.halt()
            return ZERO
        displacement = self._step(self._to_emergency_rest if emergency else self._to_rest)
        if displacement is None:
            raise self._no_way_to_rest()
        return displacement

    def stopping(self) -> Vector:
        """Displacement [3] from here to where `brake` comes to rest."""
        if self.at_rest:
            return ZERO
        request = self._to_rest
        if not self._plan(request):
            raise self._no_way_to_rest()
        return np.array(self._trajectory.at_time(self._trajectory.duration)[0])

    def _no_way_to_rest(self) -> MotionError:
        return MotionError(f"no way to rest from velocity {self.velocity} and acceleration {self.acceleration}")

    def _plan(self, request: InputParameter) -> bool:
        request.current_velocity = self.velocity.tolist()
        request.current_acceleration = self.acceleration.tolist()
        try:
            return self._ruckig.calculate(request, self._trajectory) in (Result.Working, Result.Finished)
        except RuckigError:
            return False

    def _step(self, request: InputParameter) -> Vector | None:
        if not self._plan(request):
            return None
        position, velocity, acceleration = self._trajectory.at_time(self._period)
        self.velocity = np.array(velocity)
        self.acceleration = np.array(acceleration)
        return np.array(position)

    def _shares(self, offset: Vector, speed: float) -> list[float]:
        """Largest speed of each coordinate, such that the norm stays within `speed` from now on.

        A coordinate needs at least the speed its present acceleration still carries it to. What the needs leave over
        (in squares, which add up) goes to the coordinates whose part in the direction of `offset` is above their need;
        one that is faster than its part is told to slow down, and its share is free for others as it does.
        """
        braking_jerk = self._to_goal.max_jerk[0]
        carried = np.abs(self.velocity + self.acceleration * np.abs(self.acceleration) / (2.0 * braking_jerk))
        need = np.square(np.maximum(np.abs(self.velocity), carried)) / (speed * speed)
        need = np.maximum(need, LEAST_SQUARED_SHARE)
        length = norm(offset)
        part = np.square(offset / length) if length > 0.0 else np.full(AXES, 1.0 / AXES)
        part = (part + LEAST_SQUARED_SHARE) / (1.0 + AXES * LEAST_SQUARED_SHARE)
        wanted = np.maximum(part - need, 0.0)
        total = float(wanted.sum())
        spare = max(0.0, 1.0 - float(need.sum()))
        share = np.where(wanted > 0.0, need + wanted * (spare / total if total > 0.0 else 0.0), part)
        return (speed * np.sqrt(share)).tolist()


class MotionGenerator:
    """The target pose of one arm, moved tick by tick towards goals without ever exceeding `limits`.

    Angular velocity and acceleration are vectors in the base frame. Every tick the way to the goal's orientation is
    linearised anew at the present one, so the error of treating rotation vectors as a vector space is that of one tick.
    """

    def __init__(self, limits: Limits, period: float, pose: Pose) -> None:
        self._linear = _Vector3Motion(limits.linear, limits.emergency_linear, period)
        self._angular = _Vector3Motion(limits.angular, limits.emergency_angular, period)
        self._limits = limits
        self.pose = pose

    def seed(self, pose: Pose) -> None:
        """Be at `pose`, at rest."""
        self.pose = pose
        self._linear.halt()
        self._angular.halt()

    @property
    def at_rest(self) -> bool:
        return self._linear.at_rest and self._angular.at_rest

    @property
    def linear_velocity(self) -> Vector:
        """[3] m/s."""
        return self._linear.velocity

    @property
    def angular_velocity(self) -> Vector:
        """[3] rad/s."""
        return self._angular.velocity

    def advance(self, goal: Pose, linear_speed: float, angular_speed: float) -> Pose:
        """One period towards `goal`, whose position must be inside the workspace box. May raise MotionError."""
        self.pose = self.pose.moved(
            self._linear.advance(goal.position - self.pose.position, linear_speed),
            self._angular.advance(self.pose.rotation_to(goal), angular_speed),
        )
        return self.pose

    def brake(self, emergency: bool = False) -> Pose:
        """One period of the shortest stop, within the ordinary or the emergency deceleration."""
        self.pose = self.pose.moved(self._linear.brake(emergency), self._angular.brake(emergency))
        return self.pose

    def stopping_pose(self) -> Pose:
        """Where an ordinary stop from here would end."""
        return self.pose.moved(self._linear.stopping(), self._angular.stopping())
