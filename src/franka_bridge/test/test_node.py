"""The node over real DDS, with a fake robot at the far side: what arm, controller, hand and policy would send."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import rclpy
import yaml
from franka_bridge.node import BridgeNode
from franka_msgs.action import ErrorRecovery, Grasp, Move
from franka_msgs.msg import FrankaRobotState
from geometry_msgs.msg import PoseStamped
from molmoact_msgs.msg import ActionChunk, ArmActions, BridgeStatus, CartesianDelta, TeleopCommand
from molmoact_msgs.srv import SetMode
from molmoact_ros.qos import LATCHED
from molmoact_ros.stamps import duration_from_seconds, from_nanoseconds, to_nanoseconds
from rclpy.action import ActionServer
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.executors import Executor, MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

CONFIG = Path(__file__).parents[3] / "config"
TASK = "pick up the red cube"
TIMEOUT_S = 60.0
POLL_S = 0.01
STATE_PERIOD_S = 0.02
# A fake robot on a busy machine is late where a real one is not; what is guarded here is not how late.
PATIENT = {
    "rate": 100.0,
    "realtime_priority": 0,  # it would be this test's, with all that runs in the process
    "pose_timeout": 30.0,
    "robot_state_timeout": 30.0,
    "teleop_timeout": 2.0,
    "max_observation_age": 60.0,
    "max_target_distance": 0.5,
}


def parameters(**changes) -> list[Parameter]:
    """config/bridge.yaml with what config/robots/sim.yaml changes, as the launch files give it."""
    values: dict = {}
    for name in ("bridge.yaml", "robots/sim.yaml"):
        values |= yaml.safe_load((CONFIG / name).read_text())["franka_bridge"]["ros__parameters"]
    values |= PATIENT | changes
    return [Parameter(name, value=value) for name, value in values.items() if value is not None]


class FakeRobot(Node):
    """An arm that is where its newest target is, a hand that obeys, and the far ends of every topic of the bridge."""

    def __init__(self, namespace: str) -> None:
        super().__init__("fake_robot", namespace=namespace)
        self.position, self.quaternion = np.array([0.45, 0.0, 0.3]), np.array([1.0, 0.0, 0.0, 0.0])
        self.robot_mode = FrankaRobotState.ROBOT_MODE_MOVE
        self.publishes = True
        self.follows = True
        self.targets: list[PoseStamped] = []
        self.statuses: list[BridgeStatus] = []
        self.hand: list[str] = []
        self.recoveries = 0
        self.sequence = 0
        self._pose = self.create_publisher(PoseStamped, "current_pose", 1)
        self._state = self.create_publisher(FrankaRobotState, "franka_robot_state_broadcaster/robot_state", 1)
        self.chunks = self.new_publisher(ActionChunk, "action_chunk")
        self.teleop = self.create_publisher(TeleopCommand, "teleop_command", 10)
        self.stop = self.create_publisher(Bool, "emergency_stop", 10)
        self.task = self.create_publisher(String, "task", LATCHED)
        self.create_subscription(PoseStamped, "target_pose", self._on_target, 1)
        self.create_subscription(BridgeStatus, "bridge_status", self.statuses.append, 100)
        self._servers = [
            ActionServer(self, ErrorRecovery, "action_server/error_recovery", self._recover),
            ActionServer(self, Grasp, "franka_gripper/grasp", lambda goal: self._move_hand(goal, "grasp", Grasp)),
            ActionServer(self, Move, "franka_gripper/move", lambda goal: self._move_hand(goal, "move", Move)),
        ]
        self._triggers = {
            name: self.create_client(Trigger, name)
            for name in ("trigger_emergency_stop", "release_emergency_stop", "recover")
        }
        self._set_mode = self.create_client(SetMode, "set_mode")
        self.create_timer(STATE_PERIOD_S, self._publish_state)

    def new_publisher(self, kind, topic: str):
        """A publisher that may be destroyed while the executor spins, which one with event callbacks may not."""
        return self.create_publisher(
            kind, topic, 10, event_callbacks=PublisherEventCallbacks(use_default_callbacks=False)
        )

    def guide_to(self, position: tuple[float, float, float]) -> None:
        """Move the arm by hand, and let the controllers take over again."""
        self.robot_mode = FrankaRobotState.ROBOT_MODE_GUIDING
        self.until_mode(BridgeStatus.HOLD, "GUIDING")
        self.position = np.array(position)
        self.until(lambda: abs(self.targets[-1].pose.position.x - position[0]) < 1e-9, "target at the arm")
        self.robot_mode = FrankaRobotState.ROBOT_MODE_MOVE
        self.until_mode(BridgeStatus.HOLD, "ready")

    @property
    def status(self) -> BridgeStatus:
        return self.statuses[-1]

    def until(self, condition, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached: {what}; {self.statuses[-1:]}")
            time.sleep(POLL_S)

    def until_mode(self, mode: int, reason: str = "") -> None:
        self.until(
            lambda: self.statuses and self.status.mode == mode and reason in self.status.reason, f"{mode} '{reason}'"
        )

    def call(self, name: str) -> Trigger.Response:
        return self._called(self._triggers[name], Trigger.Request())

    def set_mode(self, mode: int, arm: str = "") -> SetMode.Response:
        return self._called(self._set_mode, SetMode.Request(arm=arm, mode=mode))

    def in_mode(self, mode: int) -> None:
        """Hand over control as an operator does: again until the robot is ready."""
        self.task.publish(String(data=TASK))
        self.until(lambda: self.set_mode(mode).success, f"mode {mode} granted")
        # The latched task may come after the service's answer.
        self.until(lambda: self.status.mode == mode, f"mode {mode}")

    def chunk(self, step=(0.0005, 0.0, 0.0), rows: int = 40, gripper: float = 1.0, **changes) -> ActionChunk:
        self.sequence += 1
        now = self.get_clock().now()
        delta = CartesianDelta(gripper=gripper)
        delta.translation.x, delta.translation.y, delta.translation.z = step
        chunk = ActionChunk(
            sequence=self.sequence,
            observation_stamp=now.to_msg(),
            start=now.to_msg(),
            step_period=duration_from_seconds(0.1),
            arms=[ArmActions(arm="fr3", steps=[delta] * rows)],
            instruction=TASK,
        )
        chunk.header.frame_id = "fr3_link0"
        for name, value in changes.items():
            setattr(chunk, name, value)
        return chunk

    def send_until_accepted(self, **changes) -> None:
        """Send chunks until one is accepted: the first may be refused before the bridge has heard of the task."""
        before = self.status
        self.until(lambda: self.chunks.get_subscription_count() > 0, "the bridge listens to chunks")
        while self.status.chunks_accepted == before.chunks_accepted:
            refused = self.status.chunks_refused
            self.chunks.publish(self.chunk(**changes))
            self.until(lambda refused=refused: self._answered(before.chunks_accepted, refused), "chunk judged")

    def _answered(self, accepted: int, refused: int) -> bool:
        return (self.status.chunks_accepted, self.status.chunks_refused) != (accepted, refused)

    def at_rest(self) -> bool:
        positions = [target.pose.position for target in self.targets[-20:]]
        return len(positions) == 20 and all(position == positions[0] for position in positions)

    def _called(self, client, request):
        assert client.wait_for_service(TIMEOUT_S)
        future = client.call_async(request)
        self.until(future.done, f"answer of {client.srv_name}")
        return future.result()

    def _publish_state(self) -> None:
        if not self.publishes:
            return
        stamp = self.get_clock().now().to_msg()
        pose = PoseStamped()
        pose.header.stamp, pose.header.frame_id = stamp, "fr3_link0"
        p, q = pose.pose.position, pose.pose.orientation
        p.x, p.y, p.z = self.position.tolist()
        q.x, q.y, q.z, q.w = self.quaternion.tolist()
        self._pose.publish(pose)
        state = FrankaRobotState(robot_mode=self.robot_mode)
        state.header.stamp = stamp
        self._state.publish(state)

    def _on_target(self, target: PoseStamped) -> None:
        self.targets.append(target)
        if self.follows and self.robot_mode == FrankaRobotState.ROBOT_MODE_MOVE:
            p = target.pose.position
            self.position = np.array([p.x, p.y, p.z])

    def _recover(self, goal) -> ErrorRecovery.Result:
        self.recoveries += 1
        self.robot_mode = FrankaRobotState.ROBOT_MODE_MOVE
        goal.succeed()
        return ErrorRecovery.Result()

    def _move_hand(self, goal, name: str, action):
        self.hand.append(name)
        goal.succeed()
        return action.Result(success=True)


_numbers = itertools.count()


class Graph:
    """The bridge and the fake robot, each spinning in its own executor."""

    def __init__(self) -> None:
        # A namespace of its own: what is left of an earlier test in the graph is no concern of this one.
        self.namespace = f"/test_{next(_numbers)}"
        self._executors: list[Executor] = []
        self._nodes: list[Node] = []
        self._threads: list[threading.Thread] = []

    def spin(self, node: Node) -> Node:
        executor = MultiThreadedExecutor(num_threads=4) if isinstance(node, BridgeNode) else SingleThreadedExecutor()
        executor.add_node(node)
        thread = threading.Thread(target=executor.spin, daemon=True)
        thread.start()
        self._executors.append(executor)
        self._nodes.append(node)
        self._threads.append(thread)
        return node

    def close(self) -> None:
        # First: an executor fails when what it waits for is destroyed.
        for executor in self._executors:
            executor.shutdown()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        for node in self._nodes:
            if isinstance(node, BridgeNode):
                if node.active:
                    node.trigger_deactivate()
                node.trigger_shutdown()
            node.destroy_node()


@pytest.fixture
def graph():
    rclpy.init()
    graph = Graph()
    yield graph
    graph.close()
    rclpy.shutdown()


@pytest.fixture
def bridge(graph, request) -> BridgeNode:
    """An active bridge; parametrised indirectly, with other parameters."""
    changes = getattr(request, "param", {})
    node = graph.spin(BridgeNode(namespace=graph.namespace, parameter_overrides=parameters(**changes)))
    assert node.trigger_configure().name == "SUCCESS"
    assert node.trigger_activate().name == "SUCCESS"
    return node


@pytest.fixture
def robot(graph, bridge) -> FakeRobot:
    robot = graph.spin(FakeRobot(graph.namespace))
    robot.until(lambda: robot.statuses and robot.targets, "status and targets")
    return robot


def test_simulated_time_and_the_robot_are_heard_while_no_callback_runs(graph):
    listener = graph.spin(Node("listener", namespace=graph.namespace))
    targets: list[PoseStamped] = []
    listener.create_subscription(PoseStamped, "target_pose", targets.append, 10)
    clock, poses = (
        listener.create_publisher(*topic, 10) for topic in ((Clock, "/clock"), (PoseStamped, "current_pose"))
    )
    simulated = Parameter("use_sim_time", value=True)
    bridge = BridgeNode(namespace=graph.namespace, parameter_overrides=[*parameters(), simulated])  # has no executor
    assert bridge.trigger_configure().name == "SUCCESS"
    assert bridge.trigger_activate().name == "SUCCESS"
    now_ns, deadline = 10**9, time.monotonic() + TIMEOUT_S
    while not (targets and to_nanoseconds(targets[-1].header.stamp) > 2 * 10**9):
        assert time.monotonic() < deadline, targets[-1:]
        now_ns += 10**7
        pose = PoseStamped()
        pose.header.stamp, pose.header.frame_id = from_nanoseconds(now_ns), "fr3_link0"
        pose.pose.position.x, pose.pose.position.z, pose.pose.orientation.x = 0.45, 0.3, 1.0
        clock.publish(Clock(clock=pose.header.stamp))
        poses.publish(pose)
        time.sleep(POLL_S)
    bridge.trigger_deactivate()
    bridge.trigger_shutdown()
    bridge.destroy_node()


def test_chunk_moves_the_arm_by_the_sum_of_its_rows_within_the_limits(robot):
    robot.in_mode(BridgeStatus.POLICY)
    start = robot.position.copy()
    robot.send_until_accepted(step=(0.0005, 0.0, 0.0), rows=40)
    robot.until(lambda: abs(robot.position[0] - start[0] - 0.02) < 1e-6, "end of the chunk")
    assert robot.status.chunks_accepted == 1
    stamps = np.array([to_nanoseconds(target.header.stamp) for target in robot.targets]) * 1e-9
    x = np.array([target.pose.position.x for target in robot.targets])
    assert (np.abs(np.diff(x)) <= 0.3 * np.diff(stamps - stamps[0]) + 1e-9).all()


def test_hostile_chunks_are_refused_by_name_and_move_nothing(robot):
    robot.in_mode(BridgeStatus.POLICY)
    robot.until(robot.at_rest, "rest")
    start = robot.position.copy()
    nan = CartesianDelta(gripper=1.0)
    nan.translation.x = float("nan")
    now = robot.get_clock().now().nanoseconds
    for expected, changes in (
        ("not_finite", {"arms": [ArmActions(arm="fr3", steps=[nan])]}),
        ("unknown_arm", {"arms": [ArmActions(arm="ur5", steps=[CartesianDelta()])]}),
        ("empty", {"arms": []}),
        ("empty", {"arms": [ArmActions(arm="fr3")]}),
        ("stale", {"observation_stamp": from_nanoseconds(now - 60_000_000_000)}),
        ("wrong_task", {"instruction": "juggle"}),
        ("delta_too_large", {"step": (0.5, 0.0, 0.0)}),
    ):
        before = robot.status.chunks_refused
        robot.chunks.publish(robot.chunk(**changes))
        robot.until(lambda before=before: robot.status.chunks_refused == before + 1, expected)
        assert expected in robot.status.last_refusal
        assert getattr(robot.status, f"refused_{expected}") >= 1
    assert (robot.position == start).all()
    assert robot.status.mode == BridgeStatus.POLICY


def test_reflex_holds_until_recovery_is_asked_for(robot):
    robot.in_mode(BridgeStatus.POLICY)
    robot.robot_mode = FrankaRobotState.ROBOT_MODE_REFLEX
    robot.until_mode(BridgeStatus.FAULT, "reflex")
    assert robot.recoveries == 0
    refused = robot.set_mode(BridgeStatus.POLICY)
    assert not refused.success and "recover" in refused.message
    answer = robot.call("recover")
    assert answer.success, answer.message
    assert robot.recoveries == 1
    robot.until_mode(BridgeStatus.HOLD)


@pytest.mark.parametrize("bridge", [{"pose_timeout": 1.0, "robot_state_timeout": 1.0}], indirect=True)
def test_lost_robot_is_a_fault_with_its_reason(robot):
    robot.in_mode(BridgeStatus.POLICY)
    robot.publishes = False
    robot.until_mode(BridgeStatus.FAULT, "no ")
    assert not robot.call("recover").success
    robot.publishes = True
    robot.until(lambda: robot.call("recover").success, "recovered")
    robot.until_mode(BridgeStatus.HOLD)


def test_emergency_stop_by_topic_latches_until_released_by_service(robot):
    robot.in_mode(BridgeStatus.POLICY)
    robot.stop.publish(Bool(data=True))
    robot.until_mode(BridgeStatus.EMERGENCY_STOP, "emergency_stop")
    robot.stop.publish(Bool(data=False))
    assert not robot.set_mode(BridgeStatus.POLICY).success
    robot.until(lambda: robot.call("release_emergency_stop").success, "released")
    robot.until_mode(BridgeStatus.HOLD)


def test_emergency_stop_by_service_stops_a_moving_arm(robot):
    robot.in_mode(BridgeStatus.POLICY)
    robot.send_until_accepted(step=(0.001, 0.0, 0.0), rows=200)
    robot.until(lambda: not robot.at_rest(), "motion")
    assert robot.call("trigger_emergency_stop").success
    robot.until_mode(BridgeStatus.EMERGENCY_STOP, "operator")
    robot.until(robot.at_rest, "rest")


def test_second_publisher_of_targets_stops_the_arm_and_is_named(robot):
    robot.in_mode(BridgeStatus.POLICY)
    second = robot.new_publisher(PoseStamped, "target_pose")
    robot.until_mode(BridgeStatus.HOLD, "2 publishers")
    assert not robot.set_mode(BridgeStatus.POLICY).success
    robot.destroy_publisher(second)
    robot.until(lambda: robot.set_mode(BridgeStatus.POLICY).success, "control after the second one left")


def test_policy_that_dies_stops_the_arm(robot):
    robot.in_mode(BridgeStatus.POLICY)
    robot.send_until_accepted(step=(0.001, 0.0, 0.0), rows=200)
    robot.destroy_publisher(robot.chunks)
    robot.until_mode(BridgeStatus.HOLD, "the policy died")
    robot.until(robot.at_rest, "rest")


def test_policy_started_again_counts_from_one_again(robot):
    robot.in_mode(BridgeStatus.POLICY)
    robot.sequence = 40
    robot.send_until_accepted()
    accepted = robot.status.chunks_accepted
    second = robot.new_publisher(ActionChunk, "action_chunk")
    first, robot.chunks = robot.chunks, second
    robot.sequence = 0
    robot.send_until_accepted()
    assert robot.status.chunks_accepted == accepted + 1
    robot.destroy_publisher(first)


def test_hand_gets_one_command_per_edge(robot):
    robot.in_mode(BridgeStatus.POLICY)
    for gripper in (1.0, 1.0, 0.0, 0.0, 1.0):
        robot.send_until_accepted(gripper=gripper)
        expected = "move" if gripper else "grasp"
        robot.until(lambda expected=expected: robot.hand and robot.hand[-1] == expected, expected)
    assert robot.hand == ["move", "grasp", "move"]


def test_homing_ends_at_home_in_hold(robot):
    robot.guide_to((0.5, 0.1, 0.35))
    robot.in_mode(BridgeStatus.HOMING)
    robot.until_mode(BridgeStatus.HOLD, "homing finished")
    assert np.abs(robot.position - [0.45, 0.0, 0.3]).max() < 1e-3


def test_teleoperation_moves_only_while_the_switch_is_held(robot):
    robot.in_mode(BridgeStatus.TELEOP)
    start = robot.position.copy()

    def command(enabled: bool) -> bool:
        message = TeleopCommand(arm="fr3", enabled=enabled)
        message.header.stamp = robot.get_clock().now().to_msg()
        message.header.frame_id = "fr3_link0"
        message.delta.translation.z = 0.002
        robot.teleop.publish(message)
        return robot.position[2] > start[2] + 0.005

    robot.until(lambda: command(enabled=True), "moved by hand")
    robot.until_mode(BridgeStatus.TELEOP, "holding")  # nothing sent any more: as good as released
    robot.until(robot.at_rest, "rest")
    stopped = robot.position.copy()
    command(enabled=False)
    robot.until_mode(BridgeStatus.TELEOP, "holding")
    assert (robot.position == stopped).all()


def test_target_follows_the_arm_while_it_is_guided_by_hand(robot):
    robot.guide_to((0.55, 0.1, 0.4))
    assert abs(robot.targets[-1].pose.position.x - 0.55) < 1e-9


def test_deactivation_leaves_no_publisher_and_refuses_requests(robot, bridge):
    bridge.trigger_deactivate()
    robot.until(lambda: robot.count_publishers("target_pose") == 0, "no publisher left")
    assert not robot.set_mode(BridgeStatus.POLICY).success


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"linear_speed": None}, "linear_speed: not set"),
        ({"linear_speed": -0.1}, "linear_speed: -0.1"),
        ({"workspace_min": [0.9, -0.4, 0.0]}, "workspace_min: x"),
        ({"home_position": [0.0, 0.0, 0.3]}, "home_position: x"),
        ({"home_position": [0.5, 0.0]}, "home_position"),
        ({"emergency_linear_jerk": 1.0}, "linear_jerk"),
        ({"gripper_close_below": 0.8}, "gripper_close_below"),
        ({"arm_prefixes": ["left/", "right/"]}, "arm_prefixes"),
        ({"chunk_timeout": None}, "chunk_timeout: not set"),
    ],
)
def test_configure_refuses_a_bad_limit_by_name(graph, capfd, changes, message):
    node = graph.spin(BridgeNode(namespace=graph.namespace, parameter_overrides=parameters(**changes)))
    assert node.trigger_configure().name == "FAILURE"
    assert message in capfd.readouterr().err
