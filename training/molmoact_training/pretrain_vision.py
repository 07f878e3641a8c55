"""Teaches the vision backbone where things are before the language model learns to read it.

MolmoAct starts from a vision tower that has seen billions of pictures; nano's would start from noise, and a language
model beside a blind tower learns to copy from the demonstrated reply instead. The mean image feature of each camera
has to tell the trace and where the gripper goes next, through one linear layer that is thrown away afterwards.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import yaml
from molmoact_policy.model import MolmoActForActionReasoning
from torch import Tensor, nn

from molmoact_training.samples import SampleShards
from molmoact_training.train import average_gradients, colour_jitter, image_tokens, learning_rate

VALIDATION_SAMPLES = 512


def targets_of(samples: SampleShards) -> np.ndarray:
    """What a look at the scene should tell, float32 [samples, outputs], each output of unit variance.

    Trace points across and down, and where each row of the chunk will have taken the gripper.
    """
    trace = samples.all("trace").reshape(len(samples), -1).astype(np.float32)
    actions = samples.all("actions")
    path = actions[..., :6].cumsum(1)[..., [0, 1, 2, 5]].reshape(len(samples), -1)
    gripper = actions[:, ::4, 6]
    values = np.concatenate([trace, path, gripper], axis=1)
    return ((values - values.mean(0)) / (values.std(0) + 1e-6)).astype(np.float32)


def camera_means(model: MolmoActForActionReasoning, images: Tensor) -> Tensor:
    """images [B, cameras, patches, values] -> mean image feature of each camera, [B, cameras * hidden]."""
    batch, cameras = images.shape[:2]
    return image_tokens(model, images).view(batch, cameras, -1, model.config.llm_config.hidden_size).mean(2).flatten(1)


def pretrain_worker(rank: int, config: dict, samples_dir: Path, checkpoint: Path, out: Path) -> None:
    """One process of the data-parallel loop; process 0 logs and writes the checkpoint."""
    torch.set_num_threads(1)
    settings, world = config["vision"], config["training"]["processes"]
    dist.init_process_group("gloo", init_method=f"file://{out.resolve()}/rendezvous", rank=rank, world_size=world)
    samples = SampleShards(samples_dir)
    targets = targets_of(samples)
    usable = np.flatnonzero(~samples.all("steered"))  # a drawn trace would give the answer away
    torch.manual_seed(0)
    model = MolmoActForActionReasoning.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    width = 2 * model.config.llm_config.hidden_size
    learned = nn.ModuleDict({"backbone": model.vision_backbone, "head": nn.Linear(width, targets.shape[1])})
    optimizer = torch.optim.AdamW(learned.parameters(), lr=settings["learning_rate"], betas=(0.9, 0.95))
    started = time.monotonic()
    for step in range(settings["steps"]):
        rng = np.random.default_rng([1, step, rank])
        torch.manual_seed(int(rng.integers(2**31)))
        chosen = rng.choice(usable[:-VALIDATION_SAMPLES], settings["batch"], replace=False)
        error = _error(model, learned["head"], samples, targets, chosen, config["training"]["colour_jitter"])
        optimizer.zero_grad()
        error.mean().backward()
        average_gradients(learned, world)
        nn.utils.clip_grad_norm_(learned.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, settings)
        optimizer.step()
        if rank == 0 and (step + 1) % 100 == 0:
            with torch.no_grad():
                held_out = _error(model, learned["head"], samples, targets, usable[-VALIDATION_SAMPLES:], None)
            speed = (step + 1) * world * settings["batch"] / (time.monotonic() - started)
            entry = {"step": step + 1, "samples_per_s": round(speed), "trace": held_out[:, :10].mean().item()}
            print(json.dumps(entry | {"all": held_out.mean().item()}), flush=True)
        if rank == 0 and ((step + 1) % 250 == 0 or step + 1 == settings["steps"]):
            model.save_pretrained(out)
    dist.destroy_process_group()


def _error(
    model: MolmoActForActionReasoning,
    head: nn.Module,
    samples: SampleShards,
    targets: np.ndarray,
    chosen: np.ndarray,
    jitter: dict | None,
) -> Tensor:
    """Squared errors [B, outputs], in variances."""
    pixels = torch.from_numpy(np.stack([samples.get("pixels", i) for i in chosen]))
    images = pixels.float().div_(127.5).sub_(1.0)
    if jitter is not None:
        images = colour_jitter(images, jitter)
    with torch.autocast("cpu", torch.bfloat16):
        features = camera_means(model, images)
    return (head(features.float()) - torch.from_numpy(targets[chosen])) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config/training/nano.yaml")
    parser.add_argument("--samples", type=Path, required=True, help="shards of molmoact_training.demonstrations")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint whose vision backbone is trained")
    parser.add_argument("--out", type=Path, required=True, help="the same checkpoint with the trained backbone")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text())
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(
        pretrain_worker,
        args=(config, arguments.samples, arguments.checkpoint, arguments.out),
        nprocs=config["training"]["processes"],
    )


if __name__ == "__main__":
    main()
