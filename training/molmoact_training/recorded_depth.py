"""Depth pictures of a dataset's frames from the bags it was exported from: the depth camera's, not an estimate.

The export says which recording and which of its moments every frame is (meta/source_frames.jsonl). The colour picture
of a frame is found again by the export's own rule, and its depth picture is the one taken with it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from teleop_recorder.alignment import (
    SECOND,
    Timing,
    choose_pictures,
    header_stamp,
    image_topic,
    moments,
    read_picture_stamps,
)
from teleop_recorder.episode import METADATA, Episode
from teleop_recorder.errors import EpisodeError
from teleop_recorder.export import SETTINGS_FILE, SOURCES_FILE
from teleop_recorder.pictures import COMPRESSED_SUFFIX, decode_picture, recorded_name

from molmoact_training.depth_pictures import picture_of_depth
from molmoact_training.errors import DatasetError

COLOUR, DEPTH = "/color/image_raw", "/aligned_depth_to_color/image_raw"


@dataclass(frozen=True)
class DepthSource:
    """Where the depth of one of the dataset's episodes is.

    cameras: NAME or NAME=TOPIC as the export was given them. camera: whose depth. topic: of its depth pictures.
    begin_ns: stamp of the first moment of the recording. moments: [n] the number of every frame's moment.
    """

    directory: Path
    cameras: tuple[str, ...]
    camera: str
    topic: str
    timing: Timing
    begin_ns: int
    moments: NDArray[np.int64]


def find_depth(dataset: Path, recordings: Path, camera: str, frames: Mapping[int, int]) -> dict[int, DepthSource]:
    """For every episode of the dataset where the depth of `camera` is, checked as far as it can be without reading it.

    recordings: the directory the dataset was exported from. frames: how many each episode has. Raises DatasetError
    naming what is missing: the export's notes, a recording, its depth topic.
    """
    settings = _read_settings(dataset / SETTINGS_FILE)
    cameras = tuple(settings["cameras"])
    topic = _depth_topic(dataset, cameras, camera)
    timing = Timing(**settings["timing"])
    facts = _read_sources(dataset / SOURCES_FILE)
    found = {}
    for number, count in frames.items():
        if number not in facts:
            raise DatasetError(f"{dataset / SOURCES_FILE}: nothing about episode {number}")
        source = facts[number]
        directory = _directory(recordings, source["source"])
        _check_recording(directory, topic)
        chosen = np.concatenate([np.arange(begin, end) for begin, end in source["kept"]])[:-1]
        if len(chosen) != count:
            raise DatasetError(
                f"{dataset / SOURCES_FILE}: episode {number}: {len(chosen)} frames, the dataset has {count}"
            )
        first = source["first_moment"]
        begin_ns = source["begin_stamp_ns"] - round(first * (SECOND / timing.rate))
        found[number] = DepthSource(directory, cameras, camera, topic, timing, begin_ns, first + chosen)
    return found


def depth_pictures(source: DepthSource) -> Iterator[tuple[int, NDArray[np.uint8] | None]]:
    """(frame, its picture uint8 [320, 320]) in the order of the bag; None where the camera measured nothing at all.

    Raises DatasetError naming the recording when it is not readable, or a frame has no depth picture beside it.
    """
    try:
        episode = Episode.open(source.directory)
        topic = recorded_name(episode, source.topic)
        if topic is None:
            raise EpisodeError(f"episode {episode.name}: there is no {source.topic}")
        wanted = _wanted(episode, source, topic)
        number = -1
        for message in episode.messages([topic]):
            number += 1
            if number in wanted:
                picture = _picture(decode_picture(episode, topic, message.data))
                yield from ((frame, picture) for frame in wanted[number])
    except EpisodeError as error:
        raise DatasetError(str(error)) from error


def _wanted(episode: Episode, source: DepthSource, depth_topic: str) -> dict[int, list[int]]:
    """Which message of the depth topic belongs to which frames."""
    topics = {camera.partition("=")[0]: image_topic(episode, camera) for camera in source.cameras}
    stamps = read_picture_stamps(episode, topics)
    depth = np.array([header_stamp(message.data) for message in episode.messages([depth_topic])], np.int64)
    if not len(depth):
        raise EpisodeError(f"episode {episode.name}: {depth_topic} has no message")
    last = source.begin_ns + round(int(source.moments[-1]) * (SECOND / source.timing.rate))
    chosen = choose_pictures(stamps, moments(source.begin_ns, last, source.timing.rate), source.timing)
    column = list(topics).index(source.camera)
    wanted: dict[int, list[int]] = {}
    for frame, moment in enumerate(source.moments.tolist()):
        pictures = chosen[moment]
        if pictures is None:
            raise EpisodeError(f"episode {episode.name}: is not what frame {frame} was exported from")
        distances = np.abs(depth - stamps[source.camera][pictures[column]])
        nearest = int(distances.argmin())
        if distances[nearest] > source.timing.sync_tolerance * SECOND:
            raise EpisodeError(
                f"episode {episode.name}: {depth_topic}: nothing within {source.timing.sync_tolerance} s of the "
                f"picture of frame {frame}"
            )
        wanted.setdefault(nearest, []).append(frame)
    return wanted


def _picture(depth: NDArray[Any]) -> NDArray[np.uint8] | None:
    try:
        return picture_of_depth(depth)
    except DatasetError:  # a frame without a single measurement: something lies on the lens
        return None


def _depth_topic(dataset: Path, cameras: tuple[str, ...], camera: str) -> str:
    given = {name: topic for name, _, topic in (entry.partition("=") for entry in cameras)}
    if camera not in given:
        raise DatasetError(f"{dataset / SETTINGS_FILE}: cameras {', '.join(cameras)}, expected {camera} among them")
    colour = (given[camera] or f"/camera/{camera}{COLOUR}").removesuffix(COMPRESSED_SUFFIX)
    if not colour.endswith(COLOUR):
        raise DatasetError(f"{dataset / SETTINGS_FILE}: camera {camera} is {colour}, expected a topic ...{COLOUR}")
    return colour.removesuffix(COLOUR) + DEPTH


def _directory(recordings: Path, source: str) -> Path:
    """Of a recording by its name relative to the directory of recordings, which may be the recording itself."""
    directory = recordings / source
    return recordings if not directory.exists() and recordings.name == source else directory


def _check_recording(directory: Path, topic: str) -> None:
    path = directory / METADATA
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = content["rosbag2_bagfile_information"]["topics_with_message_count"]
        counts = {entry["topic_metadata"]["name"]: entry["message_count"] for entry in entries}
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: not readable as that of the recording the dataset is from: {error!r}") from error
    if not any(counts.get(name) for name in (topic, topic + COMPRESSED_SUFFIX)):
        raise DatasetError(f"{directory}: no depth was recorded on {topic}: record it, or choose --depth estimate")


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        Timing(**settings["timing"])
        return {"timing": settings["timing"], "cameras": settings["cameras"]}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"{path}: expected the settings of `molmoact episodes export`: {error!r}") from error


def _read_sources(path: Path) -> dict[int, dict[str, Any]]:
    fields = ("source", "begin_stamp_ns", "first_moment", "kept")
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {line["episode_index"]: {name: line[name] for name in fields} for line in lines}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(
            f"{path}: expected the recordings that `molmoact episodes export` read: {error!r}"
        ) from error
