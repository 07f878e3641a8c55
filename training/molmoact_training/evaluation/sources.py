"""What replies are compared with: annotated datasets, LeRobot exports, and directories of recorded episodes.

All are read alike: which episodes there are, each as a whole, and looks at some of its frames. Pictures are decoded
when they are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from molmoact_policy.embodiment import EMBODIMENT_FILE, ROW, Embodiment
from molmoact_policy.errors import PolicyError
from molmoact_policy.reply import DEPTH_TOKENS
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from teleop_recorder.alignment import (
    NEAREST,
    Samples,
    Timing,
    align,
    image_topic,
    read_arm,
    read_picture_stamps,
)
from teleop_recorder.episode import SUCCESS, Episode, find_episodes
from teleop_recorder.errors import EpisodeError
from teleop_recorder.motion_labels import action_rows
from teleop_recorder.pictures import decode_picture, viewable

from molmoact_training.annotated_dataset import STATISTICS_FILE, AnnotatedDataset
from molmoact_training.errors import DatasetError
from molmoact_training.evaluation.metrics import Recording
from molmoact_training.evaluation.units import to_si

# Rows of a chunk in the paper's post-training, for a checkpoint that does not say how many it writes.
PAPER_ROWS = 8
MEASURED, COMMAND = "measured", "command"


@dataclass(frozen=True)
class Look:
    """One frame: what the policy is shown, and what was recorded from there on.

    images: uint8 RGB [H, W, 3] per camera; recorded: [rows, 7 · A] in SI units, only rows that were recorded; codes
    uint8 [100] of this frame and of the one before, trace uint8 [P, 2] of the first arm: None where not annotated.
    """

    episode: str
    frame: int
    instruction: str
    images: list[NDArray[np.uint8]]
    recorded: NDArray[np.float64]
    codes: NDArray[np.uint8] | None = None
    previous_codes: NDArray[np.uint8] | None = None
    trace: NDArray[np.uint8] | None = None


class Source(Protocol):
    """Where looks come from. Whatever is wrong with it raises DatasetError, naming the episode and frame."""

    kind: str
    embodiment: Embodiment  # of the recorded actions
    dimensions: int
    left_out: dict[str, int]  # what is not evaluated, and why

    def names(self) -> list[str]:
        """The episodes, in a fixed order."""
        ...

    def recording(self, name: str) -> Recording: ...

    def looks(self, name: str, frames: Sequence[int]) -> Iterator[Look]:
        """At these frames of an episode, which are ascending."""
        ...


@dataclass(frozen=True)
class EpisodeSettings:
    """How recorded episodes are read; see `molmoact episodes export`.

    embodiment: the checkpoint's. cameras: names, or NAME=TOPIC. arms: prefixes of their topics. gripper: measured, or
    what teleoperation asked for. tolerance, sync_tolerance: s.
    """

    embodiment: Embodiment
    cameras: tuple[str, ...]
    arms: tuple[str, ...] = ("",)
    gripper: str = MEASURED
    tolerance: float = 0.05
    sync_tolerance: float = 0.05


def open_source(path: Path, settings: EpisodeSettings) -> Source:
    """Whichever kind of data is at `path`. Raises DatasetError when it is none."""
    if not path.is_dir():
        raise DatasetError(f"{path}: is no directory")
    if any(path.glob("frames-*.arrow")):
        return AnnotatedSource(path)
    if (path / "meta" / "info.json").is_file():
        from molmoact_training.evaluation.lerobot_source import LeRobotSource

        return LeRobotSource(path)
    if find_episodes(path):
        return EpisodeSource(path, settings)
    hint = "; bags of other recorders: `molmoact episodes import` first" if any(path.rglob("*.db3")) else ""
    raise DatasetError(
        f"{path}: holds no annotated dataset (frames-*.arrow), no LeRobot dataset (meta/info.json) and no episodes "
        f"(*.mcap){hint}"
    )


class AnnotatedSource:
    """What `molmoact annotate` wrote. Frames to be shown only with their trace drawn are left out."""

    kind = "annotated dataset"

    def __init__(self, path: Path) -> None:
        try:
            self._data = AnnotatedDataset(path)
        except PolicyError as error:  # statistics or conventions
            raise DatasetError(f"{path}: {error}") from error
        self.embodiment = self._data.embodiment
        self.dimensions = self._data.statistics.dimensions
        steered = np.array(self._data.column("steered"), bool)
        self.left_out = {"frames to be shown only with their trace": int(steered.sum())} if steered.any() else {}
        self._actions = self._data.all_actions()
        self._rows = _rows_by_frame(self._data, ~steered)
        if not self._rows:
            raise DatasetError(f"{path}: has no frames to evaluate")

    def names(self) -> list[str]:
        return list(self._rows)

    def recording(self, name: str) -> Recording:
        frames = sorted(self._rows[name])
        steps = to_si(self.embodiment, self._actions[[self._rows[name][frame] for frame in frames], 0])
        return Recording(name, np.array(frames), steps[:, ROW - 1 :: ROW], self.embodiment.step_period)

    def looks(self, name: str, frames: Sequence[int]) -> Iterator[Look]:
        last = max(self._rows[name])
        for frame in frames:
            row = self._frame(name, frame)
            before = self._frame(name, frame - 1).depth_codes if frame - 1 in self._rows[name] else None
            yield checked(
                Look(
                    name,
                    frame,
                    row.instruction,
                    row.images,
                    # The rows after the end of the episode repeat its last one: nobody did that.
                    to_si(self.embodiment, self._actions[self._rows[name][frame]][: last - frame + 1]),
                    row.depth_codes,
                    before,
                    row.traces[0] if row.traces else None,
                ),
                len(self.embodiment.cameras),
            )

    def _frame(self, name: str, frame: int) -> Any:
        try:
            return self._data[self._rows[name][frame]]
        except (UnidentifiedImageError, OSError) as error:
            raise DatasetError(f"episode {name}, frame {frame}: a picture is not readable: {error}") from error


class EpisodeSource:
    """Directories of episodes, recorded or imported: successful ones, sampled at the rate of the embodiment."""

    kind = "recorded episodes"

    def __init__(self, path: Path, settings: EpisodeSettings) -> None:
        self.embodiment = settings.embodiment
        self.dimensions = ROW * len(settings.arms)
        self._settings = settings
        self._directories: dict[str, Path] = {}
        outcomes: Counter[str] = Counter()
        for directory in find_episodes(path):
            name = directory.relative_to(path).as_posix() if directory != path else directory.name
            try:
                outcome = Episode.open(directory).labels.outcome
            except EpisodeError:
                outcome = "unreadable"
            outcomes[outcome] += 1
            if outcome == SUCCESS:
                self._directories[name] = directory
        self.left_out = {f"episodes with outcome {it}": outcomes[it] for it in sorted(outcomes) if it != SUCCESS}
        if not self._directories:
            found = ", ".join(f"{count} {it}" for it, count in sorted(outcomes.items()))
            raise DatasetError(f"{path}: no episode is a {SUCCESS} (found: {found}): `molmoact episodes relabel`")
        self._aligned: dict[str, Aligned] = {}

    def names(self) -> list[str]:
        return list(self._directories)

    def recording(self, name: str) -> Recording:
        aligned = self._of(name)
        frames = np.concatenate([part.first + np.arange(len(part) - 1) for part in aligned.parts])
        openings = np.concatenate([part.motion_openings[1:] for part in aligned.parts])
        return Recording(name, frames, openings, self.embodiment.step_period)

    def looks(self, name: str, frames: Sequence[int]) -> Iterator[Look]:
        for look in self._of(name).looks(name, frames, self._settings):
            yield checked(look, len(self._settings.cameras))

    def _of(self, name: str) -> Aligned:
        if name not in self._aligned:
            try:
                self._aligned[name] = read_aligned(Episode.open(self._directories[name]), self._settings)
            except EpisodeError as error:
                raise DatasetError(str(error)) from error
        return self._aligned[name]


@dataclass(frozen=True)
class Aligned:
    """An episode as samples at one rate; `parts` are runs without a gap, of two samples or more."""

    episode: Episode
    topics: tuple[str, ...]
    parts: list[Samples]

    def looks(self, name: str, frames: Sequence[int], settings: EpisodeSettings) -> Iterator[Look]:
        labels = self.episode.labels
        rows = settings.embodiment.rows or PAPER_ROWS
        wanted: list[tuple[int, NDArray[np.float64], tuple[int, ...]]] = []
        for part in self.parts:
            steps = _steps(part, settings.embodiment)
            for frame in frames:
                index = frame - part.first
                if 0 <= index < len(steps):
                    pictures = tuple(part.pictures[index].tolist())
                    wanted.append((frame, steps[index : index + rows], pictures))
        shown = read_pictures(self.episode, self.topics, [pictures for *_, pictures in wanted])
        for (frame, recorded, _), images in zip(wanted, shown, strict=True):
            yield Look(name, frame, labels.instruction or labels.task, images, recorded)


def read_aligned(episode: Episode, settings: EpisodeSettings) -> Aligned:
    """Raises EpisodeError naming the topic that is missing or wrong, or when there is nothing to compare with."""
    names = [camera.partition("=")[0] for camera in settings.cameras]
    topics = {name: image_topic(episode, camera) for name, camera in zip(names, settings.cameras, strict=True)}
    arms = [read_arm(episode, prefix, False, settings.gripper == COMMAND) for prefix in settings.arms]
    timing = Timing(1 / settings.embodiment.step_period, NEAREST, settings.tolerance, settings.sync_tolerance)
    parts = [part for part in align(read_picture_stamps(episode, topics), arms, timing) if len(part) > 1]
    if not parts:
        raise EpisodeError(
            f"episode {episode.name}: no two samples in a row have messages of all streams within "
            f"{settings.tolerance} s: see `molmoact episodes verify`"
        )
    return Aligned(episode, tuple(topics.values()), parts)


def read_pictures(
    episode: Episode, topics: Sequence[str], wanted: Sequence[tuple[int, ...]]
) -> Iterator[list[NDArray[np.uint8]]]:
    """For each tuple the pictures with these numbers, one of each topic; the numbers of a topic do not go down.

    Raises DatasetError for a picture that cannot be decoded.
    """
    seen = dict.fromkeys(topics, -1)
    numbers = {topic: {pictures[column] for pictures in wanted} for column, topic in enumerate(topics)}
    held: dict[tuple[str, int], NDArray[np.uint8]] = {}
    messages = episode.messages(tuple(topics))
    for pictures in wanted:
        keys = list(zip(topics, pictures, strict=True))
        while any(key not in held for key in keys):
            message = next(messages)
            seen[message.topic] += 1
            if seen[message.topic] in numbers[message.topic]:
                try:
                    picture = viewable(decode_picture(episode, message.topic, message.data))
                except EpisodeError as error:
                    raise DatasetError(str(error)) from error
                held[message.topic, seen[message.topic]] = picture
        first = dict(keys)
        held = {key: picture for key, picture in held.items() if key[1] >= first[key[0]]}
        yield [held[key] for key in keys]


def checked(look: Look, cameras: int) -> Look:
    """The same. Raises DatasetError when something is wrong with it that would only show in the results."""
    where = f"episode {look.episode}, frame {look.frame}"
    if not look.instruction.strip():
        raise DatasetError(f"{where}: the instruction is empty")
    if len(look.images) != cameras:
        raise DatasetError(f"{where}: {len(look.images)} pictures, expected {cameras}, one per camera")
    if not np.isfinite(look.recorded).all():
        raise DatasetError(f"{where}: recorded actions are not finite")
    for codes in (look.codes, look.previous_codes):
        if codes is not None and len(codes) != DEPTH_TOKENS:
            raise DatasetError(f"{where}: {len(codes)} depth codes, expected {DEPTH_TOKENS}")
    return look


def dataset_embodiment(path: Path) -> Embodiment:
    """The conventions beside a LeRobot export. Raises DatasetError when they or the statistics are missing."""
    for name in (STATISTICS_FILE, EMBODIMENT_FILE):
        if not (path / name).is_file():
            raise DatasetError(f"{path}: {name} is missing: expected a dataset of `molmoact episodes export`")
    try:
        return Embodiment.from_file(path / EMBODIMENT_FILE)
    except PolicyError as error:
        raise DatasetError(str(error)) from error


def _rows_by_frame(data: AnnotatedDataset, kept: NDArray[np.bool_]) -> dict[str, dict[int, int]]:
    """{episode: {frame: row of the dataset}}; of frames that are there more than once, the first."""
    found: dict[str, dict[int, int]] = {}
    rows = zip(data.column("episode"), data.column("frame"), kept.tolist(), strict=True)
    for row, (episode, frame, keep) in enumerate(rows):
        if keep:
            found.setdefault(str(episode), {}).setdefault(frame, row)
    return found


def _steps(part: Samples, embodiment: Embodiment) -> NDArray[np.float64]:
    """[N - 1, 7 · A] in SI units."""
    rows = action_rows(part.motion_positions, part.motion_quaternions, part.motion_openings, embodiment)
    return to_si(embodiment, rows)
