"""From an RGB picture to crops, patches and pooling indices, exactly as the released image processor does it.

Crop mode "overlap-and-resize-c2": the whole picture resized to one crop, then a grid of crops that overlap by the
margins, cut from the picture resized to fill the grid. Each patch of the grid is used once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from molmoact_policy.checkpoint import read_json
from molmoact_policy.errors import CheckpointError, ObservationError

PREPROCESSOR_CONFIG = "preprocessor_config.json"
CROP_MODE = "overlap-and-resize-c2"
PAD_VALUE = 0.0

# Targets of at most this many rows + columns go through torch's other bilinear kernel.
SMALL_TARGET = 128

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


@dataclass(frozen=True)
class Style:
    """What differs between the two families, under the names preprocessor_config.json uses."""

    resize_mode: str
    normalize_mode: str
    base_image_input_size: tuple[int, int]


STYLES = {
    "siglip2": Style("siglip", "siglip", (378, 378)),
    "clip": Style("default", "openai", (336, 336)),
}


class ImageProcessor:
    """One picture at a time to the arrays the model takes.

    style: "siglip2" (family D: stretched, bilinear without antialiasing, in uint8) or "clip" (family O: aspect kept and
    padded, antialiased). `max_crops` bounds the grid for a single picture, `max_multi_image_crops` for one of several.
    Sizes are height, width in pixels; `overlap_margins` (first, last) and `pooling_size` (down, across) in patches.
    """

    def __init__(
        self,
        style: str = "siglip2",
        max_crops: int = 8,
        *,
        max_multi_image_crops: int = 4,
        overlap_margins: Sequence[int] = (4, 4),
        base_image_input_size: Sequence[int] | None = None,
        image_patch_size: int = 14,
        pooling_size: Sequence[int] = (2, 2),
    ) -> None:
        if style not in STYLES:
            raise ValueError(f"image style {style!r} unknown ({', '.join(STYLES)})")
        self.style = style
        self.max_crops = max_crops
        self.max_multi_image_crops = max_multi_image_crops
        self.margins = (int(overlap_margins[0]), int(overlap_margins[1]))
        height, width = base_image_input_size or STYLES[style].base_image_input_size
        if height != width:
            raise ValueError(f"base_image_input_size is {height}x{width}, expected a square")
        self.crop_size = int(height)
        self.patch_size = image_patch_size
        self.pooling_size = (int(pooling_size[0]), int(pooling_size[1]))
        if self.window_patches < 1:
            raise ValueError(f"overlap_margins {self.margins} leave nothing of {self.crop_patches} patches per crop")

    @property
    def crop_patches(self) -> int:
        """Patches along one side of a crop."""
        return self.crop_size // self.patch_size

    @property
    def window_patches(self) -> int:
        """Patches from the start of one crop to the start of the next."""
        return self.crop_patches - sum(self.margins)

    @classmethod
    def from_pretrained(cls, directory: Path) -> ImageProcessor:
        """As preprocessor_config.json says. Raises CheckpointError naming the file and the setting at fault."""
        config = read_json(directory, PREPROCESSOR_CONFIG)
        try:
            return cls._from_config(config)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{directory / PREPROCESSOR_CONFIG}: {error}") from error

    @classmethod
    def _from_config(cls, config: Mapping[str, Any]) -> ImageProcessor:
        if config.get("crop_mode", CROP_MODE) != CROP_MODE:
            raise ValueError(f"crop_mode {config['crop_mode']!r} not supported ({CROP_MODE})")
        if config.get("pad_value", PAD_VALUE) != PAD_VALUE:
            raise ValueError(f"pad_value {config['pad_value']!r} not supported ({PAD_VALUE})")
        return cls(
            _style_of(config),
            config.get("max_crops", 8),
            max_multi_image_crops=config.get("max_multi_image_crops", 4),
            overlap_margins=config.get("overlap_margins", (4, 4)),
            base_image_input_size=config.get("base_image_input_size"),
            image_patch_size=config.get("image_patch_size", 14),
            pooling_size=(config.get("image_pooling_h", 2), config.get("image_pooling_w", 2)),
        )

    def save_pretrained(self, directory: Path) -> None:
        """preprocessor_config.json under the official names."""
        style = STYLES[self.style]
        config = {
            "image_processor_type": "MolmoActImageProcessor",
            "crop_mode": CROP_MODE,
            "resize_mode": style.resize_mode,
            "normalize_mode": style.normalize_mode,
            "max_crops": self.max_crops,
            "max_multi_image_crops": self.max_multi_image_crops,
            "overlap_margins": list(self.margins),
            "base_image_input_size": [self.crop_size, self.crop_size],
            "pad_value": PAD_VALUE,
            "image_patch_size": self.patch_size,
            "image_pooling_h": self.pooling_size[0],
            "image_pooling_w": self.pooling_size[1],
            "do_convert_rgb": True,
            "do_pad": True,
        }
        (directory / PREPROCESSOR_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    def __call__(
        self, image: NDArray[np.uint8], *, multi_image: bool = False, once: bool = False
    ) -> dict[str, NDArray[Any]]:
        """uint8 RGB [H, W, 3] of any size to a dictionary of

        images float32 [crops, patches, patch_size² * 3] (row, column, channel inside a patch; the global crop first),
        image_masks float32 [crops, patches] (1 where the patch is picture, less where it is padding),
        pooled_patches_idx int32 [tokens, pooling slots] into crops * patches (-1: no patch),
        image_grids int64 [2, 2]: rows and columns of pooled tokens of the global crop, then of the grid.
        once: leave out the crop of a grid of one, which is the global crop again; the grid's indices point at that. The
        features are the same for half the work. Raises ObservationError for anything but a picture.
        """
        check_rgb(image)
        limit = self.max_multi_image_crops if multi_image else self.max_crops
        rows, columns = self.select_tiling(image.shape[0], image.shape[1], limit)
        whole, whole_mask = self._resize(image, (self.crop_size, self.crop_size))
        if (rows, columns) == (1, 1):
            repeats = 1 if once else 2
            crops, masks = np.stack([whole] * repeats), np.stack([whole_mask] * repeats)
        else:
            filled, filled_mask = self._resize(image, (self._grid_pixels(rows), self._grid_pixels(columns)))
            crops = np.stack([whole, *self._cut(filled, rows, columns)])  # [crops, crop, crop, 3]
            masks = np.stack([whole_mask, *self._cut(filled_mask[..., None], rows, columns)[..., 0]])

        per_crop = self.crop_patches**2
        low = self._pool(np.arange(per_crop).reshape(self.crop_patches, self.crop_patches))
        # Of a grid of one that is not there the indices are those of the global crop.
        high = self._pool((len(crops) > 1) * per_crop + self._grid_patches(rows, columns))
        return {
            "images": self._patchify(crops),
            "image_masks": self._patchify(masks[..., None].astype(np.float32)).mean(-1),
            "pooled_patches_idx": np.concatenate([low.reshape(-1, low.shape[-1]), high.reshape(-1, high.shape[-1])]),
            "image_grids": np.array([low.shape[:2], high.shape[:2]]),
        }

    def select_tiling(self, height: int, width: int, max_crops: int) -> tuple[int, int]:
        """Rows and columns of the grid: the least enlargement that covers the picture, else the least reduction."""
        tilings = [(i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops + 1) if i * j <= max_crops]
        tilings.sort(key=lambda tiling: (tiling[0] * tiling[1], tiling[0]))
        margin = sum(self.margins) * self.patch_size
        pixels = (np.array(tilings) * (self.window_patches * self.patch_size)).astype(np.float32)
        # A picture no larger than the margins gives infinite or negative scales; the release lets them compete.
        with np.errstate(divide="ignore"):
            scale = (pixels / np.array([height - margin, width - margin], np.float32)).min(-1)
        best = scale.argmax() if (scale < 1).all() else np.where(scale < 1, np.float32(10e9), scale).argmin()
        return tilings[int(best)]

    def _grid_pixels(self, crops: int) -> int:
        return (crops * self.window_patches + sum(self.margins)) * self.patch_size

    def _resize(self, image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Normalised float32 [*size, 3], and where it is picture rather than padding [*size]."""
        if self.style == "siglip2":
            return _stretch(image, size), np.ones(size, np.bool_)
        return _fit_and_pad(image, size)

    def _cut(self, filled: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
        """[H, W, C] -> [rows * columns, crop, crop, C], overlapping by the margins."""
        step, size = self.window_patches * self.patch_size, self.crop_size
        return np.stack(
            [
                filled[i * step : i * step + size, j * step : j * step + size]
                for i in range(rows)
                for j in range(columns)
            ]
        )

    def _grid_patches(self, rows: int, columns: int) -> NDArray[np.int64]:
        """The index in the crops of each patch of the grid; in an overlap, in the crop whose margin it is not."""
        side = self.crop_patches
        in_crop = np.arange(side * side).reshape(side, side)
        grid = np.full([crops * self.window_patches + sum(self.margins) for crops in (rows, columns)], -1)
        for i in range(rows):
            for j in range(columns):
                down, across = self._own(i, rows), self._own(j, columns)
                placed = np.ix_(i * self.window_patches + down, j * self.window_patches + across)
                grid[placed] = in_crop[np.ix_(down, across)] + (i * columns + j) * side * side
        return grid

    def _own(self, crop: int, crops: int) -> NDArray[np.int64]:
        """Rows (or columns) of a crop that are not another crop's."""
        first, last = self.margins
        return np.arange(0 if crop == 0 else first, self.crop_patches - (0 if crop == crops - 1 else last))

    def _pool(self, patches: NDArray[Any]) -> NDArray[np.int32]:
        """[rows, columns] -> [pooled rows, pooled columns, slots], padded with -1, the odd one at the end."""
        padding = [(-size) % pool for size, pool in zip(patches.shape, self.pooling_size, strict=True)]
        patches = np.pad(patches, [(p // 2, (p + 1) // 2) for p in padding], constant_values=-1)
        down, across = self.pooling_size
        rows, columns = patches.shape[0] // down, patches.shape[1] // across
        pooled = patches.reshape(rows, down, columns, across).transpose(0, 2, 1, 3)
        return pooled.reshape(rows, columns, down * across).astype(np.int32)

    def _patchify(self, crops: NDArray[np.float32]) -> NDArray[np.float32]:
        """[crops, H, W, C] -> [crops, patches, patch_size² * C]."""
        side, patch = self.crop_patches, self.patch_size
        split = crops.reshape(len(crops), side, patch, side, patch, crops.shape[-1]).transpose(0, 1, 3, 2, 4, 5)
        return split.reshape(len(crops), side * side, -1)


def _style_of(config: Mapping[str, Any]) -> str:
    """The style that resizes and normalises as the configuration says; what it leaves out is the release's default."""
    resize_mode = config.get("resize_mode", "siglip")
    normalize_mode = config.get("normalize_mode", "siglip")
    styles = {style.resize_mode: name for name, style in STYLES.items()}
    if resize_mode not in styles:
        raise ValueError(f"resize_mode {resize_mode!r} not supported ({', '.join(styles)})")
    expected = STYLES[styles[resize_mode]].normalize_mode
    if normalize_mode != expected:
        raise ValueError(
            f"normalize_mode {normalize_mode!r} with resize_mode {resize_mode!r} not supported ({expected})"
        )
    return styles[resize_mode]


def check_rgb(image: Any, name: str = "image") -> None:
    """Raises ObservationError unless `image` is a uint8 RGB array [H, W, 3] with at least one pixel."""
    if not isinstance(image, np.ndarray):
        raise ObservationError(f"{name}: is a {type(image).__name__}, expected a uint8 RGB array [H, W, 3]")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ObservationError(
            f"{name}: {image.dtype} {list(image.shape)}, expected uint8 RGB [H, W, 3] with at least one pixel"
        )


def _stretch(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    # The release resizes the uint8 tensor: computed in float, rounded back to grey levels before normalising.
    grey = np.rint(_bilinear(image, size))
    return grey / np.float32(255) * np.float32(2) - np.float32(1)


def _bilinear(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """[H, W, 3] -> float32 [*size, 3], bilinear without antialiasing.

    What torch's CPU kernels give with more than one thread, as the release's outputs were made, operation by operation:
    with one thread torch adds up in another order, and a pixel near .5 comes out a grey level off.
    """
    above, below, down = _taps(image.shape[0], size[0])
    left, right, across = _taps(image.shape[1], size[1])
    down, across = down[:, None, None], across[:, None]
    up, back = np.float32(1) - down, np.float32(1) - across
    if sum(size) <= SMALL_TARGET:
        upper, lower = image[above], image[below]
        mixed = up * across * upper[:, right].astype(np.float32)
        mixed = _fused(up * back, upper[:, left], mixed)
        mixed = _fused(down * back, lower[:, left], mixed)
        return _fused(down * across, lower[:, right], mixed)
    # take is three times as fast as an index along the second axis
    lefts, rights = np.take(image, left, axis=1), np.take(image, right, axis=1)
    rows = _fused(back, lefts, across * rights)  # [H, size[1], 3]
    return _fused(up, rows[above], down * rows[below])


def _taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each target pixel the two source pixels around it, and how far it is from the first to the second."""
    scale = np.float64(np.float32(source) / np.float32(target))
    position = np.maximum(scale * (np.arange(target) + 0.5) - 0.5, 0.0).astype(np.float32)
    first = np.minimum(position.astype(np.int64), source - 1)
    return first, np.minimum(first + 1, source - 1), position - first.astype(np.float32)


def _fused(weight: NDArray[np.float32], value: NDArray[Any], summand: NDArray[np.float32]) -> NDArray[np.float32]:
    """weight * value + summand, rounded once to float32: the product of two float32 is exact in float64."""
    exact = weight.astype(np.float64) * value
    exact += summand
    return exact.astype(np.float32)


def _fit_and_pad(image: NDArray[np.uint8], size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    original = np.array(image.shape[:2], np.float32)
    scale = (np.array(size, np.float32) / original).min()
    height, width = (max(1, int(side)) for side in original * scale)
    unit = torch.from_numpy(image.astype(np.float32) / np.float32(255)).permute(2, 0, 1).unsqueeze(0)
    resized = F.interpolate(unit, (height, width), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    inside = (slice(top, top + height), slice(left, left + width))
    padded = np.full((*size, 3), PAD_VALUE, np.float32)
    padded[inside] = resized.squeeze(0).permute(1, 2, 0).numpy()
    mask = np.zeros(size, np.bool_)
    mask[inside] = True
    return (padded - CLIP_MEAN) / CLIP_STD, mask
