"""The simulated system in tests: its checkpoint, its nodes one by one, and what its topics say."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from ament_index_python.packages import get_package_share_directory
from molmoact_bringup.graph import Deployment, NodeSpec, single_arm
from molmoact_bringup.local import config_directory
from processes import Processes, TestProcess, wait_for
from rclpy.client import Client
from rclpy.node import Node

# From the start of a process to a policy that is ready: importing torch alone takes a busy machine a minute.
START_TIMEOUT_S = 300.0


def nano_checkpoint() -> str:
    """The trained checkpoint of the repository; the test is skipped where it is not there."""
    directory = Path(get_package_share_directory("molmoact_policy")) / "checkpoints" / "nano"
    if not (directory / "config.json").is_file():
        pytest.skip("the nano checkpoint is not there")
    return str(directory)


def nodes_of_the_graph() -> dict[str, NodeSpec]:
    """The nodes of the simulated arm, by name, on the simulator's clock: a busy machine makes them slow, not late."""
    return {node.name: node for node in single_arm(Deployment(use_sim_time="true"), config_directory())}


def start_node(processes: Processes, node: NodeSpec, remappings: dict[str, str] | None = None) -> TestProcess:
    """Start one node of the graph by itself."""
    return processes.start_node(
        node.package,
        node.executable,
        parameters=node.parameters,
        parameter_files=node.parameter_files,
        remappings=remappings,
    )


class Latest:
    """The newest message of a topic, and how many have come."""

    def __init__(self, node: Node, message_type: type, topic: str, qos: Any = 10) -> None:
        self.message: Any = None
        self.count = 0
        self._lock = threading.Lock()
        self._subscription = node.create_subscription(message_type, topic, self._receive, qos)

    def _receive(self, message: Any) -> None:
        with self._lock:
            self.message = message
            self.count += 1


def call(client: Client, request: Any) -> Any:
    """The answer of a service, once it is there."""
    wait_for(client.service_is_ready, f"service {client.srv_name}")
    future = client.call_async(request)
    wait_for(future.done, f"an answer of {client.srv_name}")
    return future.result()
