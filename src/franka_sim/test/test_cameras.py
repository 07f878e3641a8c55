import threading
from pathlib import Path

import mujoco
import numpy as np
import pytest
from franka_sim.cameras import DepthSensor, RgbdCamera
from franka_sim.errors import ConfigurationError
from franka_sim.scene import SceneConfig, SensorConfig
from franka_sim.simulation import Simulation

SCENE = Path(__file__).resolve().parents[3] / "config/scenes/tabletop.yaml"


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    simulation = Simulation(SceneConfig.load(SCENE))
    simulation.reset("place:red:blue", 3)
    return simulation


def in_world(camera: RgbdCamera, data, depth: np.ndarray) -> np.ndarray:
    """Pixels back to points [H, W, 3], by camera_info's definition alone."""
    k = camera.intrinsics
    v, u = np.mgrid[0 : k.height, 0 : k.width]
    rays = np.stack([(u - k.cx) / k.fx, (v - k.cy) / k.fy, np.ones_like(depth)], axis=-1)
    position, rotation = camera.pose(data)
    return (depth[..., None] * rays) @ rotation.T + position


@pytest.mark.parametrize(("width", "height"), [(640, 480), (424, 240)])
@pytest.mark.parametrize("name", ["front", "wrist"])
def test_depth_and_intrinsics_put_the_table_at_height_zero(
    simulation: Simulation, name: str, width: int, height: int
) -> None:
    data = simulation.copy_data()
    with RgbdCamera(simulation.model, name, width, height) as camera:
        points = in_world(camera, data, camera.depth(data))
    heights = points[..., 2][np.abs(points[..., 2]) < 0.004]
    assert heights.size > 0.4 * width * height
    assert abs(np.median(heights)) < 2e-4
    assert np.percentile(np.abs(heights), 95) < 1e-3


def test_cameras_of_two_threads_never_draw_at_once(simulation: Simulation, monkeypatch: pytest.MonkeyPatch) -> None:
    ready, both = threading.Barrier(2), threading.Barrier(2)
    draw = mujoco.mjr_render
    alone = []

    def draw_when_both_do(*arguments: object) -> None:
        try:
            both.wait(0.5)
        except threading.BrokenBarrierError:
            alone.append(True)
        draw(*arguments)

    def look(name: str) -> None:
        data = simulation.copy_data()
        with RgbdCamera(simulation.model, name, 64, 48) as camera:
            camera.colour(data)
            ready.wait()
            monkeypatch.setattr(mujoco, "mjr_render", draw_when_both_do)
            camera.colour(data)

    threads = [threading.Thread(target=look, args=(name,)) for name in ("front", "wrist")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert alone == [True, True]


def test_an_object_is_seen_where_its_position_projects_to_a_pixel(simulation: Simulation) -> None:
    data = simulation.copy_data()
    with RgbdCamera(simulation.model, "front", 640, 480) as camera:
        colour, depth = camera.render(data)
        points = in_world(camera, data, depth)
        cube = simulation.object_poses()["red_cube"][0]
        red = (colour[..., 0] > 60) & (colour[..., 1] < 45) & (colour[..., 2] < 45)
        top = red & (np.abs(points[..., 2] - 0.04) < 0.001)
        v, u = np.nonzero(top)
        projected = camera.project(np.add(cube, [0, 0, simulation.config.objects.cubes.size / 2]), data)
    assert u.size > 200
    assert np.hypot(u.mean() - projected[0], v.mean() - projected[1]) < 1.0


def test_colour_and_depth_of_one_pass_equal_those_of_two(simulation: Simulation) -> None:
    data = simulation.copy_data()
    with RgbdCamera(simulation.model, "wrist", 320, 240) as camera:
        colour, depth = camera.render(data)
        np.testing.assert_array_equal(colour, camera.colour(data))
        np.testing.assert_array_equal(depth, camera.depth(data))
    assert colour.shape == (240, 320, 3)
    assert colour.dtype == np.uint8
    assert depth.dtype == np.float32


def test_a_point_behind_the_camera_has_no_pixel(simulation: Simulation) -> None:
    camera = RgbdCamera(simulation.model, "front", 640, 480)
    assert np.isnan(camera.project(np.array([2.0, 0.0, 1.0]), simulation.copy_data())).all()


def test_the_workspace_is_inside_the_front_picture(simulation: Simulation) -> None:
    camera = RgbdCamera(simulation.model, "front", 640, 480)
    data = simulation.copy_data()
    corners = [(x, y, 0.0) for x in (0.35, 0.65) for y in (-0.22, 0.22)] + [(0.45, 0.0, 0.35)]
    for corner in corners:
        u, v = camera.project(np.array(corner), data)
        assert 0 <= u <= 639
        assert 0 <= v <= 479


@pytest.mark.parametrize("name", ["front", "wrist"])
def test_the_cube_between_the_fingers_is_inside_both_pictures(simulation: Simulation, name: str) -> None:
    camera = RgbdCamera(simulation.model, name, 640, 480)
    data = simulation.copy_data()
    u, v = camera.project(data.site("TCP").xpos, data)
    assert 0 <= u <= 639
    assert 0 <= v <= 479


@pytest.mark.parametrize(("name", "size"), [("nowhere", (640, 480)), ("front", (0, 480)), ("front", (4000, 480))])
def test_an_unknown_camera_or_an_impossible_size_is_refused(
    simulation: Simulation, name: str, size: tuple[int, int]
) -> None:
    with pytest.raises(ConfigurationError, match=name):
        RgbdCamera(simulation.model, name, *size)


def test_depth_outside_the_sensors_range_is_zero(scene: SceneConfig) -> None:
    for sensor in scene.sensors.values():
        inside = [sensor.minimum_range * 1.01, sensor.maximum_range * 0.99]
        outside = [sensor.minimum_range * 0.99, sensor.maximum_range * 1.01]
        measured = DepthSensor(sensor, seed=0).measure(np.array([inside, outside], np.float32))
        assert measured.dtype == np.uint16
        assert (measured[0] > 0).all()
        assert (measured[1] == 0).all()


def test_depth_noise_grows_with_distance_squared_and_is_the_seeds() -> None:
    config = SensorConfig(minimum_range=0.1, maximum_range=5.0, noise=0.003)
    spread = [
        DepthSensor(config, seed=1).measure(np.full((300, 300), distance, np.float32)).std() for distance in (1.0, 3.0)
    ]
    assert spread[0] == pytest.approx(3.0, rel=0.1)
    assert spread[1] == pytest.approx(27.0, rel=0.1)
    flat = np.full((20, 20), 1.0, np.float32)
    same, again, other = (DepthSensor(config, seed).measure(flat) for seed in (1, 1, 2))
    np.testing.assert_array_equal(same, again)
    assert (same != other).any()
