"""One simulated arm on the interfaces of its drivers: franka_ros2, CRISP's controller, franka_gripper."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from franka_msgs.action import ErrorRecovery
from franka_msgs.msg import FrankaRobotState
from geometry_msgs.msg import PoseStamped, TwistStamped
from molmoact_ros.node import ManagedNode
from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import qos_profile
from rclpy.action import ActionServer
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from sensor_msgs.msg import JointState

from franka_sim import robot_state_message as messages
from franka_sim.errors import FrankaSimError
from franka_sim.gripper_server import GripperServer
from franka_sim.scene import model_prefix
from franka_sim.simulation import IDLE, REFLEX, Simulation
from franka_sim.transforms import FrameTree, base_frame

WARNING_PERIOD_S = 2.0


class ArmInterface:
    """Topics and actions of one arm. `follow` and `publish_*` are for the physics thread, between two steps."""

    def __init__(self, node: ManagedNode, simulation: Simulation, frames: FrameTree, arm: int, name: str) -> None:
        prefix = simulation.arm_prefixes[arm]
        self.name = name
        self.targets_ignored = 0
        self._node = node
        self._simulation = simulation
        self._arm = arm
        self._frame_prefix = model_prefix(prefix)
        self._base = base_frame(prefix)
        self._last_mode = IDLE
        flange_to_tcp = frames.between(
            simulation.copy_data(),
            f"{self._frame_prefix}{messages.ROBOT}_link8",
            f"{self._frame_prefix}{messages.ROBOT}_hand_tcp",
        )
        self._robot_state = messages.RobotStateMessage(self._frame_prefix, flange_to_tcp)
        self._create_publishers(prefix)
        self._targets = PolledSubscription(node, PoseStamped, f"{prefix}target_pose", qos_profile("reliable", depth=1))
        self._gripper = GripperServer(node, simulation, arm, prefix)
        self._recovery = ActionServer(
            node, ErrorRecovery, f"{prefix}action_server/error_recovery", self._recover,
            callback_group=MutuallyExclusiveCallbackGroup(),
        )  # fmt: skip

    def interrupt(self, reason: str) -> None:
        """End a gripper command that is under way."""
        self._gripper.interrupt(reason)

    def forget_targets(self) -> None:
        """What was sent while nobody followed, or for another scene, is void."""
        self._targets.take()

    def follow(self) -> None:
        """Hand the newest target to the controller."""
        for message in self._targets.take():
            self._on_target(message)

    def publish_state(self, stamp: Time) -> None:
        """Pose, twist and robot state."""
        state = self._simulation.arm_state(self._arm)
        self._pose.publish(messages.current_pose(state, self._base, stamp))
        self._twist.publish(messages.current_twist(state, self._base, stamp))
        self._state.publish(self._robot_state.fill(state, stamp))
        if state.robot_mode == REFLEX != self._last_mode:
            self._node.get_logger().warning(
                f"{self.name}: reflex: {state.reflex_reason}; it holds until error_recovery"
            )
        self._last_mode = state.robot_mode

    def publish_joints(self, stamp: Time) -> None:
        """Joints of arm and fingers."""
        state = self._simulation.arm_state(self._arm)
        self._joints.publish(messages.joint_states(state, self._frame_prefix, stamp))

    def publish_fingers(self, stamp: Time) -> None:
        """Joints of the fingers alone."""
        state = self._simulation.arm_state(self._arm)
        self._fingers.publish(messages.finger_states(state, self._frame_prefix, stamp))

    def engage_unless_commanded(self) -> None:
        """An idle arm that nobody sends targets holds its pose actively; otherwise it waits for a near target."""
        if self._publishers() == 0:
            self.forget_targets()  # of a publisher that has gone
            self._simulation.engage(self._arm)

    def _create_publishers(self, prefix: str) -> None:
        node, newest = self._node, qos_profile("reliable", depth=1)
        self._pose = node.create_publisher(PoseStamped, f"{prefix}current_pose", newest)
        self._twist = node.create_publisher(TwistStamped, f"{prefix}current_twist", newest)
        self._state = node.create_publisher(
            FrankaRobotState, f"{prefix}franka_robot_state_broadcaster/robot_state", newest
        )
        self._joints = node.create_publisher(JointState, f"{prefix}joint_states", qos_profile("reliable", depth=10))
        self._fingers = node.create_publisher(JointState, f"{prefix}franka_gripper/joint_states", newest)

    def _on_target(self, message: PoseStamped) -> None:
        complaint = self._complaint(message)
        if not complaint:
            p, q = message.pose.position, message.pose.orientation
            try:
                self._simulation.set_target(self._arm, np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w]))
            except FrankaSimError as error:
                complaint = str(error)
        if complaint:
            self.targets_ignored += 1
            self._node.get_logger().warning(
                f"{self.name}: target ignored: {complaint}", throttle_duration_sec=WARNING_PERIOD_S
            )

    def _complaint(self, message: PoseStamped) -> str:
        publishers = self._publishers()
        if publishers > 1:
            return f"{self._targets.topic_name} has {publishers} publishers, expected one"
        if message.header.frame_id != self._base:
            return f"frame '{message.header.frame_id}', expected '{self._base}'"
        return ""

    def _publishers(self) -> int:
        return self._node.count_publishers(self._targets.topic_name)

    def _recover(self, goal: ServerGoalHandle) -> ErrorRecovery.Result:
        recovered = self._simulation.recover(self._arm)
        self._node.get_logger().info(f"{self.name}: {'recovered' if recovered else 'nothing to recover from'}")
        goal.succeed()
        return ErrorRecovery.Result()
