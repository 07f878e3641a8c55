"""What importing from bags and from datasets have in common: our messages, and files that say what is what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

from teleop_recorder.errors import ConfigurationError
from teleop_recorder.pictures import COMPRESSED_TYPE

POSE_TYPE, JOINTS_TYPE = "geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/JointState"
POSE_TOPIC, GRIPPER_TOPIC = "/current_pose", "/franka_gripper/joint_states"
FINGERS = ["finger_joint1", "finger_joint2"]
SECOND = 10**9


@dataclass(frozen=True)
class Recorded:
    """A message on its way into an episode."""

    topic: str
    type: str
    log_ns: int  # where it stands in the bag
    data: bytes  # CDR


@dataclass(frozen=True, kw_only=True)
class GripperMapping:
    """Width between the fingers (m): offset + scale · the sum of some numbers.

    They are joints of a JointState `topic` (none named: all), or entries `indices` of a dataset's `feature`.
    """

    topic: str = ""
    joints: tuple[str, ...] = ()
    feature: str = ""
    indices: tuple[int, ...] = ()
    scale: float = 1.0
    offset: float = 0.0

    def width(self, numbers: Any) -> float:
        return float(self.offset + self.scale * np.sum(numbers))


def gripper_mapping(given: Any, needed: Sequence[str], path: Path) -> GripperMapping | None:
    if given is None:
        return None
    entries = checked_entries(GripperMapping, given, f"{path}: gripper")
    if missing := [name for name in needed if not entries.get(name)]:
        raise ConfigurationError(f"{path}: gripper: {missing[0]}: missing")
    for name in ("scale", "offset"):
        if not isinstance(entries.get(name, 0.0), (int, float)) or isinstance(entries.get(name), bool):
            raise ConfigurationError(f"{path}: gripper: {name}: {entries[name]!r}, expected a number")
    for name in ("joints", "indices"):
        if not isinstance(entries.get(name, []), list):
            raise ConfigurationError(f"{path}: gripper: {name}: {entries[name]!r}, expected a list")
    entries = {name: tuple(it) if isinstance(it, list) else it for name, it in entries.items()}
    return GripperMapping(**entries)


def read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{path}: not readable: {error}") from error


def checked_entries(kind: Any, given: Any, where: str) -> dict[str, Any]:
    known = {one.name: one for one in fields(kind)}
    given = checked_mapping(given, where)
    if unknown := [name for name in given if name not in known]:
        raise ConfigurationError(f"{where}: {unknown[0]}: unknown, expected some of {', '.join(known)}")
    for name, one in known.items():
        if name not in given and one.default is MISSING and one.default_factory is MISSING:
            raise ConfigurationError(f"{where}: {name}: missing")
    return dict(given)


def checked_mapping(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ConfigurationError(f"{where}: {given!r}, expected a mapping")
    return given


def message_of(store: Typestore, kind: str, **values: Any) -> Any:
    """A message with these values; its other fields are 0, empty or false."""
    empty = {name: _empty(store, *description) for name, description in store.fielddefs[kind][1]}
    return store.types[kind](**empty | values)


def _empty(store: Typestore, kind: Nodetype, content: Any) -> Any:
    if kind == Nodetype.NAME:
        return message_of(store, content)
    if kind == Nodetype.BASE:
        name, _ = content
        return "" if name == "string" else np.zeros(1, np.dtype(name))[0].item()
    (element, of), length = content
    if element == Nodetype.BASE and of[0] != "string":
        return np.zeros(length if kind == Nodetype.ARRAY else 0, np.dtype(of[0]))
    return [_empty(store, element, of) for _ in range(length if kind == Nodetype.ARRAY else 0)]


def header_of(store: Typestore, stamp_ns: int, frame: str) -> Any:
    stamp = store.types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, SECOND))
    return store.types["std_msgs/msg/Header"](stamp=stamp, frame_id=frame)


def pose_message(
    store: Typestore, stamp_ns: int, frame: str, position: NDArray[np.float64], quaternion: NDArray[np.float64]
) -> bytes:
    pose = store.types["geometry_msgs/msg/Pose"](
        position=store.types["geometry_msgs/msg/Point"](*position.tolist()),
        orientation=store.types["geometry_msgs/msg/Quaternion"](*quaternion.tolist()),
    )
    return bytes(store.serialize_cdr(store.types[POSE_TYPE](header_of(store, stamp_ns, frame), pose), POSE_TYPE))


def fingers_message(store: Typestore, stamp_ns: int, width: float) -> bytes:
    message = store.types[JOINTS_TYPE](
        header=header_of(store, stamp_ns, ""),
        name=FINGERS,
        position=np.full(2, width / 2),
        velocity=np.zeros(2),
        effort=np.zeros(2),
    )
    return bytes(store.serialize_cdr(message, JOINTS_TYPE))


def picture_message(store: Typestore, stamp_ns: int, camera: str, data: bytes) -> bytes:
    header = header_of(store, stamp_ns, f"camera_{camera}_color_optical_frame")
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    message = store.types[COMPRESSED_TYPE](header=header, format=kind, data=np.frombuffer(data, np.uint8))
    return bytes(store.serialize_cdr(message, COMPRESSED_TYPE))
