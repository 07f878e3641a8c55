"""Chunks that nobody should send, between good ones and while the arm moves: refused by name, and no limit broken."""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped
from molmoact_bringup.analysis import TargetPath, limit_violations
from molmoact_bringup.operator import Operator
from molmoact_msgs.msg import ActionChunk, ArmActions, BridgeStatus, CartesianDelta
from molmoact_ros.qos import LATCHED
from molmoact_ros.stamps import duration_from_seconds, from_nanoseconds, to_nanoseconds
from processes import wait_for
from std_msgs.msg import String
from systems import Latest, nodes_of_the_graph, start_node

TASK = "wave"
ROWS = 8
STEP_M = 0.01
STEP_PERIOD_S = 0.1


class FakePolicy:
    """Sends chunks that let the arm go to and fro, as fast as it is allowed to."""

    def __init__(self, node) -> None:
        self._node = node
        self._chunks = node.create_publisher(ActionChunk, "action_chunk", 10)
        self._task = node.create_publisher(String, "task", LATCHED)
        self._task.publish(String(data=TASK))
        self._sequence = 0

    def good_chunk(self) -> ActionChunk:
        self._sequence += 1
        now = self._node.get_clock().now().to_msg()
        direction = 1.0 if self._sequence % 2 else -1.0
        step = CartesianDelta(gripper=1.0)
        step.translation.y = direction * STEP_M
        chunk = ActionChunk(
            sequence=self._sequence,
            observation_stamp=now,
            start=now,
            step_period=duration_from_seconds(STEP_PERIOD_S),
            arms=[ArmActions(arm="fr3", steps=[step] * ROWS)],
            instruction=TASK,
        )
        chunk.header.stamp, chunk.header.frame_id = now, "fr3_link0"
        return chunk

    def send(self, chunk: ActionChunk) -> None:
        self._chunks.publish(chunk)


def _step(chunk: ActionChunk) -> CartesianDelta:
    chunk.arms[0].steps[ROWS - 1] = copy.deepcopy(chunk.arms[0].steps[ROWS - 1])
    return chunk.arms[0].steps[ROWS - 1]


def not_finite(chunk: ActionChunk) -> None:
    _step(chunk).translation.x = math.nan


def infinite_rotation(chunk: ActionChunk) -> None:
    _step(chunk).rotation.z = math.inf


def unknown_arm(chunk: ActionChunk) -> None:
    chunk.arms[0].arm = "left"


def wrong_frame(chunk: ActionChunk) -> None:
    chunk.header.frame_id = "camera_front_color_optical_frame"


def stale(chunk: ActionChunk) -> None:
    chunk.observation_stamp = from_nanoseconds(to_nanoseconds(chunk.observation_stamp) - 60 * 10**9)


def from_the_future(chunk: ActionChunk) -> None:
    chunk.observation_stamp = from_nanoseconds(to_nanoseconds(chunk.observation_stamp) + 60 * 10**9)


def out_of_order(chunk: ActionChunk) -> None:
    chunk.sequence = 1


def empty(chunk: ActionChunk) -> None:
    chunk.arms[0].steps = []


def without_arms(chunk: ActionChunk) -> None:
    chunk.arms = []


def wrong_task(chunk: ActionChunk) -> None:
    chunk.instruction = "throw the cup"


def delta_too_large(chunk: ActionChunk) -> None:
    _step(chunk).translation.z = -3.0


HOSTILE = {
    not_finite: "not_finite",
    infinite_rotation: "not_finite",
    unknown_arm: "unknown_arm",
    wrong_frame: "wrong_frame",
    stale: "stale",
    from_the_future: "stale",
    out_of_order: "out_of_order",
    empty: "empty",
    without_arms: "empty",
    wrong_task: "wrong_task",
    delta_too_large: "delta_too_large",
}


class Targets:
    """Every published target, with its distance from the newest measured pose."""

    def __init__(self, node) -> None:
        self._rows: list[tuple[int, list[float], list[float], float]] = []
        self._measured: np.ndarray | None = None
        self._lock = threading.Lock()
        node.create_subscription(PoseStamped, "target_pose", self._on_target, 1000)
        node.create_subscription(PoseStamped, "current_pose", self._on_pose, 10)

    def path(self) -> TargetPath:
        with self._lock:
            stamps, positions, quaternions, distances = zip(*self._rows, strict=True)
        times = (np.array(stamps) - stamps[0]) / 1e9
        return TargetPath(times, np.array(positions), np.array(quaternions), np.array(distances))

    def _on_pose(self, message: PoseStamped) -> None:
        point = message.pose.position
        self._measured = np.array([point.x, point.y, point.z])

    def _on_target(self, message: PoseStamped) -> None:
        point, turn = message.pose.position, message.pose.orientation
        position = [point.x, point.y, point.z]
        distance = math.nan if self._measured is None else float(np.linalg.norm(self._measured - position))
        with self._lock:
            self._rows.append(
                (to_nanoseconds(message.header.stamp), position, [turn.x, turn.y, turn.z, turn.w], distance)
            )


@pytest.fixture
def operator() -> Iterator[Operator]:
    operator = Operator(int(os.environ["ROS_DOMAIN_ID"]), use_sim_time=True, alarm=lambda: None)
    yield operator
    operator.close()


def test_hostile_chunks_while_the_arm_moves_are_refused_and_break_no_limit(processes, operator):
    graph = nodes_of_the_graph()
    start_node(processes, graph["franka_sim"])
    start_node(processes, graph["franka_bridge"])
    status = Latest(operator.node, BridgeStatus, "bridge_status")
    operator.wait_until_ready(("franka_sim", "franka_bridge"))
    policy = FakePolicy(operator.node)
    limits = operator.parameters_of("franka_bridge")
    operator.prepare("pick", 0)
    targets = Targets(operator.node)
    operator.let_the_policy_act()

    for harm, refusal in HOSTILE.items():
        good, bad = policy.good_chunk(), policy.good_chunk()
        accepted = status.message.chunks_accepted
        policy.send(good)
        wait_for(lambda n=accepted: status.message.chunks_accepted > n, "a good chunk to be accepted")
        wait_for(lambda n=good.sequence: status.message.sequence == n and status.message.row > 1, "the arm to move")
        harm(bad)
        refused = getattr(status.message, f"refused_{refusal}")
        policy.send(bad)
        wait_for(
            lambda kind=refusal, n=refused: getattr(status.message, f"refused_{kind}") > n,
            f"{harm.__name__} to be refused; last refusal: {status.message.last_refusal}",
        )
        assert status.message.mode == BridgeStatus.POLICY, status.message.reason

    path = targets.path()
    violations = limit_violations(path, limits)
    assert sum(violations.values()) == 0, violations
    assert np.ptp(path.positions[:, 1]) > STEP_M, "the arm did not move"
