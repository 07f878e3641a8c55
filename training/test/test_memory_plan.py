"""What a run needs, planned without weights, against what it then takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from molmoact_policy.checkpoint import read_config
from molmoact_policy.model import MolmoActConfig
from molmoact_policy.processor import Processor
from molmoact_training import memory_plan, train, trained_model
from molmoact_training.errors import TrainingError
from molmoact_training.memory_plan import GIB, Shapes
from molmoact_training.mixture import Mixture
from molmoact_training.objective import Objective
from molmoact_training.presets import Preset

from .training_run import write_dataset

# Two pictures of 320 x 240, one crop and twice 196 pooled tokens each, and a reply of 8 rows in the release's symbols.
TWO_PICTURES = Shapes(samples=8, tokens=1420, answers=8 * 430, crops=2, pooled=2 * 392)
ADAPTERS = {"lora": {"rank": 32, "alpha": 16, "dropout": 0.0}, "ema": None, "attention": "sdpa"}


def preset(**changes) -> Preset:
    return Preset.from_file("nano", {"batch": 8, "micro_batch": 8, **changes})


@pytest.mark.parametrize("embeddings", ["none", "all"])
def test_post_training_of_the_7b_model_fits_80_gb_with_two_pictures_at_batch_8(embeddings) -> None:
    settings = Preset.from_file("posttrain", {"train_embeddings": embeddings})
    assert settings.micro_batch == TWO_PICTURES.samples
    needed = memory_plan.plan(MolmoActConfig(), settings, TWO_PICTURES, device="cuda", processes=1, sharded=False)
    assert needed.peak < 80e9
    assert needed.weights > 15 * GIB  # of which the frozen ones are bf16


def test_what_is_computed_again_is_not_kept_and_costs_time() -> None:
    kept, again = (
        memory_plan.plan(
            MolmoActConfig(),
            preset(**ADAPTERS, gradient_checkpointing=checkpointing),
            TWO_PICTURES,
            device="cuda",
            processes=1,
            sharded=False,
        )
        for checkpointing in (False, True)
    )
    assert again.activations < kept.activations / 5
    assert again.flops == pytest.approx(1.5 * kept.flops, rel=0.01)
    assert again.useful_flops == kept.useful_flops


def test_spreading_over_processes_divides_what_each_holds() -> None:
    alone, spread = (
        memory_plan.plan(MolmoActConfig(), preset(lora=None), TWO_PICTURES, device="cuda", processes=n, sharded=n > 1)
        for n in (1, 8)
    )
    assert spread.optimizer == pytest.approx(alone.optimizer / 8, rel=0.01)
    assert spread.weights < alone.weights / 4


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_counts_what_autograd_keeps_of_a_real_micro_batch(checkpointing, tmp_path, nano_directory) -> None:
    data = write_dataset(tmp_path, nano_directory)
    settings = preset(gradient_checkpointing=checkpointing).with_data([str(data)])
    processor = Processor.from_pretrained(nano_directory)
    batch = Mixture(settings, processor).batch(0, 0, 8)
    config = read_config(nano_directory)
    needed = memory_plan.plan(config, settings, Shapes.of(batch), device="cpu", processes=1, sharded=False)
    if checkpointing:  # without the one block that is there while it is computed again
        plain = dataclasses.replace(settings, gradient_checkpointing=False)
        whole = memory_plan.plan(config, plain, Shapes.of(batch), device="cpu", processes=1, sharded=False)
        needed = dataclasses.replace(needed, activations=needed.activations - whole.activations // 3)

    model = trained_model.load(nano_directory, config, settings)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sums = Objective(model, settings, processor)(batch)
    total = sum(kept.values())
    assert sums.loss.requires_grad
    assert needed.activations < total < needed.activations + needed.logits


def test_too_little_memory_or_disk_is_named_with_both_numbers(tmp_path, monkeypatch) -> None:
    settings = preset(lora=None)
    needed = memory_plan.plan(MolmoActConfig(), settings, TWO_PICTURES, device="cpu", processes=1, sharded=False)
    device = torch.device("cpu")
    monkeypatch.setattr(memory_plan, "available_memory", lambda _: 200 * GIB)
    with pytest.raises(TrainingError, match=r"cpu: a process needs \d+\.\d GiB, it has 100\.0 GiB"):
        memory_plan.check(tmp_path, needed, settings, device=device, processes=2)
    monkeypatch.setattr(memory_plan, "available_memory", lambda _: 1000 * GIB)
    usage = type("Usage", (), {"free": 10 * GIB})
    monkeypatch.setattr(memory_plan.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TrainingError, match=r"3 checkpoints of \d+\.\d GiB each, 10\.0 GiB of disk free"):
        memory_plan.check(tmp_path, needed, settings, device=device, processes=1)


def test_a_dry_run_says_what_is_needed_and_writes_nothing(tmp_path, capsys, nano_directory) -> None:
    data = write_dataset(tmp_path / "data", nano_directory)
    run: Path = tmp_path / "run"
    given = ["nano", "--data", str(data), "--checkpoint", str(nano_directory), "--out", str(run)]
    assert train.main([*given, "--dry-run", "--device", "H100"]) == train.GOOD
    printed = capsys.readouterr().out
    assert "fits H100: 80.0 GiB" in printed
    assert "TFLOP" in printed
    assert not run.exists()
