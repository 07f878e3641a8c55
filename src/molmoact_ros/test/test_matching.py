"""Peers that cannot be talked to are named, over the real middleware."""

import time

import pytest
import rclpy
from molmoact_ros.matching import mismatches
from molmoact_ros.qos import LATCHED, qos_profile
from rclpy.context import Context
from rclpy.node import Node
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

TIMEOUT_S = 20


@pytest.fixture
def peers():
    nodes = []
    for name in ("ours", "theirs"):
        context = Context()
        rclpy.init(args=[], context=context)
        nodes.append(Node(name, namespace="/cell", context=context))
    yield nodes
    for node in nodes:
        node.destroy_node()
        rclpy.shutdown(context=node.context)


def test_best_effort_publisher_of_a_reliable_subscription_is_named_with_the_reason(peers):
    ours, theirs = peers
    ours.create_subscription(String, "instruction", print, qos_profile("reliable"))
    theirs.create_publisher(String, "instruction", qos_profile("best_effort"))
    start = "/cell/instruction: /cell/theirs publishes what /cell/ours does not get: "
    wait_until(lambda: [each for each in mismatches(ours) if each.startswith(start) and "reliable" in each])


def test_latched_subscription_of_a_volatile_publisher_is_named(peers):
    ours, theirs = peers
    ours.create_publisher(String, "instruction", qos_profile("reliable"))
    theirs.create_subscription(String, "instruction", print, LATCHED)
    start = "/cell/instruction: /cell/ours publishes what /cell/theirs does not get: "
    wait_until(lambda: [each for each in mismatches(ours) if each.startswith(start) and "transient local" in each])


def test_peer_with_another_message_type_is_named_with_both_types(peers):
    ours, theirs = peers
    ours.create_subscription(String, "stop", print, 1)
    theirs.create_publisher(Bool, "stop", 1)
    complaint = "/cell/theirs publishes what /cell/ours does not get: std_msgs/msg/Bool is not std_msgs/msg/String"
    wait_until(lambda: mismatches(ours) == [f"/cell/stop: {complaint}"])


def test_peers_that_match_are_not_mentioned(peers):
    ours, theirs = peers
    ours.create_subscription(String, "instruction", print, qos_profile("best_effort"))
    theirs.create_publisher(String, "instruction", qos_profile("reliable"))
    theirs.create_service(Trigger, "recover", lambda request, response: response)
    wait_until(lambda: ours.count_publishers("/cell/instruction"))
    assert mismatches(ours) == []


def wait_until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
