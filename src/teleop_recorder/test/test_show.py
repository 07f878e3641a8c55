from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
from teleop_recorder import show
from teleop_recorder.commands import main
from teleop_recorder.curation import Curation
from teleop_recorder.episode import Episode
from teleop_recorder.errors import EpisodeError
from teleop_recorder.show import draw_episode, tool_speeds
from teleop_recorder.verification import find_defects, read

from .episodes import FRONT, GRIPPER, POSE, REACH, START_NS, WRIST, make_episode, number_of

CONFIG = Path(__file__).parents[3] / "config" / "curation.yaml"
SETTINGS = Curation.from_file(CONFIG)


def picture_of(directory, edit=None, **options):
    recording = read(Episode.open(make_episode(directory / "episode", edit=edit, **options)), SETTINGS)
    return draw_episode(recording, find_defects(recording))


def without(*topics):
    return lambda samples: [sample for sample in samples if sample.topic not in topics]


def pixels(picture, colour) -> int:
    return int((picture == np.array(colour, np.uint8)).all(axis=2).sum())


def test_good_episode_shows_every_camera_and_nothing_red(tmp_path):
    picture = picture_of(tmp_path)
    assert picture.shape[1] == show.WIDTH
    assert pixels(picture, show.BAD) == 0
    assert pixels(picture, (230, 230, 60)) > 2 * show.COLUMNS * 200  # the square in each of the sampled pictures


def test_frames_are_those_nearest_to_the_middles_of_equal_stretches(tmp_path):
    recording = read(Episode.open(make_episode(tmp_path / "episode", seconds=4.0)), SETTINGS)
    frames = show._sampled_frames(recording)
    assert list(frames) == [FRONT, WRIST]
    expected = [30 * 4.0 * (column + 0.5) / show.COLUMNS for column in range(show.COLUMNS)]
    assert [number_of(frame) for frame in frames[FRONT]] == pytest.approx(expected, abs=1)


def test_gap_is_red_for_as_long_as_it_lasts(tmp_path):
    def gap(samples):
        return [it for it in samples if it.topic != WRIST or not 1.0 < (it.log_ns - START_NS) / 1e9 < 2.0]

    picture = picture_of(tmp_path, gap)
    reds = (picture == np.array(show.BAD, np.uint8)).all(axis=2)
    lane = reds[reds.sum(axis=1).argmax()]
    assert lane.sum() == pytest.approx(show.PLOT / 3, rel=0.05)
    assert np.flatnonzero(lane)[0] == pytest.approx(show.LEFT + show.PLOT / 3, abs=20)


@pytest.mark.parametrize("topics", [[WRIST], [FRONT, WRIST], [POSE], [GRIPPER], [FRONT, WRIST, POSE, GRIPPER]])
def test_what_is_missing_is_said_and_the_rest_is_drawn(tmp_path, topics):
    assert pixels(picture_of(tmp_path, without(*topics)), show.BAD) > 1000


def test_poses_that_are_not_numbers_and_pictures_that_cannot_be_decoded_do_not_stop_it(tmp_path):
    def spoil(samples):
        for sample in samples:
            if sample.topic == POSE:
                sample.message.pose.position.x = math.nan
            if sample.topic == FRONT:
                sample.message.encoding = "yuv422"
        return samples

    assert picture_of(tmp_path, spoil).shape[1] == show.WIDTH


def test_words_that_are_too_long_are_cut(tmp_path):
    long = "put the thing that is left of the other thing into the drawer " * 20
    assert picture_of(tmp_path, instruction=long, reason=long, outcome="failure").shape[1] == show.WIDTH


def test_speed_is_that_of_the_analytic_motion(tmp_path):
    recording = read(Episode.open(make_episode(tmp_path / "episode")), SETTINGS)
    _, speeds, turns = tool_speeds(recording)
    # The peak of a motion without jerk at its ends is 15/8 of its mean.
    assert speeds.max() == pytest.approx(15 / 8 * np.linalg.norm(REACH) / 3.0, rel=0.01)
    assert turns.max() == pytest.approx(15 / 8 * 0.6 / 3.0, rel=0.01)


def test_episode_without_length_has_no_picture(tmp_path):
    with pytest.raises(EpisodeError, match="episode episode: has no length"):
        picture_of(tmp_path, lambda samples: samples[:1])


def test_show_writes_a_png_beside_each_episode_and_goes_on_after_one_without_length(tmp_path, capsys):
    make_episode(tmp_path / "ep_1", edit=lambda samples: samples[:1])
    make_episode(tmp_path / "ep_2", compressed=True)
    assert main(["show", str(tmp_path), "--config", str(CONFIG)]) == 1
    captured = capsys.readouterr()
    assert "ep_1: has no length" in captured.err
    assert captured.out == f"{tmp_path / 'ep_2.png'}: success, 0 defects\n"
    assert cv2.imread(str(tmp_path / "ep_2.png")).shape[1] == show.WIDTH


def test_show_into_a_folder_that_cannot_be_made_names_it(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    make_episode(tmp_path / "ep_1", seconds=1.2)
    assert main(["show", str(tmp_path / "ep_1"), "--out", str(tmp_path / "file"), "--config", str(CONFIG)]) == 1
    assert f"picture {tmp_path / 'file' / 'ep_1.png'}: cannot be written" in capsys.readouterr().err
