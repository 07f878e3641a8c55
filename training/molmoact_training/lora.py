"""Adapters on every linear layer, through peft (paper, appendix on post-training; the release: r 32, alpha 16)."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from molmoact_training.presets import LoRA

ADAPTER = "default"
# In the release these are one linear layer, with one adapter: its parts share the first half of it.
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def add_adapters(model: nn.Module, settings: LoRA, *, head: bool) -> None:
    """Put an adapter on every linear layer, the head included if asked: A from a normal distribution, B zero."""
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides by it, a whole number or not
        lora_dropout=settings.dropout,
        target_modules=[name for name in names if head or name != "lm_head"],
        bias="none",
        init_lora_weights="gaussian",
    )
    inject_adapter_in_model(config, model, ADAPTER)
    for module in model.modules():
        for first, *others in FUSED:
            if hasattr(module, first):
                for other in others:
                    getattr(module, other).lora_A[ADAPTER].weight = getattr(module, first).lora_A[ADAPTER].weight


def save_adapter(model: nn.Module, weights: dict[str, Tensor], directory: Path) -> None:
    """adapter_config.json and adapter_model.safetensors as peft writes them; weights: all that are trained, by name.

    What is trained in full beside the adapters goes along under its own name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    names = {parameter: name for name, parameter in model.named_parameters()}
    everywhere = {
        name: weights[names[parameter]].clone()  # safetensors takes no tensor twice
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if names[parameter] in weights
    }
    adapters = get_peft_model_state_dict(
        model, state_dict=everywhere, adapter_name=ADAPTER, save_embedding_layers=False
    )
    whole = {name: tensor for name, tensor in everywhere.items() if "lora_" not in name}
    save_file(
        {f"base_model.model.{name}": tensor.contiguous() for name, tensor in (adapters | whole).items()},
        directory / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    model.peft_config[ADAPTER].save_pretrained(str(directory))


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """Add every adapter to its layer and take it off again: the model is plain afterwards."""
    for name, layer in [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]:
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
