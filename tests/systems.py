"""The simulated system in tests: its checkpoint, its nodes one by one, and what its topics say."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ament_index_python.packages import get_package_share_directory
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from molmoact_bringup.graph import Deployment, NodeSpec, single_arm
from molmoact_bringup.local import config_directory
from processes import Processes, TestProcess, wait_for
from rclpy.client import Client
from rclpy.node import Node

# From the start of a process to a policy that is ready: importing torch alone takes a busy machine a minute.
START_TIMEOUT_S = 300.0
# For a node's state, before it is asked for again.
STATE_TIMEOUT_S = 2.0


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


def wait_until_active(node: Node, name: str) -> None:
    """Wait for a lifecycle node: its actions and services are there before it takes tasks."""
    client = node.create_client(GetState, f"{name}/get_state")

    def active() -> bool:
        answer = client.call_async(GetState.Request())
        with suppress(AssertionError):  # a node that is just starting may lose an answer before it knows who asked
            wait_for(answer.done, f"the state of {name}", STATE_TIMEOUT_S)
        return answer.done() and answer.result().current_state.id == State.PRIMARY_STATE_ACTIVE

    wait_for(client.service_is_ready, f"node {name}", START_TIMEOUT_S)
    wait_for(active, f"node {name} to become active", START_TIMEOUT_S)


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
