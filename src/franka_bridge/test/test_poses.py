from __future__ import annotations

import math

import numpy as np
import pytest
from franka_bridge.poses import Pose, quaternion_exp, quaternion_log, quaternion_multiply, rotate
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

vectors = st.tuples(*(st.floats(-1.8, 1.8),) * 3).map(np.array)
quaternions = (
    st.tuples(*(st.floats(-1.0, 1.0),) * 4)
    .filter(lambda q: np.linalg.norm(q) > 0.1)
    .map(lambda q: np.array(q) / np.linalg.norm(q))
)


def same_rotation(a, b) -> bool:
    return abs(abs(float(np.dot(a, b))) - 1.0) < 1e-12


@given(vectors)
def test_exp_and_log_agree_with_scipy(vector):
    assert same_rotation(quaternion_exp(vector), Rotation.from_rotvec(vector).as_quat())
    np.testing.assert_allclose(
        quaternion_log(quaternion_exp(vector)), Rotation.from_rotvec(vector).as_rotvec(), atol=1e-9
    )


@given(quaternions, quaternions, vectors)
def test_products_and_rotations_agree_with_scipy(a, b, vector):
    assert same_rotation(quaternion_multiply(a, b), (Rotation.from_quat(a) * Rotation.from_quat(b)).as_quat())
    np.testing.assert_allclose(rotate(a, vector), Rotation.from_quat(a).apply(vector), atol=1e-12)


@given(quaternions)
def test_log_takes_the_short_way_round(q):
    assert np.linalg.norm(quaternion_log(q)) <= math.pi + 1e-12
    assert np.linalg.norm(quaternion_log(-q)) <= math.pi + 1e-12


@pytest.mark.parametrize("scale", [0.0, 1e-300, 1e-12, 1e-8])
def test_tiny_rotations_survive_exp_and_log(scale):
    vector = np.array([1.0, -2.0, 0.5]) * scale
    np.testing.assert_allclose(quaternion_log(quaternion_exp(vector)), vector, rtol=1e-9)


def test_a_step_in_the_base_frame_composes_on_the_left_and_one_in_the_tool_frame_on_the_right():
    # The tool is turned a quarter about z: its x axis is the base's y axis.
    pose = Pose.of((0.5, 0.0, 0.3), (0.0, 0.0, math.sqrt(0.5), math.sqrt(0.5)))
    step, turn = np.array([0.1, 0.0, 0.0]), np.array([0.2, 0.0, 0.0])
    base, tool = pose.moved(step, turn), pose.moved_in_tool(step, turn)
    np.testing.assert_allclose(base.position, [0.6, 0.0, 0.3], atol=1e-12)
    np.testing.assert_allclose(tool.position, [0.5, 0.1, 0.3], atol=1e-12)
    rotation = Rotation.from_quat(pose.quaternion)
    assert same_rotation(base.quaternion, (Rotation.from_rotvec(turn) * rotation).as_quat())
    assert same_rotation(tool.quaternion, (rotation * Rotation.from_rotvec(turn)).as_quat())


def test_way_between_two_poses_is_straight_and_even():
    start, end = Pose.of((0.0, 0.0, 0.0), (0, 0, 0, 1)), Pose.of((1.0, 2.0, 0.0), (0.0, 0.0, 1.0, 1.0))
    middle = start.towards(end, 0.5)
    np.testing.assert_allclose(middle.position, [0.5, 1.0, 0.0])
    assert middle.angle(start) == pytest.approx(math.pi / 4)
    assert middle.angle(end) == pytest.approx(math.pi / 4)


@pytest.mark.parametrize(
    ("position", "quaternion"),
    [
        ((math.nan, 0, 0), (0, 0, 0, 1)),
        ((0, 0, 0), (0, 0, math.inf, 1)),
        ((0, 0, 0), (0, 0, 0, 0)),
        ((0, 0), (0, 0, 0, 1)),
    ],
)
def test_numbers_that_are_no_pose_are_refused(position, quaternion):
    with pytest.raises(ValueError, match="pose"):
        Pose.of(position, quaternion)
