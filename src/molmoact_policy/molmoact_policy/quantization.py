"""Weight-only quantisation of the language model by torchao: fewer bytes for each pass to read.

The linear layers of the blocks only. Embeddings are looked up, not multiplied; the head decides between tokens whose
logits may be close; the vision tower and the connector run once per picture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from molmoact_policy.errors import CheckpointError
from molmoact_policy.model import MolmoActForActionReasoning

QUANTIZATIONS = ("none", "int8", "int4")
GROUP = 64  # weights of a row that share a scale in int4; divides every width of nano and of the released models
TESTED = "torchao==0.18.0"


def quantize(model: MolmoActForActionReasoning, kind: str) -> None:
    """Replaces the weights of the language model's linear layers, for good: such a model is not to be saved.

    kind: one of QUANTIZATIONS. int8: a scale for every row. int4: a scale for every GROUP weights of a row, for
    bfloat16 on a GPU. Raises ValueError for another kind, and CheckpointError when torchao is missing or the model is
    not where or what the kind needs.
    """
    if kind not in QUANTIZATIONS:
        raise ValueError(f"quantization is {kind!r} ({', '.join(QUANTIZATIONS)})")
    if kind == "none":
        return
    _check_fit(model, kind)
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise CheckpointError(f"quantization {kind}: needs torchao, try: pip install {TESTED} ({error})") from error
    quantize_(model.language_model, _configuration(kind))


def _check_fit(model: MolmoActForActionReasoning, kind: str) -> None:
    if kind != "int4":
        return
    if model.device.type != "cuda" or model.dtype != torch.bfloat16:
        raise CheckpointError(
            f"quantization int4: the model is {model.dtype} on {model.device.type}, expected torch.bfloat16 on cuda"
        )
    # torchao would pass over these without a word.
    for name, module in model.language_model.named_modules():
        if isinstance(module, nn.Linear) and module.in_features % GROUP:
            raise CheckpointError(
                f"quantization int4: {name} has rows of {module.in_features} weights, expected a multiple of {GROUP}"
            )


def _configuration(kind: str) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if kind == "int8":
        return Int8WeightOnlyConfig(set_inductor_config=False)
    # The layout of the kernel that comes with torch, without a further package.
    return Int4WeightOnlyConfig(group_size=GROUP, int4_packing_format="tile_packed_to_4d", set_inductor_config=False)
