"""The frames of the real robot's description and of its cameras, read from the simulated ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Quaternion, Transform, TransformStamped
from tf2_msgs.msg import TFMessage

from franka_sim.cameras import OPTICAL_FROM_MUJOCO
from franka_sim.robot_state_message import ROBOT, vector
from franka_sim.rotations import matrix_from_quaternion, quaternion_from_matrix
from franka_sim.scene import model_prefix

WORLD = "world"
LINKS = tuple(f"link{number}" for number in range(9))


def base_frame(arm_prefix: str) -> str:
    return f"{model_prefix(arm_prefix)}{ROBOT}_link0"


def optical_frame(camera: str) -> str:
    return f"camera_{camera}_color_optical_frame"


@dataclass(frozen=True)
class _Frame:
    """A frame of the robot description and what it is in the model: a body, site or camera."""

    name: str
    parent: str
    kind: str  # body | site | camera
    id: int


class FrameTree:
    """Frames of the arms and cameras below `world`, which is the first arm's base."""

    def __init__(self, model: mujoco.MjModel, arm_prefixes: Iterable[str], cameras: Iterable[str]) -> None:
        self._frames = [frame for prefix in arm_prefixes for frame in _arm_frames(model, model_prefix(prefix))]
        self._frames += [_camera_frame(model, name) for name in cameras]

    def message(self, data: mujoco.MjData, stamp: Time) -> TFMessage:
        """Every frame in its parent, for the state in `data`."""
        poses = {WORLD: (np.zeros(3), np.eye(3))}
        transforms = []
        for frame in self._frames:
            position, rotation = poses[frame.name] = _pose(data, frame)
            parent_position, parent_rotation = poses[frame.parent]
            message = TransformStamped(child_frame_id=frame.name)
            message.header.stamp, message.header.frame_id = stamp, frame.parent
            to_parent = parent_rotation.T
            message.transform = _transform(to_parent @ (position - parent_position), to_parent @ rotation)
            transforms.append(message)
        return TFMessage(transforms=transforms)

    def between(self, data: mujoco.MjData, parent: str, child: str) -> Transform:
        """Pose of the frame `child` in the frame `parent`, for the state in `data`."""
        frames = {frame.name: frame for frame in self._frames}
        (parent_position, parent_rotation), (position, rotation) = (
            _pose(data, frames[name]) for name in (parent, child)
        )
        return _transform(parent_rotation.T @ (position - parent_position), parent_rotation.T @ rotation)


def object_transforms(poses: Mapping[str, tuple[np.ndarray, np.ndarray]], stamp: Time) -> TFMessage:
    """Objects in `world`, each (position [3], quaternion [4])."""
    transforms = []
    for name, (position, quaternion) in poses.items():
        message = TransformStamped(child_frame_id=name)
        message.header.stamp, message.header.frame_id = stamp, WORLD
        message.transform = _transform(position, matrix_from_quaternion(quaternion))
        transforms.append(message)
    return TFMessage(transforms=transforms)


def _arm_frames(model: mujoco.MjModel, prefix: str) -> Iterable[_Frame]:
    ours, theirs = f"{prefix}{ROBOT}_", f"{prefix}panda_"
    parent = WORLD
    for link in (*LINKS, "hand"):
        yield _Frame(ours + link, parent, "body", model.body(theirs + link).id)
        parent = ours + link
    for finger in ("leftfinger", "rightfinger"):
        yield _Frame(ours + finger, parent, "body", model.body(theirs + finger).id)
    yield _Frame(f"{ours}hand_tcp", parent, "site", model.site(f"{prefix}TCP").id)


def _camera_frame(model: mujoco.MjModel, name: str) -> _Frame:
    camera = model.camera(name)
    body = model.body(camera.bodyid[0]).name
    parent = WORLD if body == WORLD else body.replace("panda_", f"{ROBOT}_")
    return _Frame(optical_frame(name), parent, "camera", camera.id)


def _pose(data: mujoco.MjData, frame: _Frame) -> tuple[np.ndarray, np.ndarray]:
    if frame.kind == "camera":
        return data.cam_xpos[frame.id], data.cam_xmat[frame.id].reshape(3, 3) @ OPTICAL_FROM_MUJOCO
    positions, rotations = (data.xpos, data.xmat) if frame.kind == "body" else (data.site_xpos, data.site_xmat)
    return positions[frame.id], rotations[frame.id].reshape(3, 3)


def _transform(position: np.ndarray, rotation: np.ndarray) -> Transform:
    x, y, z, w = map(float, quaternion_from_matrix(rotation))
    return Transform(translation=vector(position), rotation=Quaternion(x=x, y=y, z=z, w=w))
