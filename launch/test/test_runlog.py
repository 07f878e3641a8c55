from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from franka_msgs.msg import FrankaRobotState
from geometry_msgs.msg import PoseStamped
from molmoact_bringup.runlog import read_run
from molmoact_msgs.msg import ActionChunk, BridgeStatus, Reasoning
from molmoact_ros.stamps import duration_from_nanoseconds, from_nanoseconds
from rosgraph_msgs.msg import Clock

MS = 1_000_000
START_NS = 1_700_000_000 * 10**9
IDLE, MOVE = 1, 2


def at(milliseconds: float) -> int:
    return START_NS + round(milliseconds * MS)


def pose(topic: str, milliseconds: float, x: float) -> tuple[str, int, Any]:
    message = PoseStamped()
    message.header.stamp = from_nanoseconds(at(milliseconds))
    message.pose.position.x, message.pose.orientation.w = x, 1.0
    return topic, at(milliseconds), message


def robot_state(milliseconds: float, mode: int) -> tuple[str, int, Any]:
    return "/franka_robot_state_broadcaster/robot_state", at(milliseconds), FrankaRobotState(robot_mode=mode)


def chunk(sequence: int, observed_ns: int, received_ms: float) -> tuple[str, int, Any]:
    message = ActionChunk(sequence=sequence, observation_stamp=from_nanoseconds(observed_ns))
    return "/action_chunk", at(received_ms), message


def reply(sequence: int, model_ms: float) -> tuple[str, int, Any]:
    return "/reasoning", at(900), Reasoning(sequence=sequence, latency=duration_from_nanoseconds(round(model_ms * MS)))


def test_targets_count_only_while_the_robot_follows_them(write_bag):
    modes = [robot_state(time, MOVE if time >= 500 else IDLE) for time in range(0, 1000, 10)]
    targets = [pose("/target_pose", time, 0.1) for time in range(5, 1000, 10)]
    log = read_run(write_bag([*modes, *targets]))
    # From 100 ms after the first MOVE on: which of two messages came first cannot be told from their order.
    assert 35 <= len(log.path.times) <= 41
    assert np.allclose(np.diff(log.path.times), 0.01)


def test_distance_is_that_to_the_pose_measured_last(write_bag):
    modes = [robot_state(time, MOVE) for time in range(0, 300, 10)]
    others = [pose("/current_pose", 141, 0.5), pose("/target_pose", 145, 0.53), pose("/target_pose", 121, 0.6)]
    log = read_run(write_bag([*modes, *others]))
    assert np.isnan(log.path.distances[0])
    assert log.path.distances[1] == pytest.approx(0.03)


def test_latency_is_from_the_stamp_of_the_image_to_the_receipt_of_the_chunk(write_bag):
    log = read_run(write_bag([chunk(1, at(100), 450.0), reply(1, 330.0), reply(0, 20.0)]))
    assert log.chunk_latency_ms == pytest.approx([350.0])
    assert log.overhead_latency_ms == pytest.approx([20.0])
    assert (log.replies, log.replies_without_chunk) == (2, 1)


def test_latency_is_on_the_walls_clock_also_when_simulated_time_is_slow(write_bag):
    # One simulated millisecond takes ten.
    clock = [("/clock", at(time * 10), Clock(clock=from_nanoseconds(time * MS))) for time in range(0, 100, 5)]
    log = read_run(write_bag([*clock, chunk(1, 40 * MS, 960.0), reply(1, 500.0)]))
    assert log.chunk_latency_ms == pytest.approx([560.0])
    assert log.overhead_latency_ms == pytest.approx([60.0])


def test_counters_are_those_of_the_last_status(write_bag):
    statuses = [
        ("/bridge_status", at(0), BridgeStatus(refused_stale=1)),
        ("/bridge_status", at(50), BridgeStatus(refused_stale=3, chunks_accepted=7, last_refusal="chunk 4: old")),
    ]
    log = read_run(write_bag(statuses))
    assert log.refusals["stale"] == 3 and log.refusals["not_finite"] == 0
    assert log.counters["chunks_accepted"] == 7
    assert log.last_refusal == "chunk 4: old"


def test_empty_bag_gives_an_empty_log(write_bag):
    log = read_run(write_bag([]))
    assert len(log.path.times) == 0 and log.chunk_latency_ms == [] and log.refusals == {}
