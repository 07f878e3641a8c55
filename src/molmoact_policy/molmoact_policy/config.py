"""config.json of the official release: one composite configuration for vision tower, connector and language model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import PretrainedConfig


class VisionConfig(PretrainedConfig):
    """`vit_config`: a pre-norm ViT over flattened patches. Defaults are SigLIP2-so400m/14 at 378 px (family D)."""

    model_type = "molmoact_vit"

    def __init__(
        self,
        hidden_size: int = 1152,
        intermediate_size: int = 4304,
        num_hidden_layers: int = 27,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 16,
        head_dim: int = 72,
        hidden_act: str = "gelu_pytorch_tanh",
        layer_norm_eps: float = 1e-6,
        image_default_input_size: Sequence[int] = (378, 378),
        image_patch_size: int = 14,
        image_num_pos: int = 729,
        use_cls_token: bool = False,
        patch_bias: bool = True,
        pre_layernorm: bool = False,
        float32_attention: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.hidden_act = hidden_act
        self.layer_norm_eps = layer_norm_eps
        self.image_default_input_size = list(image_default_input_size)
        self.image_patch_size = image_patch_size
        self.image_num_pos = image_num_pos
        self.use_cls_token = use_cls_token
        self.patch_bias = patch_bias
        self.pre_layernorm = pre_layernorm
        self.float32_attention = float32_attention

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Patches down and across one crop."""
        height, width = self.image_default_input_size
        return height // self.image_patch_size, width // self.image_patch_size


