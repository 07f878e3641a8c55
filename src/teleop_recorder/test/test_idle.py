"""Which frames are idle."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from teleop_recorder.idle import IdleRule, kept_frames

RATE = 10.0


def kept(x, turn=None, opening=None, rule: IdleRule | None = None) -> list[int]:
    """Numbers of the frames kept of an arm at x (m), turned about z (rad), with a gripper."""
    x = np.asarray(x, float)
    positions = np.stack([x, 0 * x, 0 * x], 1)[:, None]
    turns = np.zeros_like(x) if turn is None else np.asarray(turn, float)
    openings = np.ones_like(x) if opening is None else np.asarray(opening, float)
    quaternions = Rotation.from_euler("z", turns[:, None]).as_quat()[:, None]
    return np.flatnonzero(kept_frames(positions, quaternions, openings[:, None], RATE, rule or IdleRule())).tolist()


def test_inside_of_a_long_stretch_goes_and_its_ends_stay():
    x = [0.0] * 10 + [0.01 * n for n in range(1, 6)] + [0.05] * 10
    assert kept(x) == [0, *range(9, 15), 24]


def test_short_stretch_stays():
    x = [0.0, 0.01, 0.01, 0.01, 0.01, 0.02]
    assert kept(x) == list(range(6))


def test_gripper_that_moves_keeps_the_frames_of_an_arm_at_rest():
    opening = [1.0] * 10 + [0.8, 0.6, 0.4, 0.2] + [0.2] * 10
    assert kept([0.0] * 24, opening=opening) == [0, *range(9, 14), 23]


def test_turning_in_place_is_not_idle():
    assert kept([0.0] * 20, turn=0.01 * np.arange(20)) == list(range(20))


def test_speeds_at_the_limits_are_not_idle_and_a_limit_of_zero_is_a_limit():
    assert kept(0.001 * np.arange(20), rule=IdleRule(linear_speed=0.02)) == [0, 19]
    assert kept([0.0] * 20, rule=IdleRule(linear_speed=0.0)) == list(range(20))


def test_episode_without_motion_keeps_its_first_and_last_frame():
    assert kept([0.0] * 50) == [0, 49]


@pytest.mark.parametrize("wrong", [{"linear_speed": -1.0}, {"longer_than": float("nan")}])
def test_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .*, expected 0 or more"):
        IdleRule(**wrong)


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.01]), min_size=1, max_size=60))
def test_no_frame_beside_a_step_that_moves_is_removed(steps):
    numbers = kept(np.cumsum([0.0, *steps]))
    moving = {frame for step, distance in enumerate(steps) if distance for frame in (step, step + 1)}
    assert moving <= set(numbers) and {0, len(steps)} <= set(numbers)
