"""Devices that are topics: how old what they say may be, and the switches that go with a leader."""

from __future__ import annotations

from typing import Any

from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import to_seconds
from rclpy.node import Node

from teleop_recorder.teleop import TeleopError

# A stamp further ahead than this is of another clock.
CLOCK_TOLERANCE_S = 0.1


class NewestMessage:
    """The newest message of a topic with a header, as long as its stamp is no older than `timeout_s`."""

    def __init__(self, node: Node, message_type: type, topic: str, timeout_s: float) -> None:
        self._subscription = PolledSubscription(node, message_type, topic, qos_profile("best_effort"))
        self._timeout_s = timeout_s
        self._message: Any = None

    def at(self, now_s: float) -> Any:
        """The message, None when there is none. TeleopError for one from the future, which is of another clock."""
        for message in self._subscription.take():
            self._message = message
        if self._message is None:
            return None
        age = now_s - to_seconds(self._message.header.stamp)
        if age < -CLOCK_TOLERANCE_S:
            raise TeleopError(
                f"{self._subscription.topic_name}: stamped {-age:.1f} s ahead of this node's clock: "
                "do both run with the same use_sim_time?"
            )
        return self._message if age <= self._timeout_s else None


class NewestFlag:
    """The newest std_msgs/Bool, which has no stamp: its age counts from when it was read, at most a period late."""

    def __init__(self, node: Node, message_type: type, topic: str, timeout_s: float) -> None:
        self._subscription = PolledSubscription(node, message_type, topic, qos_profile("best_effort"))
        self._timeout_s = timeout_s
        self._value: bool | None = None
        self._read_s = 0.0

    def at(self, now_s: float) -> bool | None:
        """The flag, None when it is silent."""
        for message in self._subscription.take():
            self._value, self._read_s = message.data, now_s
        return self._value if now_s - self._read_s <= self._timeout_s else None


def button(buttons: Any, number: int, name: str) -> bool:
    """Whether a button of a Joy message is down. TeleopError for one the device does not have."""
    if number >= len(buttons):
        raise TeleopError(f"{name}: {number}, but the device has {len(buttons)} buttons")
    return bool(buttons[number])
