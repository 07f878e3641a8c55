"""Models of the official structure with random weights, as small as is wished. benchmarks/ uses them, too."""

from __future__ import annotations

from typing import Any

import torch
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning

FAMILIES = {
    "qwen2": {"qkv_bias": True, "norm_after": False, "use_qk_norm": False},
    "olmo2": {"qkv_bias": False, "norm_after": True, "use_qk_norm": True},
}


def random_model(
    *, image_patch_id: int, seed: int = 0, side: int = 2, vit_layers: int = 1, **language: Any
) -> MolmoActForActionReasoning:
    """Weights large enough (deviation 0.5) that its replies wander.

    side: patches of 8 x 8 pixels across and down a crop. language: of LanguageConfig, with hidden_size.
    """
    small = {"hidden_size": 24, "intermediate_size": 20}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12}
    config = MolmoActConfig(
        vit_config={
            **small,
            **heads,
            "num_hidden_layers": vit_layers,
            "image_default_input_size": [8 * side] * 2,
            "image_patch_size": 8,
            "image_num_pos": side**2,
        },
        adapter_config={
            **small,
            **heads,
            "vit_layers": list(range(-1, -1 - vit_layers, -1)),
            "text_hidden_size": language["hidden_size"],
        },
        llm_config=language,
        image_patch_id=image_patch_id,
    )
    made = MolmoActForActionReasoning(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return made
