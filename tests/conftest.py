"""Fixtures of the system tests: processes, and a ROS node to watch them with."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import rclpy
from processes import Processes
from rclpy.context import Context
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    """Starts nodes and other commands; none of them outlives the test."""
    with Processes(tmp_path) as running:
        yield running


@pytest.fixture
def ros_node() -> Iterator[Node]:
    """A node whose callbacks run in the background: subscribe, then `wait_for` what has arrived."""
    context = Context()
    rclpy.init(context=context)
    node = Node("system_test", context=context)
    executor = MultiThreadedExecutor(num_threads=2, context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.shutdown(context=context)
