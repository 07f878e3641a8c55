"""Depth out of recordings is that of the very picture a frame shows, however the dataset was exported."""

from pathlib import Path

import numpy as np
import pytest
from molmoact_training.depth_pictures import picture_of_depth
from molmoact_training.errors import DatasetError
from molmoact_training.lerobot_dataset import open_demonstrations, read_pictures
from molmoact_training.recorded_depth import depth_pictures, find_depth

from .annotation_data import DEPTH, depth_of, episodes, export, tilting, with_depth

CAMERAS = ("front", "wrist")


def with_a_gap(samples):
    """A third of a second without any picture of the front camera."""
    begin, end = episodes.START_NS + 700_000_000, episodes.START_NS + 1_050_000_000
    seen = (episodes.FRONT, DEPTH)
    return [it for it in samples if not (it.topic in seen and begin < episodes.stamp_of(it) < end)]


def at_half_the_rate(samples):
    """Only every second depth picture, as when the camera is told so."""
    depth = [it for it in samples if it.topic == DEPTH]
    left_out = {id(it) for it in depth[1::2]}
    return [it for it in samples if id(it) not in left_out]


def recorded(root: Path, edit=lambda samples: samples) -> Path:
    episodes.make_episode(root / "day" / "a", seconds=1.8, edit=lambda it: edit(with_depth(tilting(it))))
    return root


def shown_and_measured(dataset: Path, recordings: Path) -> list[tuple[int, int]]:
    """For every frame the number of its picture, and of its depth picture."""
    demonstrations = open_demonstrations(dataset, CAMERAS)
    frames = {episode.number: len(episode) for episode in demonstrations.episodes}
    sources = find_depth(dataset, recordings, "front", frames)
    known = {picture_of_depth(depth_of(number)).tobytes(): number for number in range(60)}
    pairs = []
    for episode in demonstrations.episodes:
        depth = dict(depth_pictures(sources[episode.number]))
        for frame, pictures in enumerate(read_pictures(episode, demonstrations.fps)):
            pairs.append((episodes.number_of(pictures[0]), known[depth[frame].tobytes()]))
    return pairs


@pytest.mark.parametrize(
    ("more", "edit", "still_s", "runs"),
    [
        (("--align", "nearest"), lambda samples: samples, 0.0, 1),
        (("--align", "drop"), lambda samples: samples, 0.0, 1),
        (("--align", "hold"), with_a_gap, 0.0, 1),
        (("--align", "nearest"), with_a_gap, 0.0, 2),
        (("--drop-idle",), lambda samples: samples, 0.9, 1),
    ],
)
def test_depth_is_of_the_picture_that_is_shown(tmp_path, more, edit, still_s, runs):
    # Without the tilt the arm stands still where it should.
    recordings = tmp_path / "recordings"
    episodes.make_episode(
        recordings / "day" / "a", seconds=1.8, still_s=still_s, edit=lambda samples: edit(with_depth(samples))
    )
    dataset = export(recordings, tmp_path / "dataset", *more)
    assert len(open_demonstrations(dataset, CAMERAS).episodes) == runs
    pairs = shown_and_measured(dataset, recordings)
    assert all(shown == measured for shown, measured in pairs)
    assert len({shown for shown, _ in pairs}) > 5


def test_a_slower_depth_camera_gives_the_picture_taken_closest(tmp_path):
    recordings = recorded(tmp_path / "recordings", at_half_the_rate)
    pairs = shown_and_measured(export(recordings, tmp_path / "dataset"), recordings)
    assert all(abs(shown - measured) <= 1 for shown, measured in pairs)
    assert any(shown != measured for shown, measured in pairs)


def test_the_recording_itself_may_be_named_where_it_alone_was_exported(tmp_path):
    recordings = recorded(tmp_path / "recordings") / "day" / "a"
    pairs = shown_and_measured(export(recordings, tmp_path / "dataset"), recordings)
    assert all(shown == measured for shown, measured in pairs)


def test_depth_that_stops_too_early_is_named_with_the_frame(tmp_path):
    def stopped(samples):
        return [it for it in samples if it.topic != DEPTH or episodes.stamp_of(it) < episodes.START_NS + 600_000_000]

    recordings = recorded(tmp_path / "recordings", stopped)
    dataset = export(recordings, tmp_path / "dataset")
    with pytest.raises(DatasetError, match=f"episode a: {DEPTH}: nothing within 0.05 s of the picture of frame"):
        shown_and_measured(dataset, recordings)


@pytest.mark.parametrize("line", ["", "{", "[]", '{"episode_index": 0}', "null"])
def test_notes_of_the_export_that_are_damaged_are_named(tmp_path, line):
    recordings = recorded(tmp_path / "recordings")
    dataset = export(recordings, tmp_path / "dataset")
    (dataset / "meta/source_frames.jsonl").write_text(line)
    with pytest.raises(DatasetError, match="source_frames.jsonl"):
        find_depth(dataset, recordings, "front", {0: 17})


def test_another_number_of_frames_than_was_noted_is_named(tmp_path):
    recordings = recorded(tmp_path / "recordings")
    dataset = export(recordings, tmp_path / "dataset")
    (count,) = (len(episode) for episode in open_demonstrations(dataset, CAMERAS).episodes)
    with pytest.raises(DatasetError, match=f"episode 0: {count} frames, the dataset has {count + 1}"):
        find_depth(dataset, recordings, "front", {0: count + 1})
    assert np.array_equal(find_depth(dataset, recordings, "front", {0: count})[0].moments, np.arange(count))
