"""The teleop nodes over real DDS, with what devices and bridge would send at the far side."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
import yaml
from geometry_msgs.msg import PoseStamped
from molmoact_msgs.msg import BridgeStatus, TeleopCommand
from molmoact_msgs.srv import SetMode
from molmoact_ros.node import ManagedNode, spin
from molmoact_ros.parameters import declarations
from processes import wait_for
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool
from teleop_recorder import spacemouse
from teleop_recorder.teleop_node import DEVICES, TeleopNode

CONFIG = Path(__file__).parents[3] / "config" / "teleop.yaml"
# A busy test machine is late where a device is not; what is guarded here is not how late.
PATIENT = {"device_timeout": 0.5}
DEAD_MAN, GRIPPER = 4, 0  # of the gamepad


class FarSide(Node):
    """A bridge that hands over its arm, a hand, and the devices."""

    def __init__(self, context: Context, namespace: str) -> None:
        super().__init__("far_side", context=context, namespace=namespace)
        self.mode = BridgeStatus.HOLD
        self.refuses = ""
        self.asked = 0
        self.commands: list[TeleopCommand] = []
        self.create_subscription(TeleopCommand, "teleop_command", self.commands.append, 100)
        self._statuses = self.create_publisher(BridgeStatus, "bridge_status", 10)
        self._fingers = self.create_publisher(JointState, "franka_gripper/joint_states", 10)
        self.create_service(SetMode, "set_mode", self._on_set_mode)
        self.joy = self.create_publisher(Joy, "joy", 10)
        self.pose = self.create_publisher(PoseStamped, "leader/pose", 10)
        self.joints = self.create_publisher(JointState, "leader/joints", 10)
        self.dead_man = self.create_publisher(Bool, "leader/dead_man", 10)

    def _on_set_mode(self, request: SetMode.Request, response: SetMode.Response) -> SetMode.Response:
        self.asked += 1
        response.success, response.message = not self.refuses, self.refuses
        if response.success:
            self.mode = request.mode
        return response

    def say(self) -> None:
        self._statuses.publish(BridgeStatus(arm="fr3", mode=self.mode, reason="as told"))
        self._fingers.publish(JointState(position=[0.04, 0.04]))

    def press(self, *buttons: int, axes: tuple[float, ...] = (0.0,) * 8) -> None:
        message = Joy(axes=axes, buttons=[int(number in buttons) for number in range(11)])
        message.header.stamp = self.get_clock().now().to_msg()
        self.joy.publish(message)
        self.say()

    def until(self, condition, doing, what: str):
        """Do something again and again until a condition holds."""

        def held():
            doing()
            return condition()

        return wait_for(held, what)

    def begin(self, released, held) -> None:
        """Let go for a while and press for a while, until a new press has been obeyed."""
        said, turns = len(self.enabled), itertools.count()
        self.until(
            lambda: len(self.enabled) > said, lambda: (released if next(turns) % 20 < 10 else held)(), "a press obeyed"
        )

    @property
    def enabled(self) -> list[TeleopCommand]:
        return [command for command in self.commands if command.enabled]


@contextmanager
def running(device: str, **changes) -> Iterator[tuple[FarSide, ManagedNode]]:
    namespace = f"/teleop_{uuid.uuid4().hex[:8]}"
    overrides = [Parameter(name, value=value) for name, value in changes.items()]
    context = Context()
    rclpy.init(context=context)
    with ExitStack() as undo:
        undo.callback(rclpy.shutdown, context=context)
        node = TeleopNode(device, context=context, namespace=namespace, parameter_overrides=overrides)
        far_side = FarSide(context, namespace)
        for each, run in ((node, lambda executor: spin(executor, node)), (far_side, SingleThreadedExecutor.spin)):
            executor = SingleThreadedExecutor(context=context)
            executor.add_node(each)
            thread = threading.Thread(target=run, args=(executor,), daemon=True)
            thread.start()
            undo.callback(each.destroy_node)
            undo.callback(thread.join)
            undo.callback(executor.shutdown)
        node.autostart()
        assert node.active, node.refusal
        undo.callback(node.trigger_shutdown)
        yield far_side, node


def test_gamepad_moves_the_arm_while_its_button_is_held_and_says_once_when_let_go():
    with running("gamepad", **PATIENT) as (far, _):
        forward = (0.0, 1.0) + (0.0,) * 6
        far.begin(far.press, lambda: far.press(DEAD_MAN, axes=forward))
        far.until(lambda: len(far.enabled) > 10, lambda: far.press(DEAD_MAN, axes=forward), "commands")
        far.until(lambda: not far.commands[-1].enabled, far.press, "the release")
        command = far.enabled[-1]
        assert command.header.frame_id == "fr3_link0" and command.arm == "fr3"
        assert 0.0 < command.delta.translation.x <= 0.1 * 2 / 50 + 1e-9
        assert command.delta.translation.y == command.delta.translation.z == 0.0
        assert command.delta.gripper == 1.0  # the hand is open
        said = len(far.commands)
        for _ in range(20):
            far.press()
        assert len(far.commands) == said


def test_gamepad_that_is_unplugged_is_a_release_and_moves_nothing_when_it_comes_back_held():
    with running("gamepad", **PATIENT) as (far, _):
        far.begin(far.press, lambda: far.press(DEAD_MAN))
        wait_for(lambda: not far.commands[-1].enabled, "the release")  # nobody publishes Joy any more
        said = len(far.enabled)
        for _ in range(10):
            far.press(DEAD_MAN)
        far.until(lambda: far.asked == 1, lambda: far.press(DEAD_MAN), "nothing new")
        assert len(far.enabled) == said
        far.begin(far.press, lambda: far.press(DEAD_MAN))


def test_press_takes_an_arm_that_holds_once_and_from_nobody_else():
    with running("gamepad", **PATIENT) as (far, _):
        far.mode = BridgeStatus.POLICY
        far.begin(far.press, lambda: far.press(DEAD_MAN))
        far.until(lambda: len(far.enabled) > 10, lambda: far.press(DEAD_MAN), "commands")
        assert far.asked == 0
        far.until(lambda: not far.commands[-1].enabled, far.press, "the release")
        far.mode, far.refuses = BridgeStatus.HOLD, "the arm is outside the workspace box"
        said = len(far.enabled)
        far.begin(far.press, lambda: far.press(DEAD_MAN))
        far.until(lambda: len(far.enabled) > said + 20, lambda: far.press(DEAD_MAN), "commands")
        assert far.asked == 1


def test_gripper_button_toggles_while_the_switch_is_held():
    with running("gamepad", **PATIENT) as (far, _):
        far.begin(far.press, lambda: far.press(DEAD_MAN))
        far.until(lambda: far.enabled[-1].delta.gripper == 1.0, lambda: far.press(DEAD_MAN), "open")
        pressed = lambda: far.press(DEAD_MAN, GRIPPER)  # noqa: E731
        far.until(lambda: far.enabled[-1].delta.gripper == 0.0, pressed, "closed")
        said = len(far.enabled)
        far.until(lambda: len(far.enabled) > said + 10, pressed, "more commands")
        assert far.enabled[-1].delta.gripper == 0.0


def test_axis_a_gamepad_does_not_have_moves_nothing(capfd):
    with running("gamepad", **PATIENT) as (far, _):
        far.until(lambda: far.joy.get_subscription_count(), far.press, "the node to listen")
        for _ in range(20):
            far.press(DEAD_MAN, axes=(0.0, 1.0))
        far.until(
            lambda: "the device has 2" in capfd.readouterr().err, lambda: far.press(DEAD_MAN, axes=(0.0, 1.0)), ""
        )
        assert not far.enabled


def test_joy_of_another_clock_is_told_and_moves_nothing(capfd):
    with running("gamepad", **PATIENT) as (far, _):
        message = Joy(axes=[0.0] * 8, buttons=[1] * 11)
        message.header.stamp = (far.get_clock().now() + rclpy.duration.Duration(seconds=60)).to_msg()
        text = "use_sim_time"
        far.until(lambda: text in capfd.readouterr().err, lambda: far.joy.publish(message), "the complaint")
        assert not far.enabled


def leader_pose(far: FarSide, z: float) -> PoseStamped:
    message = PoseStamped()
    message.header.stamp = far.get_clock().now().to_msg()
    message.pose.position.z = z
    message.pose.orientation.w = 1.0
    return message


def test_pose_leader_moves_the_arm_by_its_own_motion():
    with running("leader", switch="bool", **PATIENT) as (far, _):
        height = 0.7

        def say(held: bool) -> None:
            far.pose.publish(leader_pose(far, height))
            far.dead_man.publish(Bool(data=held))
            far.say()

        far.begin(lambda: say(False), lambda: say(True))
        assert far.enabled[0].delta.translation.z == 0.0

        def lift() -> None:
            nonlocal height
            height += 1e-4
            say(True)

        far.until(lambda: sum(command.delta.translation.z for command in far.enabled) > 0.002, lift, "motion")
        assert sum(command.delta.translation.z for command in far.enabled) < height - 0.7 + 1e-9


def test_joint_leader_moves_the_tool_and_its_gripper():
    changes = {"leader": "joints", "leader_topic": "leader/joints", "switch": "bool", "gripper_joint": "trigger"}
    with running("leader", **changes, gripper_closed=0.8, gripper_open=0.0, **PATIENT) as (far, _):
        posture = np.array([0.0, -0.35, 0.0, -2.45, 0.0, 2.1, 0.785, 0.2])
        names = [*(f"fr3_joint{number}" for number in range(1, 8)), "trigger"]

        def say(held: bool) -> None:
            message = JointState(name=names, position=posture.tolist())
            message.header.stamp = far.get_clock().now().to_msg()
            far.joints.publish(message)
            far.dead_man.publish(Bool(data=held))
            far.say()

        def turn() -> None:
            posture[0] += 1e-4
            say(True)

        far.begin(lambda: say(False), lambda: say(True))
        far.until(lambda: sum(command.delta.rotation.z for command in far.enabled) > 0.002, turn, "motion")
        assert sum(command.delta.translation.y for command in far.enabled) > 0.0  # the base turns the tool to the left
        assert far.enabled[-1].delta.gripper == pytest.approx(0.75)


class FakeMouse:
    """A SpaceMouse at the far side of hidapi."""

    def __init__(self) -> None:
        self.reports: list[bytes] = []
        self.unplugged = False

    def open_path(self, path) -> None: ...
    def set_nonblocking(self, value) -> None: ...
    def close(self) -> None: ...

    def read(self, size):
        if self.unplugged:
            raise OSError("read error")
        return list(self.reports.pop(0)) if self.reports else []


def test_spacemouse_moves_the_arm_and_unplugged_lets_go_of_it_and_ends_the_node(monkeypatch):
    mouse = FakeMouse()
    found = {"vendor_id": 0x256F, "product_id": 0xC635, "path": b"", "product_string": "Compact"}
    hidapi = SimpleNamespace(enumerate=lambda: [found], device=lambda: mouse)
    monkeypatch.setattr(spacemouse, "_hidapi", lambda: hidapi)
    with running("spacemouse") as (far, node):
        far.until(
            lambda: far.get_publishers_info_by_topic(far.resolve_topic_name("teleop_command")), far.say, "the node"
        )
        lifted = bytes([1]) + np.array([0, 0, -350], "<i2").tobytes()  # the device's z points down

        def lift() -> None:
            mouse.reports += [bytes([3, 1]), lifted]
            far.say()

        far.begin(lambda: mouse.reports.append(bytes([3, 0])), lift)
        far.until(lambda: any(command.delta.translation.z > 0.0 for command in far.enabled), lift, "motion")
        mouse.unplugged = True
        wait_for(lambda: not far.commands[-1].enabled, "the release")
        wait_for(lambda: node.failure, "the node to end")
        assert "Compact was unplugged" in node.failure


@pytest.mark.parametrize(
    ("device", "changes", "word"),
    [
        ("gamepad", {"axes": [0, 1]}, "axes: 2 entries"),
        ("gamepad", {"signs": [0.5] * 6}, "signs"),
        ("leader", {"joint_offsets": [0.0]}, "joint_offsets: 1 entries"),
        ("leader", {"axes": [0, 0, 1, 0, 0, 1]}, "right-handed"),
        ("leader", {"gripper_open": 0.0}, "gripper_open and gripper_closed"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(device, changes, word):
    context = Context()
    rclpy.init(context=context)
    overrides = [Parameter(name, value=value) for name, value in changes.items()]
    namespace = f"/teleop_{uuid.uuid4().hex[:8]}"
    node = TeleopNode(device, context=context, namespace=namespace, parameter_overrides=overrides)
    assert node.trigger_configure().name == "FAILURE"
    assert word in node.refusal
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("device", DEVICES)
def test_settings_file_says_every_parameter_of_a_device(device):
    values = yaml.safe_load(CONFIG.read_text())[f"teleop_{device}"]["ros__parameters"]
    fixed = {"base_frame", "tcp_frame"}  # the robot's names, which nobody sets
    declared = [each for each in declarations(DEVICES[device].parameters) if each.name not in fixed]
    assert set(values) == {each.name for each in declared}
    for each in declared:
        assert each.complaint(Parameter(each.name, each.type, values[each.name])) is None
