"""The robot's side of one arm: what its drivers publish, and what its controller, hand and error recovery take."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from franka_msgs.action import ErrorRecovery, Grasp, Move
from franka_msgs.msg import FrankaRobotState, GraspEpsilon
from geometry_msgs.msg import PoseStamped
from molmoact_ros.actions import ActionClient
from molmoact_ros.node import ManagedNode
from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import to_nanoseconds
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.serialization import deserialize_message
from rclpy.task import Future

from franka_bridge.arbitration import Arm
from franka_bridge.backends import BACKENDS, CartesianBackend
from franka_bridge.errors import RequestRefused
from franka_bridge.gripper import GripperCommand
from franka_bridge.messages import pose_from
from franka_bridge.parameters import BridgeParameters
from franka_bridge.poses import Pose

# Poses between two ticks of 5 ms from a controller at 1 kHz, and some for a tick that comes late.
POSE_DEPTH = 20
# The robot's state comes at up to 1 kHz and is a large message; every 10 ms is ten times within its timeout.
STATE_PERIOD_S = 0.01
# The hand is through with a full stroke in under two seconds; after this its server is taken for gone.
HAND_TIMEOUT_S = 10.0
# Discovery finds a running server within this.
SERVER_TIMEOUT_S = 1.0
LOG_PERIOD_S = 2.0


class Call:
    """One goal of an action from sending to result. `finished` is set when there is no more to wait for."""

    def __init__(self, client: ActionClient, goal: Any) -> None:
        self.finished = threading.Event()
        client.send_goal_async(goal).add_done_callback(self._on_answer)

    def _on_answer(self, answer: Future) -> None:
        handle = answer.result()
        if handle is None or not handle.accepted:
            self.finished.set()
        else:
            handle.get_result_async().add_done_callback(lambda _: self.finished.set())


class ArmTopics:
    """Topics and actions of one arm. All but `recover` belong to the ticking thread; `warn` has to return at once."""

    def __init__(
        self, node: ManagedNode, parameters: BridgeParameters, arm: Arm, prefix: str, warn: Callable[[str], None]
    ) -> None:
        self._node = node
        self._report = warn
        self._report_due_s = 0.0
        self._parameters = parameters
        self._arm = arm
        self._name = arm.setup.name
        self._prefix = prefix
        self._backend: CartesianBackend | None = None
        self._state_due_s = 0.0
        self._hand: Call | None = None
        self._hand_deadline_s = 0.0
        # Best effort on this side also matches a driver that publishes reliably.
        self._poses = PolledSubscription(
            node, PoseStamped, f"{prefix}current_pose", qos_profile("best_effort", POSE_DEPTH)
        )
        self._states = PolledSubscription(
            node,
            FrankaRobotState,
            f"{prefix}franka_robot_state_broadcaster/robot_state",
            qos_profile("best_effort", depth=1),
            raw=True,
        )
        group = ReentrantCallbackGroup()
        self._grasp = ActionClient(node, Grasp, f"{prefix}franka_gripper/grasp", callback_group=group)
        self._move = ActionClient(node, Move, f"{prefix}franka_gripper/move", callback_group=group)
        self._recovery = ActionClient(
            node, ErrorRecovery, f"{prefix}action_server/error_recovery", callback_group=group
        )

    def open(self) -> None:
        """Become the publisher of targets."""
        self._backend = BACKENDS[self._parameters.backend](self._node, self._prefix, self._arm.setup.frames.base)

    def close(self) -> None:
        """Leave the controller with its last target."""
        if self._backend is not None:
            self._backend.close()
            self._backend = None

    def conflict(self) -> str | None:
        """Why the controller does not take the targets; None while it does, or while there are none."""
        return self._backend.conflict() if self._backend is not None else None

    def send(self, pose: Pose, stamp_ns: int) -> None:
        """Give the controller its target."""
        if self._backend is not None:
            self._backend.send(pose, stamp_ns)

    def read(self) -> None:
        """Tell the arm what the robot has said since the last tick."""
        for message in self._poses.take():
            try:
                pose = pose_from(message, self._arm.setup.frames.base)
            except ValueError as error:
                self._warn(f"current_pose ignored: {error}")
            else:
                self._arm.on_pose(to_nanoseconds(message.header.stamp), pose)
        now_s = time.monotonic()
        if now_s < self._state_due_s:
            return
        self._state_due_s = now_s + STATE_PERIOD_S
        for data in self._states.take()[-1:]:
            state = deserialize_message(data, FrankaRobotState)
            self._arm.on_robot_state(to_nanoseconds(state.header.stamp), state.robot_mode)

    def command_hand(self) -> None:
        """Send the hand what the arm's gripper asks for, one command at a time."""
        gripper = self._arm.gripper
        if self._hand is not None:
            if not self._hand.finished.is_set() and time.monotonic() < self._hand_deadline_s:
                return
            self._hand = None
            gripper.done()
        if gripper.pending is None:
            return
        client = self._grasp if gripper.pending is GripperCommand.CLOSE else self._move
        if not client.server_is_ready():
            self._warn(f"the hand cannot {gripper.pending.value}: {self._prefix}franka_gripper does not answer")
            return
        self._hand_deadline_s = time.monotonic() + HAND_TIMEOUT_S
        command = gripper.take()
        self._hand = Call(client, self._grasp_goal() if command is GripperCommand.CLOSE else self._move_goal())

    def recover(self, timeout_s: float) -> None:
        """Call the robot's error recovery and wait until it is through. RequestRefused if it is not within the time."""
        if not self._recovery.wait_for_server(SERVER_TIMEOUT_S):
            raise RequestRefused(f"nobody offers {self._prefix}action_server/error_recovery")
        if not Call(self._recovery, ErrorRecovery.Goal()).finished.wait(timeout_s):
            raise RequestRefused(f"the robot's error recovery did not finish within {timeout_s} s")

    def _grasp_goal(self) -> Grasp.Goal:
        p = self._parameters
        # Whatever is between the fingers is what was to be grasped: any width counts as success.
        epsilon = GraspEpsilon(inner=p.gripper_open_width, outer=p.gripper_open_width)
        return Grasp.Goal(width=0.0, epsilon=epsilon, speed=p.gripper_speed, force=p.gripper_force)

    def _move_goal(self) -> Move.Goal:
        return Move.Goal(width=self._parameters.gripper_open_width, speed=self._parameters.gripper_speed)

    def _warn(self, text: str) -> None:
        now_s = time.monotonic()
        if now_s >= self._report_due_s:
            self._report_due_s = now_s + LOG_PERIOD_S
            self._report(f"{self._name}: {text}")
