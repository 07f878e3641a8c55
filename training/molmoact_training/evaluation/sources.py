"""Which kind of recorded data a directory holds."""

from __future__ import annotations

from pathlib import Path

from teleop_recorder.episode import find_episodes

from molmoact_training.errors import DatasetError
from molmoact_training.evaluation.dataset_sources import AnnotatedSource, LeRobotSource
from molmoact_training.evaluation.episode_source import EpisodeSettings, EpisodeSource
from molmoact_training.evaluation.looks import Source


def open_source(path: Path, settings: EpisodeSettings) -> Source:
    """Whichever kind of data is at `path`. Raises DatasetError when it is none."""
    if not path.is_dir():
        raise DatasetError(f"{path}: is no directory")
    if any(path.glob("frames-*.arrow")):
        return AnnotatedSource(path)
    if (path / "meta" / "info.json").is_file():
        return LeRobotSource(path)
    if find_episodes(path):
        return EpisodeSource(path, settings)
    hint = "; bags of other recorders: `molmoact episodes import` first" if any(path.rglob("*.db3")) else ""
    raise DatasetError(
        f"{path}: holds no annotated dataset (frames-*.arrow), no LeRobot dataset (meta/info.json) and no episodes "
        f"(*.mcap){hint}"
    )
