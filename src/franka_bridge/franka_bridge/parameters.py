"""The parameters of the bridge. Limits have no default on purpose: config/bridge.yaml is where they are set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from molmoact_ros.parameters import parameter

from franka_bridge.backends import BACKENDS


def required(description: str) -> Any:
    """A parameter without a default; franka_bridge.limits refuses to work without it, by name."""
    return parameter(None, f"{description} (required)")


@dataclass(frozen=True)
class BridgeParameters:
    arms: tuple[str, ...] = parameter(("fr3",), "names of the arms, as in action_chunk and bridge_status")
    arm_prefixes: tuple[str, ...] = parameter(("",), "prefix of each arm's topics and frames: '', or 'left/' in a pair")
    base_frame: str = parameter("fr3_link0", "base frame, without the arm's prefix")
    tcp_frame: str = parameter("fr3_hand_tcp", "frame of the tool centre point, without the arm's prefix")
    backend: str = parameter("crisp", "controller that takes the targets", choices=tuple(BACKENDS))
    rate: float = parameter(200.0, "targets per second", minimum=100.0, maximum=1000.0)

    realtime_priority: int = parameter(
        0, "SCHED_FIFO priority of the process where the user may have one; 0: ordinary", minimum=0, maximum=98
    )

    workspace_min: tuple[float, ...] | None = required("lowest corner x, y, z of the workspace box, m")
    workspace_max: tuple[float, ...] | None = required("highest corner x, y, z of the workspace box, m")
    linear_speed: float | None = required("largest speed, m/s")
    linear_acceleration: float | None = required("largest acceleration, m/s^2")
    linear_jerk: float | None = required("largest jerk, m/s^3")
    angular_speed: float | None = required("largest angular speed, rad/s")
    angular_acceleration: float | None = required("largest angular acceleration, rad/s^2")
    angular_jerk: float | None = required("largest angular jerk, rad/s^3")
    emergency_linear_acceleration: float | None = required("deceleration of an emergency stop, m/s^2")
    emergency_linear_jerk: float | None = required("jerk of an emergency stop, m/s^3")
    emergency_angular_acceleration: float | None = required("angular deceleration of an emergency stop, rad/s^2")
    emergency_angular_jerk: float | None = required("angular jerk of an emergency stop, rad/s^3")
    homing_speed: float | None = required("speed on the way home, m/s")
    homing_angular_speed: float | None = required("angular speed on the way home, rad/s")
    max_delta_translation: float | None = required("largest translation of one row or teleop command, m")
    max_delta_rotation: float | None = required("largest rotation of one row or teleop command, rad")
    max_target_distance: float | None = required("largest distance between target and measured pose, m")
    max_target_angle: float | None = required("largest angle between target and measured pose, rad")
    max_measured_speed: float | None = required("a measured pose that moves faster has jumped, m/s")
    max_measured_angular_speed: float | None = required("a measured pose that turns faster has jumped, rad/s")

    max_observation_age: float | None = required("age of a chunk's observation when the chunk arrives, s")
    chunk_timeout: float | None = required("from a chunk's last row until the arm is stopped where it is, s")
    pose_timeout: float | None = required("age of the measured pose, s")
    robot_state_timeout: float | None = required("age of the robot's state, s")
    teleop_timeout: float | None = required("age of a teleop command, s")
    clock_jump: float | None = required("largest step of the clock ahead of real time between two ticks, s")

    home_position: tuple[float, ...] | None = required("x, y, z of the home pose, one after another for each arm, m")
    home_quaternion: tuple[float, ...] | None = required("x, y, z, w of the home pose, for each arm")

    gripper_close_below: float = parameter(0.3, "opening below which the hand closes", minimum=0.0, maximum=1.0)
    gripper_open_above: float = parameter(0.7, "opening above which the hand opens", minimum=0.0, maximum=1.0)
    gripper_open_width: float = parameter(0.08, "width of the open hand, m", minimum=0.0, maximum=0.08)
    gripper_speed: float = parameter(0.1, "speed of the fingers, m/s", minimum=0.01, maximum=0.1)
    gripper_force: float = parameter(20.0, "force of a grasp, N", minimum=0.0, maximum=70.0)
