"""From what a device says to one teleop command per period. No ROS and no device in here.

A command moves the arm only while the dead-man switch is held. After it was let go there is one more command, which
says so; the bridge stops the arm then. A device that fell silent counts as let go, and has to show its switch released
before it moves anything again: so has one whose switch is held when it is first heard of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

Vector = NDArray[np.float64]

AXES = ("x", "y", "z", "roll", "pitch", "yaw")
NO_AXIS = -1
# Between the openings at which a hand closes and opens: the bridge leaves the hand as it is.
AS_IT_IS = 0.5
# A hand beyond these has nothing in it. Between, it may hold something, which must not fall when the switch is pressed.
FULLY_OPEN, FULLY_CLOSED = 0.97, 0.03


class TeleopError(Exception):
    """A setting or a message of a device is wrong; the message names it and what was expected."""


class DeviceLost(Exception):
    """The device was unplugged or closed; the message says which."""


def _zeros() -> Vector:
    return np.zeros(3)


@dataclass(frozen=True)
class Reading:
    """What a device says at one moment."""

    held: bool  # the dead-man switch
    translation: Vector = field(default_factory=_zeros)  # [3] m, since the reading before
    rotation: Vector = field(default_factory=_zeros)  # [3] rotation vector, rad, since the reading before
    gripper_pressed: bool = False  # the button that toggles the gripper is down
    opening: float | None = None  # of the leader's own gripper, 0 closed .. 1 open; None: it has none


@dataclass(frozen=True)
class Command:
    """molmoact_msgs/TeleopCommand without ROS."""

    translation: Vector  # [3] m
    rotation: Vector  # [3] rotation vector, rad
    gripper: float  # 0 closed .. 1 open
    enabled: bool


class TeleopDevice(Protocol):
    """What a teleop node reads."""

    def read(self, now_s: float, elapsed_s: float) -> Reading | None:
        """What it says at `now_s` of the node's clock, `elapsed_s` after the last call; None when it is silent.

        Raises DeviceLost once it is gone for good.
        """

    def close(self) -> None:
        """Give the device back."""


class Teleoperator:
    """The dead-man switch and the gripper of one arm."""

    def __init__(self) -> None:
        self._blocked = True  # until the switch has been seen released
        self._held = False
        self._gripper_pressed = False
        self._gripper: float | None = None

    @property
    def held(self) -> bool:
        """The last command was an enabled one."""
        return self._held

    def command(self, reading: Reading | None, measured_opening: float | None) -> Command | None:
        """The command for a reading, None when there is nothing to say.

        `measured_opening` of the hand (0 .. 1, None: unknown) is what the gripper starts from.
        """
        toggled = reading is not None and reading.gripper_pressed and not self._gripper_pressed
        self._gripper_pressed = reading is not None and reading.gripper_pressed
        if reading is None:
            self._blocked = True
            return self.release()
        if not reading.held:
            self._blocked = False
            return self.release()
        if self._blocked:
            return None
        self._held = True
        # A hand that was not heard of yet at the press is decided about once it is: a toggle would open an open one.
        gripper = self._gripper
        if gripper is None or gripper == AS_IT_IS:
            gripper = _at_rest(measured_opening)
        if reading.opening is not None:
            gripper = min(max(reading.opening, 0.0), 1.0)
        elif toggled:
            gripper = 0.0 if gripper == 1.0 else 1.0
        self._gripper = gripper
        return Command(reading.translation, reading.rotation, gripper, enabled=True)

    def forget_gripper(self) -> None:
        """Others may have moved the hand: start from what is measured again."""
        self._gripper = None

    def release(self) -> Command | None:
        """The one command after the switch was let go; None when it was not held."""
        if not self._held:
            return None
        self._held = False
        gripper = AS_IT_IS if self._gripper is None else self._gripper
        return Command(np.zeros(3), np.zeros(3), gripper, enabled=False)


def _at_rest(measured_opening: float | None) -> float:
    """The gripper of a command that does not move a hand found at this opening."""
    if measured_opening is None or FULLY_CLOSED < measured_opening < FULLY_OPEN:
        return AS_IT_IS
    return 1.0 if measured_opening >= FULLY_OPEN else 0.0


@dataclass(frozen=True)
class Speed:
    """At full deflection; m/s and rad/s, norms."""

    linear: float
    angular: float

    def step(self, deflection: Vector, elapsed_s: float) -> tuple[Vector, Vector]:
        """(translation [3] m, rotation vector [3] rad) of `elapsed_s` at a deflection [6] of -1 .. 1.

        Two axes at once are no faster than one: the bridge's limits are norms as well.
        """
        return (
            shortened(deflection[:3], 1.0) * (self.linear * elapsed_s),
            shortened(deflection[3:], 1.0) * (self.angular * elapsed_s),
        )


@dataclass(frozen=True)
class AxisMap:
    """Which axis of a device moves which of AXES, and which way.

    Raises TeleopError naming the setting that is wrong.
    """

    axes: tuple[int, ...]  # for each of AXES the number of the device's axis, NO_AXIS: none
    signs: tuple[float, ...]  # for each of AXES, +1 or -1
    dead_zone: float = 0.0  # deflection up to which an axis counts as released

    def __post_init__(self) -> None:
        for name, values in (("axes", self.axes), ("signs", self.signs)):
            if len(values) != len(AXES):
                raise TeleopError(f"{name}: {len(values)} entries, expected one for each of {', '.join(AXES)}")
        if any(axis < NO_AXIS for axis in self.axes):
            raise TeleopError(f"axes: {self.axes}, expected numbers of axes, or {NO_AXIS} for none")
        if any(abs(sign) != 1.0 for sign in self.signs):
            raise TeleopError(f"signs: {self.signs}, expected 1.0 or -1.0 for each of {', '.join(AXES)}")
        if not 0.0 <= self.dead_zone < 1.0:
            raise TeleopError(f"dead_zone: {self.dead_zone}, expected 0 .. 1")

    def deflection(self, values: Sequence[float]) -> Vector:
        """Deflection [6], -1 .. 1, from the values of the device's axes (-1 .. 1).

        Beyond the dead zone it begins at 0, so that nothing jumps at its edge. Raises TeleopError for an axis the
        device does not have, or a value that is NaN.
        """
        if self.axes and max(self.axes) >= len(values):
            raise TeleopError(f"axes: the device has {len(values)}, axis {max(self.axes)} is not one of them")
        chosen = np.array([0.0 if axis == NO_AXIS else values[axis] for axis in self.axes])
        if np.isnan(chosen).any():
            raise TeleopError(f"axes: the device says {list(values)}, expected numbers of -1 .. 1")
        beyond = np.clip((np.abs(chosen) - self.dead_zone) / (1.0 - self.dead_zone), 0.0, 1.0)
        return np.sign(chosen) * beyond * np.array(self.signs)


@dataclass(frozen=True)
class LeaderPose:
    """Where a leader is, in its own base frame, at `stamp_s`."""

    stamp_s: float
    position: Vector  # [3] m
    rotation: Rotation

    @classmethod
    def of(cls, stamp_s: float, position: Sequence[float], quaternion: Sequence[float]) -> LeaderPose:
        """From plain numbers, quaternion x y z w. TeleopError for one not finite, or a quaternion of no length."""
        if not all(math.isfinite(number) for number in (*position, *quaternion)):
            raise TeleopError("the leader's pose has a number that is NaN or infinite")
        if math.hypot(*quaternion) < 1e-6:
            raise TeleopError("the leader's pose has a quaternion of length zero")
        return cls(stamp_s, np.array(position, dtype=np.float64), Rotation.from_quat(quaternion))


class Clutch:
    """A leader moves the arm by how it moves, not by where it is, and only from the press of the switch on.

    What it does faster than `speed` is lost, or the arm would go on moving after the hand rests.
    """

    def __init__(self, axes: AxisMap, scale: float, speed: Speed, in_tool_frame: bool) -> None:
        """`axes` turns the leader's base frame into the arm's; with `in_tool_frame` deltas are in the tool's own."""
        self._matrix = _frame_change(axes)
        self._scale = scale
        self._speed = speed
        self._in_tool_frame = in_tool_frame
        self._last: LeaderPose | None = None

    def step(self, pose: LeaderPose, held: bool) -> tuple[Vector, Vector]:
        """(translation [3] m, rotation vector [3] rad) since the pose before; zeros at the press."""
        last, self._last = self._last, pose if held else None
        if last is None or not held:
            return np.zeros(3), np.zeros(3)
        elapsed = max(pose.stamp_s - last.stamp_s, 0.0)
        translation = pose.position - last.position
        rotation = (pose.rotation * last.rotation.inv()).as_rotvec()
        if self._in_tool_frame:
            to_tool = last.rotation.inv()
            translation, rotation = to_tool.apply(translation), to_tool.apply(rotation)
        return (
            shortened(self._scale * (self._matrix @ translation), self._speed.linear * elapsed),
            shortened(self._matrix @ rotation, self._speed.angular * elapsed),
        )


def _frame_change(axes: AxisMap) -> Vector:
    """[3, 3] from the leader's frame to the arm's. Raises TeleopError for what is not a turn of the frame."""
    matrix = np.zeros((3, 3))
    for row, (axis, sign) in enumerate(zip(axes.axes[:3], axes.signs[:3], strict=True)):
        if axis not in (0, 1, 2):
            raise TeleopError(f"axes: {axes.axes}, expected 0, 1 and 2 for x, y and z of a leader")
        matrix[row, axis] = sign
    if not np.isclose(np.linalg.det(matrix), 1.0):
        raise TeleopError(f"axes: {axes.axes[:3]}, signs: {axes.signs[:3]}: expected a right-handed frame")
    return matrix


def shortened(vector: Vector, limit: float) -> Vector:
    """`vector`, at most `limit` long."""
    length = math.sqrt(float(vector @ vector))
    return vector if length <= limit else vector * (limit / length)
