"""rosbag2 bags of a robot that never ran our recorder: which of their topics are ours, and what /tf knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.typesys.store import Typestore
from scipy.spatial.transform import Rotation

from teleop_recorder.definitions import installed_typestore
from teleop_recorder.errors import ConfigurationError, EpisodeError
from teleop_recorder.foreign import (
    GRIPPER_TOPIC,
    JOINTS_TYPE,
    POSE_TOPIC,
    POSE_TYPE,
    SECOND,
    GripperMapping,
    Recorded,
    checked_entries,
    checked_mapping,
    fingers_message,
    gripper_mapping,
    header_of,
    pose_message,
    read_yaml,
)
from teleop_recorder.pictures import COMPRESSED_SUFFIX, COMPRESSED_TYPE, PICTURE_TYPES

TF_TOPICS = ("/tf", "/tf_static")


@dataclass(frozen=True, kw_only=True)
class BagMapping:
    """What the topics of a foreign bag are.

    topics: their name to ours. tf: for a pose topic of ours the frames (base, tool) between which /tf knows it.
    stamps: "header", or "receipt" for messages whose headers say nothing.
    """

    topics: Mapping[str, str] = field(default_factory=dict)
    tf: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    gripper: GripperMapping | None = None
    stamps: str = "header"


def load_bag_mapping(path: Path) -> BagMapping:
    """Raises ConfigurationError naming the file and the entry at fault."""
    entries = checked_entries(BagMapping, read_yaml(path), str(path))
    topics, tf = entries.get("topics", {}), entries.get("tf", {})
    for theirs, ours in checked_mapping(topics, f"{path}: topics").items():
        if not (isinstance(ours, str) and ours.startswith("/") and str(theirs).startswith("/")):
            raise ConfigurationError(f"{path}: topics: {theirs}: {ours!r}, expected a topic such as {POSE_TOPIC}")
    for topic, frames in checked_mapping(tf, f"{path}: tf").items():
        if not (isinstance(frames, list) and len(frames) == 2 and all(isinstance(name, str) for name in frames)):
            raise ConfigurationError(f"{path}: tf: {topic}: {frames!r}, expected [base frame, tool frame]")
    if entries.get("stamps", "header") not in ("header", "receipt"):
        raise ConfigurationError(f"{path}: stamps: {entries['stamps']!r}, expected header or receipt")
    gripper = gripper_mapping(entries.get("gripper"), ("topic",), path)
    ours = [
        *(name.removesuffix(COMPRESSED_SUFFIX) for name in topics.values()),
        *tf,
        *([GRIPPER_TOPIC] if gripper else []),
    ]
    if twice := [name for name in ours if ours.count(name) > 1]:
        raise ConfigurationError(f"{path}: {twice[0]}: comes from two places, expected one")
    if not (topics or tf):
        raise ConfigurationError(f"{path}: names neither topics nor tf: there is nothing to import")
    return BagMapping(**{**entries, "tf": {topic: tuple(frames) for topic, frames in tf.items()}, "gripper": gripper})


def read_bag(bag: Path, meaning: BagMapping) -> Iterator[Recorded]:
    """The messages of a foreign bag that `meaning` names, as ours; in the order of the bag.

    Raises EpisodeError for a bag that cannot be read, a topic that is not in it, is of another type than ours or has no
    stamps.
    """
    try:
        with AnyReader([bag], default_typestore=installed_typestore()) as reader:
            yield from _translated(reader, bag, meaning)
    except (AnyReaderError, OSError) as error:
        raise EpisodeError(f"bag {bag}: not readable: {error}") from error


def _translated(reader: AnyReader, bag: Path, meaning: BagMapping) -> Iterator[Recorded]:
    types = {connection.topic: connection.msgtype for connection in reader.connections}
    gripper_topic = meaning.gripper.topic if meaning.gripper else None
    needed = [*meaning.topics, *([gripper_topic] if gripper_topic else []), *(["/tf"] if meaning.tf else [])]
    if missing := [topic for topic in needed if topic not in types]:
        raise EpisodeError(f"bag {bag}: there is no {missing[0]}; it has {', '.join(sorted(types))}")
    names = {theirs: _our_name(bag, ours, theirs, types[theirs]) for theirs, ours in meaning.topics.items()}
    if meaning.gripper and types[meaning.gripper.topic] != JOINTS_TYPE:
        raise EpisodeError(f"bag {bag}: {gripper_topic} is {types[meaning.gripper.topic]}, expected {JOINTS_TYPE}")
    chains = {topic: _Chain(*frames) for topic, frames in meaning.tf.items()}
    ours = installed_typestore()
    wanted = {*needed, *(TF_TOPICS if meaning.tf else ())}
    for connection, receipt_ns, data in reader.messages([it for it in reader.connections if it.topic in wanted]):
        topic = connection.topic
        message = reader.deserialize(data, connection.msgtype)
        if topic in names:
            stamp_ns = _stamp(message, receipt_ns, meaning.stamps, f"bag {bag}: {topic}")
            if meaning.stamps == "receipt":
                message = _restamped(ours, message, connection.msgtype, stamp_ns)
                data = bytes(ours.serialize_cdr(message, connection.msgtype))
            yield Recorded(names[topic], connection.msgtype, receipt_ns, bytes(data))
        if meaning.gripper is not None and topic == gripper_topic:
            stamp_ns = _stamp(message, receipt_ns, meaning.stamps, f"bag {bag}: {topic}")
            width = meaning.gripper.width(_positions(message, meaning.gripper.joints, f"bag {bag}: {topic}"))
            yield Recorded(GRIPPER_TOPIC, JOINTS_TYPE, receipt_ns, fingers_message(ours, stamp_ns, width))
        if topic in TF_TOPICS:
            for ours_topic, chain in chains.items():
                for stamp_ns, position, quaternion in chain.update(message, static=topic == "/tf_static"):
                    stamp_ns = receipt_ns if meaning.stamps == "receipt" else stamp_ns
                    pose = pose_message(ours, stamp_ns, chain.base, position, quaternion)
                    yield Recorded(ours_topic, POSE_TYPE, receipt_ns, pose)
    for ours_topic, chain in chains.items():
        if not chain.complete:
            raise EpisodeError(f"bag {bag}: {ours_topic}: /tf does not lead from {chain.base} to {chain.tool}")


def _our_name(bag: Path, ours: str, theirs: str, kind: str) -> str:
    """Our topic for theirs, if it has the type that ours needs."""
    base = ours.removesuffix(COMPRESSED_SUFFIX)
    if base.endswith("/image_raw"):
        expected: tuple[str, ...] = PICTURE_TYPES
        ours = base + (COMPRESSED_SUFFIX if kind == COMPRESSED_TYPE else "")
    elif ours.endswith(("/current_pose", "/target_pose")):
        expected = (POSE_TYPE,)
    elif ours.endswith("/joint_states"):
        expected = (JOINTS_TYPE,)
    else:
        expected = (kind,)
    if kind not in expected:
        raise EpisodeError(f"bag {bag}: {theirs} is {kind}, but {ours} is {' or '.join(expected)}")
    return ours


def _stamp(message: Any, receipt_ns: int, stamps: str, where: str) -> int:
    if stamps == "receipt":
        return receipt_ns
    header = getattr(message, "header", None)
    stamp_ns = 0 if header is None else header.stamp.sec * SECOND + header.stamp.nanosec
    if stamp_ns <= 0:
        raise EpisodeError(f"{where}: a message has no stamp; set 'stamps: receipt' to take the time it was received")
    return stamp_ns


def _restamped(store: Typestore, message: Any, kind: str, stamp_ns: int) -> Any:
    header = header_of(store, stamp_ns, message.header.frame_id)
    names = [name for name, _ in store.fielddefs[kind][1]]
    return store.types[kind](**{name: getattr(message, name) for name in names} | {"header": header})


def _positions(message: Any, joints: tuple[str, ...], where: str) -> Any:
    if not joints:
        return message.position
    named = dict(zip(message.name, message.position, strict=True))
    if missing := [joint for joint in joints if joint not in named]:
        raise EpisodeError(f"{where}: there is no joint {missing[0]}; it has {', '.join(named)}")
    return [named[joint] for joint in joints]


class _Chain:
    """The pose of one frame in another, followed through the messages of /tf."""

    def __init__(self, base: str, tool: str) -> None:
        self.base = base
        self.tool = tool
        self.complete = False
        self._links: dict[str, tuple[str, NDArray[np.float64], Rotation]] = {}  # child -> parent, translation, rotation

    def update(self, message: Any, static: bool) -> list[tuple[int, NDArray[np.float64], NDArray[np.float64]]]:
        """Stamp (ns), position [3] and quaternion [4] if the message moved a link between the two frames."""
        stamps = {}
        for transform in message.transforms:
            child, t, r = (
                transform.child_frame_id.lstrip("/"),
                transform.transform.translation,
                transform.transform.rotation,
            )
            self._links[child] = (
                transform.header.frame_id.lstrip("/"),
                np.array([t.x, t.y, t.z]),
                Rotation.from_quat([r.x, r.y, r.z, r.w]),
            )
            stamps[child] = transform.header.stamp.sec * SECOND + transform.header.stamp.nanosec
        position, rotation, frame, on_the_way = np.zeros(3), Rotation.identity(), self.tool, []
        while frame != self.base:
            if frame not in self._links or frame in on_the_way:
                return []
            on_the_way.append(frame)
            frame, step, turn = self._links[frame]
            position, rotation = turn.apply(position) + step, turn * rotation
        self.complete = True
        moved = [stamps[child] for child in on_the_way if child in stamps]
        return [(max(moved), position, rotation.as_quat())] if moved and not static else []
