"""The model as it is trained: which weights learn, adapters, dropout, what is computed again to save memory."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from molmoact_training.lora import add_adapters
from molmoact_training.optimizer import group_of
from molmoact_training.presets import Preset

HEAD = "lm_head.weight"
ORDINARY = "language_model.embed_tokens.ordinary"
ADDITIONAL = "language_model.embed_tokens.additional"
FINAL_NORM = "language_model.norm.weight"
SPELT_OUT = "spelt_out"


class SplitEmbedding(nn.Module):
    """The token embedding with its additional rows, of the image tokens, as a parameter that learns at its own rate."""

    def __init__(self, weight: Tensor, ordinary: int) -> None:
        """weight [rows, hidden], of which the first `ordinary` are those of the ordinary ids."""
        super().__init__()
        self.ordinary = nn.Parameter(weight[:ordinary].detach().clone())
        self.additional = nn.Parameter(weight[ordinary:].detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """ids int64 [...] -> [..., hidden]."""
        rows = self.ordinary.shape[0]
        own = F.embedding(ids.clamp(max=rows - 1), self.ordinary)
        added = F.embedding((ids - rows).clamp(min=0), self.additional)
        return torch.where((ids < rows).unsqueeze(-1), own, added)


def spelt_out_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Eager attention with fewer passes over the scores: a seventh of a training step in bf16 on a CPU.

    query [B, heads, L, d], key and value [B, fewer heads, K, d]; attention_mask additive. Scores are scaled through the
    query, and the softmax, fp32 inside, reads and writes the precision of the matrix products.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    groups = query.shape[1] // key.shape[1]
    with torch.autocast(kind, enabled=False):
        query, key, value = (query * scaling).to(dtype), key.to(dtype), value.to(dtype)
        scores = query @ key.repeat_interleave(groups, 1).transpose(-2, -1)
        if attention_mask is not None:
            scores = scores + attention_mask.to(dtype)
        mixed = scores.softmax(-1) @ value.repeat_interleave(groups, 1)
    return mixed.transpose(1, 2).contiguous(), None


AttentionInterface.register(SPELT_OUT, spelt_out_attention)
AttentionMaskInterface.register(SPELT_OUT, eager_mask)


def load(directory: Path, config: MolmoActConfig, preset: Preset) -> MolmoActForActionReasoning:
    """A checkpoint on the CPU, ready to be trained as a preset says; random numbers come from torch's generator.

    What is trained is fp32. Frozen weights under adapters are bf16 where the preset computes in it. Raises
    CheckpointError for a checkpoint that does not fit its configuration.
    """
    model = MolmoActForActionReasoning.from_pretrained(
        directory, config=config, dtype=frozen_dtype(preset), attn_implementation=preset.attention, variant="training"
    )
    return prepare(model, preset)


def frozen_dtype(preset: Preset) -> torch.dtype:
    """Of weights that are not trained."""
    return torch.bfloat16 if preset.lora is not None and preset.precision == "bf16" else torch.float32


def prepare(model: MolmoActForActionReasoning, preset: Preset) -> MolmoActForActionReasoning:
    """Change a plain model, on any device, into the one that is trained."""
    llm = model.config.llm_config
    embedding = model.language_model.embed_tokens
    model.language_model.embed_tokens = SplitEmbedding(embedding.weight, llm.vocab_size)
    whole = trained_whole(model.config, preset)
    if preset.lora is not None:
        add_adapters(model, preset.lora, head=HEAD not in whole)
    rates = preset.optimizer.learning_rates
    for name, parameter in model.named_parameters():
        chosen = preset.lora is None or "lora_" in name
        if name in (HEAD, ORDINARY, ADDITIONAL, FINAL_NORM) and preset.lora is not None:
            chosen = chosen or name in whole
        elif name in (HEAD, ORDINARY):
            chosen = name in whole
        parameter.requires_grad_(chosen and getattr(rates, group_of(name)) > 0)
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if preset.attention == "eager":
        model.language_model.config._attn_implementation = SPELT_OUT
    _add_dropout(model, preset.residual_dropout)
    if preset.gradient_checkpointing:
        for block in (*model.vision_backbone.image_vit.transformer["resblocks"], *model.language_model.layers):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    return model.train()


def trained_whole(config: MolmoActConfig, preset: Preset) -> set[str]:
    """Names of embeddings, head and last norm that are trained in full, by the preset's `train_embeddings`.

    "auto" takes a checkpoint without action statistics as one that has not learned depth tokens yet. As the release's
    --ft_embedding: "all" is all of them, "head" the head alone.
    """
    choice = preset.train_embeddings
    if choice == "auto":
        choice = "none" if preset.lora is not None and config.norm_stats else "all"
    return {"all": {HEAD, ORDINARY, ADDITIONAL, FINAL_NORM}, "head": {HEAD}, "none": set()}[choice]


def _add_dropout(model: MolmoActForActionReasoning, share: float) -> None:
    """On what every block of the language model adds to its residual stream, as in the release's training."""
    if not share:
        return

    def drop(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):  # of self-attention: output, weights
            return F.dropout(output[0], share, module.training), *output[1:]
        return F.dropout(output, share, module.training)

    for layer in model.language_model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
