"""Trains the nano policy on samples of the scripted operator: a plain loop, one file.

On two cores, two single-threaded processes with averaged gradients are three times as fast as one with two threads.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from molmoact_policy.actions import ActionStatistics, statistics_of
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.processor import Processor
from torch import Tensor

from molmoact_training.samples import ACTION, KIND_NAMES, TEXT, TRACE, Batch, ReplyWriter, SampleShards, collate

VALIDATION_SHARDS = 1


class Objective:
    """The loss of a batch: cross-entropy with labels that are soft over neighbouring bins, weighted by kind of token.

    History dropout hides reply tokens, and often a whole part of the reply, from what comes after. Without it the model
    learns to read the demonstrated depth codes and earlier rows before it learns to look at the picture, and is lost
    when it has to go by its own: few of a reply's tokens cannot be guessed from the demonstrated ones before them.
    """

    def __init__(self, model: MolmoActForActionReasoning, writer: ReplyWriter, config: dict):
        self.model = model
        self.config = config
        self.hidden_token = writer.tokenizer.convert_tokens_to_ids("|<EXTRA_TOKENS_0>|")
        widths = config["soft_label_width"]
        self.bins = {ACTION: torch.from_numpy(writer.symbol_ids), TRACE: torch.from_numpy(writer.number_ids)}
        self.soft = {ACTION: soft_labels(widths["action"]), TRACE: soft_labels(widths["trace"])}
        self.bin_of_id = torch.zeros(len(writer.kind_of_id), dtype=torch.long)
        for ids in self.bins.values():
            self.bin_of_id[ids] = torch.arange(len(ids))

    def __call__(self, batch: Batch, train: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean weighted loss and, by kind of token, mean loss and error (bins, or share of wrong tokens)."""
        logits, targets, weights, kinds = self._reply_logits(batch, train)
        log_probabilities = logits.log_softmax(-1)
        losses = -log_probabilities.gather(1, targets[:, None]).squeeze(1)
        report = {}
        for kind, name in enumerate(KIND_NAMES):
            chosen = kinds == kind
            if not chosen.any():
                continue
            if kind in self.bins:
                bins = self.bin_of_id[targets[chosen]]
                over_bins = log_probabilities[chosen][:, self.bins[kind]]
                losses[chosen] = -(self.soft[kind][bins] * over_bins).sum(-1)
                report[f"{name}_error_bins"] = (over_bins.argmax(-1) - bins).abs().float().mean().detach()
            else:
                wrong = logits[chosen].argmax(-1) != targets[chosen]
                report[f"{name}_wrong"] = wrong.float().mean()
            report[f"{name}_loss"] = losses[chosen].mean().detach()
        return (losses * weights).sum() / weights.sum(), report

    def _reply_logits(self, batch: Batch, train: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        images = batch.pixels.float().div_(127.5).sub_(1.0)  # [B, cameras, patches, values]
        if train:
            images = colour_jitter(images, self.config["colour_jitter"])
        embeddings = self.model.merge_image_features(batch.input_ids, image_tokens(self.model, images))
        if train:
            embeddings = self._hide_history(embeddings, batch)
        hidden = self.model.language_model(inputs_embeds=embeddings, use_cache=False).last_hidden_state
        counted = batch.weights > 0
        logits = self.model.lm_head(hidden[counted]).float()
        return logits, batch.targets[counted], batch.weights[counted], batch.kinds[counted]

    def _hide_history(self, embeddings: Tensor, batch: Batch) -> Tensor:
        settings = self.config["history_dropout"]
        shares = torch.rand(len(embeddings), len(KIND_NAMES)) * settings["largest_share"]
        shares[torch.rand(shares.shape) < settings["whole_part"]] = 1.0
        shares[:, TEXT] = 0.0
        kinds = torch.zeros_like(batch.kinds)  # of the inputs: TEXT for what is not a variable part of the reply
        kinds[:, 1:] = batch.kinds[:, :-1] * (batch.weights[:, :-1] > 0)
        hidden = torch.rand(batch.weights.shape) < shares.gather(1, kinds)
        blank = self.model.get_input_embeddings().weight[self.hidden_token]
        return torch.where(hidden.unsqueeze(-1), blank.to(embeddings.dtype), embeddings)


def soft_labels(width: float, bins: int = 256) -> Tensor:
    """Row b is a normal distribution over the bins around b, standard deviation `width` bins."""
    positions = torch.arange(bins, dtype=torch.float32)
    return (-0.5 * ((positions[None] - positions[:, None]) / width) ** 2).softmax(-1)


def image_tokens(model: MolmoActForActionReasoning, images: Tensor) -> Tensor:
    """Features of a batch's image tokens; the second crop of a small image equals its first and is encoded once."""
    batch, cameras, patches, _ = images.shape
    side = math.isqrt(patches)
    grid = torch.arange(patches).view(side // 2, 2, side // 2, 2).transpose(1, 2).reshape(-1, 4)  # pooled 2 x 2
    index = torch.cat([grid + camera * patches for camera in range(cameras)]).expand(batch, -1, -1)
    features = model.image_features(images, index)  # [B * cameras * pooled, hidden]
    return features.view(batch, cameras, 1, len(grid), -1).expand(-1, -1, 2, -1, -1).flatten(0, 3)


def colour_jitter(images: Tensor, config: dict) -> Tensor:
    """Brightness and contrast of every camera's picture, independently; images are in -1..1."""
    shape = (*images.shape[:2], 1, 1)
    brightness = (torch.rand(shape) * 2 - 1) * config["brightness"]
    contrast = 1 + (torch.rand(shape) * 2 - 1) * config["contrast"]
    return (images * contrast + 2 * brightness).clamp(-1, 1)


def learning_rate(step: int, config: dict) -> float:
    """Linear warm-up, then cosine to a tenth (paper, table 4)."""
    if step < config["warmup_steps"]:
        return config["learning_rate"] * (step + 1) / config["warmup_steps"]
    progress = (step - config["warmup_steps"]) / max(1, config["steps"] - config["warmup_steps"])
    return config["learning_rate"] * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))


