"""A camera's calibration: its file, its errors, and that it projects as the simulator's camera does."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from franka_sim.cameras import RgbdCamera
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.calibration import CameraCalibration, Intrinsics
from molmoact_training.errors import DatasetError
from molmoact_training.simulator_calibration import simulator_calibration

SCENE = Path(__file__).resolve().parents[2] / "config/scenes/tabletop.yaml"
INTRINSICS = Intrinsics(640, 480, 600.0, 610.0, 320.5, 239.5, (0.1, -0.05, 0.001, 0.002, 0.0))
# Looks along the base frame's x from its origin: optical z is x, optical x is -y, optical y is -z.
AHEAD = CameraCalibration(INTRINSICS, (0.0, 0.0, 0.0), (-0.5, 0.5, -0.5, 0.5))


def written(tmp_path, **changes):
    path = tmp_path / "front.yaml"
    AHEAD.save(path)
    content = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
    return path


def test_a_point_ahead_is_at_the_principal_point_and_left_of_the_robot_is_left_in_the_picture():
    ahead, left, above = AHEAD.project([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [1.0, 0.0, 0.1]])
    assert ahead == pytest.approx([320.5, 239.5])
    assert left[0] < 300
    assert above[1] < 220


def test_a_point_behind_the_camera_has_no_pixel():
    pixels = AHEAD.project([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert np.isnan(pixels[0]).all()
    assert np.isfinite(pixels[1]).all()


def test_no_points_give_no_pixels():
    assert AHEAD.project(np.zeros((0, 3))).shape == (0, 2)


def test_saved_and_read_again_it_is_the_same(tmp_path):
    assert CameraCalibration.from_file(written(tmp_path)) == AHEAD


def test_intrinsics_are_read_from_a_file_with_or_without_a_pose(tmp_path):
    assert Intrinsics.from_file(written(tmp_path)) == INTRINSICS
    assert Intrinsics.from_file(written(tmp_path, position=None, quaternion=None)) == INTRINSICS


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fx": -1.0}, "fx"),
        ({"fy": math.nan}, "fy"),
        ({"cx": "middle"}, "cx"),
        ({"cy": None}, "cy"),
        ({"width": 640.5}, "width"),
        ({"height": True}, "height"),
        ({"distortion": [0.0, 0.1]}, "distortion"),
        ({"distortion": 3}, "distortion"),
        ({"position": [0.0, 0.0]}, "position"),
        ({"position": None}, "position"),
        ({"quaternion": [0.0, 0.0, 0.0, 0.0]}, "quaternion"),
        ({"quaternion": [0.0, 0.0, 0.0, math.inf]}, "quaternion"),
        ({"frame": "world"}, "frame"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path, changes, named):
    path = written(tmp_path, **changes)
    with pytest.raises(DatasetError, match=named) as caught:
        CameraCalibration.from_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["- 1", "fx: [", "", "7"])
def test_a_file_that_is_no_calibration_is_named(tmp_path, text):
    path = tmp_path / "front.yaml"
    path.write_text(text)
    with pytest.raises(DatasetError, match="front.yaml"):
        CameraCalibration.from_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="front.yaml"):
        CameraCalibration.from_file(tmp_path / "front.yaml")


@given(
    point=st.tuples(st.floats(0.5, 3.0), st.floats(-1.0, 1.0), st.floats(-1.0, 1.0)),
    size=st.tuples(st.integers(16, 2000), st.integers(16, 2000)),
)
def test_in_a_resized_picture_a_point_keeps_its_place(point, size):
    whole = AHEAD.project([point])[0]
    resized = AHEAD.resized(*size).project([point])[0]
    assert (resized + 0.5) / size == pytest.approx((whole + 0.5) / (640, 480), rel=1e-6, abs=1e-6)


def test_it_projects_as_the_simulated_camera_does():
    scene = SceneConfig.load(SCENE)
    simulation = Simulation(scene)
    simulation.reset("place", 3)
    data = simulation.copy_data()
    camera = RgbdCamera(simulation.model, "front", 640, 480)
    calibration = simulator_calibration(scene, "front")
    points = np.random.default_rng(0).uniform([0.3, -0.3, 0.0], [0.7, 0.3, 0.5], (20, 3))
    expected = [camera.project(point, data) for point in points]
    np.testing.assert_allclose(calibration.project(points), expected, atol=1e-6)
