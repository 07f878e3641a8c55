"""From an episode's messages to samples at one rate, by header stamps alone, never by the time of receipt.

Pictures are chosen by the buffer that the policy node uses (molmoact_policy.frames), fed in the order of stamps, so
that a training sample shows what the policy would have been shown. Poses and openings, which are continuous, are
interpolated between the messages on both sides. What happens where there is nothing close enough is the declared
policy:

    hold     the last there was, however old
    nearest  the closest in time, also one taken after the moment, within the tolerance; else there is no sample
    drop     the last there was if it is not older than the tolerance; else there is no sample
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from molmoact_policy.errors import ObservationError
from molmoact_policy.frames import SECOND, FrameBuffer
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from teleop_recorder.episode import Episode
from teleop_recorder.errors import EpisodeError
from teleop_recorder.pictures import COMPRESSED_SUFFIX, PICTURE_TYPES, recorded_name

HOLD, NEAREST, DROP = POLICIES = ("hold", "nearest", "drop")
# Messages of one publisher may overtake each other by this much; stamps that go back further are another timeline.
STAMP_DISORDER_S = 0.05
MAX_WIDTH = 0.08  # m between the fingers of an open Franka hand


@dataclass(frozen=True)
class Timing:
    """When samples are taken, and from what.

    rate: Hz.
    policy: one of POLICIES.
    tolerance: s; largest distance of a message from the moment of a sample.
    sync_tolerance: s; largest distance between the stamps of one sample's pictures.
    """

    rate: float
    policy: str = NEAREST
    tolerance: float = 0.05
    sync_tolerance: float = 0.05

    def __post_init__(self) -> None:
        if not (np.isfinite(self.rate) and self.rate > 0):
            raise ValueError(f"rate is {self.rate}, expected more than 0 Hz")
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}, expected one of {', '.join(POLICIES)}")
        for name in ("tolerance", "sync_tolerance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 s or more")


@dataclass(frozen=True)
class Poses:
    """Of one frame in another, in the order of their stamps."""

    stamps: NDArray[np.int64]  # [N] ns
    positions: NDArray[np.float64]  # [N, 3] m
    quaternions: NDArray[np.float64]  # [N, 4] x y z w


@dataclass(frozen=True)
class Openings:
    """Of a gripper, 0 closed ... 1 open. A commanded one holds until the next; a measured one is interpolated."""

    stamps: NDArray[np.int64]  # [N] ns
    values: NDArray[np.float64]  # [N]
    commanded: bool = False


@dataclass(frozen=True)
class ArmTracks:
    """What was recorded of one arm: what was measured, and what actions are computed from (that, or what was asked)."""

    measured: Poses
    openings: Openings
    motion: Poses
    motion_openings: Openings


@dataclass(frozen=True)
class Samples:
    """Moments that follow each other without a gap, a period apart. `A` arms, `C` cameras."""

    first: int  # number of the first moment, counted from the begin of the episode
    stamps: NDArray[np.int64]  # [N] ns
    pictures: NDArray[np.int64]  # [N, C] which of the camera's messages, in the order of the bag
    positions: NDArray[np.float64]  # [N, A, 3] m, measured
    quaternions: NDArray[np.float64]  # [N, A, 4] x y z w
    openings: NDArray[np.float64]  # [N, A] 0 closed ... 1 open, measured
    motion_positions: NDArray[np.float64]  # [N, A, 3] m, what actions are computed from
    motion_quaternions: NDArray[np.float64]  # [N, A, 4]
    motion_openings: NDArray[np.float64]  # [N, A]

    def __len__(self) -> int:
        return len(self.stamps)


def moments(begin: int, end: int, rate: float) -> NDArray[np.int64]:
    """Stamps (ns) from `begin` to `end` at `rate`, each rounded for itself: no drift."""
    count = max(0, int((end - begin) * rate / SECOND) + 2)
    times = begin + np.round(np.arange(count) * (SECOND / rate)).astype(np.int64)
    return times[times <= end]


def choose_pictures(
    cameras: Mapping[str, NDArray[np.int64]], times: NDArray[np.int64], timing: Timing
) -> list[tuple[int, ...] | None]:
    """For every moment, which of each camera's messages belong to it; None where the policy node would see nothing.

    `cameras`: the stamps (ns) of each camera's messages in the order of the bag.
    """
    buffer = FrameBuffer(tuple(cameras), timing.sync_tolerance, timing.tolerance)
    waiting = {camera: _in_order(stamps) for camera, stamps in cameras.items()}
    fed = dict.fromkeys(cameras, 0)
    ahead = round(timing.tolerance * SECOND) if timing.policy == NEAREST else 0
    chosen: list[tuple[int, ...] | None] = []
    for moment in times.tolist():
        for camera, order in waiting.items():
            stamps = cameras[camera]
            while fed[camera] < len(order) and stamps[order[fed[camera]]] <= moment + ahead:
                message = int(order[fed[camera]])
                fed[camera] += 1
                buffer.add(camera, int(stamps[message]), message)
                if stamps[message] > moment:  # one after the moment: no later one is closer
                    break
        last = chosen[-1] if chosen and timing.policy == HOLD else None
        try:
            frames = buffer.beside(moment) if timing.policy == NEAREST else buffer.newest(moment)
        except ObservationError:
            frames = None
        chosen.append(last if frames is None else tuple(frame.message for frame in frames))
    return chosen


def interpolate_poses(
    poses: Poses, times: NDArray[np.int64], timing: Timing
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Positions [N, 3] and quaternions [N, 4] at the moments, and where there are any."""
    left, right, fraction, present = _neighbours(poses.stamps, times, timing)
    positions = (1 - fraction)[:, None] * poses.positions[left] + fraction[:, None] * poses.positions[right]
    before, after = Rotation.from_quat(poses.quaternions[left]), Rotation.from_quat(poses.quaternions[right])
    turn = (before.inv() * after).as_rotvec()
    return positions, (before * Rotation.from_rotvec(fraction[:, None] * turn)).as_quat(), present


