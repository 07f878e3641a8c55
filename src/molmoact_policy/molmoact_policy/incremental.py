"""The language model a stretch of positions at a time, over transformers' own weights and a cache that can be cut back.

The same arithmetic as transformers' Qwen2 and OLMo-2 in the same order, with what a batch of one does not need left
out: on a small model most of a pass is Python. Positions past `length` are free to be written over, so taking back a
wrong guess costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molmoact_policy.model import MolmoActForActionReasoning

CAPACITY_STEP = 512  # positions by which the cache grows

Norm: TypeAlias = Callable[[Tensor], Tensor]


class IncrementalModel:
    """Keys and values of the positions so far, of one sequence."""

    def __init__(self, model: MolmoActForActionReasoning) -> None:
        llm = model.config.llm_config
        self.language_model = model.language_model
        self.layers = [_Layer(layer, llm.head_dim) for layer in model.language_model.layers]
        self.norm = _norm(model.language_model.norm)
        self.length = 0
        self._capacity = 0
        self._shape = (len(self.layers), llm.num_key_value_heads, llm.head_dim)
        weight = model.lm_head.weight
        self._cache = weight.new_empty(2, self._shape[0], self._shape[1], 0, self._shape[2])
        self._positions: tuple[Tensor, Tensor] = (weight.new_empty(0), weight.new_empty(0))

    def append(self, embeddings: Tensor) -> Tensor:
        """embeddings [n, hidden] of the next n positions -> their last hidden states [n, hidden], normed."""
        start, stop = self.length, self.length + len(embeddings)
        self._reserve(stop)
        cos, sin = (table[start:stop] for table in self._positions)
        mask = _causal_mask(start, stop, embeddings)
        x = embeddings
        for layer, keys, values in zip(self.layers, *self._cache.unbind(0), strict=True):
            x = layer(x, cos, sin, keys, values, start, mask)
        self.length = stop
        return self.norm(x)

    def _reserve(self, positions: int) -> None:
        if positions <= self._capacity:
            return
        self._capacity = -(-positions // CAPACITY_STEP) * CAPACITY_STEP
        layers, heads, head_dim = self._shape
        cache = self._cache.new_zeros(2, layers, heads, self._capacity, head_dim)
        cache[..., : self.length, :] = self._cache[..., : self.length, :]
        self._cache = cache
        numbers = torch.arange(self._capacity, device=cache.device).unsqueeze(0)
        cos, sin = self.language_model.rotary_emb(cache, numbers)
        self._positions = (cos[0], sin[0])  # each [capacity, head_dim]


class _Layer:
    """One block, pre-norm (Qwen2) or with the norms after attention and feed-forward (OLMo-2)."""

    def __init__(self, layer: nn.Module, head_dim: int) -> None:
        self.attention, self.mlp, self.head_dim = layer.self_attn, layer.mlp, head_dim
        self.before: tuple[Norm, Norm] | None = None
        self.after: tuple[Norm, Norm] | None = None
        self.qk_norms: tuple[Norm, Norm] | None = None
        if hasattr(layer, "input_layernorm"):
            self.before = (_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm))
        else:
            self.after = (_norm(layer.post_attention_layernorm), _norm(layer.post_feedforward_layernorm))
            self.qk_norms = (_norm(layer.self_attn.q_norm), _norm(layer.self_attn.k_norm))

    def __call__(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int, mask: Tensor | None
    ) -> Tensor:
        if self.before is not None:
            x = x + self._attend(self.before[0](x), cos, sin, keys, values, start, mask)
            return x + self._feed_forward(self.before[1](x))
        assert self.after is not None
        x = x + self.after[0](self._attend(x, cos, sin, keys, values, start, mask))
        return x + self.after[1](self._feed_forward(x))

    def _attend(
        self, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, start: int, mask: Tensor | None
    ) -> Tensor:
        """x [n, hidden]; keys and values [kv heads, capacity, head_dim], written at start; mask [n, start + n]."""
        attention, stop = self.attention, start + len(x)
        query, key = _linear(attention.q_proj, x), _linear(attention.k_proj, x)
        if self.qk_norms is not None:
            query, key = self.qk_norms[0](query), self.qk_norms[1](key)
        query, key = (_rotate(self._heads(tensor), cos, sin) for tensor in (query, key))
        keys[:, start:stop] = key
        values[:, start:stop] = self._heads(_linear(attention.v_proj, x))
        mixed = F.scaled_dot_product_attention(
            query.unsqueeze(0),
            keys[:, :stop].unsqueeze(0),
            values[:, :stop].unsqueeze(0),
            attn_mask=mask,
            enable_gqa=len(query) != len(keys),
        )
        return _linear(attention.o_proj, mixed.squeeze(0).transpose(0, 1).flatten(1))

    def _feed_forward(self, x: Tensor) -> Tensor:
        mlp = self.mlp
        return _linear(mlp.down_proj, mlp.act_fn(_linear(mlp.gate_proj, x)) * _linear(mlp.up_proj, x))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(0, 1)  # [heads, n, head_dim]


def _linear(module: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, module.weight, module.bias)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, half-split; x [heads, n, head_dim], cos and sin [n, head_dim]."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


def _norm(module: nn.Module) -> Norm:
    """A norm as a function: the module's own class, without the hooks of nn.Module."""
    return module.forward


def _causal_mask(start: int, stop: int, like: Tensor) -> Tensor | None:
    """[stop - start, stop], what is added to the scores: nothing up to each position, -inf behind it."""
    if stop - start == 1:
        return None
    rows = torch.arange(start, stop, device=like.device).unsqueeze(1)
    behind = torch.arange(stop, device=like.device) > rows
    return torch.zeros_like(behind, dtype=like.dtype).masked_fill_(behind, float("-inf"))
