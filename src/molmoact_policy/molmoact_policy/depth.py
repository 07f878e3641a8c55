"""Depth tokens: a VQVAE that turns a depth map into a grid of codes and back (the release's scripts/vqvae.py)."""

from __future__ import annotations

import itertools
import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from molmoact_policy.checkpoint import CONFIG, WEIGHTS, check_shapes, read_json
from molmoact_policy.errors import CheckpointError

EMA_DECAY = 0.99
EMA_EPSILON = 1e-5
COMMITMENT = 0.25


@dataclass(frozen=True)
class DepthConfig:
    """Sizes under the release's names; `num_tokens` is the number of codes in the codebook."""

    image_size: int = 320
    num_resnet_blocks: int = 2
    downsample_ratio: int = 32
    num_tokens: int = 128
    codebook_dim: int = 512
    hidden_dim: int = 16
    channels: int = 1

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> DepthConfig:
        """Raises CheckpointError for a setting this network does not have."""
        fixed = {"use_norm": False, "train_objective": "regression", "residul_type": "v1", "loss_type": "mse"}
        ignored = {"max_value"}  # only read by the release's normalisation, which use_norm switches off
        names = {field.name for field in fields(cls)}
        for name, value in config.items():
            if name in fixed and value != fixed[name]:
                raise CheckpointError(f"depth VQVAE: {name} is {value!r}, only {fixed[name]!r} is supported")
            if name not in names and name not in fixed and name not in ignored:
                raise CheckpointError(f"depth VQVAE: unknown setting {name!r} ({', '.join(sorted(names))})")
        chosen = {name: value for name, value in config.items() if name in names}
        ratio = chosen.get("downsample_ratio", cls.downsample_ratio)
        if ratio < 2 or ratio & (ratio - 1):
            raise CheckpointError(f"depth VQVAE: downsample_ratio is {ratio}, expected a power of two")
        return cls(**chosen)


class Reconstruction(NamedTuple):
    """What training looks at: the loss to minimise, its reconstruction part, the decoded maps and the codes."""

    loss: Tensor
    reconstruction_loss: Tensor
    decoded: Tensor  # [B, 1, H, W]
    codes: Tensor  # int64 [B, h, w]


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


class Codebook(nn.Module):
    """Codes and their running averages, all buffers: they follow the encoder by moving average, not by gradient."""

    def __init__(self, codes: int, size: int) -> None:
        super().__init__()
        embedding = torch.randn(codes, size)
        self.register_buffer("_embedding", embedding)
        self.register_buffer("_ema_cluster_size", torch.zeros(codes))
        self.register_buffer("_ema_w", embedding.clone())

    def nearest(self, vectors: Tensor) -> Tensor:
        """[..., size] -> int64 [...]: the closest code by squared distance, the first on ties."""
        flat = vectors.flatten(0, -2)
        distances = (flat**2).sum(1, keepdim=True) + (self._embedding**2).sum(1) - 2 * flat @ self._embedding.T
        return distances.argmin(1).view(vectors.shape[:-1])

    def look_up(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self._embedding)

    @torch.no_grad()
    def follow(self, vectors: Tensor, codes: Tensor) -> None:
        """One step of the moving averages towards the vectors [..., size] assigned to each code."""
        assigned = F.one_hot(codes.flatten(), len(self._embedding)).to(vectors.dtype)  # [N, codes]
        self._ema_cluster_size.lerp_(assigned.sum(0), 1 - EMA_DECAY)
        self._ema_w.lerp_(assigned.T @ vectors.flatten(0, -2), 1 - EMA_DECAY)
        total = self._ema_cluster_size.sum()
        smoothed = (self._ema_cluster_size + EMA_EPSILON) / (total + len(self._embedding) * EMA_EPSILON) * total
        self._embedding.copy_(self._ema_w / smoothed.unsqueeze(1))


