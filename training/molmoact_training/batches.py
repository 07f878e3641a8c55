"""Samples and batches: what the model reads, what it should write, and how much each token counts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TEXT, DEPTH, TRACE, ACTION = range(4)  # kinds of target tokens
KIND_NAMES = ("text", "depth", "trace", "action")

SHARED = 10000  # segment of what every message may see, as in the released training code
PADDING = -1  # of segments, images and indices


@dataclass(frozen=True)
class Sample:
    """One token sequence with its pictures. L tokens are read; each predicts the one that follows it.

    input_ids, targets, position_ids, segment_ids, kinds: int64 [L]; weights: float32 [L], 0 where the target is no
    answer; images: float32 [crops, patches, values]; image_masks: float32 [crops, patches]; pooled_patches_idx: int64
    [tokens, 4] into crops * patches, -1 for an empty slot. Segments: SHARED, then 0, 1, ... for the messages.
    """

    name: str  # for errors: dataset, frame and kind
    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    segment_ids: NDArray[np.int64]
    weights: NDArray[np.float32]
    kinds: NDArray[np.int64]
    images: NDArray[np.float32]
    image_masks: NDArray[np.float32]
    pooled_patches_idx: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Samples side by side, padded on the right: with causal attention nothing that counts can see the padding.

    segment_ids is None when every sample is a single message, image_masks when no picture has padding of its own.
    images and pooled_patches_idx are None when no sample has a picture.
    """

    names: list[str]
    input_ids: Tensor  # int64 [B, L]
    targets: Tensor  # int64 [B, L]
    position_ids: Tensor  # int64 [B, L]
    segment_ids: Tensor | None  # int64 [B, L]
    weights: Tensor  # float32 [B, L]
    kinds: Tensor  # int64 [B, L]
    images: Tensor | None  # float32 [B, crops, patches, values]
    image_masks: Tensor | None  # float32 [B, crops, patches]
    pooled_patches_idx: Tensor | None  # int64 [B, tokens, 4]

    def __len__(self) -> int:
        return len(self.names)

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return self._each(lambda value: value.to(device, non_blocking=True))

    def rows(self, start: int, stop: int) -> Batch:
        """Samples [start, stop) of the batch, as long as the whole one."""
        return dataclasses.replace(self._each(lambda value: value[start:stop]), names=self.names[start:stop])

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor that is there, by name: what is saved of a batch."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _each(self, change: Any) -> Batch:
        return dataclasses.replace(self, **{name: change(value) for name, value in self.tensors().items()})


def collate(samples: Sequence[Sample], pad_id: int) -> Batch:
    """Samples of any lengths and numbers of crops to one batch."""
    several = any((sample.segment_ids % SHARED).any() for sample in samples)
    padded = any((sample.image_masks < 1).any() for sample in samples)
    pictured = any(len(sample.images) for sample in samples)
    return Batch(
        names=[sample.name for sample in samples],
        input_ids=_stack([sample.input_ids for sample in samples], pad_id),
        targets=_stack([sample.targets for sample in samples], pad_id),
        position_ids=_stack([sample.position_ids for sample in samples], 0),
        segment_ids=_stack([sample.segment_ids for sample in samples], PADDING) if several else None,
        weights=_stack([sample.weights for sample in samples], 0),
        kinds=_stack([sample.kinds for sample in samples], TEXT),
        images=_stack([sample.images for sample in samples], PADDING) if pictured else None,
        image_masks=_stack([sample.image_masks for sample in samples], PADDING) if padded else None,
        pooled_patches_idx=_stack([sample.pooled_patches_idx for sample in samples], PADDING) if pictured else None,
    )


def _stack(arrays: Sequence[NDArray[Any]], padding: int) -> Tensor:
    """[n, ...] each, along the first axis padded to the longest, as [B, n, ...]."""
    length = max(len(array) for array in arrays)
    if all(len(array) == length for array in arrays):
        return torch.from_numpy(np.stack(arrays))
    stacked = np.full((len(arrays), length, *arrays[0].shape[1:]), padding, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(stacked)
