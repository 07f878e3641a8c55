import math

import numpy as np
from franka_sim.rotations import (
    matrix_from_quaternion,
    matrix_from_vector,
    quaternion_from_matrix,
    vector_from_matrix,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

components = st.floats(-1.0, 1.0)
angles = st.one_of(st.floats(0.0, math.pi), st.sampled_from([0.0, 1e-12, 1e-9, 1e-6, math.pi - 1e-6, math.pi]))


@st.composite
def rotation_vectors(draw: st.DrawFn) -> np.ndarray:
    axis = np.array([draw(components), draw(components), draw(components)])
    length = np.linalg.norm(axis)
    return draw(angles) * (axis / length if length > 1e-3 else np.array([0.0, 0.0, 1.0]))


@settings(deadline=None)
@given(rotation_vectors())
def test_exponential_map_agrees_with_scipy(vector: np.ndarray) -> None:
    np.testing.assert_allclose(matrix_from_vector(vector), Rotation.from_rotvec(vector).as_matrix(), atol=1e-12)


@settings(deadline=None)
@given(rotation_vectors())
def test_logarithm_leads_back_to_the_same_rotation_up_to_half_a_turn(vector: np.ndarray) -> None:
    matrix = matrix_from_vector(vector)
    logarithm = vector_from_matrix(matrix)
    assert np.linalg.norm(logarithm) <= math.pi + 1e-9
    np.testing.assert_allclose(matrix_from_vector(logarithm), matrix, atol=1e-7)


@settings(deadline=None)
@given(rotation_vectors())
def test_quaternion_of_a_matrix_is_a_unit_and_leads_back(vector: np.ndarray) -> None:
    matrix = matrix_from_vector(vector)
    quaternion = quaternion_from_matrix(matrix)
    assert quaternion[3] >= 0.0
    assert math.isclose(np.linalg.norm(quaternion), 1.0, abs_tol=1e-12)
    np.testing.assert_allclose(matrix_from_quaternion(quaternion), matrix, atol=1e-9)
