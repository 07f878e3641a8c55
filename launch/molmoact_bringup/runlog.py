"""Reads a recorded run back: what was commanded, what was refused, how long a chunk took."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import Reader
from teleop_recorder.definitions import message_class

from molmoact_bringup.analysis import TargetPath

MOVE = 2  # FrankaRobotState.ROBOT_MODE_MOVE, the only mode in which the arm follows targets
# Around a change of the robot mode the order of two topics' messages says nothing about which came first.
MODE_MARGIN_NS = 100_000_000

_REFUSED = "refused_"  # the counters of bridge_status that say why a chunk was refused
COUNTERS = (
    "chunks_accepted",
    "chunks_refused",
    "rows_integrated_late",
    "limited_workspace",
    "limited_speed",
    "watchdog_stops",
)


@dataclass
class RunLog:
    """One arm's run."""

    path: TargetPath
    # From the newest image's stamp to the receipt of its chunk, of the wall's clock also where the system's is another.
    chunk_latency_ms: list[float] = field(default_factory=list)
    overhead_latency_ms: list[float] = field(default_factory=list)  # the same without the model's own time
    refusals: dict[str, int] = field(default_factory=dict)
    last_refusal: str = ""
    counters: dict[str, int] = field(default_factory=dict)
    replies: int = 0
    replies_without_chunk: int = 0


def messages(bag: Path, topics: tuple[str, ...]) -> Iterator[tuple[str, int, Any]]:
    """Topic, time of receipt in ns, and message, in the order of receipt; topics the bag lacks give none."""
    with Reader(bag) as reader:
        connections = [connection for connection in reader.connections if connection.topic in topics]
        kinds = {connection.id: message_class(connection.msgtype) for connection in connections}
        if connections:  # no connections would mean all of them
            for connection, received_ns, data in reader.messages(connections=connections):
                yield connection.topic, received_ns, deserialize_message(bytes(data), kinds[connection.id])


def read_run(bag: Path) -> RunLog:
    """Everything the summary needs, in one pass over the bag of a single arm's run."""
    targets: list[tuple[int, int, Any, list[float], float]] = []
    modes: list[tuple[int, int]] = []
    measured = np.full(3, np.nan)
    clock: list[tuple[int, int]] = []
    chunks: list[tuple[int, int, int]] = []
    model_ms: dict[int, float] = {}
    log = RunLog(_path([]))
    status = None
    topics = (
        "/target_pose",
        "/current_pose",
        "/franka_robot_state_broadcaster/robot_state",
        "/action_chunk",
        "/clock",
        "/reasoning",
        "/bridge_status",
    )
    for topic, received_ns, message in messages(bag, topics):
        if topic == "/current_pose":
            measured = _vector(message.pose.position)
        elif topic == "/target_pose":
            position = _vector(message.pose.position)
            distance = float(np.linalg.norm(position - measured))
            turn = message.pose.orientation
            quaternion = [turn.x, turn.y, turn.z, turn.w]
            targets.append((received_ns, _nanoseconds(message.header.stamp), position, quaternion, distance))
        elif topic == "/franka_robot_state_broadcaster/robot_state":
            modes.append((received_ns, message.robot_mode))
        elif topic == "/action_chunk":
            chunks.append((message.sequence, _nanoseconds(message.observation_stamp), received_ns))
        elif topic == "/clock":
            clock.append((_nanoseconds(message.clock), received_ns))
        elif topic == "/reasoning":
            log.replies += 1
            log.replies_without_chunk += message.sequence == 0
            model_ms[message.sequence] = _nanoseconds(message.latency) / 1e6
        else:
            status = message
    log.path = _path([target for target in targets if _moves(target[0], modes)])
    for sequence, observed_ns, received_ns in chunks:
        latency_ms = (received_ns - _on_the_wall(observed_ns, clock)) / 1e6
        log.chunk_latency_ms.append(latency_ms)
        if sequence in model_ms:
            log.overhead_latency_ms.append(latency_ms - model_ms[sequence])
    if status is not None:
        log.refusals = {
            name.removeprefix(_REFUSED): getattr(status, name)
            for name in status.get_fields_and_field_types()
            if name.startswith(_REFUSED)
        }
        log.last_refusal = status.last_refusal
        log.counters = {name: getattr(status, name) for name in COUNTERS}
    return log


def _path(targets: list[tuple[int, int, Any, list[float], float]]) -> TargetPath:
    if not targets:
        return TargetPath(np.zeros(0), np.zeros((0, 3)), np.zeros((0, 4)), np.zeros(0))
    _, stamps_ns, positions, quaternions, distances = zip(*targets, strict=True)
    # From the first one on: seconds since 1970 are too coarse in a float for third differences.
    times = (np.array(stamps_ns) - stamps_ns[0]) / 1e9
    return TargetPath(times, np.array(positions), np.array(quaternions), np.array(distances))


def _moves(received_ns: int, modes: list[tuple[int, int]]) -> bool:
    """Whether the arm was in MOVE for all of the margin around this time."""
    first = max(0, bisect_left(modes, (received_ns - MODE_MARGIN_NS, -1)) - 1)
    last = bisect_left(modes, (received_ns + MODE_MARGIN_NS, -1))
    around = modes[first:last]
    return bool(around) and all(mode == MOVE for _, mode in around)


def _on_the_wall(stamp_ns: int, clock: list[tuple[int, int]]) -> int:
    """When, on the wall's clock, the simulator's clock showed `stamp_ns`; without the latter both are one."""
    if not clock:
        return stamp_ns
    index = min(bisect_left(clock, (stamp_ns, -1)), len(clock) - 1)
    shown_ns, received_ns = clock[index]
    return received_ns - (shown_ns - stamp_ns)


def _nanoseconds(stamp: Any) -> int:
    """Of a Time or a Duration."""
    return stamp.sec * 10**9 + stamp.nanosec


def _vector(point: Any) -> np.ndarray:
    return np.array([point.x, point.y, point.z])
