"""The language model a stretch of positions at a time, over transformers' own weights and a cache that can be cut back.

The same arithmetic as transformers' Qwen2 and OLMo-2 in the same order, with what a batch of one does not need left
out: on a small model most of a pass is Python. Positions past `length` are free to be written over, so taking back a
wrong guess costs nothing.

On a GPU a pass of a few positions is hundreds of small kernels, which take longer to launch than to run. There such
a pass is filled up to one of a few sizes, recorded once as a CUDA graph and from then on replayed: fixed memory, fixed
shapes, one launch. The positions filled in write behind the others, where everything is free.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from molmoact_policy.model import MolmoActForActionReasoning

# Positions by which the cache grows. What is recorded is lost with the memory it ran on, so a GPU's begins large
# enough for two pictures and a released reply.
CAPACITY_STEP = {"cuda": 2048, "cpu": 512}
# Positions of recorded passes; a longer one (a prompt) computes long enough for its launches not to matter. The
# largest holds a whole window of guesses behind a forced run.
SIZES = {"cuda": (1, 16, 32, 64, 128, 256, 320), "cpu": ()}

Norm: TypeAlias = Callable[[Tensor], Tensor]
# Runs a computation over memory that stays where it is; what it returns does the same again, into the same result.
Record: TypeAlias = Callable[[Callable[[], Tensor], torch.device], Callable[[], Tensor]]


class IncrementalModel:
    """Keys and values of the positions so far, of one sequence."""

    def __init__(
        self,
        model: MolmoActForActionReasoning,
        *,
        sizes: tuple[int, ...] | None = None,
        record: Record | None = None,
    ) -> None:
        """sizes, ascending: what passes are filled up to, where they fit; None: as the device likes it. record: how
        these are run again; None: by a CUDA graph.
        """
        llm = model.config.llm_config
        device = model.device.type
        self.language_model = model.language_model
        self.layers = [_Layer(layer, llm.head_dim) for layer in model.language_model.layers]
        self.norm = _norm(model.language_model.norm)
        self.length = 0
        self._capacity = 0
        self._capacity_step = CAPACITY_STEP.get(device, CAPACITY_STEP["cpu"])
        self._sizes = SIZES.get(device, ()) if sizes is None else sizes
        self._record = record or cuda_graph
        self._recorded: dict[int, _Recorded] = {}
        self._shape = (len(self.layers), llm.num_key_value_heads, llm.head_dim)
        weight = model.lm_head.weight
        self._cache = weight.new_empty(2, self._shape[0], self._shape[1], 0, self._shape[2])
        self._positions: tuple[Tensor, Tensor] = (weight.new_empty(0), weight.new_empty(0))

    def append(self, embeddings: Tensor) -> Tensor:
        """embeddings [n, hidden] of the next n positions -> their last hidden states [n, hidden], normed."""
        start, stop = self.length, self.length + len(embeddings)
        size = next((size for size in self._sizes if size >= len(embeddings)), None)
        if size is None:
            self._reserve(stop)
            hidden = self._pass(embeddings, self._stretch(start, stop, embeddings))
        else:
            self._reserve(start + size)
            hidden = self._fixed_pass(size, embeddings, start)
        self.length = stop
        return hidden

    def _pass(self, x: Tensor, places: _Places) -> Tensor:
        for layer, keys, values in zip(self.layers, *self._cache.unbind(0), strict=True):
            x = layer(x, keys, values, places)
        return self.norm(x)

    def _stretch(self, start: int, stop: int, like: Tensor) -> _Places:
        cos, sin = (table[start:stop] for table in self._positions)
        mask = None
        if stop - start > 1:
            mask = _causal_mask(torch.arange(start, stop, device=like.device), stop, like.dtype)
        return _Places(cos, sin, slice(start, stop), stop, mask)

    def _fixed_pass(self, size: int, embeddings: Tensor, start: int) -> Tensor:
        if size not in self._recorded:
            room = embeddings.new_zeros(size, embeddings.shape[1])
            self._recorded[size] = _Recorded(self._record, self._pass_from, room, start)
        return self._recorded[size](embeddings, start)

    def _pass_from(self, embeddings: Tensor, start: Tensor) -> Tensor:
        """As `_pass` over `_stretch`, with nothing that depends on where it starts but values: start [1]."""
        at = start + torch.arange(len(embeddings), device=start.device)
        cos, sin = (table[at] for table in self._positions)
        mask = _causal_mask(at, self._capacity, embeddings.dtype)
        return self._pass(embeddings, _Places(cos, sin, at, self._capacity, mask))

    def _reserve(self, positions: int) -> None:
        if positions <= self._capacity:
            return
        self._recorded.clear()  # over the old memory
        self._capacity = -(-positions // self._capacity_step) * self._capacity_step
        layers, heads, head_dim = self._shape
        cache = self._cache.new_zeros(2, layers, heads, self._capacity, head_dim)
        cache[..., : self.length, :] = self._cache[..., : self.length, :]
        self._cache = cache
        numbers = torch.arange(self._capacity, device=cache.device).unsqueeze(0)
        cos, sin = self.language_model.rotary_emb(cache, numbers)
        self._positions = (cos[0], sin[0])  # each [capacity, head_dim]


class _Recorded:
    """A pass of one size over memory of its own, run again and again."""

    def __init__(
        self, record: Record, compute: Callable[[Tensor, Tensor], Tensor], embeddings: Tensor, start: int
    ) -> None:
        """compute: of embeddings [size, hidden] and start [1]. start: where nothing of worth is written over."""
        self._embeddings = embeddings
        self._start = torch.full((1,), start, device=embeddings.device)
        self._again = record(lambda: compute(self._embeddings, self._start), embeddings.device)

    def __call__(self, embeddings: Tensor, start: int) -> Tensor:
        """embeddings [n, hidden], n up to the size -> hidden states [n, hidden]."""
        self._embeddings[: len(embeddings)] = embeddings
        self._start.fill_(start)
        return self._again()[: len(embeddings)].clone()  # the next pass writes over its own result


def cuda_graph(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Records a computation on a GPU; what it reads and writes must stay alive and where it is."""
    with torch.cuda.device(device):
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            compute()  # libraries allocate and choose their kernels the first time, which cannot be recorded
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = compute()

    def again() -> Tensor:
        graph.replay()
        return result

    return again