class AdapterConfig(PretrainedConfig):
    """`adapter_config`: attention pooling over 2x2 patches of the tapped ViT layers, then a SwiGLU projection."""

    model_type = "molmoact_adapter"

    def __init__(
        self,
        vit_layers: Sequence[int] = (-3, -9),
        hidden_size: int = 1152,
        num_attention_heads: int = 16,
        num_key_value_heads: int = 16,
        head_dim: int = 72,
        float32_attention: bool = True,
        hidden_act: str = "silu",
        intermediate_size: int = 18944,
        text_hidden_size: int = 3584,
        image_padding_embed: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vit_layers = list(vit_layers)
        self.hidden_size = hidden_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.float32_attention = float32_attention
        self.hidden_act = hidden_act
        self.intermediate_size = intermediate_size
        self.text_hidden_size = text_hidden_size
        self.image_padding_embed = image_padding_embed


class LanguageConfig(PretrainedConfig):
    """`llm_config`: a decoder-only transformer, Qwen2 (family D, the defaults) or OLMo-2 (family O) by its switches."""

    model_type = "molmoact_llm"

    def __init__(
        self,
        hidden_size: int = 3584,
        intermediate_size: int = 18944,
        num_hidden_layers: int = 28,
        num_attention_heads: int = 28,
        num_key_value_heads: int | None = 4,
        head_dim: int = 128,
        vocab_size: int = 152064,
        additional_vocab_size: int = 128,
        hidden_act: str = "silu",
        qkv_bias: bool = True,
        use_qk_norm: bool = False,
        qk_norm_type: str = "olmo",
        norm_after: bool = False,
        layer_norm_eps: float = 1e-6,
        rope_theta: float = 1e6,
        rope_scaling: dict[str, Any] | None = None,
        max_position_embeddings: int = 4096,
        attention_dropout: float = 0.0,
        use_cache: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.head_dim = head_dim
        self.vocab_size = vocab_size
        self.additional_vocab_size = additional_vocab_size
        self.hidden_act = hidden_act
        self.qkv_bias = qkv_bias
        self.use_qk_norm = use_qk_norm
        self.qk_norm_type = qk_norm_type
        self.norm_after = norm_after
        self.layer_norm_eps = layer_norm_eps
        if rope_scaling is not None:
            raise ValueError(
                f"llm_config.rope_scaling is {rope_scaling!r}, expected null: both families use plain RoPE"
            )
        self.rope_theta = rope_theta
        self.max_position_embeddings = max_position_embeddings
        self.attention_dropout = attention_dropout
        self.use_cache = use_cache

    @property
    def family(self) -> str:
        """ "qwen2" or "olmo2". Raises ValueError when the switches describe neither."""
        if self.qkv_bias and not self.norm_after and not self.use_qk_norm:
            return "qwen2"
        if not self.qkv_bias and self.norm_after and self.use_qk_norm and self.qk_norm_type == "olmo":
            return "olmo2"
        raise ValueError(
            "llm_config is neither Qwen2 (qkv_bias, no norm_after, no use_qk_norm) nor OLMo-2 (norm_after and "
            f"use_qk_norm of type 'olmo', no qkv_bias): qkv_bias={self.qkv_bias}, norm_after={self.norm_after}, "
            f"use_qk_norm={self.use_qk_norm}, qk_norm_type={self.qk_norm_type!r}"
        )


@dataclass(frozen=True)
class Variant:
    """What one of the released codes does differently, in the terms of the configuration."""

    image_injection: (
        str  # image features are added to the <im_patch> embeddings ("add") or take their place ("replace")
    )
    use_pad_embed: bool  # whether the connector's padding embedding is applied to patches that are padding
    float32_attention: bool  # whether vision tower and pooling score their attention in fp32


VARIANTS = {
    "hf": Variant("add", use_pad_embed=False, float32_attention=True),
    "training": Variant("add", use_pad_embed=True, float32_attention=True),
    "vllm": Variant("replace", use_pad_embed=False, float32_attention=False),
}


class MolmoActConfig(PretrainedConfig):
    """The whole model. The three parts are given as configuration objects or as the dictionaries of config.json.

    `image_injection` and `use_pad_embed` make explicit what differs between the released codes (see Variant); the
    defaults are the released HF model's. `follow` sets both, and the precision of attention, to those of one code.
    `action_encoding` is how the checkpoint was trained to write actions: see Processor.
    """

    model_type = "molmoact"
    sub_configs: ClassVar[dict[str, type[PretrainedConfig]]] = {
        "vit_config": VisionConfig,
        "adapter_config": AdapterConfig,
        "llm_config": LanguageConfig,
    }

    def __init__(
        self,
        vit_config: VisionConfig | dict[str, Any] | None = None,
        adapter_config: AdapterConfig | dict[str, Any] | None = None,
        llm_config: LanguageConfig | dict[str, Any] | None = None,
        image_patch_id: int = 152066,
        initializer_range: float = 0.02,
        n_action_bins: int = 256,
        norm_stats: dict[str, Any] | None = None,
        use_cache: bool = True,
        tie_word_embeddings: bool = False,
        image_injection: str = "add",
        use_pad_embed: bool = False,
        action_encoding: str = "text",
        **kwargs: Any,
    ) -> None:
        # Set before the base class looks at them (it hands the attention implementation down to the parts).
        self.vit_config = _part(VisionConfig, vit_config)
        self.adapter_config = _part(AdapterConfig, adapter_config)
        self.llm_config = _part(LanguageConfig, llm_config)
        super().__init__(**kwargs)
        # tiny and real configs alike say tie_word_embeddings=true at one level or the other; lm_head is always its own.
        self.tie_word_embeddings = False
        self.image_patch_id = image_patch_id
        self.initializer_range = initializer_range
        self.n_action_bins = n_action_bins
        self.norm_stats = norm_stats or {}
        self.use_cache = use_cache
        if image_injection not in ("add", "replace"):
            raise ValueError(f"image_injection is {image_injection!r} (add, replace)")
        self.image_injection = image_injection
        self.use_pad_embed = use_pad_embed
        self.action_encoding = action_encoding

    def follow(self, variant: str) -> None:
        """Compute as one of VARIANTS does. Raises ValueError for a name that is none."""
        if variant not in VARIANTS:
            raise ValueError(f"variant is {variant!r} ({', '.join(VARIANTS)})")
        chosen = VARIANTS[variant]
        self.image_injection = chosen.image_injection
        self.use_pad_embed = chosen.use_pad_embed
        self.vit_config.float32_attention = chosen.float32_attention
        self.adapter_config.float32_attention = chosen.float32_attention

    def check(self) -> None:
        """Raises ValueError naming the first setting that does not go with the others."""
        vit, adapter, llm = self.vit_config, self.adapter_config, self.llm_config
        llm.family  # noqa: B018, raises when it is neither
        for name, part in (("vit_config", vit), ("adapter_config", adapter), ("llm_config", llm)):
            if part.num_attention_heads % part.num_key_value_heads:
                raise ValueError(
                    f"{name}.num_attention_heads is {part.num_attention_heads}, which num_key_value_heads "
                    f"{part.num_key_value_heads} does not divide"
                )
        layers = vit.num_hidden_layers
        if not adapter.vit_layers or not all(-layers <= tap < layers for tap in adapter.vit_layers):
            raise ValueError(f"adapter_config.vit_layers is {adapter.vit_layers}, expected layers of {layers}")
        grid = vit.image_num_pos - vit.use_cls_token
        if grid < 1 or math.isqrt(grid) ** 2 != grid:
            raise ValueError(f"vit_config.image_num_pos is {vit.image_num_pos}, expected a square number of patches")
        if adapter.text_hidden_size != llm.hidden_size:
            raise ValueError(
                f"adapter_config.text_hidden_size is {adapter.text_hidden_size}, llm_config.hidden_size "
                f"{llm.hidden_size}: expected the same"
            )
        rows = llm.vocab_size + llm.additional_vocab_size
        if not 0 <= self.image_patch_id < rows:
            raise ValueError(f"image_patch_id is {self.image_patch_id}, expected one of the {rows} embedding rows")

    def get_text_config(self, *args: Any, **kwargs: Any) -> LanguageConfig:
        """The part transformers' generation asks for layers, heads and vocabulary."""
        return self.llm_config


def _part(part_class: type[PretrainedConfig], given: PretrainedConfig | dict[str, Any] | None) -> Any:
    if isinstance(given, part_class):
        return given
    return part_class(**(given or {}))
