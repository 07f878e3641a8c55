"""Small recordings with everything known about them, written as the recorder leaves them: no ROS, no simulator.

`make_episode` writes one of a perfect demonstration; `edit` turns its messages into those of an imperfect one. What
moved is analytic (`position_at`, `quaternion_at`, `width_at`), and every picture carries its number (`number_of`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore
from teleop_recorder.episode import INTERRUPTED, METADATA, STATUS_TOPIC, STATUS_TYPE

FRONT, WRIST = "/camera/front/color/image_raw", "/camera/wrist/color/image_raw"
POSE, TARGET = "/current_pose", "/target_pose"
GRIPPER, JOINTS = "/franka_gripper/joint_states", "/joint_states"
BASE = "fr3_link0"
START_NS = 1_790_000_000 * 10**9
CAMERA_HZ, POSE_HZ, TARGET_HZ, JOINTS_HZ, GRIPPER_HZ, STATUS_HZ = 30.0, 100.0, 100.0, 30.0, 15.0, 2.0
# From stamp to receipt.
CAMERA_DELAY_NS, STATE_DELAY_NS = 5_000_000, 500_000

# A crash loses the chunk being filled: as short as the recorder's or shorter.
CHUNK_NS = 250_000_000

HOME = np.array([0.45, 0.0, 0.35])  # m
REACH = np.array([0.08, -0.12, -0.15])  # m, from HOME to the end
TURN = 0.6  # rad, about the base's z
OPEN_WIDTH, CLOSED_WIDTH = 0.08, 0.04  # m
# Bits of a picture's number, in squares along its upper edge.
BITS = 8

MESSAGES = Path(__file__).parents[2] / "molmoact_msgs" / "msg"
RECORDING, FINISHED = 1, 2  # EpisodeStatus


class Sample(NamedTuple):
    """A message before it is serialized; its header, if it has one, carries the stamp."""

    topic: str
    log_ns: int
    type: str
    message: Any


Edit = Callable[[list[Sample]], list[Sample]]


def progress_at(t: float, seconds: float, still_s: float = 0.0) -> float:
    """How far the motion of a recording of `seconds` is, 0..1, at `t` s from its beginning; it begins after `still_s`
    and has no jerk at either end."""
    s = min(max((t - still_s) / (seconds - still_s), 0.0), 1.0) if seconds > still_s else 0.0
    return 10 * s**3 - 15 * s**4 + 6 * s**5


def position_at(progress: float) -> np.ndarray:
    """[3] m, of the tool in the base frame."""
    return HOME + progress * REACH


def quaternion_at(progress: float) -> np.ndarray:
    """[4] x y z w: fingers down, turned about the vertical."""
    half = progress * TURN / 2
    return np.array([np.cos(half), np.sin(half), 0.0, 0.0])


def width_at(progress: float) -> float:
    """m, between the fingers: they close in the middle."""
    return float(np.interp(progress, [0.45, 0.55], [OPEN_WIDTH, CLOSED_WIDTH]))


def picture(number: int, size: tuple[int, int], hue: int) -> np.ndarray:
    """uint8 [H, W, 3] RGB of `size` (W, H): a gradient, a square that moves, and the number in black and white."""
    width, height = size
    image = np.zeros((height, width, 3), np.uint8)
    image[..., hue] = np.linspace(60, 200, width).astype(np.uint8)
    image[..., 2 - hue] = np.linspace(40, 160, height).astype(np.uint8)[:, None]
    side = height // 4
    left = (3 * number) % (width - side)
    image[height // 2 : height // 2 + side, left : left + side] = (230, 230, 60)
    bit_width, bit_height = width // BITS, height // 6
    for bit in range(BITS):
        image[:bit_height, bit * bit_width : (bit + 1) * bit_width] = 255 * (number >> bit & 1)
    return image


def number_of(image: np.ndarray) -> int:
    """The number (modulo 256) of a picture, also after it was resized or compressed."""
    height, width = image.shape[:2]
    row = image[height // 12, :, :].mean(axis=1)
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    return sum(1 << bit for bit, value in enumerate(row[centres]) if value > 127)


def typestore() -> Typestore:
    """Knows the messages of ROS 2 and EpisodeStatus."""
    store = get_typestore(Stores.ROS2_JAZZY)
    store.register(get_types_from_msg((MESSAGES / "EpisodeStatus.msg").read_text(encoding="utf-8"), STATUS_TYPE))
    return store


def make_episode(
    directory: Path,
    *,
    seconds: float = 3.0,
    still_s: float = 0.0,
    task: str = "pick",
    instruction: str = "pick up the red cube",
    outcome: str = "success",
    reason: str = "",
    events: Sequence[str] = (),
    compressed: bool = False,
    size: tuple[int, int] = (64, 48),
    edit: Edit | None = None,
    closed: bool = True,
) -> Path:
    """Write an episode and return its directory.

    Args:
        directory: To be created.
        seconds: Its length.
        still_s: The arm does not move for so long at the beginning; all the time with `seconds`.
        task, instruction, outcome, reason: Its labels; with outcome "interrupted" the last word of the recorder lacks.
        events: What the recorder noticed.
        compressed: Cameras as JPEG on <topic>/compressed.
        size: Of the pictures, (W, H).
        edit: What to make of the messages before they are written; they are in the order of receipt.
        closed: Or else torn off in its last quarter, and without metadata.yaml, as kill -9 leaves it.
    """
    store = typestore()
    samples = [
        *_pictures(store, FRONT, 0.0, seconds, size, 0, compressed),
        *_pictures(store, WRIST, 1 / 3, seconds, size, 1, compressed),
        *_states(store, seconds, still_s),
        *_statuses(store, seconds, task, instruction, outcome, reason, events),
    ]
    samples.sort(key=lambda sample: sample.log_ns)
    write_samples(directory, edit(samples) if edit is not None else samples, store)
    if not closed:
        tear(directory)
    return directory


def write_samples(directory: Path, samples: Sequence[Sample], store: Typestore) -> None:
    """A closed rosbag2 directory of these messages, in this order."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with Writer(directory, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {}
        chunk_ns = 0
        for sample in samples:
            if sample.log_ns - chunk_ns > CHUNK_NS:
                if connections:
                    writer.storage.close_chunk()
                chunk_ns = sample.log_ns
            if sample.topic not in connections:
                connections[sample.topic] = writer.add_connection(sample.topic, sample.type, typestore=store)
            data = store.serialize_cdr(sample.message, sample.type)
            writer.write(connections[sample.topic], sample.log_ns, data)


