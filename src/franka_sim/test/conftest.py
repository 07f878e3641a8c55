"""A simulator in a process of its own on the simulated clock, and a client that knows it only through ROS."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import rclpy
from franka_msgs.msg import FrankaRobotState
from franka_sim.scene import SceneConfig
from geometry_msgs.msg import PoseStamped
from molmoact_msgs.msg import SceneStatus
from molmoact_msgs.srv import ResetScene
from molmoact_ros.actions import ActionClient
from molmoact_ros.qos import qos_profile
from processes import Processes, TestProcess, wait_for
from rclpy.context import Context
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher

CONFIG = Path(__file__).resolve().parents[3] / "config"
SCENE = CONFIG / "scenes/tabletop.yaml"
STATE_TOPIC = "franka_robot_state_broadcaster/robot_state"


class Client(Node):
    """Keeps the newest message of every topic it watches, and waits for conditions on them."""

    def __init__(self, context: Context) -> None:
        super().__init__("client", context=context)
        self._newest: dict[str, Any] = {}
        self.watch(FrankaRobotState, STATE_TOPIC)
        self.watch(SceneStatus, "franka_sim/scene_status")

    @property
    def state(self) -> FrankaRobotState:
        return self.newest(STATE_TOPIC)

    def watch(self, kind: type, topic: str) -> None:
        if topic not in self._newest:
            self._newest[topic] = None
            self.create_subscription(
                kind, topic, lambda message: self._newest.update({topic: message}), qos_profile("reliable", 10)
            )

    def record(self, kind: type, topic: str) -> list[Any]:
        """A list that every message from now on is added to."""
        messages: list[Any] = []
        self.create_subscription(kind, topic, messages.append, qos_profile("reliable", 100))
        return messages

    def has_news(self, topic: str) -> bool:
        return self._newest[topic] is not None

    def forget(self) -> None:
        self._newest.update(dict.fromkeys(self._newest))

    def newest(self, topic: str) -> Any:
        return wait_for(lambda: self._newest[topic], f"a message on {topic}")

    def next(self, topic: str) -> Any:
        """A message that is not there yet."""
        self._newest[topic] = None
        return self.newest(topic)

    def wait_for_mode(self, mode: int) -> None:
        wait_for(lambda: self.state.robot_mode == mode, f"robot_mode {mode}")

    def wait_until_simulated(self, time: float) -> None:
        """Until the simulator's own clock, FrankaRobotState.time, shows `time` s."""
        wait_for(lambda: self.state.time >= time, f"simulated time {time}")

    def reset(self, task: str, seed: int) -> ResetScene.Response:
        client = self.create_client(ResetScene, "franka_sim/reset")
        try:
            assert client.wait_for_service(30.0)
            response = self._result(client.call_async(ResetScene.Request(task=task, seed=seed)), "the reset")
        finally:
            self.destroy_client(client)
        if response.success:
            status = "franka_sim/scene_status"
            wait_for(lambda: (self.next(status).task, self.newest(status).seed) == (task, seed), "the new scene")
        return response

    def call(self, kind: type, service: str) -> Any:
        client = self.create_client(kind, service)
        try:
            assert client.wait_for_service(30.0)
            return self._result(client.call_async(kind.Request()), service)
        finally:
            self.destroy_client(client)

    def act(self, kind: type, name: str, goal: Any) -> tuple[Any, list[Any]]:
        """(result, feedback) of an action."""
        handle, feedback = self.begin(kind, name, goal)
        return self.finish(handle), feedback

    def begin(self, kind: type, name: str, goal: Any) -> tuple[Any, list[Any]]:
        """(goal handle, list that fills with feedback) of an accepted goal."""
        feedback: list[Any] = []
        client = ActionClient(self, kind, name)
        assert client.wait_for_server(30.0)
        sent = client.send_goal_async(goal, feedback_callback=lambda message: feedback.append(message.feedback))
        handle = self._result(sent, f"an answer of {name}")
        assert handle.accepted
        return handle, feedback

    def finish(self, handle: Any) -> Any:
        return self._result(handle.get_result_async(), "the result of an action").result

    def target_publisher(self) -> Publisher:
        # Without events: rclpy's executor fails on an event of what is destroyed beside it.
        publisher = self.create_publisher(
            PoseStamped,
            "target_pose",
            qos_profile("reliable", 1),
            event_callbacks=PublisherEventCallbacks(use_default_callbacks=False),
        )
        wait_for(lambda: publisher.get_subscription_count() == 1, "the simulator's subscription of target_pose")
        return publisher

    def measured_pose(self, dx: float = 0.0, dz: float = 0.0) -> PoseStamped:
        """The measured pose moved by (dx, 0, dz) m, as a target."""
        measured = self.next(STATE_TOPIC).o_t_ee
        target = PoseStamped(pose=measured.pose)
        target.header.frame_id = "fr3_link0"
        target.pose.position.x += dx
        target.pose.position.z += dz
        return target

    @staticmethod
    def _result(future: Any, what: str) -> Any:
        wait_for(future.done, what)
        return future.result()


@pytest.fixture(scope="session")
def scene() -> SceneConfig:
    return SceneConfig.load(SCENE)


@pytest.fixture
def start_simulator(tmp_path: Path) -> Iterator[Callable[..., TestProcess]]:
    """Starts a simulator of the test's own; keyword arguments are its parameters."""
    with Processes(tmp_path) as processes:
        yield partial(_start, processes)


def _start(processes: Processes, namespace: str = "/", **parameters: object) -> TestProcess:
    return processes.start_node(
        "franka_sim",
        "franka_sim",
        parameters={"scene": str(SCENE)} | parameters,
        remappings={"__ns": namespace},
    )


@pytest.fixture(scope="session")
def client() -> Iterator[Client]:
    context = Context()
    rclpy.init(context=context)
    node = Client(context)
    executor = MultiThreadedExecutor(num_threads=2, context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.fixture(scope="module")
def simulator(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A running simulator, seen through its client."""
    with Processes(tmp_path_factory.mktemp("simulator")) as processes:
        process = _start(processes, publish_clock=True, camera_compressed=[True, False])
        wait_for(lambda: process.returncode is not None or client.has_news(STATE_TOPIC), "the simulator")
        assert process.returncode is None, process.output
        yield client
    client.forget()
