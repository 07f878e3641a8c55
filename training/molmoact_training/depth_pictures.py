"""The pictures that depth tokens are made of: relative inverse depth, near is bright, stretched to 0..255 (release).

Whatever the depth comes from, a depth camera, an estimate or the simulator, it becomes such a picture here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

from molmoact_training.errors import DatasetError

PICTURE_SIZE = 320  # pixels, both ways: 10 x 10 codes
RANGE_M = (0.3, 3.0)  # of a D435; what is closer or farther counts as at its end
MILLIMETRES_PER_METRE = 1000.0


def relative_picture(nearness: ArrayLike, size: int = PICTURE_SIZE) -> NDArray[np.uint8]:
    """Inverse depth [H, W] of any scale -> uint8 [size, size]: min-max to 0..255, cut to whole numbers, then resized.

    In this order, as the release does. Raises DatasetError for a value that is not finite.
    """
    values = np.asarray(nearness, np.float32)
    if not np.isfinite(values).all():
        raise DatasetError("depth picture: values that are not finite, expected inverse depth everywhere")
    scaled = (values - values.min()) / (values.max() - values.min() + 1e-8) * 255.0
    return np.asarray(Image.fromarray(scaled.astype(np.uint8)).resize((size, size), Image.Resampling.BILINEAR))


def picture_of_depth(depth: ArrayLike, size: int = PICTURE_SIZE) -> NDArray[np.uint8]:
    """Depth [H, W] along the optical axis -> uint8 [size, size].

    depth: metres, or millimetres where it holds whole numbers (REP 118). 0 and what is not finite is no measurement: it
    takes the value of the nearest pixel that has one. Raises DatasetError where no pixel has one.
    """
    raw = np.asarray(depth)
    metres = raw / MILLIMETRES_PER_METRE if np.issubdtype(raw.dtype, np.integer) else raw.astype(np.float64)
    missing = ~(np.isfinite(metres) & (metres > 0))
    if missing.all():
        raise DatasetError("depth picture: no pixel has a depth, expected metres or millimetres greater than 0")
    if missing.any():
        nearest = ndimage.distance_transform_edt(missing, return_distances=False, return_indices=True)
        metres = metres[tuple(nearest)]
    return relative_picture(1.0 / np.clip(metres, *RANGE_M), size)