def tear(directory: Path, share: float = 0.75) -> None:
    """What a crash leaves: the first `share` of the file's bytes and no metadata.yaml."""
    (file,) = directory.glob("*.mcap")
    os.truncate(file, int(file.stat().st_size * share))
    (directory / METADATA).unlink()


def stamp_of(sample: Sample) -> int:
    """ns in the header."""
    return sample.message.header.stamp.sec * 10**9 + sample.message.header.stamp.nanosec


def restamp(sample: Sample, stamp_ns: int) -> Sample:
    """The same sample, changed in place."""
    sample.message.header.stamp.sec, sample.message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
    return sample


def _times(rate: float, phase: float, seconds: float) -> Iterator[tuple[int, float]]:
    """(stamp in ns, seconds from the beginning) of every sample of a topic; `phase` in periods."""
    for index in range(int(seconds * rate - phase) + 1):
        t = (index + phase) / rate
        yield START_NS + round(t * 1e9), t


def _header(store: Typestore, stamp_ns: int, frame: str) -> Any:
    seconds, nanoseconds = divmod(stamp_ns, 10**9)
    stamp = store.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
    return store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def _pictures(
    store: Typestore, topic: str, phase: float, seconds: float, size: tuple[int, int], hue: int, compressed: bool
) -> Iterator[Sample]:
    frame = f"camera_{topic.split('/')[2]}_color_optical_frame"
    kind = "sensor_msgs/msg/CompressedImage" if compressed else "sensor_msgs/msg/Image"
    for number, (stamp_ns, _) in enumerate(_times(CAMERA_HZ, phase, seconds)):
        image, header = picture(number, size, hue), _header(store, stamp_ns, frame)
        if compressed:
            _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
            message = store.types[kind](header=header, format="jpeg", data=data.ravel())
        else:
            message = store.types[kind](
                header=header,
                height=size[1],
                width=size[0],
                encoding="rgb8",
                is_bigendian=0,
                step=3 * size[0],
                data=image.ravel(),
            )
        yield Sample(f"{topic}/compressed" if compressed else topic, stamp_ns + CAMERA_DELAY_NS, kind, message)


