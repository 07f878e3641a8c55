"""A page of pictures of random frames of an annotated dataset: what a person looks at before training on it."""

from __future__ import annotations

import base64
import html
from pathlib import Path

import numpy as np
import torch
from molmoact_policy.depth import DepthVQVAE, to_grey
from molmoact_policy.embodiment import ROW, Embodiment
from molmoact_policy.trace import draw_trace
from numpy.typing import NDArray

from molmoact_training.annotated_dataset import AnnotatedDataset, Frame, encode_image

PAGE_FILE = "pictures.html"
SAMPLES = 24
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem } figure { margin: 0 0 2rem } img { height: 240px }
figcaption { font-variant-numeric: tabular-nums } .small { color: #666 }
"""


def write_page(dataset: AnnotatedDataset, vqvae: DepthVQVAE | None, path: Path, seed: int = 0) -> None:
    """One file with everything in it: of random frames the pictures, the trace drawn on the first, the decoded depth,
    the instruction and the first action. The same dataset and seed give the same page.
    """
    count = min(SAMPLES, len(dataset))
    chosen = np.sort(np.random.default_rng(seed).choice(len(dataset), count, replace=False))
    figures = "\n".join(_figure(dataset[int(row)], dataset.embodiment, vqvae) for row in chosen)
    title = html.escape(f"{count} of {len(dataset)} frames of {dataset.directory.name}")
    path.write_text(
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>\n"
        f"<h1>{title}</h1>\n<p class=small>The first camera with the trace of each arm, the other cameras, and the "
        f"depth as its codes give it back (near is bright).</p>\n{figures}\n</html>\n",
        encoding="utf-8",
    )


def _figure(frame: Frame, embodiment: Embodiment, vqvae: DepthVQVAE | None) -> str:
    first, *others = frame.images
    for trace in frame.traces or []:
        first = draw_trace(first, trace)
    pictures = [first, *others]
    if vqvae is not None and frame.depth_codes is not None:
        pictures.append(_decoded(vqvae, frame.depth_codes))
    points = "; ".join(str(trace.tolist()) for trace in frame.traces or []) or "none"
    return (
        f"<figure>{''.join(map(_image, pictures))}<figcaption><b>{html.escape(frame.instruction)}</b> "
        f"<span class=small>episode {frame.episode}, frame {frame.frame}</span><br>first action: "
        f"{html.escape(_in_words(frame.actions[0], embodiment))}<br><span class=small>trace: {points}</span>"
        "</figcaption></figure>"
    )


def _in_words(action: NDArray[np.float32], embodiment: Embodiment) -> str:
    """One row [D], arm by arm, in millimetres and degrees."""
    arms = [embodiment.to_deltas(row[None])[0] for row in action.reshape(-1, ROW)]
    return " | ".join(
        f"move {_numbers(1000 * delta.translation)} mm, turn {_numbers(np.degrees(delta.rotation))}°, "
        f"gripper {delta.gripper:.2f} open"
        for delta in arms
    )


def _numbers(values: NDArray[np.float64]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


@torch.inference_mode()
def _decoded(vqvae: DepthVQVAE, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    grey = to_grey(vqvae.decode(torch.from_numpy(codes.astype(np.int64))[None])[0, 0])
    return np.repeat(grey[..., None], 3, axis=2)


def _image(picture: NDArray[np.uint8]) -> str:
    data = base64.b64encode(encode_image(picture)).decode()
    return f'<img alt="" src="data:image/jpeg;base64,{data}"> '
