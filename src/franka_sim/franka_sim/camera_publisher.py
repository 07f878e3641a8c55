"""One simulated RealSense on the topics of realsense2_camera, rendered in a thread of its own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from molmoact_ros.diagnostics import RateMeter
from molmoact_ros.images import array_to_compressed, array_to_image
from molmoact_ros.node import ManagedNode
from molmoact_ros.qos import qos_profile
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from franka_sim.cameras import DepthSensor, Intrinsics, RgbdCamera
from franka_sim.scene import SensorConfig
from franka_sim.simulation import Simulation
from franka_sim.transforms import optical_frame

# The driver's publishers are SYSTEM_DEFAULT: reliable, keep last. The depth lets a subscriber be late without loss.
IMAGE_QOS = qos_profile("reliable", depth=5)
JPEG_QUALITY = 90
STOP_LATENCY_S = 0.1  # how late a thread without work notices that it shall end


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

    `offer` hands over the newest state. A state that waits for its turn while the one before is rendered is replaced by
    the next (`skipped` counts those); `wait` lets the camera catch up instead.
    """

    def __init__(
        self, node: ManagedNode, simulation: Simulation, settings: CameraSettings, sensor: SensorConfig, seed: int
    ) -> None:
        """Raises franka_sim.errors.ConfigurationError for a camera the model does not have and for a bad size."""
        self.settings = settings
        self.rate = RateMeter()
        self.skipped = 0
        self._simulation = simulation
        self._camera = RgbdCamera(simulation.model, settings.name, settings.width, settings.height)
        self._sensor = DepthSensor(sensor, seed)
        self._info = camera_info(self._camera.intrinsics, optical_frame(settings.name))
        self._changed = threading.Condition()
        self._waiting: Time | None = None  # stamp of the state in _offered
        self._rendering = False
        self._offered, self._shown = simulation.copy_data(), simulation.copy_data()
        self._create_publishers(node)
        # An OpenGL context belongs to one thread, from the first picture to the last.
        node.spawn(f"camera '{settings.name}'", self._run)

    def offer(self, stamp: Time) -> None:
        """Show the state of this moment as soon as possible. For the physics thread, between two steps."""
        if not any(publisher.get_subscription_count() for publisher in self._publishers):
            return
        with self._changed:
            self.skipped += self._waiting is not None
            self._simulation.copy_data(self._offered)
            self._waiting = stamp
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """True once everything offered has been published; False after `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: self._waiting is None and not self._rendering, timeout_s)

    def _create_publishers(self, node: ManagedNode) -> None:
        def publisher(kind: type, topic: str) -> Publisher:
            return node.create_publisher(kind, f"camera/{self.settings.name}/{topic}", IMAGE_QOS)

        self._colour = publisher(Image, "color/image_raw")
        self._colour_info = publisher(CameraInfo, "color/camera_info")
        self._publishers = [self._colour, self._colour_info]
        if self.settings.compressed:
            self._compressed = publisher(CompressedImage, "color/image_raw/compressed")
            self._publishers.append(self._compressed)
        if self.settings.depth:
            self._depth = publisher(Image, "aligned_depth_to_color/image_raw")
            self._depth_info = publisher(CameraInfo, "aligned_depth_to_color/camera_info")
            self._publishers += [self._depth, self._depth_info]

    def _run(self, stop: threading.Event) -> None:
        with self._camera:
            while not stop.is_set():
                stamp = self._take()
                if stamp is None:
                    continue
                self._publish(stamp)
                with self._changed:
                    self._rendering = False
                    self._changed.notify_all()

    def _take(self) -> Time | None:
        """The stamp of the state offered last, which then is in `_shown`; None when there was none for a while."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None, STOP_LATENCY_S)
            stamp, self._waiting = self._waiting, None
            if stamp is not None:
                self._offered, self._shown = self._shown, self._offered
                self._rendering = True
            return stamp

    def _publish(self, stamp: Time) -> None:
        self._info.header.stamp = stamp
        frame = self._info.header.frame_id
        raw = self._colour.get_subscription_count() > 0
        jpeg = self.settings.compressed and self._compressed.get_subscription_count() > 0
        depth = self.settings.depth and self._depth.get_subscription_count() > 0
        if depth:
            picture, distances = self._camera.render(self._shown)
        elif raw or jpeg:
            picture = self._camera.colour(self._shown)
        if raw:
            self._colour.publish(array_to_image(picture, "rgb8", stamp, frame))
        if jpeg:
            self._compressed.publish(array_to_compressed(picture, "jpeg", JPEG_QUALITY, stamp, frame))
        self._colour_info.publish(self._info)
        if depth:
            self._depth.publish(array_to_image(self._sensor.measure(distances), "16UC1", stamp, frame))
        if self.settings.depth:
            self._depth_info.publish(self._info)
        self.rate.tick(time.monotonic())
