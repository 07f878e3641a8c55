"""One simulated RealSense on the topics of realsense2_camera, rendered in a thread of its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import mujoco
from builtin_interfaces.msg import Time
from molmoact_ros.images import array_to_compressed, array_to_image
from molmoact_ros.node import ManagedNode
from molmoact_ros.qos import qos_profile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from franka_sim.cameras import DepthSensor, Intrinsics, RgbdCamera
from franka_sim.scene import SensorConfig
from franka_sim.simulation import Simulation
from franka_sim.transforms import optical_frame

# The driver's publishers are SYSTEM_DEFAULT: reliable, keep last. The depth lets a subscriber be some frames late without loss.
IMAGE_QOS = qos_profile("reliable", depth=5)
JPEG_QUALITY = 90


@dataclass(frozen=True)
class CameraSettings:
    """One camera as the parameters describe it; `name` is that of a camera in the model."""

    name: str
    width: int  # px
    height: int  # px
    rate: float  # Hz, simulated time
    depth: bool
    compressed: bool


def camera_info(intrinsics: Intrinsics, frame_id: str) -> CameraInfo:
    """The pinhole of the rendered picture: no distortion, and rectified already (R = 1, P = K)."""
    k = intrinsics
    info = CameraInfo(width=k.width, height=k.height, distortion_model="plumb_bob", d=[0.0] * 5)
    info.header.frame_id = frame_id
    info.k = [k.fx, 0.0, k.cx, 0.0, k.fy, k.cy, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [k.fx, 0.0, k.cx, 0.0, 0.0, k.fy, k.cy, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


class CameraPublisher:
    """Renders and publishes what somebody subscribes to: a picture nobody asked for costs nothing.

    `offer` hands over the newest state. While a frame is being rendered the next one waits, and is replaced by a newer
    one (`skipped` counts those); with `wait` a caller lets the camera catch up instead.
    """

    def __init__(
        self, node: ManagedNode, simulation: Simulation, settings: CameraSettings, sensor: SensorConfig, seed: int
    ) -> None:
        """Raises franka_sim.errors.ConfigurationError for an unknown camera or a bad size, and whatever OpenGL does."""
        self.settings = settings
        self._camera = RgbdCamera(simulation.model, settings.name, settings.width, settings.height)
        self._sensor = DepthSensor(sensor, seed)
        self._info = camera_info(self._camera.intrinsics, optical_frame(settings.name))
        self._spare = [mujoco.MjData(simulation.model) for _ in range(3)]  # one rendered, one waiting, one being filled
        self._lock = threading.Lock()
        self._idle = threading.Condition(self._lock)
        self._waiting: tuple[Time, mujoco.MjData] | None = None
        self._busy = False
        self.published = 0
        self.skipped = 0
        self._create_publishers(node)
        # An OpenGL context belongs to one thread, from the first picture to the last.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"camera {settings.name}")
        try:
            self._thread.submit(self._camera.colour, simulation.copy_data()).result()
        except BaseException:
            self.close()
            raise

    def _create_publishers(self, node: ManagedNode) -> None:
        def publisher(kind: type, topic: str):
            return node.create_publisher(kind, f"camera/{self.settings.name}/{topic}", IMAGE_QOS)

        self._colour = publisher(Image, "color/image_raw")
        self._colour_info = publisher(CameraInfo, "color/camera_info")
        self._compressed = (
            publisher(CompressedImage, "color/image_raw/compressed") if self.settings.compressed else None
        )
        self._depth = publisher(Image, "aligned_depth_to_color/image_raw") if self.settings.depth else None
        self._depth_info = publisher(CameraInfo, "aligned_depth_to_color/camera_info") if self.settings.depth else None
