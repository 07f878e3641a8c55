"""What the model says in whole replies to held-out frames while it is trained: pictures and text for TensorBoard."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from molmoact_policy.depth import DepthVQVAE, to_grey
from molmoact_policy.errors import ReplyError
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.policy import Observation, Policy
from molmoact_policy.processor import Processor
from molmoact_policy.trace import draw_trace
from numpy.typing import NDArray
from PIL import Image

from molmoact_training.annotated_dataset import AnnotatedDataset, Frame
from molmoact_training.mixture import Mixture


@dataclass(frozen=True)
class Shown:
    """A held-out frame. picture: uint8 RGB [H, W, 3]: the traces as labelled and as predicted, then, where a depth
    VQVAE is at hand, the depth codes as labelled and as predicted; text: instruction, reply and first action.
    """

    picture: NDArray[np.uint8]
    text: str


def held_out_frames(mixture: Mixture, count: int) -> list[tuple[AnnotatedDataset, Frame]]:
    """Frames with everything to compare, of episodes that are never trained on: the same every time, from all sets."""
    found: list[tuple[AnnotatedDataset, Frame]] = []
    sources = [source for source in mixture.sources if isinstance(source.dataset, AnnotatedDataset)]
    for number, source in enumerate(sources):
        dataset = source.dataset
        assert isinstance(dataset, AnnotatedDataset)
        usable = dataset.annotated("depth_codes") & dataset.annotated("traces")
        usable &= ~np.array(dataset.column("steered"), np.bool_)
        rows = source.validation[usable[source.validation]]
        wanted = count // len(sources) + (number < count % len(sources))
        for index in np.linspace(0, len(rows) - 1, min(wanted, len(rows))).astype(int):
            found.append((dataset, dataset[int(rows[index])]))
    return found


def predict(
    model: MolmoActForActionReasoning,
    processor: Processor,
    dataset: AnnotatedDataset,
    frame: Frame,
    vqvae: DepthVQVAE | None = None,
) -> Shown:
    """One reply by greedy decoding; one that cannot be read is shown as far as it can."""
    # Weights that are spread over processes are only whole within the model's own passes.
    policy = Policy(model, processor, dataset.statistics, depth_vqvae=vqvae, decoder="generate")
    try:
        prediction = policy.act(Observation(frame.images, frame.instruction))
        codes, trace, reply = prediction.depth_codes, prediction.trace, prediction.text
        action = np.array2string(prediction.actions[0], precision=4)
    except ReplyError as error:
        codes, trace, reply, action = error.depth_codes or [], error.trace or [], error.text, f"none: {error}"
    labelled = frame.images[0]
    for points in frame.traces or ():
        labelled = draw_trace(labelled, points)
    pictures = [labelled, draw_trace(frame.images[0], trace)]
    if vqvae is not None and frame.depth_codes is not None:
        pictures += [_depth(vqvae, each, labelled) for each in (frame.depth_codes.tolist(), codes)]
    first = np.array2string(frame.actions[0].astype(np.float64), precision=4)
    text = f"{frame.instruction}\n\nlabelled: {first}\n\npredicted: {action}\n\n{reply}"
    return Shown(np.concatenate(pictures, axis=1), text)


@torch.no_grad()
def _depth(vqvae: DepthVQVAE, codes: list[int], beside: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes as a picture of another one's size; black when there are not as many as a picture has."""
    height, width = beside.shape[:2]
    if len(codes) != 100:
        return np.zeros_like(beside)
    grey = to_grey(vqvae.decode(torch.tensor([codes]))[0, 0])
    return np.asarray(Image.fromarray(grey).resize((width, height)).convert("RGB"))
