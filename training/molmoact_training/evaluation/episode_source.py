"""Directories of recorded or imported episodes as a source: sampled as `molmoact episodes export` samples them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from molmoact_policy.embodiment import ROW, Embodiment
from numpy.typing import NDArray
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

from molmoact_training.errors import DatasetError
from molmoact_training.evaluation.looks import PAPER_ROWS, Look, checked
from molmoact_training.evaluation.metrics import Recording
from molmoact_training.evaluation.units import to_si

MEASURED, COMMAND = "measured", "command"


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
        wanted: list[tuple[int, int, NDArray[np.float64], tuple[int, ...]]] = []
        for part in self.parts:
            steps = _steps(part, settings.embodiment)
            for frame in frames:
                index = frame - part.first
                if 0 <= index < len(steps):
                    pictures = tuple(part.pictures[index].tolist())
                    wanted.append((frame, int(part.stamps[index]), steps[index : index + rows], pictures))
        shown = read_pictures(self.episode, self.topics, [pictures for *_, pictures in wanted])
        for (frame, stamp, recorded, _), images in zip(wanted, shown, strict=True):
            yield Look(name, frame, labels.instruction or labels.task, images, recorded, stamp=stamp)


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


def _steps(part: Samples, embodiment: Embodiment) -> NDArray[np.float64]:
    """[N - 1, 7 · A] in SI units."""
    rows = action_rows(part.motion_positions, part.motion_quaternions, part.motion_openings, embodiment)
    return to_si(embodiment, rows)
