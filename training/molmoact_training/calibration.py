"""Where a camera stands and how it projects: from points in the robot's base frame to pixels.

A calibration file is YAML with the fields of CameraCalibration, see docs/how-to/calibrate.md. Pixel coordinates are
those of sensor_msgs/CameraInfo: u to the right, v down, (0, 0) is the centre of the first pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from molmoact_training.errors import DatasetError

# k1 k2 p1 p2 k3 and, for the rational model, k4 k5 k6: what CameraInfo calls plumb_bob and rational_polynomial.
MODELS = ("", "plumb_bob", "rational_polynomial")
DISTORTION_LENGTHS = (4, 5, 8)
# Of a quaternion's length from 1: what rounding to three digits leaves is repaired, a wrong number is not.
UNIT_TOLERANCE = 0.01


@dataclass(frozen=True)
class Intrinsics:
    """How a camera projects, in pixels. distortion: plumb_bob coefficients k1 k2 p1 p2 k3, all zero for none."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        """Raises ValueError naming the field at fault."""
        for name in ("width", "height"):
            if not (_is_whole(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected a whole number of pixels")
        for name in ("fx", "fy"):
            if not (_is_number(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected pixels, greater than 0")
        for name in ("cx", "cy"):
            if not _is_number(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected pixels")
        numbers = self.distortion
        if not (_are_numbers(numbers) and len(numbers) in DISTORTION_LENGTHS):
            raise ValueError(f"distortion is {numbers!r}, expected 4, 5 or 8 plumb_bob coefficients, zeros for none")

    @property
    def matrix(self) -> NDArray[np.float64]:
        """The camera matrix [3, 3]."""
        return np.array([[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]])

    @classmethod
    def from_camera_info(cls, info: Any) -> Intrinsics:
        """Those of a sensor_msgs/CameraInfo message, raw picture. Raises ValueError for another model or no numbers."""
        if info.distortion_model not in ("", "plumb_bob", "rational_polynomial"):
            raise ValueError(
                f"distortion_model is {info.distortion_model!r}, expected plumb_bob or rational_polynomial"
            )
        k = [float(value) for value in info.k]
        distortion = tuple(float(value) for value in info.d) or cls.distortion
        return cls(int(info.width), int(info.height), k[0], k[4], k[2], k[5], distortion)

    @classmethod
    def from_file(cls, path: str | Path) -> Intrinsics:
        """Of a YAML file with these fields; a camera's pose beside them is not read.

        Raises DatasetError naming the file and the field at fault.
        """
        content = _read(path)
        own = {name: value for name, value in content.items() if name not in ("position", "quaternion")}
        return _built(cls, own, path)

    def resized(self, width: int, height: int) -> Intrinsics:
        """Those of the whole picture stretched to another size: distortion does not depend on it."""
        x, y = width / self.width, height / self.height
        # The picture's edge is what stays an edge, and it is half a pixel before the centre of the first pixel.
        cx, cy = (self.cx + 0.5) * x - 0.5, (self.cy + 0.5) * y - 0.5
        return Intrinsics(width, height, self.fx * x, self.fy * y, cx, cy, self.distortion)


@dataclass(frozen=True)
class CameraCalibration:
    """A camera and where it stands.

    position: of the camera's optical frame (REP 103: z ahead, x right, y down) in the robot's base frame, m.
    quaternion: its orientation there, x y z w.
    """

    intrinsics: Intrinsics
    position: tuple[float, float, float]
    quaternion: tuple[float, float, float, float]

    def __post_init__(self) -> None:
        """Raises ValueError naming the field at fault."""
        for name, count in (("position", 3), ("quaternion", 4)):
            numbers = getattr(self, name)
            if not (_are_numbers(numbers) and len(numbers) == count):
                raise ValueError(f"{name} is {numbers!r}, expected {count} numbers")
        length = float(np.linalg.norm(self.quaternion))
        if abs(length - 1.0) > UNIT_TOLERANCE:
            raise ValueError(f"quaternion is {self.quaternion!r} of length {length:.3f}, expected length 1")

    @classmethod
    def from_file(cls, path: str | Path) -> CameraCalibration:
        """Raises DatasetError naming the file and the field at fault."""
        content = _read(path)
        pose: dict[str, Any] = {name: content.pop(name) for name in ("position", "quaternion") if name in content}
        missing = [name for name in ("position", "quaternion") if name not in pose]
        if missing:
            raise DatasetError(f"{path}: {missing[0]} is missing: expected a calibration `molmoact calibrate` wrote")
        return _built(cls, {"intrinsics": _built(Intrinsics, content, path), **pose}, path)

    def save(self, path: str | Path) -> None:
        """Write what `from_file` reads."""
        content = {**asdict(self.intrinsics), "position": self.position, "quaternion": self.quaternion}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}
        Path(path).write_text(yaml.safe_dump(plain, sort_keys=False, default_flow_style=None), encoding="utf-8")

    @property
    def rotation(self) -> Rotation:
        """From the optical frame to the base frame."""
        return Rotation.from_quat(self.quaternion)

    def project(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points [n, 3] m in the base frame -> pixels [n, 2], also outside the picture; NaN behind the camera."""
        world = np.asarray(points, np.float64).reshape(-1, 3)
        seen = self.rotation.inv().apply(world - np.array(self.position)).reshape(-1, 3)
        pixels = np.full((len(world), 2), np.nan)
        ahead = seen[:, 2] > 0
        if ahead.any():
            k = self.intrinsics
            projected, _ = cv2.projectPoints(seen[ahead], np.zeros(3), np.zeros(3), k.matrix, np.array(k.distortion))
            pixels[ahead] = projected.reshape(-1, 2)
        return pixels

    def resized(self, width: int, height: int) -> CameraCalibration:
        """For pictures of this camera stretched to another size."""
        return CameraCalibration(self.intrinsics.resized(width, height), self.position, self.quaternion)


def _read(path: str | Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DatasetError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise DatasetError(f"{path}: expected a mapping with the fields of a calibration")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _built(kind: type, content: Mapping[str, Any], path: str | Path) -> Any:
    known = [field.name for field in fields(kind)]
    unknown = [str(name) for name in content if name not in known]
    missing = [name for name in known if name not in content and name != "distortion"]
    if unknown or missing:
        raise DatasetError(f"{path}: unknown fields {unknown}, missing fields {missing}")
    try:
        return kind(**content)
    except ValueError as error:
        raise DatasetError(f"{path}: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, tuple) and all(_is_number(value) for value in values)
