"""The visual trace: where the gripper will go in the first picture, up to five points in 0..255."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

# The training code writes (0, 255, 255) into an RGB array: cyan, although its comment and the paper say yellow.
COLOUR = (0, 255, 255)
THICKNESS = 2

Point = TypeVar("Point")


def draw_trace(image: NDArray[np.uint8], points: ArrayLike) -> NDArray[np.uint8]:
    """A copy of the picture with the training overlay: straight cyan segments, nothing for fewer than two points.

    image: uint8 RGB [H, W, 3]; points: [P, 2], x right and y down in 0..255 over the whole picture, clipped to it.
    """
    drawn = np.ascontiguousarray(image).copy()
    points = np.asarray(points, np.float64).reshape(-1, 2)
    height, width = image.shape[:2]
    scaled = np.rint(points * [(width - 1) / 255, (height - 1) / 255])
    pixels = scaled.clip(0, [width - 1, height - 1]).astype(int).tolist()
    for start, end in itertools.pairwise(pixels):
        cv2.line(drawn, start, end, COLOUR, THICKNESS, cv2.LINE_AA)
    return drawn


def subsample_trace(points: Sequence[Point], count: int = 5) -> list[Point]:
    """At most `count` of the points, first and last kept, as the released annotation picks them."""
    if len(points) <= count:
        return list(points)
    return [points[int(i)] for i in np.linspace(0, len(points) - 1, count)]
