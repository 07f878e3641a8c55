"""LeRobot datasets, v2.1 and v3: their rows and pictures as messages of ours."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from teleop_recorder.definitions import installed_typestore
from teleop_recorder.errors import ConfigurationError, EpisodeError
from teleop_recorder.export import STATE_NAMES
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
    picture_message,
    pose_message,
    read_yaml,
)
from teleop_recorder.pictures import COMPRESSED_SUFFIX, COMPRESSED_TYPE

ROTATIONS = {"quaternion": 4, "rotation_vector": 3, "rpy": 3}
# Datasets do not say when they were recorded, and a stamp of zero means none.
BEGIN_NS = 1_000_000_000 * SECOND


@dataclass(frozen=True, kw_only=True)
class DatasetMapping:
    """What the features of a LeRobot dataset are: cameras by our names, and where in `state` pose and gripper are.

    position: three indices. rotation: four or three, meant as `rotation_kind` says (quaternions x y z w).
    """

    cameras: Mapping[str, str]
    state: str
    position: tuple[int, ...]
    rotation: tuple[int, ...]
    rotation_kind: str
    gripper: GripperMapping | None = None

    @classmethod
    def of_own_export(cls, features: Mapping[str, Any]) -> DatasetMapping | None:
        """For a dataset that `molmoact episodes export` wrote of one arm; None for another."""
        if list(features.get("observation.state", {}).get("names") or ()) != list(STATE_NAMES):
            return None
        prefix = "observation.images."
        return cls(
            cameras={name.removeprefix(prefix): name for name in features if name.startswith(prefix)},
            state="observation.state",
            position=(0, 1, 2),
            rotation=(3, 4, 5, 6),
            rotation_kind="quaternion",
            gripper=GripperMapping(feature="observation.state", indices=(7,), scale=0.08),
        )


def load_dataset_mapping(path: Path) -> DatasetMapping:
    """Raises ConfigurationError naming the file and the entry at fault."""
    entries = checked_entries(DatasetMapping, read_yaml(path), str(path))
    kind = entries["rotation_kind"]
    if kind not in ROTATIONS:
        raise ConfigurationError(f"{path}: rotation_kind: {kind!r}, expected one of {', '.join(ROTATIONS)}")
    for name, count in (("position", 3), ("rotation", ROTATIONS[kind])):
        numbers = entries[name]
        if not (isinstance(numbers, list) and len(numbers) == count and all(_is_index(number) for number in numbers)):
            raise ConfigurationError(f"{path}: {name}: {numbers!r}, expected {count} indices")
        entries[name] = tuple(numbers)
    checked_mapping(entries["cameras"], f"{path}: cameras")
    entries["gripper"] = gripper_mapping(entries.get("gripper"), ("feature", "indices"), path)
    return DatasetMapping(**entries)


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class Dataset(ABC):
    """Rows and pictures of a LeRobot dataset by the number of the episode."""

    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        self.root = root
        self.features = info["features"]
        self.fps = float(info["fps"])
        self._data_path = info["data_path"]
        self._video_path = str(info.get("video_path"))

    @abstractmethod
    def episodes(self) -> list[tuple[int, str]]:
        """Number and task of each."""

    @abstractmethod
    def data_file(self, number: int) -> Path:
        """The file with the rows of an episode."""

    @abstractmethod
    def video(self, number: int, key: str) -> tuple[Path, float]:
        """The file, and where in it the episode begins, s."""

    def rows(self, number: int, columns: Sequence[str]) -> dict[str, list[Any]]:
        path = self.data_file(number)
        try:
            table = pq.read_table(path, columns=list(columns), filters=[("episode_index", "=", number)])
        except (OSError, ValueError) as error:
            raise EpisodeError(f"{path}: not readable: {error}") from error
        return table.to_pydict()


class DatasetV3(Dataset):
    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        super().__init__(root, info)
        found = []
        for file in sorted((root / "meta" / "episodes").rglob("*.parquet")):
            names = [name for name in pq.read_schema(file).names if not name.startswith("stats/")]
            found += pq.read_table(file, columns=names).to_pylist()
        self._episodes = {episode["episode_index"]: episode for episode in found}

    def episodes(self) -> list[tuple[int, str]]:
        return [(number, _first(episode["tasks"])) for number, episode in sorted(self._episodes.items())]

    def data_file(self, number: int) -> Path:
        return self.root / self._data_path.format(**_place(self._episodes[number], "data"))

    def video(self, number: int, key: str) -> tuple[Path, float]:
        episode, prefix = self._episodes[number], f"videos/{key}"
        path = self.root / self._video_path.format(video_key=key, **_place(episode, prefix))
        return path, float(episode[f"{prefix}/from_timestamp"])


def _place(episode: Mapping[str, Any], prefix: str) -> dict[str, int]:
    return {name: episode[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}


class DatasetV2(Dataset):
    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        super().__init__(root, info)
        self._chunk = int(info.get("chunks_size", 1000))
        lines = (root / "meta" / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
        self._episodes = [json.loads(line) for line in lines if line.strip()]

    def episodes(self) -> list[tuple[int, str]]:
        return sorted((int(episode["episode_index"]), _first(episode["tasks"])) for episode in self._episodes)

    def data_file(self, number: int) -> Path:
        return self.root / self._data_path.format(episode_chunk=number // self._chunk, episode_index=number)

    def video(self, number: int, key: str) -> tuple[Path, float]:
        names = {"episode_chunk": number // self._chunk, "episode_index": number, "video_key": key}
        return self.root / self._video_path.format(**names), 0.0


def _first(tasks: Sequence[str]) -> str:
    return str(tasks[0]) if tasks else ""


def open_dataset(root: Path) -> Dataset:
    """Raises EpisodeError when the metadata below `root` are not those of a LeRobot dataset v2.x or v3."""
    try:
        info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
        version = str(info["codebase_version"])
        if version.startswith("v3"):
            return DatasetV3(root, info)
        if version.startswith("v2"):
            return DatasetV2(root, info)
    except (OSError, KeyError, ValueError) as error:
        raise EpisodeError(f"{root}: meta is not that of a LeRobot dataset: {error!r}") from error
    raise EpisodeError(f"{root}: codebase_version {version}, expected v2.0, v2.1 or v3.0")


def find_mapping(dataset: Dataset, path: Path | None) -> DatasetMapping:
    """That of the file; without one what our own export means. Raises ConfigurationError when it does not fit."""
    meaning = load_dataset_mapping(path) if path else DatasetMapping.of_own_export(dataset.features)
    if meaning is None:
        raise ConfigurationError(
            f"{dataset.root}: needs a --mapping that says what its features are: {', '.join(sorted(dataset.features))}"
        )
    _check_features(dataset.root, dataset.features, meaning)
    return meaning


def _check_features(root: Path, features: Mapping[str, Any], meaning: DatasetMapping) -> None:
    gripper = {meaning.gripper.feature: max(meaning.gripper.indices)} if meaning.gripper else {}
    for name in (meaning.state, *meaning.cameras.values(), *gripper):
        if name not in features:
            raise ConfigurationError(f"{root}: there is no feature {name}; it has {', '.join(sorted(features))}")
    for camera, name in meaning.cameras.items():
        if features[name]["dtype"] not in ("video", "image"):
            raise ConfigurationError(f"{root}: camera {camera}: {name} is {features[name]['dtype']}, expected pictures")
    for name, highest in (*gripper.items(), (meaning.state, max(meaning.position + meaning.rotation))):
        if highest >= features[name]["shape"][0]:
            raise ConfigurationError(
                f"{root}: {name} has {features[name]['shape'][0]} numbers, the mapping asks for {highest}"
            )


def read_dataset_episode(dataset: Dataset, number: int, meaning: DatasetMapping) -> Iterator[Recorded]:
    """The messages of one episode: pictures, poses and widths between the fingers, frame by frame.

    Raises EpisodeError naming the file that is missing or does not hold what the metadata promise.
    """
    pictures = {name: key for name, key in meaning.cameras.items() if dataset.features[key]["dtype"] == "image"}
    gripper = [meaning.gripper.feature] if meaning.gripper else []
    columns = list(dict.fromkeys(["timestamp", meaning.state, *gripper, *pictures.values()]))
    rows = dataset.rows(number, columns)
    times = [float(time) for time in np.ravel(rows["timestamp"])]
    films = {
        name: film(*dataset.video(number, key), times, dataset.fps)
        for name, key in meaning.cameras.items()
        if name not in pictures
    }
    positions, quaternions = _poses(np.array(rows[meaning.state], np.float64), meaning)
    store = installed_typestore()
    for row, time in enumerate(times):
        # From the number of the frame where it is one: the timestamps are rounded to 32 bits.
        frame = round(time * dataset.fps)
        exact = frame / dataset.fps if abs(frame / dataset.fps - time) < 1e-4 else time
        stamp_ns = BEGIN_NS + round(exact * SECOND)
        for camera in meaning.cameras:
            encoded = rows[pictures[camera]][row]["bytes"] if camera in pictures else _png(next(films[camera]))
            topic = f"/camera/{camera}/color/image_raw{COMPRESSED_SUFFIX}"
            yield Recorded(topic, COMPRESSED_TYPE, stamp_ns, picture_message(store, stamp_ns, camera, encoded))
        pose = pose_message(store, stamp_ns, "base", positions[row], quaternions[row])
        yield Recorded(POSE_TOPIC, POSE_TYPE, stamp_ns, pose)
        if meaning.gripper is not None:
            numbers = np.ravel(rows[meaning.gripper.feature][row])[list(meaning.gripper.indices)]
            yield Recorded(
                GRIPPER_TOPIC, JOINTS_TYPE, stamp_ns, fingers_message(store, stamp_ns, meaning.gripper.width(numbers))
            )


def _poses(state: NDArray[np.float64], meaning: DatasetMapping) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    numbers = state[:, list(meaning.rotation)]
    if meaning.rotation_kind == "quaternion":
        rotation = Rotation.from_quat(numbers)
    elif meaning.rotation_kind == "rpy":
        rotation = Rotation.from_euler("xyz", numbers)
    else:
        rotation = Rotation.from_rotvec(numbers)
    return state[:, list(meaning.position)], rotation.as_quat()


def film(path: Path, begin: float, times: Sequence[float], fps: float) -> Iterator[NDArray[np.uint8]]:
    """For every time (s after `begin`, ascending) the picture of the video, uint8 RGB [H, W, 3].

    Raises EpisodeError naming the file when it is not readable, or has no whole picture within half a period of a time.
    """
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.time_base is not None
            container.seek(int(begin / stream.time_base), stream=stream)
            frames = container.decode(stream)
            frame = next(frames, None)
            for time in times:
                while frame is not None and (frame.time or 0.0) < begin + time - 0.5 / fps:
                    frame = next(frames, None)
                if frame is None or (frame.time or 0.0) > begin + time + 0.5 / fps:
                    raise EpisodeError(f"{path}: there is no picture at {begin + time:.3f} s")
                if frame.is_corrupt:  # the decoder made something up
                    raise EpisodeError(f"{path}: the picture at {begin + time:.3f} s is damaged")
                yield np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    except (av.FFmpegError, OSError, IndexError) as error:
        raise EpisodeError(f"{path}: not readable: {error}") from error


def _png(picture: NDArray[np.uint8]) -> bytes:
    """Without loss: the pictures were compressed once already."""
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return data.tobytes()
