"""Augmentation of pictures: a random crop, then random colours (paper, tables 7 and 10 to 14)."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from molmoact_policy.embodiment import resize_image
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from molmoact_training.presets import Augmentation, ColourJitter


def augment(picture: NDArray[np.uint8], settings: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] of the same size: a part of the picture enlarged again, in other colours."""
    if settings.crop_area is not None:
        size = (picture.shape[1], picture.shape[0])
        ratio = size[0] / size[1] if settings.crop_ratio == "picture" else 1.0
        left, top, width, height = crop_box(size, settings.crop_area, ratio, rng)
        picture = resize_image(picture[top : top + height, left : left + width], size)
    if settings.colour_jitter is not None:
        picture = jitter_colours(picture, settings.colour_jitter, rng)
    return picture


def crop_box(size: tuple[int, int], area: float, ratio: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """left, top, width, height in pixels of a random part with a share of the area and a ratio of width to height.

    size: width, height. Where such a part does not fit, the largest one in the centre, as torchvision's
    RandomResizedCrop falls back to.
    """
    whole_width, whole_height = size
    width = round(math.sqrt(whole_width * whole_height * area * ratio))
    height = round(math.sqrt(whole_width * whole_height * area / ratio))
    if 0 < width <= whole_width and 0 < height <= whole_height:
        top, left = (
            int(rng.integers(whole - part + 1)) for whole, part in ((whole_height, height), (whole_width, width))
        )
        return left, top, width, height
    width, height = whole_width, whole_height
    if whole_width / whole_height < ratio:
        height = round(width / ratio)
    else:
        width = round(height * ratio)
    return (whole_width - width) // 2, (whole_height - height) // 2, width, height


def jitter_colours(picture: NDArray[np.uint8], settings: ColourJitter, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] with brightness, contrast, saturation and hue changed at random, in random order."""
    factor = {
        "brightness": rng.uniform(1 - settings.brightness, 1 + settings.brightness),
        "contrast": rng.uniform(1 - settings.contrast, 1 + settings.contrast),
        "saturation": rng.uniform(1 - settings.saturation, 1 + settings.saturation),
        "hue": rng.uniform(-settings.hue, settings.hue),
    }
    changes: dict[str, Callable[[NDArray[np.uint8], float], NDArray[np.uint8]]] = {
        "brightness": partial(_spread, around=lambda picture: 0),
        "contrast": partial(_spread, around=_mean_grey),
        "saturation": _saturate,
        "hue": shift_hue,
    }
    for name in rng.permutation(list(changes)):
        if getattr(settings, name) > 0:
            picture = changes[name](picture, factor[name])
    return picture


def shift_hue(picture: NDArray[np.uint8], turns: float) -> NDArray[np.uint8]:
    """Hue turned by a share of the circle, in the 256 steps of an 8-bit HSV picture."""
    hue, saturation, value = Image.fromarray(picture).convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(turns * 255)) % 256
    merged = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value))
    return np.asarray(merged.convert("RGB"))


def _saturate(picture: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    return np.asarray(ImageEnhance.Color(Image.fromarray(picture)).enhance(factor))


def _spread(picture: NDArray[np.uint8], factor: float, around: Callable[[NDArray[np.uint8]], int]) -> NDArray[np.uint8]:
    """Every value's distance from one of the picture's grey levels times `factor`."""
    centre = around(picture)
    table = np.rint(centre + factor * (np.arange(256) - centre)).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(picture, table), np.uint8)


def _mean_grey(picture: NDArray[np.uint8]) -> int:
    return round(cv2.mean(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))[0])
