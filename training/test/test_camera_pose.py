"""A camera is found again from noisy clicks, what does not fit is left out, and points that cannot tell are refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_training.calibration import CameraCalibration, Intrinsics
from molmoact_training.camera_pose import find_camera, spread_out
from molmoact_training.errors import DatasetError
from scipy.spatial.transform import Rotation

INTRINSICS = Intrinsics(640, 480, 600.0, 600.0, 319.5, 239.5, (0.08, -0.1, 0.001, -0.001, 0.0))
CENTRE = np.array([0.5, 0.0, 0.25])
DOWN = Rotation.from_quat([1.0, 0.0, 0.0, 0.0])


def camera_at(azimuth, elevation, distance, roll=0.0):
    """A camera that looks at the middle of the workspace."""
    offset = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    z = -offset
    x = np.cross(z, [0.0, 0.0, 1.0])
    x /= np.linalg.norm(x)
    rotation = Rotation.from_matrix(np.stack([x, np.cross(z, x), z], 1)) * Rotation.from_rotvec([0, 0, roll])
    return CameraCalibration(
        INTRINSICS, tuple((CENTRE + distance * offset).tolist()), tuple(rotation.as_quat().tolist())
    )


def poses(rng, count, turn=0.3):
    """Positions [n, 3] in a workspace, orientations fingers down and turned a little."""
    positions = CENTRE + rng.uniform([-0.2, -0.25, -0.2], [0.2, 0.25, 0.2], (count, 3))
    return positions, (DOWN * Rotation.from_rotvec(rng.normal(0, turn, (count, 3)))).as_quat()


def distances(found, true):
    """(m, rad) between two cameras."""
    turned = (found.rotation.inv() * true.rotation).magnitude()
    return np.linalg.norm(np.subtract(found.position, true.position)), turned


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.floats(-3.1, 3.1),
    st.floats(0.1, 1.3),
    st.floats(0.9, 1.6),
    st.floats(-0.3, 0.3),
    st.integers(12, 40),
)
def test_a_camera_is_found_from_clicks_that_are_a_pixel_off(seed, azimuth, elevation, distance, roll, count):
    rng = np.random.default_rng(seed)
    true = camera_at(azimuth, elevation, distance, roll)
    positions, quaternions = poses(rng, count)
    pixels = true.project(positions) + rng.normal(0, 1, (count, 2))
    found = find_camera(positions, quaternions, pixels, INTRINSICS)
    moved, turned = distances(found.calibration, true)
    assert moved < 0.05
    assert turned < np.deg2rad(2.5)
    assert np.median(found.errors) < 2.0
    # Its own idea of how good it is holds, with room for few points.
    assert moved < 8 * found.position_sd
    assert turned < 8 * found.rotation_sd


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(-2.0, 2.0))
def test_wrong_clicks_are_left_out_by_name(seed, azimuth):
    rng = np.random.default_rng(seed)
    true = camera_at(azimuth, 0.6, 1.2)
    positions, quaternions = poses(rng, 30)
    pixels = true.project(positions) + rng.normal(0, 1, (30, 2))
    wrong = rng.choice(30, 8, replace=False)
    angles = rng.uniform(0, 2 * np.pi, 8)
    pixels[wrong] += rng.uniform(40, 200, (8, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
    found = find_camera(positions, quaternions, pixels, INTRINSICS)
    assert sorted(np.flatnonzero(~found.fits)) == sorted(wrong)
    moved, turned = distances(found.calibration, true)
    assert moved < 0.05
    assert turned < np.deg2rad(2.5)


def test_without_noise_it_is_exact():
    rng = np.random.default_rng(1)
    true = camera_at(0.4, 0.5, 1.1)
    positions, quaternions = poses(rng, 10)
    found = find_camera(positions, quaternions, true.project(positions), INTRINSICS)
    moved, turned = distances(found.calibration, true)
    assert moved < 1e-5
    assert turned < 1e-5
    assert found.fits.all()


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.03), (0.02, -0.01, -0.04)])
def test_a_tool_point_off_the_end_effector_is_estimated(offset):
    rng = np.random.default_rng(2)
    true = camera_at(0.4, 0.5, 1.1)
    positions, quaternions = poses(rng, 40, turn=0.5)
    seen = positions + Rotation.from_quat(quaternions).apply(offset)
    pixels = true.project(seen) + rng.normal(0, 0.5, (40, 2))
    pixels[3] += 150
    found = find_camera(positions, quaternions, pixels, INTRINSICS, estimate_offset=True)
    assert found.tool_offset == pytest.approx(offset, abs=0.005)
    assert np.flatnonzero(~found.fits).tolist() == [3]
    assert distances(found.calibration, true)[0] < 0.02


def test_an_offset_is_refused_when_the_hand_never_turns():
    rng = np.random.default_rng(3)
    positions, quaternions = poses(rng, 20, turn=0.01)
    with pytest.raises(DatasetError, match="turns by"):
        find_camera(
            positions, quaternions, camera_at(0.4, 0.5, 1.1).project(positions), INTRINSICS, estimate_offset=True
        )


@pytest.mark.parametrize(
    ("flatten", "named"),
    [((1, 1, 0), "in a plane"), ((1, 0, 0), "on a line"), ((0, 0, 0), "on a line")],
)
def test_points_in_a_plane_or_on_a_line_are_refused(flatten, named):
    positions, quaternions = poses(np.random.default_rng(4), 20)
    positions = CENTRE + (positions - CENTRE) * flatten
    with pytest.raises(DatasetError, match=named):
        find_camera(positions, quaternions, camera_at(0.4, 0.5, 1.1).project(positions), INTRINSICS)


def test_five_points_are_too_few():
    positions, quaternions = poses(np.random.default_rng(5), 5)
    with pytest.raises(DatasetError, match="5, expected at least 6"):
        find_camera(positions, quaternions, camera_at(0.4, 0.5, 1.1).project(positions), INTRINSICS)


def test_clicks_that_no_camera_explains_are_refused():
    rng = np.random.default_rng(6)
    positions, quaternions = poses(rng, 12)
    with pytest.raises(DatasetError, match="no camera sees 6 of the 12"):
        find_camera(positions, quaternions, rng.uniform(0, 480, (12, 2)), INTRINSICS, threshold=2.0)


def test_chosen_frames_are_far_apart_and_repeated_places_are_chosen_once():
    rng = np.random.default_rng(7)
    crowd = np.full((500, 3), 0.5) + rng.normal(0, 0.001, (500, 3))
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
    chosen = spread_out(np.concatenate([crowd, corners]), 9)
    assert set(range(500, 508)) <= set(chosen.tolist())
    assert len(chosen) == 9
    assert len(spread_out(np.zeros((5, 3)), 3)) == 1
