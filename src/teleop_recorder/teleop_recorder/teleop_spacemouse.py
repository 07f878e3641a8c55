"""A SpaceMouse as a teleop device, over HID."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from molmoact_ros.node import ManagedNode
from molmoact_ros.parameters import parameter

from teleop_recorder.spacemouse import SpaceMouse
from teleop_recorder.teleop import AXES, AxisMap, Reading
from teleop_recorder.teleop_parameters import TeleopParameters


@dataclass(frozen=True)
class SpaceMouseParameters(TeleopParameters):
    report_timeout: float = parameter(
        0.1, "s without a report after which the cap counts as at rest", minimum=0.02, maximum=0.5
    )
    axes: tuple[int, ...] = parameter((1, 0, 2, 4, 3, 5), "axis for x, y, z, roll, pitch, yaw; -1: none", minimum=-1)
    signs: tuple[float, ...] = parameter((-1.0,) * 6, "+1 or -1 for each", minimum=-1.0, maximum=1.0)
    dead_zone: float = parameter(0.1, "deflection that counts as none", minimum=0.0, maximum=0.9)
    dead_man_button: int = parameter(0, "button held to move, the left one is 0", minimum=0, maximum=31)
    gripper_button: int = parameter(1, "button that opens and closes the gripper", minimum=0, maximum=31)


class SpaceMouseDevice:
    """TeleopError when there is no SpaceMouse, or no library for it."""

    def __init__(self, node: ManagedNode, p: SpaceMouseParameters) -> None:
        self._p = p
        self._axes = AxisMap(p.axes, p.signs, p.dead_zone)
        self._mouse = SpaceMouse()
        self._heard_s = 0.0
        node.get_logger().info(f"{self._mouse.name}: button {p.dead_man_button} held moves the arm")

    def read(self, now_s: float, elapsed_s: float) -> Reading:
        state, heard = self._mouse.read()
        if heard:
            self._heard_s = now_s
        # A cap that is deflected reports all the time; a button alone only when it goes down and up.
        fresh = now_s - self._heard_s <= self._p.report_timeout
        deflection = self._axes.deflection(state.axes) if fresh else np.zeros(len(AXES))
        translation, rotation = self._p.speed.step(deflection, elapsed_s)
        return Reading(
            state.pressed(self._p.dead_man_button), translation, rotation, state.pressed(self._p.gripper_button)
        )

    def close(self) -> None:
        self._mouse.close()
