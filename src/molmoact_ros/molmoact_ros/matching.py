"""Who is on a node's topics that it cannot talk to: another message type, or quality of service that does not match."""

from __future__ import annotations

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo


def mismatches(node: Node) -> list[str]:
    """A sentence for every publisher and subscription on the node's topics that do not reach one another.

    Both ends are taken as they were discovered, the node's own included: what was asked for may say "default".
    """
    topics = {entity.topic_name for entity in (*node.subscriptions, *node.publishers)}
    return [complaint for topic in sorted(topics) for complaint in _on_topic(node, topic)]


def _on_topic(node: Node, topic: str) -> list[str]:
    publishers = node.get_publishers_info_by_topic(topic)
    subscriptions = node.get_subscriptions_info_by_topic(topic)
    own = node.get_fully_qualified_name()
    reasons = {
        f"{topic}: {_name(publisher)} publishes what {_name(subscription)} does not get: {reason}"
        for publisher in publishers
        for subscription in subscriptions
        if own in (_name(publisher), _name(subscription)) and (reason := _obstacle(publisher, subscription))
    }
    return sorted(reasons)


def _obstacle(publisher: TopicEndpointInfo, subscription: TopicEndpointInfo) -> str:
    if publisher.topic_type != subscription.topic_type:
        return f"{publisher.topic_type} is not {subscription.topic_type}"
    compatibility, reason = qos_check_compatible(publisher.qos_profile, subscription.qos_profile)
    return reason.rstrip(";") if compatibility == QoSCompatibility.ERROR else ""


def _name(endpoint: TopicEndpointInfo) -> str:
    if "_UNKNOWN_" in endpoint.node_name:  # no ROS node, or one that was discovered a moment ago
        return "a participant without a node name"
    return f"{endpoint.node_namespace.rstrip('/')}/{endpoint.node_name}"
