"""molmoact_msgs/EpisodeStatus as bytes: the same go into the bag and onto the topic. No ROS in here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from rosbags.typesys.store import Typestore

from teleop_recorder.episode import STATUS_TYPE

IDLE, RECORDING, FINISHED, ENDED_WITHOUT_OUTCOME = range(4)  # as in the message


@dataclass(frozen=True)
class TopicStatus:
    """One topic of an episode; counts since it began."""

    name: str
    rate_hz: float
    required_hz: float  # 0: none
    messages: int
    dropped: int


@dataclass(frozen=True)
class Status:
    """What molmoact_msgs/EpisodeStatus says."""

    state: int = IDLE
    episode: str = ""
    task: str = ""
    instruction: str = ""
    outcome: str = ""
    reason: str = ""
    length_s: float = 0.0
    topics: list[TopicStatus] = field(default_factory=list)
    largest_camera_gap_ns: int = 0
    megabytes_per_second: float = 0.0
    bytes_written: int = 0
    disk_free_bytes: int = 0
    events: list[str] = field(default_factory=list)


def encode(status: Status, stamp_ns: int, typestore: Typestore) -> bytes:
    """CDR. `typestore` knows STATUS_TYPE (teleop_recorder.definitions)."""
    types = typestore.types
    time_type, duration_type = types["builtin_interfaces/msg/Time"], types["builtin_interfaces/msg/Duration"]
    stamp = time_type(sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    length_ns = round(status.length_s * 1e9)
    message = types[STATUS_TYPE](
        header=types["std_msgs/msg/Header"](stamp=stamp, frame_id=""),
        state=status.state,
        episode=status.episode,
        task=status.task,
        instruction=status.instruction,
        outcome=status.outcome,
        reason=status.reason,
        length=duration_type(sec=length_ns // 10**9, nanosec=length_ns % 10**9),
        topics=[topic.name for topic in status.topics],
        rates_hz=np.array([topic.rate_hz for topic in status.topics], np.float64),
        required_hz=np.array([topic.required_hz for topic in status.topics], np.float64),
        messages=np.array([topic.messages for topic in status.topics], np.uint64),
        dropped=np.array([topic.dropped for topic in status.topics], np.uint64),
        largest_camera_gap=duration_type(
            sec=status.largest_camera_gap_ns // 10**9, nanosec=status.largest_camera_gap_ns % 10**9
        ),
        megabytes_per_second=status.megabytes_per_second,
        bytes_written=status.bytes_written,
        disk_free_bytes=status.disk_free_bytes,
        events=status.events,
    )
    return bytes(typestore.serialize_cdr(message, STATUS_TYPE))
