"""Trains the depth VQVAE on depth pictures, and turns pictures into codes with it (paper, section 3.1).

The pictures are those of `molmoact_training.depth_pictures`, from a depth camera, an estimate or the simulator.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from molmoact_policy.depth import DepthVQVAE
from numpy.typing import NDArray
from torch import Tensor

from molmoact_training.depth_pictures import PICTURE_SIZE
from molmoact_training.errors import DatasetError, PresetError, TrainingError

CODES = 128  # of the vocabulary: <DEPTH_0> .. <DEPTH_127>
EPOCHS = 20  # of the paper
ENCODING_BATCH = 32
REVIVE_EVERY = 20  # steps
REVIVE_UNTIL = 0.7  # of the training
LOG_EVERY = 100  # steps
CHECKPOINT_EVERY = 500  # steps
REPORT_PICTURES = 64
STATE_FILE = "training_state.pt"
WEIGHTS_FILE = "model.safetensors"

Pictures = NDArray[np.uint8]  # [n, h, w]
Log = Callable[[dict[str, Any]], None]


def print_json(entry: dict[str, Any]) -> None:
    print(json.dumps(entry), flush=True)


@dataclass(frozen=True)
class VQVAESettings:
    """Sizes of the network under the release's names, and how it is trained; the defaults are the paper's.

    maps: about how many of the pictures to train on, evenly chosen; None: all. steps: of the optimizer; None: EPOCHS
    times through the pictures. batch: pictures in a step.
    """

    hidden_dim: int = 16
    codebook_dim: int = 512
    num_tokens: int = CODES
    maps: int | None = None
    steps: int | None = None
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0

    @classmethod
    def from_dict(cls, section: Mapping[str, Any], name: str = "depth_vqvae") -> VQVAESettings:
        """A section of a preset. Raises PresetError naming the field that is unknown or out of range."""
        known = [field.name for field in fields(cls)]
        unknown = [str(key) for key in section if key not in known]
        if unknown:
            raise PresetError(f"{name}: unknown fields {unknown}, expected some of {', '.join(known)}")
        settings = cls(**section)
        for key in known:
            value = getattr(settings, key)
            if key == "learning_rate":
                good = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
            else:
                least = 0 if key == "seed" else 1
                optional = key in ("maps", "steps") and value is None
                good = optional or (isinstance(value, int) and not isinstance(value, bool) and value >= least)
            if not good:
                raise PresetError(f"{name}: {key} is {value!r}, expected a number greater than 0")
        if settings.num_tokens > CODES:
            raise PresetError(f"{name}: num_tokens is {settings.num_tokens}, the vocabulary has {CODES} depth tokens")
        return settings

    def chosen(self, pictures: Pictures) -> Pictures:
        """The pictures to train on."""
        return pictures if self.maps is None else pictures[:: max(1, len(pictures) // self.maps)]

    def steps_for(self, pictures: Pictures) -> int:
        return self.steps if self.steps is not None else math.ceil(EPOCHS * len(pictures) / self.batch)


@dataclass
class _Run:
    """A training under way: everything that decides how it goes on."""

    vqvae: DepthVQVAE
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    rng: np.random.Generator
    made_from: dict[str, Any] = field(default_factory=dict)
    step: int = 0

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        state = {
            "made_from": json.dumps(self.made_from),
            "step": self.step,
            "model": self.vqvae.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "numpy_rng": json.dumps(self.rng.bit_generator.state),
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """Raises DatasetError when it belongs to another training."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_from = json.loads(state["made_from"])
        if made_from != self.made_from:
            raise DatasetError(
                f"{path}: is of a training with {made_from}, this one has {self.made_from}: choose another directory"
            )
        self.step = state["step"]
        self.vqvae.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = json.loads(state["numpy_rng"])


def train_vqvae(
    pictures: Pictures,
    settings: VQVAESettings,
    directory: Path | None = None,
    device: str = "cpu",
    log: Log = print_json,
) -> DepthVQVAE:
    """Train on pictures uint8 [n, h, w]; the trained network is on the CPU, in evaluation mode.

    directory: where the training is saved now and then, goes on from when it is called again with the same pictures and
    settings (on a CPU to the same bits), and leaves the network in the release's key names. None: nothing is written.
    Raises DatasetError for pictures that cannot be trained on, TrainingError when the loss is not finite.
    """
    pictures = settings.chosen(pictures)
    _check_pictures(pictures, settings)
    state = None if directory is None else directory / STATE_FILE
    # Whoever calls keeps the random numbers they have.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        run = _new_run(pictures, settings, device)
        if state is not None and state.exists():
            run.load(state)
        _train(run, pictures, settings, device, log, state)
    vqvae = run.vqvae.cpu().eval()
    if directory is not None:
        _save_whole(vqvae, directory)
    return vqvae


def to_input(pictures: Pictures) -> Tensor:
    """uint8 [B, h, w] -> float [B, 1, 320, 320] in 0..1."""
    images = torch.from_numpy(np.ascontiguousarray(pictures)).unsqueeze(1).float() / 255.0
    return torch.nn.functional.interpolate(images, (PICTURE_SIZE, PICTURE_SIZE), mode="bilinear", antialias=True)


