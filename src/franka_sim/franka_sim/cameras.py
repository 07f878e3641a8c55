"""RealSense-like cameras: colour and aligned depth from one rendering pass, and the sensor's faults.

Pixel coordinates are those of sensor_msgs/CameraInfo: u to the right, v down, (0, 0) is the centre of the first pixel.
A camera belongs to the thread that first renders with it (its OpenGL context does) and is closed explicitly.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import mujoco
import mujoco.gl_context
import numpy as np

from franka_sim.errors import ConfigurationError
from franka_sim.scene import SensorConfig

MAXIMUM_GEOMS = 1000
# Of all cameras. Mesa's software renderer (22.3) has threads that all contexts share. While two threads of ours drew,
# it once read beyond the end of its list of what a scene uses, and the simulator was gone. One at a time: a precaution.
_RENDERING = threading.Lock()
OPTICAL_FROM_MUJOCO = np.diag([1.0, -1.0, -1.0])  # optical frames look along +z with y down (REP 103)


@dataclass(frozen=True)
class Intrinsics:
    """Pinhole parameters in pixels, without distortion."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float


class RgbdCamera:
    """One camera of the model at a resolution; the horizontal field of view follows from the aspect ratio."""

    def __init__(self, model: mujoco.MjModel, name: str, width: int, height: int):
        """`name` as in the model ("front", "wrist", "left_wrist"). ConfigurationError if unknown or too large."""
        self._id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, name)
        if self._id < 0:
            known = ", ".join(model.camera(i).name for i in range(model.ncam))
            raise ConfigurationError(f"camera {name!r} is not in the scene ({known})")
        limits = model.vis.global_.offwidth, model.vis.global_.offheight
        if not (0 < width <= limits[0] and 0 < height <= limits[1]):
            raise ConfigurationError(
                f"camera {name!r}: {width}x{height} pixels, expected up to {limits[0]}x{limits[1]}"
            )
        self.name = name
        focal = 0.5 * height / math.tan(0.5 * math.radians(model.cam_fovy[self._id]))
        self.intrinsics = Intrinsics(width, height, focal, focal, 0.5 * (width - 1), 0.5 * (height - 1))
        self._model = model
        self._near = model.vis.map.znear * model.stat.extent
        self._far = model.vis.map.zfar * model.stat.extent
        self._gl: mujoco.gl_context.GLContext | None = None

    def render(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """(colour uint8 [H, W, 3] RGB, depth float32 [H, W] m along the optical axis), both from one pass."""
        with _RENDERING:
            self._draw(data)
            colour, depth = self._buffers()
            mujoco.mjr_readPixels(colour, depth, self._rectangle, self._context)
        return np.flipud(colour), self._to_metres(np.flipud(depth))

    def colour(self, data: mujoco.MjData) -> np.ndarray:
        """Colour alone, uint8 [H, W, 3] RGB."""
        with _RENDERING:
            self._draw(data)
            colour, _ = self._buffers()
            mujoco.mjr_readPixels(colour, None, self._rectangle, self._context)
        return np.ascontiguousarray(np.flipud(colour))

    def depth(self, data: mujoco.MjData) -> np.ndarray:
        """Depth alone, float32 [H, W] m along the optical axis, perfect; see `DepthSensor` for what a sensor gives."""
        return self.render(data)[1]

    def pose(self, data: mujoco.MjData) -> tuple[np.ndarray, np.ndarray]:
        """(position [3] m, rotation [3, 3]) of the colour optical frame in the world."""
        rotation = data.cam_xmat[self._id].reshape(3, 3) @ OPTICAL_FROM_MUJOCO
        return data.cam_xpos[self._id].copy(), rotation

    def project(self, point: np.ndarray, data: mujoco.MjData) -> tuple[float, float]:
        """Pixel (u, v) of a world point [3] m, also outside the picture; (nan, nan) behind the camera."""
        position, rotation = self.pose(data)
        x, y, z = rotation.T @ (np.asarray(point, dtype=float) - position)
        if z <= 0.0:
            return math.nan, math.nan
        k = self.intrinsics
        return k.fx * x / z + k.cx, k.fy * y / z + k.cy

    def close(self) -> None:
        """Free the OpenGL context, in the thread that rendered; rendering again opens a new one."""
        if self._gl is not None:
            with _RENDERING:
                self._gl.make_current()
                self._context.free()
                self._gl.free()
            self._gl = None

    def __enter__(self) -> RgbdCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _draw(self, data: mujoco.MjData) -> None:
        if self._gl is None:
            self._gl = self._open()
        self._gl.make_current()
        mujoco.mjv_updateScene(
            self._model, data, self._options, None, self._view, mujoco.mjtCatBit.mjCAT_ALL.value, self._scene
        )
        mujoco.mjr_render(self._rectangle, self._scene, self._context)

    def _open(self) -> mujoco.gl_context.GLContext:
        k = self.intrinsics
        gl = mujoco.gl_context.GLContext(k.width, k.height)
        gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model=self._model, maxgeom=MAXIMUM_GEOMS)
        self._rectangle = mujoco.MjrRect(0, 0, k.width, k.height)
        self._options = mujoco.MjvOption()
        self._options.flags[mujoco.mjtVisFlag.mjVIS_CONVEXHULL] = True  # a tenth of the faces, hardly another picture
        self._options.sitegroup[:] = False
        self._view = mujoco.MjvCamera()
        self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._view.fixedcamid = self._id
        return gl

    def _buffers(self) -> tuple[np.ndarray, np.ndarray]:
        shape = self.intrinsics.height, self.intrinsics.width
        return np.empty((*shape, 3), np.uint8), np.empty(shape, np.float32)

    def _to_metres(self, buffer: np.ndarray) -> np.ndarray:
        """Undo OpenGL's reversed-z projection (buffer 1 at the near plane, 0 at the far one)."""
        near, far = np.float32(self._near), np.float32(self._far)
        return near * far / (near + buffer * (far - near))


class DepthSensor:
    """What a stereo camera makes of true depth: noise growing with distance squared, whole millimetres, a range."""

    def __init__(self, config: SensorConfig, seed: int):
        self._config = config
        self._rng = np.random.default_rng(seed)

    def measure(self, depth: np.ndarray) -> np.ndarray:
        """True depth float32 [H, W] m -> uint16 [H, W] mm; 0 where there is no reading."""
        config = self._config
        noise = self._rng.standard_normal(depth.shape, dtype=np.float32)
        measured = depth + np.float32(config.noise) * depth * depth * noise
        valid = (depth >= config.minimum_range) & (depth <= config.maximum_range)
        return np.where(valid, np.rint(1000.0 * measured), 0.0).astype(np.uint16)
