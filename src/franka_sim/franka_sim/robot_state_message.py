"""The state of an arm in the messages of the real drivers."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Time
from franka_msgs.msg import Errors, FrankaRobotState
from geometry_msgs.msg import (
    Inertia,
    Point,
    Pose,
    PoseStamped,
    Quaternion,
    Transform,
    Twist,
    TwistStamped,
    Vector3,
    Wrench,
)
from sensor_msgs.msg import JointState

from franka_sim.rotations import matrix_from_quaternion
from franka_sim.simulation import MOVE, REFLEX, ArmState

ROBOT = "fr3"
ARM_JOINTS = tuple(f"{ROBOT}_joint{number}" for number in range(1, 8))
FINGER_JOINTS = tuple(f"{ROBOT}_finger_joint{number}" for number in (1, 2))

# The Franka Hand as Desk sets it up: mass, centre of mass in the flange frame, inertia about it.
HAND_INERTIA = Inertia(m=0.73, com=Vector3(x=-0.01, y=0.0, z=0.03), ixx=0.001, iyy=0.0025, izz=0.0017)


def vector(values: np.ndarray) -> Vector3:
    return Vector3(x=float(values[0]), y=float(values[1]), z=float(values[2]))


def pose(position: np.ndarray, quaternion: np.ndarray) -> Pose:
    """From [3] m and [4] x y z w."""
    x, y, z, w = map(float, quaternion)
    point = Point(x=float(position[0]), y=float(position[1]), z=float(position[2]))
    return Pose(position=point, orientation=Quaternion(x=x, y=y, z=z, w=w))


def current_pose(state: ArmState, frame_id: str, stamp: Time) -> PoseStamped:
    message = PoseStamped(pose=pose(state.position, state.quaternion))
    message.header.stamp, message.header.frame_id = stamp, frame_id
    return message


def current_twist(state: ArmState, frame_id: str, stamp: Time) -> TwistStamped:
    message = TwistStamped(twist=_twist(state))
    message.header.stamp, message.header.frame_id = stamp, frame_id
    return message


def finger_states(state: ArmState, frame_prefix: str, stamp: Time) -> JointState:
    """As franka_gripper: each finger is at half the width, velocity and effort are not known and 0."""
    message = JointState(
        name=[frame_prefix + name for name in FINGER_JOINTS],
        position=[state.gripper_width / 2] * 2,
        velocity=[0.0] * 2,
        effort=[0.0] * 2,
    )
    message.header.stamp = stamp
    return message


def joint_states(state: ArmState, frame_prefix: str, stamp: Time) -> JointState:
    """Arm and fingers in one message, as joint_state_publisher merges them."""
    message = finger_states(state, frame_prefix, stamp)
    message.name = [frame_prefix + name for name in ARM_JOINTS] + list(message.name)
    message.position = state.q.tolist() + list(message.position)
    message.velocity = state.dq.tolist() + list(message.velocity)
    message.effort = state.tau.tolist() + list(message.effort)
    return message


class RobotStateMessage:
    """FrankaRobotState of one arm, one message filled again for every sample: most of its 300 fields never change.

    What a simulated arm cannot know apart is one value: desired and motor-side joint states are the measured ones, the
    end effector's desired pose is the controller's target. Efforts exclude gravity.
    """

    def __init__(self, frame_prefix: str, flange_to_tcp: Transform) -> None:
        """`flange_to_tcp` is where the end effector sits on the flange, m."""
        base, flange, tcp = (f"{frame_prefix}{ROBOT}_{link}" for link in ("link0", "link8", "hand_tcp"))
        message = FrankaRobotState()
        names = [frame_prefix + name for name in ARM_JOINTS]
        for joints in _joint_fields(message):
            joints.name = names
        message.header.frame_id = base
        for stamped in _stamped_fields(message):
            stamped.header.frame_id = base
        message.f_t_ee.header.frame_id = flange
        for stamped in (message.ee_t_k, message.k_f_ext_hat_k, message.inertia_load):
            stamped.header.frame_id = tcp
        for stamped in (message.inertia_ee, message.inertia_total):
            stamped.header.frame_id = flange
            stamped.inertia = HAND_INERTIA
        offset = flange_to_tcp.translation
        message.f_t_ee.pose.position = Point(x=offset.x, y=offset.y, z=offset.z)
        message.f_t_ee.pose.orientation = flange_to_tcp.rotation
        self._message = message

    def fill(self, state: ArmState, stamp: Time) -> FrankaRobotState:
        """The message for `state`; the same object every time, to be published before the next call."""
        message = self._message
        message.header.stamp = stamp
        for stamped in (*_joint_fields(message), *_stamped_fields(message)):
            stamped.header.stamp = stamp
        self._fill_joints(state)
        self._fill_end_effector(state)
        message.time = state.time
        message.control_command_success_rate = 1.0 if state.robot_mode == MOVE else 0.0
        self._fill_errors(state.robot_mode == REFLEX)
        message.robot_mode = state.robot_mode
        return message

    def _fill_joints(self, state: ArmState) -> None:
        message = self._message
        for joints in (message.measured_joint_state, message.desired_joint_state, message.measured_joint_motor_state):
            joints.position, joints.velocity, joints.effort = state.q.tolist(), state.dq.tolist(), state.tau.tolist()
        message.tau_ext_hat_filtered.effort = state.external_joint_torque.tolist()
        elbow = np.array([state.q[2], np.sign(state.q[3])])
        message.elbow.position = message.elbow.desired_position = elbow

    def _fill_end_effector(self, state: ArmState) -> None:
        message = self._message
        message.o_t_ee.pose = pose(state.position, state.quaternion)
        message.o_t_ee_d.pose = message.o_t_ee_c.pose = pose(state.target_position, state.target_quaternion)
        message.o_dp_ee_d.twist = message.o_dp_ee_c.twist = _twist(state)
        to_tcp = matrix_from_quaternion(state.quaternion).T
        message.o_f_ext_hat_k.wrench = _wrench(state.external_force, state.external_torque)
        message.k_f_ext_hat_k.wrench = _wrench(to_tcp @ state.external_force, to_tcp @ state.external_torque)

    def _fill_errors(self, reflex: bool) -> None:
        message = self._message
        message.current_errors.cartesian_reflex = reflex
        if reflex:  # stays after the recovery, until another motion is ended by something else
            message.last_motion_errors = Errors(cartesian_reflex=True)


def _joint_fields(message: FrankaRobotState) -> tuple[JointState, ...]:
    return (
        message.measured_joint_state,
        message.desired_joint_state,
        message.measured_joint_motor_state,
        message.tau_ext_hat_filtered,
    )


def _stamped_fields(message: FrankaRobotState) -> tuple:
    return (
        message.k_f_ext_hat_k, message.o_f_ext_hat_k, message.inertia_ee, message.inertia_load, message.inertia_total,
        message.o_t_ee, message.o_t_ee_d, message.o_t_ee_c, message.f_t_ee, message.ee_t_k,
        message.o_dp_ee_d, message.o_dp_ee_c, message.o_ddp_ee_c,
    )  # fmt: skip


def _twist(state: ArmState) -> Twist:
    return Twist(linear=vector(state.linear_velocity), angular=vector(state.angular_velocity))


def _wrench(force: np.ndarray, torque: np.ndarray) -> Wrench:
    return Wrench(force=vector(force), torque=vector(torque))
