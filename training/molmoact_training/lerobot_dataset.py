"""LeRobot datasets (v3.0, as `molmoact episodes export` writes them, and v2.x) as demonstrations to annotate.

`open_demonstrations` reads every number and checks everything that can be checked without decoding the pictures, so
that what is wrong is found and named before hours of work: see docs/how-to/annotate.md for the list.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from molmoact_policy.actions import statistics_of
from molmoact_policy.embodiment import ROW
from numpy.typing import NDArray
from teleop_recorder.errors import EpisodeError
from teleop_recorder.export import STATE_NAMES
from teleop_recorder.foreign_dataset import Dataset, film, open_dataset

from molmoact_training.annotated_dataset import decode_image
from molmoact_training.errors import DatasetError

ACTION, STATE = "action", "observation.state"
IMAGES = "observation.images."
ARMS = (1, 2)
# In the dataset's units: what varies by less is noise of rounding, which normalisation would stretch to -1..1.
CONSTANT = 1e-6


class Film(NamedTuple):
    """Where the pictures of one camera in one episode are.

    path: a video, or the parquet file that holds them. key: the feature. begin: s, of the episode in the video.
    """

    path: Path
    key: str
    begin: float
    is_video: bool


@dataclass(frozen=True)
class Demonstration:
    """One episode without its pictures. n frames, D numbers of an action, S of a state (None: it has none)."""

    number: int
    instruction: str
    times: NDArray[np.float64]  # [n] s from its beginning
    actions: NDArray[np.float32]  # [n, D] in the dataset's units
    state: NDArray[np.float64] | None  # [n, S]
    films: tuple[Film, ...]  # of the cameras, in their order

    def __len__(self) -> int:
        return len(self.times)

    def looked_through(self, cameras: int) -> Demonstration:
        """The same with only the first of its cameras."""
        return replace(self, films=self.films[:cameras])


@dataclass(frozen=True)
class Demonstrations:
    """All episodes of a dataset. state_names: of the S numbers of a state, empty where nobody says them."""

    root: Path
    fps: float
    cameras: tuple[str, ...]
    state_names: tuple[str, ...]
    episodes: tuple[Demonstration, ...]

    @property
    def arms(self) -> int:
        return self.episodes[0].actions.shape[1] // ROW

    @property
    def frames(self) -> int:
        return sum(len(episode) for episode in self.episodes)

    def all_actions(self) -> NDArray[np.float32]:
        """[frames, D]"""
        return np.concatenate([episode.actions for episode in self.episodes])


def open_demonstrations(root: Path, cameras: Sequence[str]) -> Demonstrations:
    """Read the numbers of a dataset and check it. `cameras`: the names in the order of use.

    Raises DatasetError naming the file, feature, episode or frame at fault: no LeRobot dataset, another number of
    degrees of freedom, other cameras, NaN, no or several instructions of an episode, and videos that are not readable
    or too short.
    """
    try:
        dataset = open_dataset(root)
        numbers = dataset.episodes()
    except (EpisodeError, OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{root}: expected a LeRobot dataset: {error}") from error
    if not numbers:
        raise DatasetError(f"{root}: has no episodes")
    _check_features(dataset, cameras)
    tables = _read_numbers(dataset, [number for number, _ in numbers])
    episodes = tuple(
        _demonstration(dataset, number, instruction, tables[number], cameras) for number, instruction in numbers
    )
    names = dataset.features.get(STATE, {}).get("names")
    demonstrations = Demonstrations(
        root, dataset.fps, tuple(cameras), tuple(names) if isinstance(names, list) else (), episodes
    )
    _check_pictures(demonstrations)
    return demonstrations


def constant_dimensions(actions: NDArray[np.float32]) -> dict[int, float]:
    """Dimensions of the actions [n, D] that training could only teach noise in, and their value.

    Where the statistics scale, what counts is the 1st to the 99th percentile, as that is what is scaled.
    """
    statistics = statistics_of(actions)
    mask = np.array(statistics["mask"])
    low = np.where(mask, statistics["q01"], statistics["min"])
    high = np.where(mask, statistics["q99"], statistics["max"])
    return {int(i): float(np.median(actions[:, i])) for i in np.flatnonzero(high - low <= CONSTANT)}


def arm_positions(demonstrations: Demonstrations) -> list[slice]:
    """For each arm where in a state its end effector's x, y, z are, m in its base frame.

    Raises DatasetError when the dataset does not name the numbers as `molmoact episodes export` does.
    """
    names = list(demonstrations.state_names)
    width = len(STATE_NAMES)
    arms = [names[i : i + width] for i in range(0, len(names), width)]
    if len(arms) != demonstrations.arms or not all(_are_state_names(arm) for arm in arms):
        raise DatasetError(
            f"{demonstrations.root}: {STATE} is {names}, expected {', '.join(STATE_NAMES)} for each of "
            f"{demonstrations.arms} arm(s): without measured positions there is nothing to project"
        )
    return [slice(i * width, i * width + 3) for i in range(len(arms))]


def read_pictures(episode: Demonstration, fps: float) -> Iterator[list[NDArray[np.uint8]]]:
    """For every frame the pictures of the cameras, uint8 RGB [H, W, 3].

    Raises DatasetError naming the file that cannot be decoded.
    """
    try:
        yield from (list(row) for row in zip(*(_pictures(episode, it, fps) for it in episode.films), strict=True))
    except (EpisodeError, OSError, TypeError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"episode {episode.number}: not readable: {error}") from error


def _pictures(episode: Demonstration, where: Film, fps: float) -> Iterator[NDArray[np.uint8]]:
    if where.is_video:
        return film(where.path, where.begin, episode.times.tolist(), fps)
    table = pq.read_table(where.path, columns=[where.key], filters=[("episode_index", "=", episode.number)])
    return (decode_image(row["bytes"]) for row in table[where.key].to_pylist())


def _are_state_names(names: Sequence[str]) -> bool:
    prefix = names[0][: -len(STATE_NAMES[0])]
    return list(names) == [prefix + name for name in STATE_NAMES]


def _check_features(dataset: Dataset, cameras: Sequence[str]) -> None:
    features = dataset.features
    shape = features.get(ACTION, {}).get("shape")
    if shape is None:
        raise DatasetError(f"{dataset.root}: there is no feature {ACTION}; it has {', '.join(sorted(features))}")
    if list(shape) not in [[ROW * arms] for arms in ARMS]:
        raise DatasetError(
            f"{dataset.root}: {ACTION} has {shape} numbers, expected {ROW} (translation, rotation, gripper) of one "
            f"arm, or {2 * ROW} of two"
        )
    found = [name.removeprefix(IMAGES) for name in features if name.startswith(IMAGES)]
    missing = [camera for camera in cameras if camera not in found]
    if missing:
        raise DatasetError(
            f"{dataset.root}: there is no camera {', '.join(missing)}: the embodiment looks through "
            f"{', '.join(cameras)}, the dataset has {', '.join(found) or 'none'}"
        )
    for camera in cameras:
        kind = features[IMAGES + camera]["dtype"]
        if kind not in ("video", "image"):
            raise DatasetError(f"{dataset.root}: {IMAGES}{camera} is {kind}, expected video or image")


def _read_numbers(dataset: Dataset, numbers: Sequence[int]) -> dict[int, pa.Table]:
    """The rows of every episode without pictures, each file read once."""
    columns = ["episode_index", "timestamp", "task_index", ACTION]
    columns += [STATE] if STATE in dataset.features else []
    files: dict[Path, list[int]] = {}
    for number in numbers:
        files.setdefault(_data_file(dataset, number), []).append(number)
    found = {}
    for path, inside in files.items():
        try:
            table = pq.read_table(path, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise DatasetError(f"{path}: not readable: {error}") from error
        absent = [name for name in columns if name not in table.column_names]
        if absent:
            raise DatasetError(f"{path}: there is no column {', '.join(absent)}")
        owners = table["episode_index"].to_numpy()
        for number in inside:
            found[number] = table.filter(pa.array(owners == number))
    return found


def _demonstration(
    dataset: Dataset, number: int, instruction: str, table: pa.Table, cameras: Sequence[str]
) -> Demonstration:
    where = f"{dataset.root}: episode {number}"
    if not table.num_rows:
        raise DatasetError(f"{where}: has no frames")
    if not instruction.strip():
        raise DatasetError(f"{where}: its instruction is empty: relabel it, and export again")
    if len(np.unique(table["task_index"].to_numpy())) > 1:
        raise DatasetError(f"{where}: has several instructions, expected one")
    actions = _vectors(table, ACTION, dataset.features, where)
    state = _vectors(table, STATE, dataset.features, where) if STATE in table.column_names else None
    return Demonstration(
        number,
        instruction,
        np.ravel(table["timestamp"].to_numpy()).astype(np.float64),
        actions.astype(np.float32),
        state,
        tuple(_film(dataset, number, IMAGES + camera) for camera in cameras),
    )


def _vectors(table: pa.Table, name: str, features: Mapping[str, Any], where: str) -> NDArray[np.float64]:
    """A column of lists as [n, width]."""
    width = features[name]["shape"][0]
    column = table[name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
    if column.null_count or len(values) != table.num_rows * width:
        raise DatasetError(f"{where}: {name}: rows of other lengths than {width}, as meta/info.json says")
    vectors = values.reshape(-1, width)
    wrong = np.argwhere(~np.isfinite(vectors))
    if len(wrong):
        frame, dimension = wrong[0]
        raise DatasetError(
            f"{where}: frame {frame}: {name}[{dimension}] is {vectors[frame, dimension]}, expected a finite number"
        )
    return vectors


def _film(dataset: Dataset, number: int, key: str) -> Film:
    if dataset.features[key]["dtype"] == "image":
        return Film(_data_file(dataset, number), key, 0.0, False)
    try:
        path, begin = dataset.video(number, key)
    except KeyError as error:
        raise DatasetError(f"{dataset.root}: meta/episodes: episode {number}: there is no {error}") from error
    return Film(path, key, begin, True)


def _data_file(dataset: Dataset, number: int) -> Path:
    try:
        return dataset.data_file(number)
    except KeyError as error:
        raise DatasetError(f"{dataset.root}: meta/episodes: episode {number}: there is no {error}") from error


def _check_pictures(demonstrations: Demonstrations) -> None:
    """Every video has pictures to where its last episode ends, and the first picture of every file can be decoded."""
    ends: dict[Path, float] = {}
    for episode in demonstrations.episodes:
        for it in episode.films:
            if it.is_video:
                ends[it.path] = max(ends.get(it.path, 0.0), it.begin + float(episode.times[-1]))
        if not all(it.is_video for it in episode.films):
            next(read_pictures(episode, demonstrations.fps))
    for path, end in ends.items():
        _check_video(path, end, 0.5 / demonstrations.fps)


def _check_video(path: Path, end: float, tolerance: float) -> None:
    """Reads the whole file, which is quick, and decodes one picture."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            next(container.decode(stream))
            container.seek(0)
            last = max((_seconds(packet) for packet in container.demux(stream)), default=-1.0)
    except (av.FFmpegError, OSError, IndexError, StopIteration) as error:
        raise DatasetError(f"{path}: not readable as a video: {error}") from error
    if last < end - tolerance:
        raise DatasetError(f"{path}: ends at {last:.3f} s, its episodes at {end:.3f} s: it is not whole")


def _seconds(packet: av.Packet) -> float:
    """When a whole packet is shown; what flushes the demuxer or is torn counts as before the beginning."""
    if packet.pts is None or packet.time_base is None or not packet.size or packet.is_corrupt:
        return -1.0
    return float(packet.pts * packet.time_base)
