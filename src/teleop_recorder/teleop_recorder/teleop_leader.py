"""A leader as a teleop device: a pose (XR controller, another arm) or seven joints (GELLO), as a topic.

The arm moves by how the leader moves while the switch is held; in between the person may put the leader anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from geometry_msgs.msg import PoseStamped
from molmoact_ros.node import ManagedNode
from molmoact_ros.parameters import parameter
from molmoact_ros.stamps import to_seconds
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool

from teleop_recorder.kinematics import JOINTS, tcp_pose
from teleop_recorder.teleop import AxisMap, Clutch, LeaderPose, Reading, TeleopError
from teleop_recorder.teleop_parameters import TeleopParameters
from teleop_recorder.teleop_topics import NewestFlag, NewestMessage, button


@dataclass(frozen=True)
class LeaderParameters(TeleopParameters):
    leader: str = parameter("pose", "what the leader publishes: PoseStamped or JointState", choices=("pose", "joints"))
    leader_topic: str = parameter("leader/pose", "topic of the leader")
    device_timeout: float = parameter(
        0.1, "age of the leader's and the switch's messages, s", minimum=0.02, maximum=0.5
    )
    axes: tuple[int, ...] = parameter(
        (0, 1, 2, 0, 1, 2), "axis of the leader's base frame for x, y, z, and again for turns", minimum=0, maximum=2
    )
    signs: tuple[float, ...] = parameter((1.0,) * 6, "+1 or -1 for each", minimum=-1.0, maximum=1.0)
    scale: float = parameter(1.0, "metres of the arm per metre of the leader", minimum=0.0, maximum=5.0)
    joint_names: tuple[str, ...] = parameter(
        tuple(f"fr3_joint{number}" for number in range(1, JOINTS + 1)), "joints of the leader, from the base"
    )
    joint_offsets: tuple[float, ...] = parameter((0.0,) * JOINTS, "added to each joint's angle, rad")
    joint_signs: tuple[float, ...] = parameter((1.0,) * JOINTS, "+1 or -1 for each joint", minimum=-1.0, maximum=1.0)
    gripper_joint: str = parameter("", "the leader's gripper among its joints; empty: the gripper button")
    gripper_closed: float = parameter(0.0, "position of the gripper joint when closed")
    gripper_open: float = parameter(1.0, "position of the gripper joint when open")
    switch: str = parameter(
        "joy", "where dead-man switch and gripper button are: Joy, or two Bool topics", choices=("joy", "bool")
    )
    joy_topic: str = parameter("joy", "topic of the buttons (switch: joy)")
    dead_man_button: int = parameter(0, "button held to move (switch: joy)", minimum=0)
    gripper_button: int = parameter(1, "button that opens and closes the gripper (switch: joy)", minimum=0)
    dead_man_topic: str = parameter("leader/dead_man", "topic of the dead-man switch (switch: bool)")
    gripper_topic: str = parameter("leader/gripper_pressed", "topic of the gripper button (switch: bool)")


class Leader:
    """TeleopError for settings that make no sense."""

    def __init__(self, node: ManagedNode, p: LeaderParameters) -> None:
        for name, values in (
            ("joint_names", p.joint_names),
            ("joint_offsets", p.joint_offsets),
            ("joint_signs", p.joint_signs),
        ):
            if len(values) != JOINTS:
                raise TeleopError(f"{name}: {len(values)} entries, expected {JOINTS}")
        if p.gripper_open == p.gripper_closed:
            raise TeleopError(f"gripper_open and gripper_closed are both {p.gripper_open}")
        self._p = p
        axes = AxisMap(p.axes, p.signs)
        if p.axes[:3] != p.axes[3:] or p.signs[:3] != p.signs[3:]:
            raise TeleopError(f"axes: {p.axes}, signs: {p.signs}: a leader's turns are about the same axes as its ways")
        self._clutch = Clutch(axes, p.scale, p.speed, in_tool_frame=p.frame == "tool")
        message_type = PoseStamped if p.leader == "pose" else JointState
        self._leader = NewestMessage(node, message_type, p.leader_topic, p.device_timeout)
        self._switch = _JoySwitch(node, p) if p.switch == "joy" else _FlagSwitch(node, p)

    def read(self, now_s: float, elapsed_s: float) -> Reading | None:
        message, switch = self._leader.at(now_s), self._switch.at(now_s)
        if message is None or switch is None:
            return None
        held, gripper_pressed = switch
        translation, rotation = self._clutch.step(self._pose(message), held)
        return Reading(held, translation, rotation, gripper_pressed, self._opening(message))

    def close(self) -> None:
        pass

    def _pose(self, message: Any) -> LeaderPose:
        stamp_s = to_seconds(message.header.stamp)
        if self._p.leader == "pose":
            at, turn = message.pose.position, message.pose.orientation
            return LeaderPose.of(stamp_s, (at.x, at.y, at.z), (turn.x, turn.y, turn.z, turn.w))
        columns = zip(self._p.joint_names, self._p.joint_signs, self._p.joint_offsets, strict=True)
        position, rotation = tcp_pose([sign * _joint(message, name) + offset for name, sign, offset in columns])
        return LeaderPose(stamp_s, position, rotation)

    def _opening(self, message: Any) -> float | None:
        if self._p.leader == "pose" or not self._p.gripper_joint:
            return None
        closed, opened = self._p.gripper_closed, self._p.gripper_open
        return (_joint(message, self._p.gripper_joint) - closed) / (opened - closed)


def _joint(message: JointState, name: str) -> float:
    if name not in message.name or len(message.position) != len(message.name):
        raise TeleopError(f"the leader has no position of joint '{name}' (it has {', '.join(message.name)})")
    return message.position[message.name.index(name)]


class _JoySwitch:
    def __init__(self, node: ManagedNode, p: LeaderParameters) -> None:
        self._p = p
        self._joy = NewestMessage(node, Joy, p.joy_topic, p.device_timeout)

    def at(self, now_s: float) -> tuple[bool, bool] | None:
        """(dead-man switch held, gripper button down), None when silent."""
        message = self._joy.at(now_s)
        if message is None:
            return None
        return (
            button(message.buttons, self._p.dead_man_button, "dead_man_button"),
            button(message.buttons, self._p.gripper_button, "gripper_button"),
        )


class _FlagSwitch:
    def __init__(self, node: ManagedNode, p: LeaderParameters) -> None:
        self._held = NewestFlag(node, Bool, p.dead_man_topic, p.device_timeout)
        self._gripper = NewestFlag(node, Bool, p.gripper_topic, p.device_timeout)

    def at(self, now_s: float) -> tuple[bool, bool] | None:
        """As above; a gripper button that nobody publishes is not pressed."""
        held = self._held.at(now_s)
        return None if held is None else (held, bool(self._gripper.at(now_s)))
