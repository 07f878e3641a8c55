"""Actions computed from a path give the path back when they are run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.embodiment import Embodiment
from scipy.spatial.transform import Rotation
from teleop_recorder.alignment import Timing, align, image_topic, read_arm, read_picture_stamps
from teleop_recorder.episode import Episode
from teleop_recorder.motion_labels import action_rows, integrate, state_rows

from .episodes import make_episode

MILLIMETRE, TENTHS_OF_A_DEGREE = 1e-3, np.radians(0.1)


def embodiment(frame: str, rotation: str, scale: float = 1.0, gripper_open: str = "high") -> Embodiment:
    return Embodiment(
        frame=frame,
        rotation=rotation,
        translation_scale=scale,
        rotation_scale=10 * scale,
        gripper_open=gripper_open,
        step_period=1 / 15,
        cameras=("front",),
        rows=None,
    )


def smooth_path(seed: int, count: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """Positions [N, 3] and quaternions [N, 4] that wander in the workspace, hand about downwards."""
    random = np.random.default_rng(seed)
    t = np.linspace(0, 10, count)[:, None, None]
    waves = np.sin(t * random.uniform(0.2, 2.0, (1, 4, 6)) + random.uniform(0, 6, (1, 4, 6))).sum(1)  # [N, 6]
    turns = Rotation.from_rotvec(0.3 * waves[:, 3:])
    return [0.5, 0, 0.3] + 0.06 * waves[:, :3], (turns * Rotation.from_quat([1, 0, 0, 0])).as_quat()


def assert_same_path(positions, quaternions, other_positions, other_quaternions) -> None:
    assert np.linalg.norm(positions - other_positions, axis=1).max() < MILLIMETRE
    turn = Rotation.from_quat(quaternions).inv() * Rotation.from_quat(other_quaternions)
    assert turn.magnitude().max() < 2 * TENTHS_OF_A_DEGREE


@settings(deadline=None, max_examples=40)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["base", "end_effector"]),
    st.sampled_from(["rotation_vector", "rpy"]),
    st.floats(0.01, 2.0),
)
def test_integrating_the_actions_gives_back_a_smooth_path(seed, frame, rotation, scale):
    positions, quaternions = smooth_path(seed)
    convention = embodiment(frame, rotation, scale)
    rows = action_rows(positions[:, None], quaternions[:, None], np.ones((len(positions), 1)), convention)
    stored = rows.astype(np.float32)  # as in the dataset
    back = integrate(positions[0], quaternions[0], convention.to_deltas(stored), frame)
    assert_same_path(positions, quaternions, *back)


@pytest.mark.parametrize("targets", [False, True])
@pytest.mark.parametrize("rate", [15, 20])
def test_integrating_the_actions_gives_back_the_recorded_path(tmp_path, targets, rate):
    episode = Episode.open(make_episode(tmp_path / "episode"))
    arm = read_arm(episode, "", targets, commanded=False)
    cameras = read_picture_stamps(episode, {"front": image_topic(episode, "front")})
    (run,) = align(cameras, [arm], Timing(rate))
    convention = embodiment("end_effector", "rpy")
    rows = action_rows(run.motion_positions, run.motion_quaternions, run.openings, convention).astype(np.float32)
    positions, quaternions = integrate(
        run.motion_positions[0, 0], run.motion_quaternions[0, 0], convention.to_deltas(rows), convention.frame
    )
    recorded = arm.motion
    nearest = np.abs(recorded.stamps[:, None] - run.stamps).argmin(0)
    at_the_same_time = np.abs(recorded.stamps[nearest] - run.stamps) < 1e6  # ns
    assert at_the_same_time.any()
    chosen = nearest[at_the_same_time]
    assert_same_path(
        positions[at_the_same_time],
        quaternions[at_the_same_time],
        recorded.positions[chosen],
        recorded.quaternions[chosen],
    )


def test_gripper_of_a_row_is_the_opening_its_step_ends_with_in_the_embodiments_direction():
    positions, quaternions = smooth_path(0, 3)
    openings = np.array([[1.0], [0.75], [0.0]])
    for direction, expected in (("high", [0.75, 0.0]), ("low", [0.25, 1.0])):
        convention = embodiment("base", "rpy", gripper_open=direction)
        rows = action_rows(positions[:, None], quaternions[:, None], openings, convention)
        np.testing.assert_allclose(rows[:, 6], expected)


def test_rows_of_two_arms_stand_side_by_side():
    left, right = smooth_path(1, 5), smooth_path(2, 5)
    convention = embodiment("base", "rotation_vector")
    openings = np.array([[1.0, 0.0]] * 5)
    both = action_rows(np.stack([left[0], right[0]], 1), np.stack([left[1], right[1]], 1), openings, convention)
    assert both.shape == (4, 14)
    alone = action_rows(right[0][:, None], right[1][:, None], openings[:, 1:], convention)
    np.testing.assert_array_equal(both[:, 7:], alone)


def test_state_does_not_jump_where_a_quaternion_changes_its_sign():
    positions, quaternions = smooth_path(3)
    flipped = quaternions * np.where(np.arange(len(quaternions)) % 7 < 3, -1.0, 1.0)[:, None]
    openings = np.ones((len(positions), 1))
    state = state_rows(positions[:, None], flipped[:, None], openings)
    assert np.abs(np.diff(state[:, 3:7], axis=0)).max() < 0.2
    np.testing.assert_array_equal(state, state_rows(positions[:, None], -flipped[:, None], openings))
