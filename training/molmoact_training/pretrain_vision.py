"""Teaches nano's vision backbone where things are before the language model learns to read it.

MolmoAct starts from a vision tower that has seen billions of pictures; nano's would start from noise, and a language
model beside a blind tower learns to copy from the demonstrated reply instead. The mean image feature of each camera
has to tell where every object is in the pictures, as Molmo learned from pointing, and, given the instruction, the trace
and where the gripper goes next; each through one linear layer that is thrown away afterwards. Some pictures have the
trace drawn on them, and there it is the drawing that says where to go, not the instruction.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml
from molmoact_policy.images import ImageProcessor
from molmoact_policy.model import MolmoActForActionReasoning
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import get_cosine_with_min_lr_schedule_with_warmup

from molmoact_training.annotated_dataset import AnnotatedDataset
from molmoact_training.augmentation import augment
from molmoact_training.errors import DatasetError
from molmoact_training.mixture import held_out
from molmoact_training.nano_checkpoint import COPIED_FILES
from molmoact_training.presets import Augmentation, Preset
from molmoact_training.sequences import pictures_of

VALIDATION_FRAMES = 512
TRACE_POINTS = 5
POINT_SCALE = 4.0  # of a picture's width and height, so that coordinates have about unit variance
LOG_EVERY, SAVE_EVERY = 100, 250  # steps


class VisionWithHead(nn.Module):
    """The vision backbone, with linear layers from its mean features to points, and by instruction to targets."""

    def __init__(
        self, model: MolmoActForActionReasoning, cameras: int, instructions: int, outputs: int, points: int
    ) -> None:
        super().__init__()
        self.model = model
        self.backbone = model.vision_backbone
        width = cameras * model.config.llm_config.hidden_size
        self.head = nn.Linear(width, outputs)
        self.pointing = nn.Linear(width, points)
        # Which of the things that are seen are meant: a factor for every feature. The last one: what is drawn.
        self.attention = nn.Embedding(instructions + 1, width)
        nn.init.ones_(self.attention.weight)

    def forward(self, images: Tensor, instructions: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, cameras, patches, values] in -1..1, instructions int64 [B] -> targets [B, m], points [B, n]."""
        batch, cameras, patches, _ = images.shape
        side = math.isqrt(patches)
        grid = torch.arange(patches).view(side // 2, 2, side // 2, 2).transpose(1, 2).reshape(-1, 4)  # pooled 2 x 2
        index = torch.cat([grid + camera * patches for camera in range(cameras)]).expand(batch, -1, -1)
        with torch.autocast("cpu", torch.bfloat16):
            features = self.model.image_features(images, index)  # [B * cameras * pooled, hidden]
        means = features.float().view(batch, cameras, len(grid), -1).mean(2).flatten(1)
        return self.head(means * self.attention(instructions)), self.pointing(means)


@dataclass(frozen=True)
class Looks:
    """Frames as the vision backbone sees them, and what it shall tell of each.

    targets: float32 [frames, outputs], each output of unit variance: trace points across and down, where each row of
    the chunk will have taken the gripper, and whether it is open. points: float32 [frames, n], where objects are in the
    pictures, POINT_SCALE across each, nan where they are not seen. usable: indices of the frames whose path is what the
    instruction asks for.
    """

    dataset: AnnotatedDataset
    processor: ImageProcessor
    targets: NDArray[np.float32]
    points: NDArray[np.float32]
    instructions: NDArray[np.int64]
    steered: NDArray[np.bool_]
    drawable: NDArray[np.bool_]
    drawn_share: float
    train: NDArray[np.int64]
    validation: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: AnnotatedDataset, processor: ImageProcessor, preset: Preset, drawn_share: float) -> Looks:
        _, numbers = np.unique(dataset.column("instruction"), return_inverse=True)
        steered = np.array(dataset.column("steered"))
        drawable = np.array(
            [len(traces[0]) > 2 for traces in dataset.column("traces")]
        )  # coordinates of more than one point
        usable, for_validation = ~steered | drawable, held_out(dataset, preset)
        validation = np.random.default_rng(0).permutation(np.flatnonzero(usable & for_validation))
        return cls(
            dataset,
            processor,
            targets_of(dataset),
            points_of(dataset),
            numbers,
            steered,
            drawable,
            drawn_share,
            np.flatnonzero(usable & ~for_validation),
            validation[:VALIDATION_FRAMES],
        )

    @property
    def what_is_drawn(self) -> int:
        """The number that stands for an instruction where the drawing says where to go."""
        return int(self.instructions.max()) + 1

    def batch(
        self, chosen: NDArray[np.int64], augmentation: Augmentation | None, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """images [B, cameras, patches, values], instructions [B], targets [B, outputs] and points [B, n]."""
        drawn = self.drawable[chosen] & (self.steered[chosen] | (rng.random(len(chosen)) < self.drawn_share))
        looks = zip(chosen.tolist(), drawn.tolist(), strict=True)
        images = np.stack([self._crops(index, shown, augmentation, rng) for index, shown in looks])
        instructions = np.where(drawn, self.what_is_drawn, self.instructions[chosen])
        return (
            torch.from_numpy(images),
            torch.from_numpy(instructions),
            torch.from_numpy(self.targets[chosen]),
            torch.from_numpy(self.points[chosen]),
        )

    def _crops(
        self, index: int, drawn: bool, augmentation: Augmentation | None, rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """One crop of each camera: a small picture's second one is the same."""
        pictures = pictures_of(self.dataset[index], "steering" if drawn else "reasoning")
        if augmentation is not None:
            pictures = [augment(picture, augmentation, rng) for picture in pictures]
        return np.stack([self.processor(picture, multi_image=True)["images"][0] for picture in pictures])


def targets_of(dataset: AnnotatedDataset) -> NDArray[np.float32]:
    """What a look at each frame should tell, see `Looks`."""
    traces = np.stack([_five_points(arms[0]) for arms in dataset.column("traces")])
    actions = dataset.all_actions()
    path = actions[..., :6].cumsum(1)[..., [0, 1, 2, 5]].reshape(len(dataset), -1)
    gripper = actions[:, ::4, 6]
    values = np.concatenate([traces, path, gripper], axis=1)
    return ((values - values.mean(0)) / (values.std(0) + 1e-6)).astype(np.float32)


def points_of(dataset: AnnotatedDataset) -> NDArray[np.float32]:
    """Where objects are in each frame's pictures, see `Looks`. Raises DatasetError for frames without points."""
    if not dataset.annotated("points").all():
        raise DatasetError(f"{dataset.directory}: some frames have no points: expected what posed_demonstrations wrote")
    frames = dataset.column("points")
    names = sorted({(point["image"], point["object"]) for points in frames for point in points})
    number = {name: index for index, name in enumerate(names)}
    found = np.full((len(frames), len(names), 2), np.nan, np.float32)
    for index, points in enumerate(frames):
        for point in points:
            found[index, number[point["image"], point["object"]]] = point["x"], point["y"]
    return ((found / 255 - 0.5).reshape(len(frames), -1) * POINT_SCALE).astype(np.float32)


def _five_points(trace: list[int]) -> NDArray[np.float32]:
    """[10]: a shorter trace stays at its end."""
    points = np.array(trace, np.float32).reshape(-1, 2)
    return np.concatenate([points, np.repeat(points[-1:], TRACE_POINTS - len(points), axis=0)]).ravel()


def pretrain(rank: int, processes: int, config: dict[str, Any], data: Path, checkpoint: Path, out: Path) -> None:
    """One process of the data-parallel loop; process 0 logs and writes the checkpoint."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out.resolve()}/rendezvous", rank=rank, world_size=processes)
    settings, preset = config["vision"], Preset.from_file(config["preset"])
    looks = Looks.of(
        AnnotatedDataset(data), ImageProcessor.from_pretrained(checkpoint), preset, settings["drawn_share"]
    )
    torch.manual_seed(0)
    model = MolmoActForActionReasoning.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    cameras = len(looks.dataset.embodiment.cameras)
    outputs, points = looks.targets.shape[1], looks.points.shape[1]
    learned = VisionWithHead(model, cameras, looks.what_is_drawn, outputs, points)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in model.vision_backbone.parameters():
        parameter.requires_grad_(True)
    parameters = [parameter for parameter in learned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings["learning_rate"], betas=(0.9, 0.95))
    schedule = get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, settings["warmup_steps"], settings["steps"], min_lr_rate=0.1
    )
    parallel = DistributedDataParallel(learned)
    started = time.monotonic()
    for step in range(settings["steps"]):
        rng = np.random.default_rng([1, step, rank])
        chosen = rng.choice(looks.train, settings["batch"], replace=False)
        images, instructions, targets, points = looks.batch(chosen, preset.augmentation, rng)
        optimizer.zero_grad()
        told, pointed = parallel(images, instructions)
        (nn.functional.mse_loss(told, targets) + _pointing_errors(pointed, points).square().mean()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if rank == 0 and (step + 1) % LOG_EVERY == 0:
            speed = (step + 1) * processes * settings["batch"] / (time.monotonic() - started)
            entry = {"step": step + 1, "samples_per_s": round(speed), **validate(learned, looks)}
            print(json.dumps(entry), flush=True)
        if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == settings["steps"]):
            model.save_pretrained(out)
    # DDP must not be the last to hold the process group: it waits with Python's lock for a thread that needs it.
    del parallel
    gc.collect()
    dist.destroy_process_group()


@torch.no_grad()
def validate(learned: VisionWithHead, looks: Looks) -> dict[str, float]:
    """Errors on frames held out: squared, in variances; of points the median in 1/255 of a picture."""
    images, instructions, targets, points = looks.batch(looks.validation, None, np.random.default_rng(0))
    told, pointed = learned(images, instructions)
    errors = (told - targets) ** 2
    drawn = instructions == looks.what_is_drawn
    off = _pointing_errors(pointed, points).abs().median().item() * 255 / POINT_SCALE
    return {
        "trace": errors[~drawn, : 2 * TRACE_POINTS].mean().item(),
        "all": errors[~drawn].mean().item(),
        "drawn": errors[drawn].mean().item(),
        "point": off,
    }


def _pointing_errors(pointed: Tensor, points: Tensor) -> Tensor:
    """Of the coordinates that are seen, one after the other."""
    seen = ~points.isnan()
    return pointed[seen] - points[seen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config/training/nano.yaml")
    parser.add_argument("--data", type=Path, required=True, help="annotated dataset")
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint whose vision backbone is trained")
    parser.add_argument("--out", type=Path, required=True, help="the same checkpoint with the trained backbone")
    arguments = parser.parse_args()
    config = yaml.safe_load(arguments.config.read_text()) | {"preset": str(arguments.config)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "rendezvous").unlink(missing_ok=True)
    processes = config["vision"]["processes"]
    torch.multiprocessing.spawn(
        pretrain, args=(processes, config, arguments.data, arguments.checkpoint, arguments.out), nprocs=processes
    )
    for name in COPIED_FILES:
        shutil.copy(arguments.checkpoint / name, arguments.out / name)


if __name__ == "__main__":
    main()