def dataset_statistics(samples: SampleShards) -> dict:
    """Action statistics of a dataset in the release's schema (molmoact.md section 7)."""
    return {
        "action": statistics_of(samples.all("actions")[:, 0]),  # the step that follows each sample
        "num_transitions": len(samples),
        "num_trajectories": len(np.unique(samples.all("seed"))),
    }


class Corpus:
    """All samples as token sequences in memory and pixels on disk; the last shard is kept for validation."""

    def __init__(self, samples: SampleShards, depth_codes: np.ndarray, writer: ReplyWriter):
        self.samples = samples
        fields = {name: samples.all(name) for name in ("actions", "trace", "instruction", "steered")}
        fields["depth_codes"] = depth_codes
        self.sequences = [
            writer.sequence({name: values[i] for name, values in fields.items()}) for i in range(len(samples))
        ]
        self.padding = writer.tokenizer.pad_token_id
        kept = len(samples.arrays["actions"][-VALIDATION_SHARDS])
        self.train = np.arange(len(samples) - kept)
        self.validation = np.arange(len(samples) - kept, len(samples))

    def batch(self, chosen: np.ndarray) -> Batch:
        pixels = np.stack([self.samples.get("pixels", i) for i in chosen])
        return collate([self.sequences[i] for i in chosen], pixels, self.padding)


