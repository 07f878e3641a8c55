"""One episode of a dataset becomes one shard of an annotated dataset; the same function on every process and machine.

What an episode becomes depends on nothing but the episode and the `Annotation`: equal input gives equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from molmoact_policy.depth import DepthVQVAE
from molmoact_policy.embodiment import Embodiment
from numpy.typing import NDArray

from molmoact_training.annotated_dataset import Frame, shard_path, write_shard
from molmoact_training.calibration import CameraCalibration
from molmoact_training.depth_estimation import DepthEstimator
from molmoact_training.depth_vqvae import encode_pictures
from molmoact_training.lerobot_dataset import Demonstration, read_pictures
from molmoact_training.pointing import MolmoPointer
from molmoact_training.recorded_depth import DepthSource, depth_pictures
from molmoact_training.traces import frame_traces, pointed_points, projected_points, prompts

CAMERA, ESTIMATE, PROJECTION, POINTING, NONE = "camera", "estimate", "projection", "pointing", "none"
DEPTHS, TRACES = (CAMERA, ESTIMATE, NONE), (PROJECTION, POINTING, NONE)
BATCH = 32  # depth pictures encoded at once

Codes = list["NDArray[np.uint8] | None"]  # [100] for every frame
Traces = list["list[NDArray[np.uint8]] | None"]  # for every frame one of each arm


@dataclass(frozen=True)
class Annotation:
    """What is done to every episode.

    fps: pictures per second of the dataset. picture_size: width, height of the first camera's picture as it is stored.
    depth: one of DEPTHS, with `vqvae` and, for an estimate, `depth_model`: files or directories. trace: one of TRACES:
    projected through `calibrations` of the first camera, one for each arm, from `positions`, which say where in a state
    the arm's are; or pointed at by `pointing_model`, which runs in the environment of `pointing_python`.
    """

    out: Path
    fps: float
    embodiment: Embodiment
    rows: int
    arms: int
    picture_size: tuple[int, int]
    depth: str = NONE
    vqvae: Path | None = None
    depth_model: Path | None = None
    trace: str = NONE
    calibrations: tuple[CameraCalibration, ...] = ()
    positions: tuple[slice, ...] = ()
    pointing_model: Path | None = None
    pointing_python: Path | None = None


@dataclass(frozen=True)
class Work:
    """One episode to annotate; depth: where the bag's depth is, when it comes from there."""

    annotation: Annotation
    episode: Demonstration
    depth: DepthSource | None = None


def annotate_episode(work: Work) -> int:
    """Write the episode's shard unless it is there; returns its number of frames.

    Raises DatasetError naming the file that cannot be decoded.
    """
    annotation, episode = work.annotation, work.episode
    if shard_path(annotation.out, episode.number).exists():
        return len(episode)
    # More threads would add up in another order: codes must not depend on the machine's number of cores.
    torch.set_num_threads(1)
    depth, traces = _depth(work), _traces(annotation, episode)
    return write_shard(annotation.out, episode.number, _frames(annotation, episode, depth, traces))


def action_chunks(actions: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """[n, D] -> [n, rows, D]: the rows from every frame on, with the episode's last row repeated at the end."""
    count = len(actions)
    return actions[np.minimum(np.arange(count)[:, None] + np.arange(rows), count - 1)]


def _frames(annotation: Annotation, episode: Demonstration, depth: Codes, traces: Traces) -> Iterator[Frame]:
    chunks = action_chunks(episode.actions, annotation.rows)
    for frame, pictures in enumerate(read_pictures(episode, annotation.fps)):
        yield Frame(
            episode=episode.number,
            frame=frame,
            instruction=episode.instruction,
            images=[stored_picture(picture, annotation.embodiment) for picture in pictures],
            actions=chunks[frame],
            depth_codes=depth[frame],
            traces=traces[frame],
        )


def stored_picture(picture: NDArray[np.uint8], embodiment: Embodiment) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] at the embodiment's size, uncropped: training crops anew each time, the policy its centre."""
    return picture if embodiment.image_size is None else embodiment.resized(picture, embodiment.image_size)


def _depth(work: Work) -> Codes:
    annotation, episode = work.annotation, work.episode
    codes: Codes = [None] * len(episode)
    if annotation.depth == NONE:
        return codes
    assert annotation.vqvae is not None
    vqvae = load_vqvae(annotation.vqvae)
    if annotation.depth == CAMERA:
        assert work.depth is not None
        pictures: Iterable[tuple[int, NDArray[np.uint8] | None]] = depth_pictures(work.depth)
    else:
        assert annotation.depth_model is not None
        estimate = load_estimator(annotation.depth_model)
        pictures = enumerate(estimate(image) for image in _first_images(annotation, episode))
    seen = ((frame, picture) for frame, picture in pictures if picture is not None)
    while batch := list(islice(seen, BATCH)):
        encoded = encode_pictures(vqvae, np.stack([picture for _, picture in batch]))
        for (frame, _), row in zip(batch, encoded, strict=True):
            codes[frame] = row
    return codes


def _traces(annotation: Annotation, episode: Demonstration) -> Traces:
    if annotation.trace == NONE:
        return [None] * len(episode)
    if annotation.trace == PROJECTION:
        assert episode.state is not None
        return frame_traces(
            [
                projected_points(episode.state[:, where], calibration, annotation.picture_size)
                for where, calibration in zip(annotation.positions, annotation.calibrations, strict=True)
            ]
        )
    assert annotation.pointing_model is not None
    pointer = _load_pointer(annotation.pointing_model, annotation.pointing_python)
    return frame_traces(
        [pointed_points(_first_images(annotation, episode), pointer, prompt) for prompt in prompts(annotation.arms)]
    )


def _first_images(annotation: Annotation, episode: Demonstration) -> Iterator[NDArray[np.uint8]]:
    return (pictures[0] for pictures in read_pictures(episode.looked_through(1), annotation.fps))


# A process annotates many episodes with the same networks.
@lru_cache(maxsize=1)
def load_vqvae(path: Path) -> DepthVQVAE:
    """Raises CheckpointError naming the file at fault."""
    return DepthVQVAE.from_pretrained(path)


@lru_cache(maxsize=1)
def load_estimator(path: Path) -> DepthEstimator:
    """Raises TrainingError naming the directory when there is no such model in it."""
    return DepthEstimator.from_pretrained(path, "cuda" if torch.cuda.is_available() else "cpu")


@lru_cache(maxsize=1)
def _load_pointer(path: Path, python: Path | None) -> MolmoPointer:
    return MolmoPointer(path, python)
