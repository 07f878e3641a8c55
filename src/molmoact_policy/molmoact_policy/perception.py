"""What the model is shown, as embeddings; pictures that have not changed are not encoded again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.processor import Processor


@dataclass(frozen=True)
class Prefix:
    """All that comes before a reply.

    embeddings [S, hidden]; signature [S]: for each position what it depends on, but for those before it.
    """

    embeddings: Tensor
    signature: list[Any]


class Perception:
    """Pictures and a prompt to embeddings, the same as the model makes of the processor's output.

    The duplicate of a picture that fits one crop is encoded, pooled and projected once.
    """

    def __init__(self, model: MolmoActForActionReasoning, processor: Processor) -> None:
        self._model = model
        self._processor = processor
        self._seen: list[bytes] = []
        self._patch_ids: list[int] = []
        self._features = torch.empty(0)

    def prefix(self, images: Sequence[NDArray[np.uint8]], prompt: str) -> Prefix:
        """images: uint8 RGB [H, W, 3] each; prompt: the bare question."""
        digests = [hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest() for image in images]
        if digests != self._seen:
            self._look(images)
            self._seen = digests
        ids = [*self._patch_ids, *self._processor.encode_prompt(prompt)]
        device = self._model.device
        merged = self._model.merge_image_features(torch.tensor([ids], device=device), self._features)
        # With several pictures an empty pooling slot of one is filled from the one before: they count together.
        pictures = tuple(digests)
        patch = self._processor.image_patch_id
        return Prefix(merged[0], [pictures if number == patch else number for number in ids])

    def _look(self, images: Sequence[NDArray[np.uint8]]) -> None:
        numbered = len(images) > 1
        processor = self._processor
        processed = [processor.image_processor(image, multi_image=numbered, once=True) for image in images]
        self._patch_ids = processor.image_prefix(processed, numbered=numbered)
        joined = {name: tensor.to(self._model.device) for name, tensor in processor.join(processed).items()}
        pooled, inverse = joined["pooled_patches_idx"][0].unique(dim=0, return_inverse=True)
        self._features = self._model.image_features(joined["images"], pooled.unsqueeze(0), joined["image_masks"])[
            inverse
        ]
