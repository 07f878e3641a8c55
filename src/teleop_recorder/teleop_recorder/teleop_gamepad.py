"""A gamepad as a teleop device: sensor_msgs/Joy, as joy_node publishes it."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact_ros.node import ManagedNode
from molmoact_ros.parameters import parameter
from sensor_msgs.msg import Joy

from teleop_recorder.teleop import AxisMap, Reading
from teleop_recorder.teleop_parameters import TeleopParameters
from teleop_recorder.teleop_topics import NewestMessage, button


@dataclass(frozen=True)
class GamepadParameters(TeleopParameters):
    joy_topic: str = parameter("joy", "topic of the gamepad, sensor_msgs/Joy")
    device_timeout: float = parameter(
        0.1,
        "age of a Joy message, s: joy_node's autorepeat_rate has to be above its inverse",
        minimum=0.02,
        maximum=0.5,
    )
    axes: tuple[int, ...] = parameter((1, 0, 4, 6, 7, 3), "axis for x, y, z, roll, pitch, yaw; -1: none", minimum=-1)
    signs: tuple[float, ...] = parameter(
        (1.0, 1.0, 1.0, -1.0, 1.0, 1.0), "+1 or -1 for each", minimum=-1.0, maximum=1.0
    )
    dead_zone: float = parameter(0.1, "deflection that counts as none", minimum=0.0, maximum=0.9)
    dead_man_button: int = parameter(4, "button held to move", minimum=0)
    gripper_button: int = parameter(0, "button that opens and closes the gripper", minimum=0)


class Gamepad:
    """TeleopError for axes that make no sense."""

    def __init__(self, node: ManagedNode, p: GamepadParameters) -> None:
        self._p = p
        self._axes = AxisMap(p.axes, p.signs, p.dead_zone)
        self._joy = NewestMessage(node, Joy, p.joy_topic, p.device_timeout)

    def read(self, now_s: float, elapsed_s: float) -> Reading | None:
        message = self._joy.at(now_s)
        if message is None:
            return None
        translation, rotation = self._p.speed.step(self._axes.deflection(message.axes), elapsed_s)
        return Reading(
            button(message.buttons, self._p.dead_man_button, "dead_man_button"),
            translation,
            rotation,
            button(message.buttons, self._p.gripper_button, "gripper_button"),
        )

    def close(self) -> None:
        pass