class _Places(NamedTuple):
    """Where a pass stands: the rotations of its positions, where in the cache they are, how much of it is looked at,
    and what is added to the scores (None: nothing)."""

    cos: Tensor  # [n, head_dim]
    sin: Tensor
    at: slice | Tensor
    seen: int
    mask: Tensor | None  # [n, seen]


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

    def __call__(self, x: Tensor, keys: Tensor, values: Tensor, places: _Places) -> Tensor:
        if self.before is not None:
            x = x + self._attend(self.before[0](x), keys, values, places)
            return x + self._feed_forward(self.before[1](x))
        assert self.after is not None
        x = x + self.after[0](self._attend(x, keys, values, places))
        return x + self.after[1](self._feed_forward(x))

    def _attend(self, x: Tensor, keys: Tensor, values: Tensor, places: _Places) -> Tensor:
        """x [n, hidden]; keys and values [kv heads, capacity, head_dim], of which those of x are written first."""
        attention = self.attention
        query, key = _linear(attention.q_proj, x), _linear(attention.k_proj, x)
        if self.qk_norms is not None:
            query, key = self.qk_norms[0](query), self.qk_norms[1](key)
        query, key = (_rotate(self._heads(tensor), places.cos, places.sin) for tensor in (query, key))
        keys[:, places.at] = key
        values[:, places.at] = self._heads(_linear(attention.v_proj, x))
        mixed = _attention(query, keys[:, : places.seen], values[:, : places.seen], places.mask)
        return _linear(attention.o_proj, mixed.transpose(0, 1).flatten(1))

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


def _attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """query [heads, n, head_dim], keys and values [kv heads, seen, head_dim], mask [n, seen] -> [heads, n, head_dim].

    Heads that share keys are queries of one head: the fused kernels with a mask know no shared keys, and without them
    every pass would copy the cache once per head.
    """
    shared = len(query) // len(keys)
    if mask is not None and shared > 1:
        mask = mask.repeat(shared, 1)
    mixed = F.scaled_dot_product_attention(
        query.reshape(1, len(keys), -1, query.shape[-1]), keys.unsqueeze(0), values.unsqueeze(0), attn_mask=mask
    )
    return mixed.reshape(query.shape)


def _causal_mask(at: Tensor, seen: int, dtype: torch.dtype) -> Tensor:
    """at [n] -> [n, seen], what is added to the scores: nothing up to each position, -inf behind it."""
    behind = torch.arange(seen, device=at.device) > at.unsqueeze(1)
    return torch.zeros_like(behind, dtype=dtype).masked_fill_(behind, float("-inf"))