def train_worker(rank: int, config: dict, samples_dir: Path, checkpoint: Path, out: Path) -> None:
    """One process of the data-parallel loop; process 0 validates, logs and writes checkpoints."""
    torch.set_num_threads(1)
    settings = config["training"]
    world = settings["processes"]
    dist.init_process_group("gloo", init_method=f"file://{out.resolve()}/rendezvous", rank=rank, world_size=world)
    samples = SampleShards(samples_dir)
    statistics = ActionStatistics.from_norm_stats(json.loads((out / "dataset_statistics.json").read_text()))
    model = MolmoActForActionReasoning.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).train()
    writer = ReplyWriter(Processor.from_pretrained(checkpoint), statistics, settings["weights"], cameras=2)
    corpus = Corpus(samples, np.load(samples_dir / "depth_codes.npy"), writer)
    objective = Objective(model, writer, settings)
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings), betas=(0.9, 0.95), weight_decay=settings["weight_decay"]
    )
    average = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    first_step = resume(out, model, optimizer, average)
    started = time.monotonic()
    for step in range(first_step, settings["steps"]):
        rng = np.random.default_rng([settings["seed"], step, rank])
        torch.manual_seed(int(rng.integers(2**31)))
        batch = corpus.batch(rng.choice(corpus.train, settings["batch"], replace=False))
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss, report = objective(batch, train=True)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model, world)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings["gradient_clip"])
        for group in optimizer.param_groups:
            group["lr"] = group["share"] * learning_rate(step, settings)
        optimizer.step()
        decay = min(settings["ema"], (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            average[name].lerp_(parameter.detach(), 1 - decay)
        if rank == 0 and (step + 1) % 25 == 0:
            speed = (step + 1 - first_step) * world * settings["batch"] / (time.monotonic() - started)
            log(out, {"step": step + 1, "samples_per_s": round(speed, 1), "loss": loss.item()} | as_floats(report))
        if rank == 0 and (step + 1) % settings["checkpoint_every"] == 0:
            save(out, step + 1, model, optimizer, average)
            log(out, {"step": step + 1, "validation": validate(model, average, objective, corpus, settings)})
    if rank == 0:
        save(out, settings["steps"], model, optimizer, average)
    dist.destroy_process_group()


def parameter_groups(model: MolmoActForActionReasoning, settings: dict) -> list[dict]:
    """The vision backbone, which knows its job already, learns slower than the rest (as in the paper's table 4)."""
    vision = {id(parameter) for parameter in model.vision_backbone.parameters()}
    return [
        {"params": [p for p in model.parameters() if id(p) in vision], "share": settings["vision_learning_rate_share"]},
        {"params": [p for p in model.parameters() if id(p) not in vision], "share": 1.0},
    ]


def average_gradients(model: torch.nn.Module, world: int) -> None:
    gradients = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, averaged in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(averaged.view_as(gradient))


def validate(
    model, average: dict[str, Tensor], objective: Objective, corpus: Corpus, settings: dict
) -> dict[str, float]:
    """Teacher-forced figures of the averaged weights on episodes that are not trained on."""
    trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    load(model, average)
    rng = np.random.default_rng(settings["seed"])
    chosen = rng.choice(corpus.validation, min(128, len(corpus.validation)), replace=False)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16"):
        reports = [
            objective(corpus.batch(part), train=False)[1] for part in np.array_split(chosen, max(1, len(chosen) // 32))
        ]
    load(model, trained)
    return {name: float(np.mean([float(report[name]) for report in reports])) for name in reports[0]}


def load(model: torch.nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


def as_floats(report: dict[str, Tensor]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in report.items()}


def log(out: Path, entry: dict) -> None:
    line = json.dumps(entry)
    print(line, flush=True)
    with (out / "log.jsonl").open("a") as stream:
        stream.write(line + "\n")


def save(
    out: Path, step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]
) -> None:
    state = {
        "step": step,
        "model": dict(model.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "average": average,
    }
    torch.save(state, out / "last.pt.new")
    os.replace(out / "last.pt.new", out / "last.pt")


def resume(out: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    """Continues from the newest checkpoint of an interrupted run, if there is one; returns the step to go on with."""
    if not (out / "last.pt").exists():
        return 0
    state = torch.load(out / "last.pt", weights_only=True)
    load(model, state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.update(state["average"])
    return state["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config/training/nano.yaml")
    parser.add_argument(
        "--samples", type=Path, required=True, help="shards of molmoact_training.demonstrations, with depth_codes.npy"
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint to start from")
    parser.add_argument("--out", type=Path, required=True, help="logs and resumable state; rerun to continue")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rendezvous").unlink(missing_ok=True)
    statistics = dataset_statistics(SampleShards(arguments.samples))
    (arguments.out / "dataset_statistics.json").write_text(json.dumps({"nano": statistics}, indent=1))
    torch.multiprocessing.spawn(
        train_worker,
        args=(config, arguments.samples, arguments.checkpoint, arguments.out),
        nprocs=config["training"]["processes"],
    )


if __name__ == "__main__":
    main()
