"""What a checkpoint's action numbers mean on a robot: the one place where they become metres and radians."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy.spatial.transform import Rotation

from molmoact_policy.errors import EmbodimentError

EMBODIMENT_FILE = "embodiment.yaml"
ROW = 7  # x, y, z, rotation 3, gripper: one arm

CHOICES = {
    "frame": ("base", "end_effector"),
    "rotation": ("rotation_vector", "rpy"),
    "gripper_open": ("high", "low"),
    "image_resize": ("bilinear", "area"),
}


class Delta(NamedTuple):
    """One step of one arm, expressed in the embodiment's frame."""

    translation: NDArray[np.float64]  # [3], m
    rotation: NDArray[np.float64]  # rotation vector [3], rad
    gripper: float  # 0 closed ... 1 open, absolute


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """Conventions of one dataset.

    frame: the deltas are in the robot's base or in the end effector's frame.
    rotation: the three rotation numbers are a rotation vector, or roll, pitch, yaw about the fixed axes x, y, z.
    translation_scale, rotation_scale: metres and radians per unit of the action.
    gripper_open: whether high or low gripper values open it.
    step_period: seconds per row.
    cameras: their names, in the order the checkpoint was trained with.
    image_size: width, height in pixels to which every picture is resized first; None: as it comes.
    image_resize: how: "bilinear" with antialiasing (PIL), or "area" (OpenCV).
    image_crop_area: share of the area of that picture that is cut from its centre and enlarged again; 1: all of it.
    rows: rows of every complete reply, as trained: another number is refused; None: not known, any number is taken.
    confirmed: somebody has checked these conventions on the robot; a real arm must not move on one that is not.
    """

    frame: str
    rotation: str
    translation_scale: float
    rotation_scale: float
    gripper_open: str
    step_period: float
    cameras: tuple[str, ...]
    rows: int | None
    image_size: tuple[int, int] | None = None
    image_resize: str = "bilinear"
    image_crop_area: float = 1.0
    confirmed: bool = False

    @classmethod
    def from_file(cls, path: str | Path, unnorm_key: str | None = None) -> Embodiment:
        """The entry of a YAML file {unnorm_key: {field: value}}; key None when there is only one.

        Raises EmbodimentError naming the file, the key and the field at fault.
        """
        entries = _read(path)
        if unnorm_key is None and len(entries) == 1:
            unnorm_key = next(iter(entries))
        if unnorm_key not in entries:
            raise EmbodimentError(f"{path}: no entry for unnorm_key {unnorm_key!r}; it has {list(entries)}")
        try:
            return cls._from_entry(entries[unnorm_key])
        except (TypeError, ValueError) as error:
            raise EmbodimentError(f"{path}: {unnorm_key}: {error}") from error

    @classmethod
    def find(cls, path: str | Path, unnorm_key: str) -> Embodiment | None:
        """As `from_file`, but None when the file has no such entry."""
        return cls.from_file(path, unnorm_key) if unnorm_key in _read(path) else None

    @classmethod
    def _from_entry(cls, entry: Any) -> Embodiment:
        if not isinstance(entry, dict):
            raise ValueError(f"is {entry!r}, expected a mapping")
        known = {field.name: field.default for field in fields(cls)}
        unknown = [name for name in entry if name not in known]
        missing = [name for name, default in known.items() if default is MISSING and name not in entry]
        if unknown or missing:
            raise ValueError(f"unknown fields {unknown}, missing fields {missing}")
        for name, choices in CHOICES.items():
            if name in entry and entry[name] not in choices:
                raise ValueError(f"{name} is {entry[name]!r}, expected one of {', '.join(choices)}")
        for name in ("translation_scale", "rotation_scale", "step_period"):
            if not (_is_number(entry[name]) and np.isfinite(entry[name]) and entry[name] > 0):
                raise ValueError(f"{name} is {entry[name]!r}, expected a number greater than 0")
        cameras, size, area = entry["cameras"], entry.get("image_size"), entry.get("image_crop_area", 1.0)
        if not (isinstance(cameras, list) and cameras and all(isinstance(name, str) for name in cameras)):
            raise ValueError(f"cameras is {cameras!r}, expected a list of names")
        if size is not None and not (
            isinstance(size, list) and len(size) == 2 and all(_is_count(side) for side in size)
        ):
            raise ValueError(f"image_size is {size!r}, expected [width, height] in pixels")
        if not (_is_number(area) and 0 < area <= 1):
            raise ValueError(f"image_crop_area is {area!r}, expected a number in 0..1")
        if entry["rows"] is not None and not _is_count(entry["rows"]):
            raise ValueError(f"rows is {entry['rows']!r}, expected a whole number of rows per reply")
        if not isinstance(entry.get("confirmed", False), bool):
            raise ValueError(f"confirmed is {entry['confirmed']!r}, expected true or false")
        return cls(**entry | {"cameras": tuple(cameras), "image_size": None if size is None else (size[0], size[1])})

    def picture(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What the checkpoint is shown of a camera's picture: uint8 RGB [H, W, 3], resized and cropped."""
        if self.image_size is not None:
            image = self.resized(image, self.image_size)
        if self.image_crop_area < 1.0:
            height, width = image.shape[:2]
            image = resize_image(_centre(image, self.image_crop_area), (width, height))
        return image

    def resized(self, image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
        """uint8 RGB [H, W, 3] at `size` (width, height) in the way of `image_resize`; the same array if it has it."""
        if size == image.shape[1::-1]:
            return image
        return (_shrink_by_area if self.image_resize == "area" else resize_image)(image, size)

    def to_deltas(self, actions: ArrayLike) -> list[Delta]:
        """Rows [N, 7] of one arm, as the reply's statistics give them, in SI units; the gripper is clipped to 0..1."""
        actions = np.asarray(actions, np.float64)
        if actions.ndim != 2 or actions.shape[1] != ROW:
            raise ValueError(f"actions are {list(actions.shape)}, expected [rows, {ROW}] of one arm")
        rotations = actions[:, 3:6] * self.rotation_scale
        if self.rotation == "rpy":
            rotations = Rotation.from_euler("xyz", rotations).as_rotvec()
        grippers = actions[:, 6].clip(0.0, 1.0)
        if self.gripper_open == "low":
            grippers = 1.0 - grippers
        translations = actions[:, :3] * self.translation_scale
        return [Delta(*row) for row in zip(translations, rotations, grippers.tolist(), strict=True)]

    def from_deltas(self, deltas: Sequence[Delta]) -> NDArray[np.float64]:
        """Rows [N, 7] of one arm that `to_deltas` turns back into these steps (rotations of at most half a turn)."""
        actions = np.empty((len(deltas), ROW))
        if not deltas:
            return actions
        rotations = np.array([delta.rotation for delta in deltas])
        if self.rotation == "rpy":
            rotations = Rotation.from_rotvec(rotations).as_euler("xyz")
        grippers = np.array([delta.gripper for delta in deltas]).clip(0.0, 1.0)
        actions[:, :3] = np.array([delta.translation for delta in deltas]) / self.translation_scale
        actions[:, 3:6] = rotations / self.rotation_scale
        actions[:, 6] = 1.0 - grippers if self.gripper_open == "low" else grippers
        return actions


def _read(path: str | Path) -> dict[str, Any]:
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise EmbodimentError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(entries, dict):
        raise EmbodimentError(f"{path}: expected a mapping from unnorm_key to its conventions")
    return entries


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] to `size` (width, height) as in mid-training: PIL bilinear with antialiasing."""
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _shrink_by_area(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """To `size` (width, height) as in the release's SimplerEnv."""
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def _centre(image: NDArray[np.uint8], area: float) -> NDArray[np.uint8]:
    """The middle of the picture, sides cut down to whole pixels as in the release's LIBERO evaluation."""
    height, width = (int(side * area**0.5) for side in image.shape[:2])
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]
