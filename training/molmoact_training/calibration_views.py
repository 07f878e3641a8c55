"""What a camera is calibrated from: its pictures, and where the end effector was in each of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from teleop_recorder.alignment import Timing, image_topic, interpolate_poses, read_picture_stamps, read_poses
from teleop_recorder.episode import DISCARD, Episode, find_episodes
from teleop_recorder.errors import EpisodeError
from teleop_recorder.pictures import COMPRESSED_SUFFIX, decode_picture, viewable

from molmoact_training.calibration import Intrinsics
from molmoact_training.camera_pose import spread_out
from molmoact_training.errors import DatasetError
from molmoact_training.lerobot_dataset import arm_positions, open_demonstrations, read_pictures

POSE_TOLERANCE_S = 0.05  # from a picture to the poses beside it


class FrameId(NamedTuple):
    """A picture: the number of its episode, and of the picture in it."""

    episode: int
    frame: int

    def __str__(self) -> str:
        return f"episode {self.episode} frame {self.frame}"


@dataclass(frozen=True)
class Track:
    """Where the end effector was in every picture of an episode: [n, 3] m and [n, 4] x y z w; NaN: not known."""

    episode: int
    positions: NDArray[np.float64]
    quaternions: NDArray[np.float64]


class Views(Protocol):
    """The pictures of one camera and one arm."""

    @property
    def tracks(self) -> Sequence[Track]: ...

    def pictures(self, episode: int, frames: set[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """(frame, RGB uint8 [H, W, 3]) in ascending order."""

    def intrinsics(self) -> Intrinsics | None:
        """What was recorded with the pictures, if it was."""


def open_views(source: Path, camera: str, arm: str = "") -> Views:
    """Of a LeRobot dataset, a recording or a directory of recordings. arm: "" for the only one, or "left", "right".

    Raises DatasetError naming what is missing.
    """
    if (source / "meta" / "info.json").exists():
        return DatasetViews(source, camera, arm)
    return RecordingViews(source, camera, arm)


class DatasetViews:
    """The frames of a dataset; it does not say how its cameras project."""

    def __init__(self, root: Path, camera: str, arm: str) -> None:
        self._demonstrations = open_demonstrations(root, [camera])
        where = arm_positions(self._demonstrations)
        names = self._demonstrations.state_names
        fitting = [place for place in where if names[place.start].startswith(arm)] if arm else where
        if len(fitting) != 1:
            raise DatasetError(f"{root}: arm {arm!r}: expected one of those in its state: {', '.join(names)}")
        start = fitting[0].start
        self._episodes = {episode.number: episode for episode in self._demonstrations.episodes}
        self.tracks = [
            Track(number, episode.state[:, start : start + 3], episode.state[:, start + 3 : start + 7])
            for number, episode in self._episodes.items()
            if episode.state is not None
        ]

    def pictures(self, episode: int, frames: set[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        shown = read_pictures(self._episodes[episode], self._demonstrations.fps)
        yield from ((frame, pictures[0]) for frame, pictures in enumerate(shown) if frame in frames)

    def intrinsics(self) -> Intrinsics | None:
        return None


class RecordingViews:
    """The messages of a camera in recordings, which are numbered in the order of their names, the discarded, too."""

    def __init__(self, root: Path, camera: str, arm: str) -> None:
        self._camera = camera
        self._prefix = f"{arm}/" if arm else ""
        self._directories = find_episodes(root)
        if not self._directories:
            raise DatasetError(f"{root}: is no LeRobot dataset, and there are no recordings in it")

    @cached_property
    def tracks(self) -> list[Track]:
        try:
            opened = [(number, Episode.open(directory)) for number, directory in enumerate(self._directories)]
            return [self._track(number, it) for number, it in opened if it.labels.outcome != DISCARD]
        except EpisodeError as error:
            raise DatasetError(str(error)) from error

    def pictures(self, episode: int, frames: set[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        try:
            recording = Episode.open(self._directories[episode])
            topic = image_topic(recording, self._camera)
            for frame, message in enumerate(recording.messages([topic])):
                if frame in frames:
                    yield frame, viewable(decode_picture(recording, topic, message.data))
        except EpisodeError as error:
            raise DatasetError(str(error)) from error

    def intrinsics(self) -> Intrinsics | None:
        return recorded_intrinsics(self._directories[0], self._camera)

    def _track(self, number: int, recording: Episode) -> Track:
        topic = image_topic(recording, self._camera)
        stamps = read_picture_stamps(recording, {self._camera: topic})[self._camera]
        poses = read_poses(recording, f"/{self._prefix}current_pose")
        timing = Timing(rate=1.0, tolerance=POSE_TOLERANCE_S)
        positions, quaternions, there = interpolate_poses(poses, stamps, timing)
        return Track(number, np.where(there[:, None], positions, np.nan), quaternions)


def recorded_intrinsics(directory: Path, camera: str) -> Intrinsics | None:
    """Of the camera's CameraInfo in a recording; None without one. Raises DatasetError when it says nothing."""
    try:
        recording = Episode.open(directory)
        colour = image_topic(recording, camera).removesuffix(COMPRESSED_SUFFIX)
        topic = f"{colour.rpartition('/')[0]}/camera_info"
        for message in recording.messages([topic]):
            return Intrinsics.from_camera_info(recording.decode(topic, message.data))
    except EpisodeError as error:
        raise DatasetError(str(error)) from error
    except ValueError as error:
        raise DatasetError(f"episode {directory.name}: {topic}: {error}") from error
    return None


def choose_frames(tracks: Sequence[Track], count: int) -> list[FrameId]:
    """Up to `count` pictures with the end effector far apart, of those half in which it moves least.

    A moving gripper is blurred, and every millisecond between the clocks of camera and arm moves it.
    """
    ids: list[FrameId] = []
    positions, speeds = [], []
    for track in tracks:
        known = np.flatnonzero(np.isfinite(track.positions).all(1))
        if len(known) < 2:
            continue
        ids += [FrameId(track.episode, int(frame)) for frame in known]
        positions.append(track.positions[known])
        speeds.append(np.linalg.norm(np.gradient(track.positions[known], axis=0), axis=1))
    if not ids:
        raise DatasetError("there is no picture with the end effector's position beside it")
    every, speed = np.concatenate(positions), np.concatenate(speeds)
    slow = np.flatnonzero(speed <= np.median(speed))
    return [ids[slow[index]] for index in spread_out(every[slow], count)]
