"""AdamW over three groups of parameters, the schedule of their rates, and clipping by group (paper, table 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from molmoact_training import presets

VISION, CONNECTOR, LANGUAGE = "vision", "connector", "language"
# The first prefix that fits says which group a parameter is in.
GROUPS = (
    ("vision_backbone.image_vit.", VISION),
    ("vision_backbone.", CONNECTOR),
    ("language_model.embed_tokens.additional", CONNECTOR),
    ("", LANGUAGE),
)


def group_of(name: str) -> str:
    """The group of a parameter of the model as `trained_model.prepare` leaves it."""
    return next(group for prefix, group in GROUPS if name.startswith(prefix))


def grouped(parameters: Iterable[tuple[str, nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Trained parameters by group; groups without any are absent."""
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters:
        if parameter.requires_grad:
            groups.setdefault(group_of(name), []).append(parameter)
    return groups


def build_optimizer(groups: dict[str, list[nn.Parameter]], settings: presets.Optimizer) -> torch.optim.AdamW:
    """AdamW with one parameter group for each of `groups`, its peak rate as "peak"."""
    return torch.optim.AdamW(
        [
            {"params": parameters, "name": name, "peak": getattr(settings.learning_rates, name), "lr": 0.0}
            for name, parameters in groups.items()
        ],
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
        fused=True,
    )


def share_of_peak(step: int, steps: int, settings: presets.Optimizer) -> float:
    """What step `step` (from 0) of `steps` learns at, as a share of the peak rates: linear from 0, then a cosine.

    The first step is already one `warmup_steps`-th of the way up, or it would learn nothing.
    """
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.final_share + (1 - settings.final_share) * (1 + math.cos(math.pi * progress)) / 2


def set_learning_rates(optimizer: torch.optim.Optimizer, share: float) -> dict[str, float]:
    """Every group to a share of its peak; returns the rates by group."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def clip_gradients(groups: dict[str, list[nn.Parameter]], largest: float) -> dict[str, Tensor]:
    """Scale the gradients of every group down to the norm `largest`; returns the norms before, over all processes."""
    norms = {}
    for name, parameters in groups.items():
        norm = clip_grad_norm_(parameters, largest)
        norms[name] = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return norms
