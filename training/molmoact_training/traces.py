"""The visual trace of every frame: where the end effector goes in the first picture, to the end of the episode.

Future points to the episode's end, at most five, 0..255 across the picture (paper, section 3.2; the choice of the five
is the release's). The points are measured positions seen through the camera's calibration, or pointed at by a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from molmoact_policy.trace import subsample_trace
from numpy.typing import ArrayLike, NDArray

from molmoact_training.calibration import CameraCalibration

# uint8 RGB [H, W, 3] and a prompt to a pixel (x, y), None where nothing was pointed at.
Pointer = Callable[[NDArray[np.uint8], str], "tuple[float, float] | None"]
PROMPT = "point to the robot gripper"
SIDES = ("left", "right")  # of two arms, in the order of their actions


def projected_points(
    positions: ArrayLike, calibration: CameraCalibration, size: tuple[int, int]
) -> NDArray[np.float64]:
    """Positions [n, 3] m in the base frame -> points [n, 2] in 0..255 across a picture of the whole view.

    size: width, height of the picture that will be shown, which may differ from the calibration's. NaN behind the
    camera; outside the picture where the end effector is.
    """
    return across_picture(calibration.resized(*size).project(positions), size)


def pointed_points(images: Iterable[NDArray[np.uint8]], pointer: Pointer, prompt: str) -> NDArray[np.float64]:
    """For every image uint8 RGB [H, W, 3] where `pointer` sees the end effector, [n, 2] in 0..255; NaN for nowhere."""
    points = []
    for image in images:
        pixel = pointer(image, prompt)
        points.append((np.nan, np.nan) if pixel is None else across_picture([pixel], image.shape[1::-1])[0])
    return np.array(points, np.float64).reshape(-1, 2)


def prompts(arms: int) -> list[str]:
    """What the pointing model is asked for each arm (paper, appendix E)."""
    return [PROMPT] if arms == 1 else [f"{PROMPT} on the {side}" for side in SIDES]


def across_picture(pixels: ArrayLike, size: Sequence[int]) -> NDArray[np.float64]:
    """Pixels [n, 2] of a picture of `size` (width, height) -> 0..255, where 255 is the last column and row."""
    return np.asarray(pixels, np.float64) * 255.0 / np.maximum([size[0] - 1, size[1] - 1], 1)


def traces(points: NDArray[np.float64]) -> list[NDArray[np.uint8] | None]:
    """Of every frame, from the points [n, 2] of all frames in 0..255: uint8 [1..5, 2]; None where no point is left.

    What lies outside the picture is moved to its edge, points that are NaN are left out.
    """
    there = np.flatnonzero(np.isfinite(points).all(1))
    rounded = np.rint(points.clip(0, 255))
    found: list[NDArray[np.uint8] | None] = []
    for frame in range(len(points)):
        future = subsample_trace(there[np.searchsorted(there, frame) :].tolist())
        found.append(rounded[future].astype(np.uint8) if future else None)
    return found


def frame_traces(points: Sequence[NDArray[np.float64]]) -> list[list[NDArray[np.uint8]] | None]:
    """For every frame the trace of each arm, from the points [n, 2] of each arm; None unless every arm has one."""
    per_frame = zip(*(traces(arm) for arm in points), strict=True)
    return [None if any(trace is None for trace in arms) else [t for t in arms if t is not None] for arms in per_frame]
