"""Subscriptions that are read by the thread that needs them, not called back by the executor.

What an arm's safety depends on then waits for no other callback. And it is cheap: for every message of an ordinary
subscription rclpy's executor builds its wait set anew, three times over, which for a node with sixty entities and a
topic at 100 Hz is most of a core.
"""

from __future__ import annotations

from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile


class PolledSubscription:
    """Keeps messages in the middleware, at most the depth of `qos`, until they are taken."""

    def __init__(self, node: Node, message_type: type, topic: str, qos: QoSProfile, raw: bool = False) -> None:
        """With `raw` messages are serialized bytes."""
        self._node = node
        self._subscription = node.create_subscription(
            message_type, topic, _never_called, qos, callback_group=_PolledGroup(), raw=raw
        )

    @property
    def topic_name(self) -> str:
        """The resolved name of the topic."""
        return self._subscription.topic_name

    def take(self) -> list[Any]:
        """The messages that have come since the last call, oldest first. InvalidHandle once it is destroyed."""
        return [message for message, _ in self.take_with_info()]

    def take_with_info(self) -> list[tuple[Any, dict[str, Any]]]:
        """As `take`, each with what the middleware says of it: received_timestamp, source_timestamp (ns), …"""
        messages = []
        subscription = self._subscription
        with subscription.handle:
            while (taken := subscription.handle.take_message(subscription.msg_type, subscription.raw)) is not None:
                messages.append(taken)
        return messages

    def close(self) -> None:
        """End the subscription."""
        self._node.destroy_subscription(self._subscription)


class _PolledGroup(CallbackGroup):
    """Subscriptions in it are left alone by the executor."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


def _never_called(message: Any) -> None:
    pass
