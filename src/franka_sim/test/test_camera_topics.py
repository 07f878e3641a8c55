"""The published pictures, checked with what a stranger has: camera_info, /tf, and a scene that the seed gives away."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from franka_sim.rotations import matrix_from_quaternion
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from molmoact_ros.images import compressed_to_array, image_to_array
from molmoact_ros.stamps import to_nanoseconds
from processes import wait_for
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage

SEED = 21
FRONT = "camera/front"
FRAME_PERIOD_NS = 1e9 / 30.0


@pytest.fixture(scope="module")
def cameras(simulator):
    for camera in ("front", "wrist"):
        simulator.watch(Image, f"camera/{camera}/color/image_raw")
        simulator.watch(CameraInfo, f"camera/{camera}/color/camera_info")
        simulator.watch(Image, f"camera/{camera}/aligned_depth_to_color/image_raw")
        simulator.watch(CameraInfo, f"camera/{camera}/aligned_depth_to_color/camera_info")
    simulator.watch(TFMessage, "/tf")
    return simulator


def red_cube_corners(config: SceneConfig, task: str, seed: int) -> np.ndarray:
    """[8, 3] m in the world, from the same seed."""
    simulation = Simulation(config)
    simulation.reset(task, seed)
    position, quaternion = simulation.object_poses()["red_cube"]
    half = config.objects.cubes.size / 2
    corners = np.array(list(itertools.product((-half, half), repeat=3)))
    return corners @ matrix_from_quaternion(quaternion).T + position


def world_to_frame(transforms: TFMessage, frame: str, points: np.ndarray) -> np.ndarray:
    """[n, 3] world points in `frame`, along the chain of /tf."""
    found = {t.child_frame_id: t for t in transforms.transforms}
    chain = [frame]
    while chain[-1] in found:
        chain.append(found[chain[-1]].header.frame_id)
    for child in reversed(chain[:-1]):
        translation, rotation = found[child].transform.translation, found[child].transform.rotation
        matrix = matrix_from_quaternion(np.array([rotation.x, rotation.y, rotation.z, rotation.w]))
        points = (points - [translation.x, translation.y, translation.z]) @ matrix
    return points


def project(info: CameraInfo, points: np.ndarray) -> np.ndarray:
    """[n, 3] in the optical frame -> [n, 2] pixels (u, v), by the matrix P."""
    homogeneous = np.column_stack([points, np.ones(len(points))]) @ np.array(info.p).reshape(3, 4).T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def red_pixels(picture: np.ndarray) -> np.ndarray:
    """Mask [H, W] of what can only be the red cube."""
    red, green, blue = (picture[..., i].astype(int) for i in range(3))
    return (red > 60) & (red > 2.5 * green) & (red > 2.5 * blue)


def test_the_red_cube_is_drawn_where_camera_info_and_tf_say(cameras, scene):
    assert cameras.reset("pick", SEED).success
    picture = image_to_array(cameras.next(f"{FRONT}/color/image_raw"))
    info = cameras.newest(f"{FRONT}/color/camera_info")
    points = world_to_frame(cameras.next("/tf"), info.header.frame_id, red_cube_corners(scene, "pick", SEED))
    corners = project(info, points)
    v, u = np.nonzero(red_pixels(picture))
    # Pixel i covers i - 0.5 .. i + 0.5, so the outermost red pixels are within one of the outermost corners.
    assert [u.min(), v.min()] == pytest.approx(corners.min(axis=0), abs=1.0)
    assert [u.max(), v.max()] == pytest.approx(corners.max(axis=0), abs=1.0)


def test_aligned_depth_lies_over_the_colour_picture_in_millimetres(cameras, scene):
    assert cameras.reset("pick", SEED).success
    depth_message = cameras.next(f"{FRONT}/aligned_depth_to_color/image_raw")
    picture = image_to_array(cameras.next(f"{FRONT}/color/image_raw"))
    info = cameras.newest(f"{FRONT}/aligned_depth_to_color/camera_info")
    points = world_to_frame(cameras.next("/tf"), info.header.frame_id, red_cube_corners(scene, "pick", SEED))
    assert depth_message.encoding == "16UC1"
    seen = image_to_array(depth_message)[red_pixels(picture)]
    near, far = 1000 * points[:, 2].min(), 1000 * points[:, 2].max()
    noise = 5.0
    assert np.percentile(seen, 2) > near - noise
    assert np.percentile(seen, 98) < far + noise


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_a_frame_its_info_and_its_depth_have_one_stamp_frame_and_size(cameras, camera):
    topics = [
        f"camera/{camera}/{stream}/{kind}"
        for stream in ("color", "aligned_depth_to_color")
        for kind in ("image_raw", "camera_info")
    ]

    def messages_of_one_frame():
        messages = [cameras.newest(topic) for topic in topics]
        return messages if len({to_nanoseconds(m.header.stamp) for m in messages}) == 1 else None

    messages = wait_for(messages_of_one_frame, "four messages with one stamp")
    assert {m.header.frame_id for m in messages} == {f"camera_{camera}_color_optical_frame"}
    assert {(m.width, m.height) for m in messages} == {(640, 480)}
    info = messages[1]
    assert info.distortion_model == "plumb_bob" and list(info.d) == [0.0] * 5
    assert [*info.k[:3], *info.k[3:6]] == [*info.p[:3], *info.p[4:7]]


def test_the_same_seed_gives_the_same_scene_and_another_seed_another(cameras):
    def laid_out(seed: int) -> np.ndarray:
        assert cameras.reset("pick", seed).success
        return red_pixels(image_to_array(cameras.next(f"{FRONT}/color/image_raw")))

    first, other, again = laid_out(SEED), laid_out(SEED + 1), laid_out(SEED)
    assert (first == again).all()
    assert (first != other).any()


def test_jpeg_is_offered_where_it_is_asked_for(cameras):
    cameras.watch(CompressedImage, f"{FRONT}/color/image_raw/compressed")
    raw = image_to_array(cameras.next(f"{FRONT}/color/image_raw")).astype(float)
    jpeg = compressed_to_array(cameras.next(f"{FRONT}/color/image_raw/compressed"))
    assert np.abs(raw - jpeg).mean() < 3.0
    assert not cameras.get_publishers_info_by_topic("/camera/wrist/color/image_raw/compressed")


def test_on_the_simulated_clock_no_frame_is_skipped(cameras):
    messages = cameras.record(CameraInfo, f"{FRONT}/color/camera_info")
    wait_for(lambda: len(messages) >= 30, "30 frames")
    stamps = [to_nanoseconds(message.header.stamp) for message in messages[:30]]
    assert np.diff(stamps) == pytest.approx(FRAME_PERIOD_NS, abs=1.5e6)