def _states(store: Typestore, seconds: float, still_s: float) -> Iterator[Sample]:
    point, quaternion = store.types["geometry_msgs/msg/Point"], store.types["geometry_msgs/msg/Quaternion"]
    for topic, rate in ((POSE, POSE_HZ), (TARGET, TARGET_HZ)):
        for stamp_ns, t in _times(rate, 0.0, seconds):
            progress = progress_at(t, seconds, still_s)
            pose = store.types["geometry_msgs/msg/Pose"](
                position=point(*map(float, position_at(progress))),
                orientation=quaternion(*map(float, quaternion_at(progress))),
            )
            kind = "geometry_msgs/msg/PoseStamped"
            message = store.types[kind](header=_header(store, stamp_ns, BASE), pose=pose)
            yield Sample(topic, stamp_ns + STATE_DELAY_NS, kind, message)
    fingers = ["fr3_finger_joint1", "fr3_finger_joint2"]
    for topic, rate in ((GRIPPER, GRIPPER_HZ), (JOINTS, JOINTS_HZ)):
        for stamp_ns, t in _times(rate, 0.0, seconds):
            progress = progress_at(t, seconds, still_s)
            names, positions = list(fingers), [width_at(progress) / 2] * 2
            if topic == JOINTS:
                names = [f"fr3_joint{joint}" for joint in range(1, 8)] + names
                positions = [0.1 * joint * progress for joint in range(1, 8)] + positions
            zeros = np.zeros(len(names))
            kind = "sensor_msgs/msg/JointState"
            message = store.types[kind](
                header=_header(store, stamp_ns, ""),
                name=names,
                position=np.array(positions),
                velocity=zeros,
                effort=zeros,
            )
            yield Sample(topic, stamp_ns + STATE_DELAY_NS, kind, message)


def _statuses(
    store: Typestore,
    seconds: float,
    task: str,
    instruction: str,
    outcome: str,
    reason: str,
    events: Sequence[str],
) -> Iterator[Sample]:
    duration = store.types["builtin_interfaces/msg/Duration"]

    def status(log_ns: int, state: int, outcome: str, reason: str) -> Sample:
        length_ns = log_ns - START_NS
        message = store.types[STATUS_TYPE](
            header=_header(store, log_ns, ""),
            state=state,
            episode="",
            task=task,
            instruction=instruction,
            outcome=outcome,
            reason=reason,
            length=duration(*divmod(length_ns, 10**9)),
            topics=[],
            rates_hz=np.zeros(0),
            required_hz=np.zeros(0),
            messages=np.zeros(0, np.uint64),
            dropped=np.zeros(0, np.uint64),
            largest_camera_gap=duration(0, 0),
            megabytes_per_second=0.0,
            bytes_written=0,
            disk_free_bytes=10**12,
            events=list(events),
        )
        return Sample(STATUS_TOPIC, log_ns, STATUS_TYPE, message)

    for log_ns, _ in _times(STATUS_HZ, 0.0, seconds):
        yield status(log_ns, RECORDING, "", "")
    if outcome != INTERRUPTED:
        yield status(START_NS + round(seconds * 1e9) + CAMERA_DELAY_NS, FINISHED, outcome, reason)
