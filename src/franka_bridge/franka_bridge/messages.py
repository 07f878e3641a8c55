"""Between ROS messages and the core's own types. Nothing here needs a node."""

from __future__ import annotations

import numpy as np
from geometry_msgs.msg import PoseStamped
from molmoact_msgs.msg import ActionChunk, BridgeStatus, TeleopCommand
from molmoact_ros.stamps import duration_to_nanoseconds, from_nanoseconds, to_nanoseconds

from franka_bridge.arbitration import Arm, TeleopStep
from franka_bridge.bridge import Bridge
from franka_bridge.chunk import ArmSteps, Chunk
from franka_bridge.errors import Refusal
from franka_bridge.poses import Pose

# Refusals with a counter of their own in BridgeStatus.
_COUNTED = [f"refused_{refusal.value}" for refusal in Refusal if refusal is not Refusal.MALFORMED]
_COUNTED_BY_BRIDGE = ("chunks_accepted", "chunks_refused", *_COUNTED)
_COUNTED_BY_ARM = ("rows_integrated_late", "limited_workspace", "limited_speed", "watchdog_stops")


def chunk_from(message: ActionChunk) -> Chunk:
    """The chunk as it is, right or wrong; `franka_bridge.chunk` is the judge."""
    arms = []
    for arm in message.arms:
        rows = [(*_three(step.translation), *_three(step.rotation), step.gripper) for step in arm.steps]
        values = np.array(rows, dtype=np.float64).reshape(-1, 7)  # translation, rotation, gripper
        arms.append(ArmSteps(arm.arm, values[:, 0:3], values[:, 3:6], values[:, 6]))
    return Chunk(
        sequence=message.sequence,
        frame_id=message.header.frame_id,
        observation_ns=to_nanoseconds(message.observation_stamp),
        start_ns=to_nanoseconds(message.start),
        step_period_ns=duration_to_nanoseconds(message.step_period),
        arms=tuple(arms),
        instruction=message.instruction,
    )


def teleop_step_from(message: TeleopCommand) -> TeleopStep:
    """The command as it is, right or wrong; the arm is the judge."""
    return TeleopStep(
        arm=message.arm,
        stamp_ns=to_nanoseconds(message.header.stamp),
        frame_id=message.header.frame_id,
        translation=np.array(_three(message.delta.translation)),
        rotation=np.array(_three(message.delta.rotation)),
        gripper=message.delta.gripper,
        enabled=message.enabled,
    )


def pose_from(message: PoseStamped, frame: str) -> Pose:
    """ValueError for another frame than `frame`, numbers that are not finite, or a quaternion of no length."""
    if message.header.frame_id != frame:
        raise ValueError(f"frame '{message.header.frame_id}', expected '{frame}'")
    q = message.pose.orientation
    return Pose.of(_three(message.pose.position), (q.x, q.y, q.z, q.w))


def pose_message(pose: Pose, frame: str, stamp_ns: int) -> PoseStamped:
    message = PoseStamped()
    message.header.stamp = from_nanoseconds(stamp_ns)
    message.header.frame_id = frame
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = pose.position.tolist()
    orientation.x, orientation.y, orientation.z, orientation.w = pose.quaternion.tolist()
    return message


def status_message(bridge: Bridge, arm: Arm, now_ns: int) -> BridgeStatus:
    """Chunks are counted for the bridge as a whole, what happens to a target for its arm."""
    message = BridgeStatus(
        arm=arm.setup.name,
        mode=int(arm.mode),
        reason=arm.reason,
        sequence=arm.sequence,
        row=arm.row,
        target_distance=arm.target_distance,
        last_refusal=bridge.last_refusal,
    )
    message.header.stamp = from_nanoseconds(now_ns)
    message.header.frame_id = arm.setup.frames.base
    for counters, names in ((bridge.counters, _COUNTED_BY_BRIDGE), (arm.counters, _COUNTED_BY_ARM)):
        for name in names:
            setattr(message, name, int(counters[name]))
    return message


def _three(vector) -> tuple[float, float, float]:
    return vector.x, vector.y, vector.z
