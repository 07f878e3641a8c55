"""Annotated datasets and LeRobot exports as sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from molmoact_policy.embodiment import EMBODIMENT_FILE, ROW, Embodiment
from molmoact_policy.errors import PolicyError
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from molmoact_training.annotated_dataset import STATISTICS_FILE, AnnotatedDataset, Frame
from molmoact_training.errors import DatasetError
from molmoact_training.evaluation.looks import PAPER_ROWS, Look, checked
from molmoact_training.evaluation.metrics import Recording
from molmoact_training.evaluation.units import to_si
from molmoact_training.lerobot_dataset import open_demonstrations, read_pictures


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

    def _frame(self, name: str, frame: int) -> Frame:
        try:
            return self._data[self._rows[name][frame]]
        except (UnidentifiedImageError, OSError) as error:
            raise DatasetError(f"episode {name}, frame {frame}: a picture is not readable: {error}") from error


class LeRobotSource:
    """What `molmoact episodes export` wrote, with the conventions and statistics beside it."""

    kind = "LeRobot dataset"

    def __init__(self, path: Path) -> None:
        self.embodiment = _conventions_beside(path)
        self._data = open_demonstrations(path, self.embodiment.cameras)
        self._episodes = {str(episode.number): episode for episode in self._data.episodes}
        self.dimensions = ROW * self._data.arms
        self.left_out: dict[str, int] = {}

    def names(self) -> list[str]:
        return list(self._episodes)

    def recording(self, name: str) -> Recording:
        steps = to_si(self.embodiment, self._episodes[name].actions)
        return Recording(name, np.arange(len(steps)), steps[:, ROW - 1 :: ROW], self.embodiment.step_period)

    def looks(self, name: str, frames: Sequence[int]) -> Iterator[Look]:
        episode = self._episodes[name]
        steps, wanted = to_si(self.embodiment, episode.actions), set(frames)
        rows = self.embodiment.rows or PAPER_ROWS
        for frame, images in enumerate(read_pictures(episode, self._data.fps)):
            if frame in wanted:
                look = Look(name, frame, episode.instruction, images, steps[frame : frame + rows])
                yield checked(look, len(self.embodiment.cameras))


def _conventions_beside(path: Path) -> Embodiment:
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
