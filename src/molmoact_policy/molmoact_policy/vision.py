"""The vision tower: a ViT over flattened patches, read at two of its layers (paper section 2.1; SigLIP2 or CLIP)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from molmoact_policy.config import VisionConfig


class Attention(nn.Module):
    """Multi-head attention with biases on all four projections, used by the ViT and by the connector's pooling."""

    def __init__(
        self,
        input_size: int,
        output_size: int,
        num_heads: int,
        num_key_value_heads: int,
        head_dim: int,
        float32_scores: bool,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.groups = num_heads // num_key_value_heads
        self.float32_scores = float32_scores
        self.wq = nn.Linear(input_size, num_heads * head_dim)
        self.wk = nn.Linear(input_size, num_key_value_heads * head_dim)
        self.wv = nn.Linear(input_size, num_key_value_heads * head_dim)
        self.wo = nn.Linear(num_heads * head_dim, output_size)

    def forward(self, queries: Tensor, keys_values: Tensor) -> Tensor:
        """queries [B, Q, input], keys_values [B, K, input] -> [B, Q, output]; nothing is masked."""
        query = self._heads(self.wq(queries))
        key = self._heads(self.wk(keys_values)).repeat_interleave(self.groups, dim=1)
        value = self._heads(self.wv(keys_values)).repeat_interleave(self.groups, dim=1)
        if self.float32_scores:
            query, key = query.float(), key.float()
        # Spelt out and with the query scaled first, as the release does: in fp32 on CPU it is the same to the bit.
        scores = (query / self.head_dim**0.5) @ key.transpose(-2, -1)  # [B, heads, Q, K]
        mixed = scores.softmax(dim=-1).to(value.dtype) @ value
        return self.wo(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # [B, heads, tokens, head_dim]


class FeedForward(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)))


class Block(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.attention = Attention(
            config.hidden_size,
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.float32_attention,
        )
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed)
        return x + self.feed_forward(self.ffn_norm(x))


class VisionTransformer(nn.Module):
    """Patches of one crop in, raw residual streams after the tapped blocks out.

    `taps` count from the declared number of layers when negative, as in `adapter_config.vit_layers`; blocks above the
    highest tap are never built, so the official checkpoints do not hold them.
    """

    def __init__(self, config: VisionConfig, taps: list[int]) -> None:
        super().__init__()
        self.config = config
        self.taps = [tap % config.num_hidden_layers for tap in taps]
        self.patch_embedding = nn.Linear(config.image_patch_size**2 * 3, config.hidden_size, bias=config.patch_bias)
        self.positional_embedding = nn.Parameter(torch.zeros(config.image_num_pos, config.hidden_size))
        self.class_embedding = nn.Parameter(torch.zeros(config.hidden_size)) if config.use_cls_token else None
        self.pre_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.pre_layernorm else None
        # The official key names have this level: image_vit.transformer.resblocks.{i}
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(config) for _ in range(max(self.taps) + 1))})

    def forward(self, patches: Tensor) -> Tensor:
        """patches [crops, patches, patch_size² * 3] -> [crops, patches, taps * hidden], in the configured order."""
        x = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = x + self._positions().to(x.dtype)
        if self.pre_ln is not None:
            x = self.pre_ln(x)
        streams = []
        for block in self.transformer["resblocks"]:
            x = block(x)
            streams.append(x)
        tapped = torch.cat([streams[tap] for tap in self.taps], dim=-1)
        return tapped[:, 1:] if self.class_embedding is not None else tapped

    def _positions(self) -> Tensor:
        """The position table, resized when the crop's grid is not the one it was made for."""
        table = self.positional_embedding
        prefix = table[: 1 if self.class_embedding is not None else 0]
        grid = table[len(prefix) :]
        side = round(len(grid) ** 0.5)
        if (side, side) == self.config.patch_grid:
            return table
        square = grid.unflatten(0, (side, side)).permute(2, 0, 1).unsqueeze(0)  # [1, hidden, side, side]
        resized = F.interpolate(square, self.config.patch_grid, mode="bicubic", align_corners=False, antialias=True)
        return torch.cat([prefix, resized.squeeze(0).flatten(1).T])
