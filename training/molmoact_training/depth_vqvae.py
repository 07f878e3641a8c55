"""Trains the depth VQVAE on the depth pictures of samples and writes every sample's depth codes beside them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import yaml
from molmoact_policy.depth import DepthVQVAE
from torch import Tensor

from molmoact_training.samples import SampleShards

IMAGE_SIZE = 320  # pixels, 10 x 10 codes (molmoact.md section 8)
ENCODING_BATCH = 32
REVIVE_EVERY = 20  # steps
REVIVE_UNTIL = 0.7  # of the training


def to_input(pictures: np.ndarray) -> Tensor:
    """uint8 [B, h, w] -> float [B, 1, 320, 320] in 0..1."""
    images = torch.from_numpy(pictures).unsqueeze(1).float() / 255.0
    return torch.nn.functional.interpolate(images, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)


def train(pictures: np.ndarray, config: dict) -> DepthVQVAE:
    """`pictures` uint8 [n, h, w]; `config` is the depth_vqvae section of config/training/nano.yaml."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vqvae = DepthVQVAE(**{name: config[name] for name in ("hidden_dim", "codebook_dim", "num_tokens")}).train()
    optimizer = torch.optim.Adam(vqvae.parameters(), lr=config["learning_rate"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config["steps"])
    for step in range(config["steps"]):
        images = to_input(pictures[rng.choice(len(pictures), config["batch"], replace=False)])
        result = vqvae(images)
        optimizer.zero_grad()
        result.loss.backward()
        optimizer.step()
        schedule.step()
        if step % REVIVE_EVERY == 0 and step < REVIVE_UNTIL * config["steps"]:
            revive_unused_codes(vqvae, images)
        if (step + 1) % 100 == 0:
            used = len(result.codes.unique())
            print(json.dumps({"step": step + 1, "mse": result.reconstruction_loss.item(), "used": used}), flush=True)
    return vqvae.eval()


@torch.no_grad()
def revive_unused_codes(vqvae: DepthVQVAE, images: Tensor) -> None:
    """Move unused codes onto what the encoder writes now, or most of the codebook would never be used."""
    codebook = vqvae._vq_vae
    vectors = vqvae.encoder(images).permute(0, 2, 3, 1).flatten(0, 2)
    uses = torch.bincount(codebook.nearest(vectors), minlength=len(codebook._embedding))
    unused = uses == 0
    drawn = vectors[torch.randperm(len(vectors))[: int(unused.sum())]]
    size = codebook._ema_cluster_size.mean()
    codebook._embedding[unused] = drawn
    codebook._ema_w[unused] = drawn * size
    codebook._ema_cluster_size[unused] = size


@torch.inference_mode()
def encode_all(vqvae: DepthVQVAE, samples: SampleShards) -> np.ndarray:
    """Codes uint8 [samples, 100] of every sample, row-major."""
    pictures = samples.all("depth")
    codes = [vqvae.encode(to_input(pictures[i : i + ENCODING_BATCH])) for i in range(0, len(pictures), ENCODING_BATCH)]
    return torch.cat(codes).flatten(1).to(torch.uint8).numpy()


def report(vqvae: DepthVQVAE, pictures: np.ndarray, codes: np.ndarray) -> dict[str, float]:
    """Reconstruction error on 64 pictures and how much of the codebook is used (perplexity)."""
    chosen = to_input(pictures[:: max(1, len(pictures) // 64)][:64])
    with torch.inference_mode():
        error = torch.nn.functional.mse_loss(vqvae.decode(vqvae.encode(chosen)), chosen).item()
    share = np.bincount(codes.ravel(), minlength=128) / codes.size
    perplexity = float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))
    return {"mse": error, "codes_used": int((share > 0).sum()), "perplexity": perplexity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config/training/nano.yaml")
    parser.add_argument("--samples", type=Path, required=True, help="shards of molmoact_training.demonstrations")
    parser.add_argument("--out", type=Path, required=True, help="directory of the trained VQVAE; kept when it is there")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text())["depth_vqvae"]
    samples = SampleShards(arguments.samples)
    pictures = samples.all("depth")
    if (arguments.out / "model.safetensors").exists():
        vqvae = DepthVQVAE.from_pretrained(arguments.out).eval()
    else:
        vqvae = train(pictures[:: max(1, len(pictures) // config["maps"])], config)
        vqvae.save_pretrained(arguments.out)
    codes = encode_all(vqvae, samples)
    np.save(arguments.samples / "depth_codes.npy", codes)
    print(json.dumps(report(vqvae, pictures, codes)))


if __name__ == "__main__":
    main()