def interpolate_openings(
    openings: Openings, times: NDArray[np.int64], timing: Timing
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Openings [N] at the moments, and where there are any; a command counts however old it is."""
    if openings.commanded:
        last = np.searchsorted(openings.stamps, times, side="right") - 1
        return openings.values[last.clip(0)], last >= 0
    left, right, fraction, present = _neighbours(openings.stamps, times, timing)
    return (1 - fraction) * openings.values[left] + fraction * openings.values[right], present


def align(cameras: Mapping[str, NDArray[np.int64]], arms: Sequence[ArmTracks], timing: Timing) -> list[Samples]:
    """The samples of an episode: one run of moments, or several where the policy leaves moments out.

    The first moment is when every stream has begun, the last before the first of them ends. Nothing where they have no
    moment in common.
    """
    streams = [
        *cameras.values(),
        *(track.stamps for arm in arms for track in (arm.measured, arm.motion, arm.openings)),
    ]
    begins = [int(stamps.min()) for stamps in streams]
    begins += [int(arm.motion_openings.stamps[0]) for arm in arms]
    times = moments(max(begins), min(int(stamps.max()) for stamps in streams), timing.rate)
    if not len(times):
        return []
    pictures = choose_pictures(cameras, times, timing)
    measured = [interpolate_poses(arm.measured, times, timing) for arm in arms]
    motion = [interpolate_poses(arm.motion, times, timing) for arm in arms]
    openings = [interpolate_openings(arm.openings, times, timing) for arm in arms]
    motion_openings = [interpolate_openings(arm.motion_openings, times, timing) for arm in arms]
    present = np.array([picture is not None for picture in pictures])
    for *_, there in (*measured, *motion, *openings, *motion_openings):
        present &= there
    nothing = (-1,) * len(cameras)
    whole = Samples(
        0,
        times,
        np.array([nothing if picture is None else picture for picture in pictures], np.int64),
        np.stack([positions for positions, _, _ in measured], 1),
        np.stack([quaternions for _, quaternions, _ in measured], 1),
        np.stack([values for values, _ in openings], 1),
        np.stack([positions for positions, _, _ in motion], 1),
        np.stack([quaternions for _, quaternions, _ in motion], 1),
        np.stack([values for values, _ in motion_openings], 1),
    )
    return [_part(whole, begin, end) for begin, end in _runs(present)]


def header_stamp(data: bytes) -> int:
    """Stamp (ns) of a serialized message whose first field is a header, without decoding the rest."""
    seconds, nanoseconds = struct.unpack_from("<iI" if data[1] & 1 else ">iI", data, 4)
    return seconds * SECOND + nanoseconds


def image_topic(episode: Episode, camera: str) -> str:
    """The topic of a camera: `camera` is its name, or NAME=TOPIC. Raises EpisodeError naming what was looked for."""
    name, _, topic = camera.partition("=")
    topic = topic or f"/camera/{name}/color/image_raw"
    found = recorded_name(episode, topic)
    if found is None:
        raise EpisodeError(
            f"episode {episode.name}: camera {name}: there is no {topic} and no {topic}{COMPRESSED_SUFFIX}"
        )
    if episode.topics[found].type not in PICTURE_TYPES:
        raise EpisodeError(
            f"episode {episode.name}: camera {name}: {found} is {episode.topics[found].type}, expected "
            f"{' or '.join(PICTURE_TYPES)}"
        )
    return found


def read_picture_stamps(episode: Episode, topics: Mapping[str, str]) -> dict[str, NDArray[np.int64]]:
    """For each camera of `topics` {camera: topic} the stamps (ns) of its messages, in the order of the bag."""
    found: dict[str, list[int]] = {topic: [] for topic in topics.values()}
    for message in episode.messages(tuple(found)):
        found[message.topic].append(header_stamp(message.data))
    return {camera: _checked_stamps(episode, topic, found[topic]) for camera, topic in topics.items()}


def read_arm(episode: Episode, prefix: str, targets: bool, commanded: bool) -> ArmTracks:
    """What the bag holds of an arm; `prefix` comes before its topics ("left/", or nothing).

    targets: actions come from target_pose, else from current_pose. commanded: their gripper is what teleoperation asked
    for, else what was measured between the fingers. Raises EpisodeError naming the topic that is missing or wrong.
    """
    measured = read_poses(episode, f"/{prefix}current_pose")
    openings = _read_widths(episode, f"/{prefix}franka_gripper/joint_states")
    return ArmTracks(
        measured,
        openings,
        read_poses(episode, f"/{prefix}target_pose") if targets else measured,
        _read_commands(episode, prefix) if commanded else openings,
    )


def read_poses(episode: Episode, topic: str) -> Poses:
    """All of a topic of geometry_msgs/PoseStamped."""
    stamps, messages = _read(episode, topic, "geometry_msgs/msg/PoseStamped")
    poses = [message.pose for message in messages]
    positions = np.array([(pose.position.x, pose.position.y, pose.position.z) for pose in poses])
    quaternions = np.array(
        [(pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w) for pose in poses]
    )
    lengths = np.linalg.norm(quaternions, axis=1)
    wrong = np.flatnonzero(~(np.isfinite(positions).all(1) & (np.abs(lengths - 1) < 0.01)))
    if len(wrong):
        raise EpisodeError(
            f"episode {episode.name}: {topic}: message {wrong[0]} is no pose: position {positions[wrong[0]].tolist()}, "
            f"orientation {quaternions[wrong[0]].tolist()}"
        )
    order = _in_order(stamps)
    return Poses(stamps[order], positions[order], quaternions[order] / lengths[order, None])


def _read_widths(episode: Episode, topic: str) -> Openings:
    """The width is the sum of what both fingers have moved."""
    stamps, messages = _read(episode, topic, "sensor_msgs/msg/JointState")
    widths = np.array([float(np.sum(message.position)) for message in messages])
    order = _in_order(stamps)
    return Openings(stamps[order], (widths[order] / MAX_WIDTH).clip(0.0, 1.0))


def _read_commands(episode: Episode, prefix: str) -> Openings:
    """What teleoperation asked for while the dead-man switch was held. An arm with a prefix is named like it."""
    topic = "/teleop_command"
    stamps, messages = _read(episode, topic, "molmoact_msgs/msg/TeleopCommand")
    arm = prefix.strip("/")
    held = np.array([message.enabled and (not arm or message.arm == arm) for message in messages], bool)
    if not held.any():
        raise EpisodeError(
            f"episode {episode.name}: {topic}: nobody held the dead-man switch; measure the gripper instead"
        )
    values = np.array([message.delta.gripper for message in messages])[held].clip(0.0, 1.0)
    order = _in_order(stamps[held])
    return Openings(stamps[held][order], values[order], commanded=True)


def _read(episode: Episode, topic: str, kind: str) -> tuple[NDArray[np.int64], list[Any]]:
    if topic not in episode.topics:
        raise EpisodeError(f"episode {episode.name}: there is no {topic}")
    if episode.topics[topic].type != kind:
        raise EpisodeError(f"episode {episode.name}: {topic} is {episode.topics[topic].type}, expected {kind}")
    messages = [message for _, message in episode.decoded(topic)]
    stamps = [message.header.stamp.sec * SECOND + message.header.stamp.nanosec for message in messages]
    return _checked_stamps(episode, topic, stamps), messages


def _checked_stamps(episode: Episode, topic: str, stamps: Sequence[int]) -> NDArray[np.int64]:
    if not stamps:
        raise EpisodeError(f"episode {episode.name}: {topic} has no message")
    array = np.array(stamps, np.int64)
    back = np.maximum.accumulate(array) - array
    if back.max() > STAMP_DISORDER_S * SECOND:
        raise EpisodeError(
            f"episode {episode.name}: {topic}: stamps go back by {back.max() / SECOND:.3f} s at message "
            f"{back.argmax()}: the clock was set, or the simulator restarted"
        )
    return array


def _in_order(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.argsort(stamps, kind="stable")


def _neighbours(
    stamps: NDArray[np.int64], times: NDArray[np.int64], timing: Timing
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Which messages lie before and after each moment, how far it is from one to the other (0..1), and whether the
    policy has a value there at all."""
    right = np.searchsorted(stamps, times, side="right").clip(0, len(stamps) - 1)
    left = (np.searchsorted(stamps, times, side="right") - 1).clip(0)
    before, after = times - stamps[left], stamps[right] - times
    tolerance = timing.tolerance * SECOND
    exact = before == 0
    between = (before >= 0) & (before <= tolerance) & (after >= 0) & (after <= tolerance)
    fraction = np.where(between & ~exact & (right > left), before / np.maximum(before + after, 1), 0.0)
    lonely = ~(between | exact)
    if timing.policy == NEAREST:
        fraction = np.where(lonely & (np.abs(after) < np.abs(before)), 1.0, fraction)
        present = ~lonely | (np.minimum(np.abs(before), np.abs(after)) <= tolerance)
    elif timing.policy == DROP:
        present = ~lonely | ((before >= 0) & (before <= tolerance))
    else:
        present = before >= 0
    return left, right, fraction, present


def _runs(present: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Begin and end (exclusive) of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], present, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _part(samples: Samples, begin: int, end: int) -> Samples:
    keep = slice(begin, end)
    return Samples(
        begin,
        samples.stamps[keep],
        samples.pictures[keep],
        samples.positions[keep],
        samples.quaternions[keep],
        samples.openings[keep],
        samples.motion_positions[keep],
        samples.motion_quaternions[keep],
        samples.motion_openings[keep],
    )
