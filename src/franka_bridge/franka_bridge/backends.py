"""Who takes Cartesian targets: the ROS side. A new kind of controller is a new class and a new line in BACKENDS."""

from __future__ import annotations

from typing import Any, Protocol

from geometry_msgs.msg import PoseStamped

from franka_bridge.messages import pose_message
from franka_bridge.poses import Pose


class CartesianBackend(Protocol):
    """The one way from the bridge to an arm's controller."""

    def send(self, pose: Pose, stamp_ns: int) -> None:
        """Give the controller its target in the arm's base frame."""

    def conflict(self) -> str | None:
        """Why the controller does not take what is sent, for a person to read; None while it does."""

    def close(self) -> None:
        """Send no more; the controller keeps the last target."""


class CrispBackend:
    """crisp_controllers 2.x `CartesianController`: PoseStamped on `target_pose`, reliable, depth 1.

    The controller ignores the topic for as long as it has more than one publisher. It checks neither frame nor
    numbers nor speed, so what is sent here has to be right.
    """

    def __init__(self, node: Any, prefix: str, base_frame: str) -> None:
        self._node = node
        self._frame = base_frame
        self._publisher = node.create_publisher(PoseStamped, f"{prefix}target_pose", 1)

    def send(self, pose: Pose, stamp_ns: int) -> None:
        self._publisher.publish(pose_message(pose, self._frame, stamp_ns))

    def conflict(self) -> str | None:
        publishers = self._node.count_publishers(self._publisher.topic_name)
        if publishers <= 1:
            return None
        return f"{self._publisher.topic_name} has {publishers} publishers: the controller ignores it until one is left"

    def close(self) -> None:
        self._node.destroy_publisher(self._publisher)


BACKENDS = {"crisp": CrispBackend}
