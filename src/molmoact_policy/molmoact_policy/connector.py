"""From crops to language-model embeddings: the vision tower, 2x2 attention pooling and a SwiGLU projection."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from molmoact_policy.config import AdapterConfig, VisionConfig
from molmoact_policy.vision import Attention, VisionTransformer


class Projector(nn.Module):
    def __init__(self, config: AdapterConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.w2 = nn.Linear(config.intermediate_size, config.text_hidden_size, bias=False)
        self.w3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)) * self.w3(x))


class VisionBackbone(nn.Module):
    """`model.vision_backbone` of the official checkpoints: one feature per pooled image token."""

    def __init__(self, vit: VisionConfig, adapter: AdapterConfig) -> None:
        super().__init__()
        tapped_size = vit.hidden_size * len(adapter.vit_layers)
        self.image_vit = VisionTransformer(vit, adapter.vit_layers)
        self.image_pooling_2d = Attention(
            tapped_size,
            adapter.hidden_size,
            adapter.num_attention_heads,
            adapter.num_key_value_heads,
            adapter.head_dim,
            adapter.float32_attention,
        )
        self.image_projector = Projector(adapter)
        if adapter.image_padding_embed not in (None, "pad_and_partial_pad"):
            raise ValueError(f"image_padding_embed is {adapter.image_padding_embed!r} (None, 'pad_and_partial_pad')")
        self.pad_embed = None
        if adapter.image_padding_embed is not None:
            self.pad_embed = nn.Parameter(torch.zeros(2, tapped_size))

    def forward(self, images: Tensor, pooled_patches_idx: Tensor, image_masks: Tensor | None = None) -> Tensor:
        """Features of all pooled tokens of the batch, in order.

        images [B, crops, patches, patch_size² * 3]; pooled_patches_idx [B, tokens, slots] into the row's crops *
        patches, -1 for an empty slot; image_masks [B, crops, patches] in 0..1 applies the padding embedding. Tokens
        without any patch (batch padding) are dropped. Returns [pooled tokens, hidden of the language model].
        """
        features = self.encode(images)  # [B, crops, patches, taps * vit hidden]
        if image_masks is not None and self.pad_embed is not None:
            features = features + _padding(image_masks.to(features.dtype), self.pad_embed)
        filled = pooled_patches_idx >= 0
        kept = filled.any(-1)  # [B, tokens]
        rows = torch.arange(len(images), device=images.device)[:, None, None].expand_as(pooled_patches_idx)
        # Empty slots become zero vectors that still take part in the attention, and the mean always divides by all.
        slots = features.flatten(1, 2)[rows[kept], pooled_patches_idx[kept].clamp(min=0)]  # [tokens, slots, channels]
        slots = slots * filled[kept].unsqueeze(-1).to(slots.dtype)
        pooled = self.image_pooling_2d(slots.mean(1, keepdim=True), slots).squeeze(1)
        return self.image_projector(pooled)

    def encode(self, images: Tensor) -> Tensor:
        """[B, crops, patches, pixels] -> tapped ViT features [B, crops, patches, taps * vit hidden]."""
        return self.image_vit(images.flatten(0, 1)).unflatten(0, images.shape[:2])


def _padding(masks: Tensor, pad_embed: Tensor) -> Tensor:
    """[B, crops, patches] -> [B, crops, patches, channels]: row 0 where all is padding, row 1 where some is."""
    empty = (masks == 0).unsqueeze(-1) * pad_embed[0]
    partial = ((masks > 0) & (masks < 1)).unsqueeze(-1) * pad_embed[1]
    return empty + partial