@torch.no_grad()
def revive_unused_codes(vqvae: DepthVQVAE, images: Tensor) -> None:
    """Move unused codes onto what the encoder writes now, or most of the codebook would never be used."""
    codebook = vqvae._vq_vae
    vectors = vqvae.encoder(images).permute(0, 2, 3, 1).flatten(0, 2)
    uses = torch.bincount(codebook.nearest(vectors), minlength=len(codebook._embedding))
    unused = torch.nonzero(uses == 0).flatten()[: len(vectors)]
    drawn = vectors[torch.randperm(len(vectors))[: len(unused)].to(vectors.device)]
    size = codebook._ema_cluster_size.mean()
    codebook._embedding[unused] = drawn
    codebook._ema_w[unused] = drawn * size
    codebook._ema_cluster_size[unused] = size


@torch.inference_mode()
def encode_pictures(vqvae: DepthVQVAE, pictures: Pictures) -> NDArray[np.uint8]:
    """uint8 [n, h, w] -> codes uint8 [n, 100], row by row, on the network's device."""
    device = next(vqvae.parameters()).device
    batches = (pictures[i : i + ENCODING_BATCH] for i in range(0, len(pictures), ENCODING_BATCH))
    codes = [vqvae.encode(to_input(batch).to(device)).flatten(1).to(torch.uint8).cpu().numpy() for batch in batches]
    return np.concatenate(codes) if codes else np.zeros((0, 100), np.uint8)


def codebook_use(codes: NDArray[np.uint8], num_tokens: int = CODES) -> dict[str, float]:
    """How many of the codes [n, 100] are used at all, and how many equally used ones that is worth (perplexity)."""
    share = np.bincount(codes.ravel(), minlength=num_tokens) / codes.size
    perplexity = float(np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()))
    return {"codes_used": int((share > 0).sum()), "perplexity": perplexity}


@torch.inference_mode()
def report(vqvae: DepthVQVAE, pictures: Pictures, codes: NDArray[np.uint8]) -> dict[str, float]:
    """Mean squared error of the reconstruction (0..1) of up to 64 pictures, and how the codes [n, 100] are used."""
    chosen = to_input(pictures[:: max(1, len(pictures) // REPORT_PICTURES)][:REPORT_PICTURES])
    error = torch.nn.functional.mse_loss(vqvae.decode(vqvae.encode(chosen)), chosen).item()
    return {"mse": error, **codebook_use(codes, vqvae.config.num_tokens)}


def _check_pictures(pictures: Pictures, settings: VQVAESettings) -> None:
    if pictures.ndim != 3 or pictures.dtype != np.uint8:
        raise DatasetError(f"depth pictures are {pictures.dtype} {list(pictures.shape)}, expected uint8 [n, h, w]")
    if len(pictures) < settings.batch:
        raise DatasetError(f"{len(pictures)} depth pictures, expected at least a batch of {settings.batch}")
    if all(picture.min() == picture.max() for picture in pictures[:REPORT_PICTURES]):
        raise DatasetError("depth pictures: the first ones are of one shade each, expected depth")


def _new_run(pictures: Pictures, settings: VQVAESettings, device: str) -> _Run:
    sizes = {name: getattr(settings, name) for name in ("hidden_dim", "codebook_dim", "num_tokens")}
    vqvae = DepthVQVAE(**sizes).to(device).train()
    optimizer = torch.optim.Adam(vqvae.parameters(), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps_for(pictures))
    made_from = {"settings": asdict(settings), "pictures": list(pictures.shape)}
    return _Run(vqvae, optimizer, schedule, np.random.default_rng(settings.seed), made_from)


def _train(run: _Run, pictures: Pictures, settings: VQVAESettings, device: str, log: Log, state: Path | None) -> None:
    steps = settings.steps_for(pictures)
    if state is not None:
        state.parent.mkdir(parents=True, exist_ok=True)
    while run.step < steps:
        images = to_input(pictures[run.rng.choice(len(pictures), settings.batch, replace=False)]).to(device)
        result = run.vqvae(images)
        if not torch.isfinite(result.loss):
            raise TrainingError(f"depth VQVAE: the loss is {result.loss.item()} at step {run.step + 1}")
        run.optimizer.zero_grad()
        result.loss.backward()
        run.optimizer.step()
        run.schedule.step()
        if run.step % REVIVE_EVERY == 0 and run.step < REVIVE_UNTIL * steps:
            revive_unused_codes(run.vqvae, images)
        run.step += 1
        if run.step % LOG_EVERY == 0:
            used = len(result.codes.unique())
            log({"step": run.step, "of": steps, "mse": result.reconstruction_loss.item(), "used": used})
        if state is not None and (run.step % CHECKPOINT_EVERY == 0 or run.step == steps):
            run.save(state)


def _save_whole(vqvae: DepthVQVAE, directory: Path) -> None:
    """The weights appear last: where they are, the network is complete."""
    partial = directory / "partial"
    vqvae.save_pretrained(partial)
    for path in sorted(partial.iterdir(), key=lambda path: path.name == WEIGHTS_FILE):
        os.replace(path, directory / path.name)
    shutil.rmtree(partial)
