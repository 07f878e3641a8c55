"""What a checkpoint's action numbers mean on a robot: the one place where they become metres and radians."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

from molmoact_policy.errors import EmbodimentError

EMBODIMENT_FILE = "embodiment.yaml"
ROW = 7  # x, y, z, rotation 3, gripper: one arm

CHOICES = {
    "frame": ("base", "end_effector"),
    "rotation": ("rotation_vector", "rpy"),
    "gripper_open": ("high", "low"),
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
    confirmed: somebody has checked these conventions on the robot; a real arm must not move on one that is not.
    """

    frame: str
    rotation: str
    translation_scale: float
    rotation_scale: float
    gripper_open: str
    step_period: float
    cameras: tuple[str, ...]
    image_size: tuple[int, int] | None = None
    confirmed: bool = False

    @classmethod
    def from_file(cls, path: str | Path, unnorm_key: str | None = None) -> Embodiment:
        """The entry of a YAML file {unnorm_key: {field: value}}; key None when there is only one.

        Raises EmbodimentError naming the file, entry and field at fault.
        """
        path = Path(path)
        try:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise EmbodimentError(f"{path}: not readable as YAML: {error}") from error
        if not isinstance(entries, dict):
            raise EmbodimentError(f"{path}: expected a mapping from unnorm_key to its conventions")
        if unnorm_key is None and len(entries) == 1:
            unnorm_key = next(iter(entries))
        if unnorm_key not in entries:
            raise EmbodimentError(f"{path}: no entry for unnorm_key {unnorm_key!r}; it has {list(entries)}")
        try:
            return cls._from_entry(entries[unnorm_key])
        except (TypeError, ValueError) as error:
            raise EmbodimentError(f"{path}: {unnorm_key}: {error}") from error

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
            if entry[name] not in choices:
                raise ValueError(f"{name} is {entry[name]!r}, expected one of {', '.join(choices)}")
        for name in ("translation_scale", "rotation_scale", "step_period"):
            if not (_is_number(entry[name]) and np.isfinite(entry[name]) and entry[name] > 0):
                raise ValueError(f"{name} is {entry[name]!r}, expected a number greater than 0")
        cameras, size = entry["cameras"], entry.get("image_size")
        if not (isinstance(cameras, list) and cameras and all(isinstance(name, str) for name in cameras)):
            raise ValueError(f"cameras is {cameras!r}, expected a list of names")
        if size is not None and not (
            isinstance(size, list) and len(size) == 2 and all(_is_size(side) for side in size)
        ):
            raise ValueError(f"image_size is {size!r}, expected [width, height] in pixels")
        if not isinstance(entry.get("confirmed", False), bool):
            raise ValueError(f"confirmed is {entry['confirmed']!r}, expected true or false")
        return cls(**entry | {"cameras": tuple(cameras), "image_size": None if size is None else (size[0], size[1])})

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


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
