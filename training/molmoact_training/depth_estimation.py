"""Depth pictures of colour pictures, by Depth-Anything-V2 (ViT-B in the release), for what no depth camera saw.

The weights are a local directory in transformers' layout (depth-anything/Depth-Anything-V2-Base-hf).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForDepthEstimation

from molmoact_training.depth_pictures import relative_picture
from molmoact_training.errors import TrainingError

INPUT_SIZE = 518  # pixels of the shorter side; the release's
MODEL_TYPE = "depth_anything"
# Of ImageNet, which the backbone was trained with.
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class DepthEstimator:
    """Colour to depth pictures; use `from_pretrained`."""

    def __init__(self, model: Any, device: str = "cpu") -> None:
        """model: transformers' DepthAnythingForDepthEstimation, relative (it writes inverse depth)."""
        self._model = model.to(device).eval()
        self._device = device

    @classmethod
    def from_pretrained(cls, directory: Path, device: str = "cpu") -> DepthEstimator:
        """Raises TrainingError naming the directory when there is no such model in it."""
        try:
            config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TrainingError(f"{directory}: config.json is not readable: {error}: {_expected()}") from error
        kind, estimates = config.get("model_type"), config.get("depth_estimation_type", "relative")
        if kind != MODEL_TYPE or estimates != "relative":
            raise TrainingError(f"{directory}: is a {kind} model that estimates {estimates} depth: {_expected()}")
        try:
            model, loading = AutoModelForDepthEstimation.from_pretrained(
                directory, dtype=torch.float32, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise TrainingError(f"{directory}: not readable: {error}: {_expected()}") from error
        if loading["missing_keys"]:  # transformers would draw them at random
            raise TrainingError(f"{directory}: has no {min(loading['missing_keys'])}: {_expected()}")
        return cls(model, device)

    @torch.inference_mode()
    def nearness(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """RGB uint8 [H, W, 3] -> inverse depth [H, W], without a scale."""
        height, width = image.shape[:2]
        pixels = torch.from_numpy(prepared(image, self._model.config.patch_size)).to(self._device)
        estimate = self._model(pixel_values=pixels[None]).predicted_depth[None]  # [1, 1, h, w]
        resized = torch.nn.functional.interpolate(estimate, (height, width), mode="bilinear", align_corners=True)
        return resized[0, 0].float().cpu().numpy()

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """RGB uint8 [H, W, 3] -> depth picture uint8 [320, 320]."""
        return relative_picture(self.nearness(image))


def prepared(image: NDArray[np.uint8], patch: int) -> NDArray[np.float32]:
    """RGB uint8 [H, W, 3] -> float32 [3, h, w] as the model was published with.

    The shorter side becomes 518 pixels, the other follows, both whole patches; cubic; normalised.
    """
    height, width = image.shape[:2]
    scale = INPUT_SIZE / min(height, width)
    size = [max(round(side * scale / patch), math.ceil(INPUT_SIZE / patch)) * patch for side in (width, height)]
    resized = cv2.resize(image.astype(np.float32) / 255.0, size, interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(((resized - MEAN) / STD).transpose(2, 0, 1), np.float32)


def _expected() -> str:
    return "expected Depth-Anything-V2 (relative) as transformers saves it, such as Depth-Anything-V2-Base-hf"