class DepthVQVAE(nn.Module):
    """Depth maps [B, 1, H, W] in 0..1 (near is bright) to codes [B, H/32, W/32] and back."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = DepthConfig.from_dict(config)
        c = self.config
        widths = [c.hidden_dim * 2**i for i in range(c.downsample_ratio.bit_length() - 1)]
        encoder: list[nn.Module] = []
        for before, after in itertools.pairwise([c.channels, *widths]):
            encoder += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        encoder += [ResidualBlock(widths[-1]) for _ in range(c.num_resnet_blocks)]
        self.encoder = nn.Sequential(*encoder, nn.Conv2d(widths[-1], c.codebook_dim, 1))

        decoder: list[nn.Module] = [nn.Conv2d(c.codebook_dim, widths[-1], 1), nn.ReLU()]
        decoder += [ResidualBlock(widths[-1]) for _ in range(c.num_resnet_blocks)]
        for before, after in itertools.pairwise([widths[-1], *widths[::-1]]):
            decoder += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(widths[0], c.channels, 1))
        self._vq_vae = Codebook(c.num_tokens, c.codebook_dim)

    def forward(self, depth: Tensor) -> Reconstruction:
        """One training step's forward on [B, 1, H, W]: straight-through codes; in train mode the codebook follows."""
        encoded = self.encoder(depth).permute(0, 2, 3, 1)  # [B, h, w, size]
        codes = self._vq_vae.nearest(encoded)
        if self.training:
            self._vq_vae.follow(encoded.detach(), codes)
        quantised = self._vq_vae.look_up(codes)
        commitment = F.mse_loss(encoded, quantised)
        passed = encoded + (quantised - encoded).detach()  # the decoder's gradient reaches the encoder unchanged
        decoded = self.decoder(passed.permute(0, 3, 1, 2))
        reconstruction = F.mse_loss(decoded, depth)
        return Reconstruction(reconstruction + COMMITMENT * commitment, reconstruction, decoded, codes)

    def encode(self, depth: Tensor) -> Tensor:
        """[B, 1, H, W] in 0..1 -> int64 [B, h, w]."""
        return self._vq_vae.nearest(self.encoder(depth).permute(0, 2, 3, 1))

    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w], or [B, n] laid out as the most square grid -> [B, 1, H, W], not clamped to 0..1.

        Raises ValueError for no codes at all or a code outside the codebook.
        """
        if not codes.numel():
            raise ValueError(f"depth codes {list(codes.shape)}: none to decode, expected [B, h, w] or [B, n]")
        if not 0 <= int(codes.min()) <= int(codes.max()) < self.config.num_tokens:
            raise ValueError(
                f"depth codes {int(codes.min())}..{int(codes.max())} outside 0..{self.config.num_tokens - 1}"
            )
        if codes.dim() == 2:
            codes = codes.unflatten(1, most_square(codes.shape[1]))
        return self.decoder(self._vq_vae.look_up(codes).permute(0, 3, 1, 2))

    @classmethod
    def from_pretrained(cls, path: str | Path, **config: Any) -> DepthVQVAE:
        """A directory with config.json and model.safetensors, or one weight file (.safetensors, or the release's .pt).

        `config` overrides single settings. Raises CheckpointError naming the file or tensor at fault.
        """
        path = Path(path)
        if path.is_dir():
            config = read_json(path, CONFIG) | config
            path = path / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"depth VQVAE: {path} is missing")
        model = cls(**config)
        weights = _read_weights(path)
        check_shapes(str(path), _shapes(weights), _shapes(model.state_dict()))
        model.load_state_dict(weights)
        return model.eval()

    def save_pretrained(self, directory: str | Path) -> None:
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG).write_text(json.dumps(asdict(self.config), indent=2), encoding="utf-8")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def most_square(count: int) -> tuple[int, int]:
    """Rows and columns (rows <= columns) of `count` codes. Raises ValueError for less than one."""
    if count < 1:
        raise ValueError(f"a grid of {count} depth codes, expected at least 1")
    rows = next(rows for rows in range(math.isqrt(count), 0, -1) if count % rows == 0)
    return rows, count // rows


def to_grey(depth: Tensor) -> NDArray[np.uint8]:
    """A decoded map [H, W] stretched to the full range for display, uint8 [H, W], near bright."""
    values = depth.detach().float().cpu().numpy()
    span = values.max() - values.min()
    return ((values - values.min()) / max(float(span), 1e-8) * 255).astype(np.uint8)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a weight file, out of the release's {"weights": ...} and without its "module." prefix."""
    try:
        safe = path.suffix == ".safetensors"
        content = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not readable as tensors only: {error}") from error
    weights = content.get("weights", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{path}: holds no state dict of tensors")
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}
