"""Traces: what the simulator's camera sees, how many points, and what is left out."""

from pathlib import Path

import numpy as np
import pytest
from franka_sim.cameras import RgbdCamera
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from hypothesis import given
from hypothesis import strategies as st
from molmoact_training.calibration import CameraCalibration, Intrinsics
from molmoact_training.traces import across_picture, frame_traces, pointed_points, projected_points, prompts, traces
from scipy.spatial.transform import Rotation

SCENE = Path(__file__).resolve().parents[2] / "config/scenes/tabletop.yaml"
SIZE = (320, 240)

points = st.lists(
    st.tuples(st.floats(-50, 300), st.floats(-50, 300)) | st.just((np.nan, np.nan)), min_size=1, max_size=40
)


def test_a_projected_trace_is_where_the_simulated_camera_shows_the_gripper():
    """Within a pixel of 640x480, although the picture stored is half that size and a trace has 256 steps."""
    simulation = Simulation(SceneConfig.load(SCENE))
    simulation.reset("pick:red", 0)
    data = simulation.copy_data()
    camera = RgbdCamera(simulation.model, "front", 640, 480)
    position, rotation = camera.pose(data)
    k = camera.intrinsics
    calibration = CameraCalibration(
        Intrinsics(k.width, k.height, k.fx, k.fy, k.cx, k.cy),
        tuple(position.tolist()),
        tuple(Rotation.from_matrix(rotation).as_quat().tolist()),
    )
    path = np.linspace([0.40, -0.15, 0.30], [0.52, 0.12, 0.05], 30)
    expected = np.array([camera.project(point, data) for point in path])
    shown = projected_points(path, calibration, SIZE)
    assert np.abs(shown / 255 * (np.array(SIZE) - 1) * 2 + 0.5 - expected).max() < 1e-6
    (first,) = frame_traces([shown])[0]
    seen = first / 255 * (np.array(SIZE) - 1) * 2 + 0.5
    step = np.array([640, 480]) / 256  # of a coordinate of the trace
    chosen = expected[[0, 7, 14, 21, 29]]
    assert np.all(np.abs(seen - chosen) <= step / 2 + 0.01)
    unrounded = projected_points(path[[0, 7, 14, 21, 29]], calibration, SIZE)
    assert np.array_equal(first, np.rint(unrounded))


@given(points)
def test_a_trace_is_of_the_future_only_and_keeps_its_ends(given_points):
    array = np.array(given_points)
    there = np.isfinite(array).all(1)
    for frame, trace in enumerate(traces(array)):
        future = array[frame:][there[frame:]]
        if not len(future):
            assert trace is None
            continue
        assert trace.dtype == np.uint8 and len(trace) == min(5, len(future))
        assert np.array_equal(trace[[0, -1]], np.rint(future[[0, -1]].clip(0, 255)))


def test_more_than_five_points_are_chosen_as_the_release_does():
    array = np.stack([np.arange(12.0), np.zeros(12)], 1)
    assert traces(array)[0][:, 0].tolist() == [0, 2, 5, 8, 11]
    assert traces(array)[9][:, 0].tolist() == [9, 10, 11]


def test_the_last_column_and_row_are_255():
    assert across_picture([[319, 239], [0, 0]], SIZE).tolist() == [[255, 255], [0, 0]]


def test_where_the_model_points_at_nothing_there_is_no_point():
    images = [np.full((240, 320, 3), value, np.uint8) for value in (0, 1)]
    seen = pointed_points(images, lambda image, prompt: (319.0, 0.0) if image.max() else None, "point")
    assert np.isnan(seen[0]).all() and seen[1].tolist() == [255.0, 0.0]


def test_two_arms_are_pointed_at_apart():
    assert prompts(1) == ["point to the robot gripper"]
    assert prompts(2) == ["point to the robot gripper on the left", "point to the robot gripper on the right"]


def test_a_frame_has_traces_only_when_every_arm_has_one():
    there, nowhere = np.zeros((2, 2)), np.array([[1.0, 1.0], [np.nan, np.nan]])
    both, one = frame_traces([there, nowhere])
    assert [len(trace) for trace in both] == [2, 1]
    assert one is None


def test_a_picture_of_one_pixel_does_not_divide_by_zero():
    assert across_picture([[0, 0]], (1, 1)) == pytest.approx(0)
