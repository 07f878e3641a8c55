"""Augmentation of pictures: a random crop, then random colours (paper, tables 7 and 10 to 14)."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageStat

from molmoact_training.presets import Augmentation, ColourJitter


def augment(picture: NDArray[np.uint8], settings: Augmentation, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] of the same size: a part of the picture enlarged again, in other colours."""
    image = Image.fromarray(picture)
    if settings.crop_area is not None:
        ratio = image.width / image.height if settings.crop_ratio == "picture" else 1.0
        left, top, width, height = crop_box(image.size, settings.crop_area, ratio, rng)
        part = image.crop((left, top, left + width, top + height))
        image = part.resize(image.size, Image.Resampling.BILINEAR)
    if settings.colour_jitter is not None:
        image = jitter_colours(image, settings.colour_jitter, rng)
    return np.asarray(image)


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


def jitter_colours(image: Image.Image, settings: ColourJitter, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue changed at random, in random order."""
    factor = {
        "brightness": rng.uniform(1 - settings.brightness, 1 + settings.brightness),
        "contrast": rng.uniform(1 - settings.contrast, 1 + settings.contrast),
        "saturation": rng.uniform(1 - settings.saturation, 1 + settings.saturation),
        "hue": rng.uniform(-settings.hue, settings.hue),
    }
    changes: dict[str, Callable[[Image.Image], Image.Image]] = {
        "brightness": lambda image: _spread(image, 0, factor["brightness"]),
        "contrast": lambda image: _spread(image, ImageStat.Stat(image.convert("L")).mean[0], factor["contrast"]),
        "saturation": lambda image: ImageEnhance.Color(image).enhance(factor["saturation"]),
        "hue": lambda image: shift_hue(image, factor["hue"]),
    }
    for name in rng.permutation(list(changes)):
        if getattr(settings, name) > 0:
            image = changes[name](image)
    return image


def _spread(image: Image.Image, centre: float, factor: float) -> Image.Image:
    """Every value's distance from `centre` times `factor`, by a table: a fifth of the time of blending pictures."""
    table = np.rint(round(centre) + factor * (np.arange(256) - round(centre))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(cv2.LUT(np.asarray(image), table))


def shift_hue(image: Image.Image, turns: float) -> Image.Image:
    """Hue turned by a share of the circle, in the 256 steps of an 8-bit HSV picture."""
    hue, saturation, value = image.convert("HSV").split()
    turned = (np.asarray(hue).astype(np.int16) + round(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
