"""A video of what the policy saw and thought: front camera with the trace on it, decoded depth map beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from molmoact_policy.trace import draw_trace

from molmoact_bringup.errors import BringupError
from molmoact_bringup.runlog import messages

FRONT_TOPIC = "/camera/front/color/image_raw/compressed"
DEPTH_TOPIC = "/depth_image/compressed"
PICTURE_HEIGHT = 480
TEXT_HEIGHT = 64
DEPTH_WIDTH = 480
MODES = ("hold", "policy", "teleop", "homing", "fault", "emergency stop")  # BridgeStatus
_GREY, _WHITE, _GREEN = (170, 170, 170), (255, 255, 255), (120, 220, 120)  # BGR


@dataclass
class _Scene:
    """What was known when a picture was taken."""

    instruction: str = ""
    trace: list[tuple[int, int]] | None = None
    depth: np.ndarray | None = None  # [H, W] or [H, W, 3] BGR
    status: str = ""
    seed: int = 0
    success: bool = False


def write_video(bag: Path, path: Path, frame_rate: float) -> int:
    """Write ``path`` (MPEG-4) from a bag; one frame for every recorded picture of the front camera.

    Returns:
        The number of frames; with none there is no file.

    Raises:
        BringupError: OpenCV cannot write the file, or what it wrote cannot be read.
    """
    writer: cv2.VideoWriter | None = None
    frames = 0
    for frame in _frames(bag):
        if writer is None:
            size = (frame.shape[1], frame.shape[0])
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), frame_rate, size)
            if not writer.isOpened():
                raise BringupError(f"video {path}: OpenCV cannot write it (MPEG-4 codec or free disk space missing)")
        writer.write(frame)
        frames += 1
    if writer is not None:
        writer.release()
        _check(path, frames)
    return frames


def _check(path: Path, frames: int) -> None:
    """VideoWriter reports no error, not even a full disk: only reading back tells."""
    video = cv2.VideoCapture(str(path))
    written = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
    video.release()
    if written != frames:
        raise BringupError(f"video {path}: {written} of {frames} frames can be read back; is the disk full?")


def _frames(bag: Path) -> Iterator[np.ndarray]:
    scene = _Scene()
    topics = (FRONT_TOPIC, DEPTH_TOPIC, "/reasoning", "/task", "/bridge_status", "/franka_sim/scene_status")
    for topic, _, message in messages(bag, topics):
        if topic == FRONT_TOPIC:
            picture = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_COLOR)
            if picture is not None:
                yield compose(picture, scene)
        elif topic == DEPTH_TOPIC:
            scene.depth = cv2.imdecode(np.asarray(message.data, np.uint8), cv2.IMREAD_UNCHANGED)
        else:
            _update(scene, topic, message)


def _update(scene: _Scene, topic: str, message: Any) -> None:
    if topic == "/reasoning":
        scene.trace = [(point.x, point.y) for point in message.trace]
    elif topic == "/task":
        scene.instruction = message.data
        if not message.data:
            scene.trace = None
    elif topic == "/bridge_status":
        scene.status = f"{MODES[message.mode]}: {message.reason}" if message.reason else MODES[message.mode]
    else:
        if message.seed != scene.seed:  # what was thought of another scene
            scene.trace, scene.depth = None, None
        scene.seed, scene.success = message.seed, message.success


def compose(picture: np.ndarray, scene: _Scene) -> np.ndarray:
    """One frame, BGR: picture and depth map side by side above two lines of text."""
    if scene.trace:
        picture = np.ascontiguousarray(draw_trace(np.ascontiguousarray(picture[..., ::-1]), scene.trace)[..., ::-1])
    width = round(picture.shape[1] * PICTURE_HEIGHT / picture.shape[0])
    picture = cv2.resize(picture, (width, PICTURE_HEIGHT))
    text = np.zeros((TEXT_HEIGHT, width + DEPTH_WIDTH, 3), np.uint8)
    _write(text, scene.instruction or "(no task)", 26, 0.7, _WHITE)
    _write(text, f"seed {scene.seed}   {scene.status}", 52, 0.5, _GREY)
    if scene.success:
        cv2.putText(
            text, "success", (width + DEPTH_WIDTH - 110, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.7, _GREEN, 2, cv2.LINE_AA
        )
    return np.vstack([np.hstack([picture, _depth_panel(scene.depth)]), text])


def _depth_panel(depth: np.ndarray | None) -> np.ndarray:
    panel = np.zeros((PICTURE_HEIGHT, DEPTH_WIDTH, 3), np.uint8)
    if depth is None:
        _write(panel, "no depth yet", PICTURE_HEIGHT // 2, 0.6, _GREY)
        return panel
    if depth.ndim == 2:
        depth = cv2.applyColorMap(cv2.normalize(depth, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U), cv2.COLORMAP_VIRIDIS)
    scale = min(PICTURE_HEIGHT / depth.shape[0], DEPTH_WIDTH / depth.shape[1])
    size = (round(depth.shape[1] * scale), round(depth.shape[0] * scale))
    top, left = (PICTURE_HEIGHT - size[1]) // 2, (DEPTH_WIDTH - size[0]) // 2
    panel[top : top + size[1], left : left + size[0]] = cv2.resize(depth, size, interpolation=cv2.INTER_NEAREST)
    _write(panel, "depth, as the policy wrote it", 24, 0.6, _WHITE)
    return panel


def _write(image: np.ndarray, text: str, baseline: int, size: float, colour: tuple[int, int, int]) -> None:
    # OpenCV's fonts know ASCII only.
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(image, plain, (10, baseline), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
