"""The language model: transformers' own Qwen2 or OLMo-2, and where the official tensors live in it."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import Olmo2Config, Olmo2Model, PreTrainedModel, Qwen2Config, Qwen2Model

from molmoact_policy.config import LanguageConfig


@dataclass(frozen=True)
class Rows:
    """Rows [start, stop) of a parameter of ours; an official tensor is some of these, one after another."""

    parameter: str
    start: int = 0
    stop: int | None = None


def build_language_model(config: LanguageConfig, implementation: str) -> PreTrainedModel:
    """A headless decoder whose embedding holds the ordinary rows and then the additional ones.

    Raises ValueError when the switches describe neither Qwen2 nor OLMo-2.
    """
    common = {
        "vocab_size": config.vocab_size + config.additional_vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": config.hidden_act,
        "rms_norm_eps": config.layer_norm_eps,
        "max_position_embeddings": config.max_position_embeddings,
        "attention_dropout": config.attention_dropout,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": implementation,
    }
    if config.family == "qwen2":
        return Qwen2Model(Qwen2Config(**common))
    return Olmo2Model(Olmo2Config(**common, attention_bias=False))


def official_layout(config: LanguageConfig) -> dict[str, tuple[Rows, ...]]:
    """Official key (below `model.transformer.`) -> the rows of the language model's parameters it is made of.

    att_proj is [q | k | v]; ff_proj is [up | gate]: its second half goes through the activation.
    """
    embedding = "embed_tokens.weight"
    layout: dict[str, tuple[Rows, ...]] = {
        "wte.embedding": (Rows(embedding, 0, config.vocab_size),),
        "wte.new_embedding": (Rows(embedding, config.vocab_size, config.vocab_size + config.additional_vocab_size),),
        "ln_f.weight": (Rows("norm.weight"),),
    }
    if config.family == "olmo2":
        norms = {"attn_norm": "post_attention_layernorm", "ff_norm": "post_feedforward_layernorm"}
    else:
        norms = {"attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm"}
    for i in range(config.num_hidden_layers):
        block, layer = f"blocks.{i}", f"layers.{i}"
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            layout[f"{block}.self_attn.att_proj.{kind}"] = tuple(
                Rows(f"{layer}.self_attn.{name}_proj.{kind}") for name in "qkv"
            )
        if config.use_qk_norm:
            layout[f"{block}.self_attn.q_norm.weight"] = (Rows(f"{layer}.self_attn.q_norm.weight"),)
            layout[f"{block}.self_attn.k_norm.weight"] = (Rows(f"{layer}.self_attn.k_norm.weight"),)
        layout[f"{block}.self_attn.attn_out.weight"] = (Rows(f"{layer}.self_attn.o_proj.weight"),)
        layout[f"{block}.mlp.ff_proj.weight"] = (
            Rows(f"{layer}.mlp.up_proj.weight"),
            Rows(f"{layer}.mlp.gate_proj.weight"),
        )
        layout[f"{block}.mlp.ff_out.weight"] = (Rows(f"{layer}.mlp.down_proj.weight"),)
        for official, ours in norms.items():
            layout[f"{block}.{official}.weight"] = (Rows(f"{layer}.{ours}.weight"),)
    return layout
