"""`molmoact depth-vqvae`: depth pictures from recordings or an estimate, and the depth VQVAE trained on them.

`collect` gathers depth pictures into a file, `train` makes the network that turns depth into tokens of them.
"""

from __future__ import annotations

import argparse
import base64
import html
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
import yaml
from molmoact_policy.depth import DepthVQVAE
from numpy.typing import NDArray
from teleop_recorder.alignment import image_topic
from teleop_recorder.episode import DISCARD, Episode, find_episodes
from teleop_recorder.errors import EpisodeError
from teleop_recorder.pictures import COMPRESSED_SUFFIX, decode_picture, recorded_name, viewable
from tqdm import tqdm

from molmoact_training.annotated_dataset import encode_image
from molmoact_training.depth_estimation import DepthEstimator
from molmoact_training.depth_pictures import PICTURE_SIZE, picture_of_depth
from molmoact_training.depth_vqvae import (
    Pictures,
    VQVAESettings,
    encode_pictures,
    print_json,
    report,
    to_input,
    train_vqvae,
)
from molmoact_training.errors import DatasetError, PresetError, TrainingError
from molmoact_training.lerobot_dataset import open_demonstrations, read_pictures
from molmoact_training.recorded_depth import COLOUR, DEPTH

COUNT = 4000
# The last pictures are not trained on: they are of other episodes, not neighbours of those that are.
HELD_OUT = 0.05
SHOWN = 16
SECTION = "depth_vqvae"
REPORT_FILE, PAGE_FILE = "report.json", "pictures.html"
STYLE = "body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem } img { width: 200px; image-rendering: pixelated }"
GOOD, BAD = 0, 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (TrainingError, EpisodeError, OSError) as error:
        print(f"molmoact depth-vqvae: {error}", file=sys.stderr)
        return BAD
    except KeyboardInterrupt:
        return BAD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="molmoact depth-vqvae", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    collect = commands.add_parser("collect", help="gather depth pictures into a file")
    collect.set_defaults(run=_collect)
    collect.add_argument("source", type=Path, help="recordings; with --depth-model also a LeRobot dataset")
    collect.add_argument("--out", type=Path, required=True, metavar="NPY", help="the file to write")
    collect.add_argument("--camera", default="front", metavar="NAME", help="[front]")
    collect.add_argument("--count", type=int, default=COUNT, metavar="N", help="about how many pictures [%(default)d]")
    collect.add_argument(
        "--depth-model", type=Path, metavar="DIR", help="Depth-Anything-V2, to estimate what was not recorded"
    )
    train = commands.add_parser("train", help="train the VQVAE on collected pictures; goes on where it was stopped")
    train.set_defaults(run=_train)
    train.add_argument("pictures", type=Path, nargs="+", metavar="NPY", help="uint8 [n, h, w], near is bright")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="directory of the trained VQVAE")
    train.add_argument(
        "--config", type=Path, metavar="YAML", help=f"a preset with a section {SECTION} [the paper's network]"
    )
    return parser


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _collect(options: argparse.Namespace) -> int:
    if options.count < 1:
        raise DatasetError(f"--count {options.count}: expected at least 1")
    if options.out.suffix != ".npy":
        raise DatasetError(f"--out {options.out}: expected a file .npy")
    if options.depth_model is None:
        total, pictures = recorded_pictures(options.source, options.camera, options.count)
    else:
        estimator = DepthEstimator.from_pretrained(options.depth_model, _device())
        total, pictures = estimated_pictures(options.source, options.camera, options.count, estimator)
    written = _write_pictures(tqdm(pictures, total=total, unit="picture"), total, options.out)
    print(f"{options.out}: {written} depth pictures")
    return GOOD


def recorded_pictures(source: Path, camera: str, count: int) -> tuple[int, Iterator[NDArray[np.uint8]]]:
    """At most how many, and the pictures uint8 [320, 320] of the depth camera, evenly over those in `source`.

    Raises DatasetError when no recording has any.
    """
    found = []
    for recording in _recordings(source):
        topic = recorded_name(recording, _colour(recording, camera).removesuffix(COLOUR) + DEPTH)
        if topic is not None and recording.topics[topic].count:
            found.append((recording, topic))
    if not found:
        raise DatasetError(f"{source}: no depth of camera {camera} was recorded: record it, or pass a --depth-model")
    step = _step(sum(recording.topics[topic].count for recording, topic in found), count)
    chosen = sum(len(range(0, recording.topics[topic].count, step)) for recording, topic in found)

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for recording, topic in found:
            for message in islice(recording.messages([topic]), 0, None, step):
                try:
                    yield picture_of_depth(decode_picture(recording, topic, message.data))
                except DatasetError:  # nothing measured in it: something lies on the lens
                    continue

    return chosen, pictures()


def estimated_pictures(
    source: Path, camera: str, count: int, estimator: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> tuple[int, Iterator[NDArray[np.uint8]]]:
    """How many, and the estimates uint8 [320, 320] for colour pictures, evenly over a dataset or recordings."""
    lengths, read = _colour_pictures(source, camera)
    step = _step(sum(lengths), count)
    chosen = sum(len(range(0, length, step)) for length in lengths)
    return chosen, (estimator(image) for number in range(len(lengths)) for image in read(number, step))


def _colour_pictures(source: Path, camera: str) -> tuple[list[int], Callable[[int, int], Iterator[NDArray[np.uint8]]]]:
    """How many each episode has, and what reads every n-th RGB uint8 [H, W, 3] of one of them."""
    if (source / "meta" / "info.json").exists():
        dataset = open_demonstrations(source, [camera])
        episodes = dataset.episodes

        def of_dataset(number: int, step: int) -> Iterator[NDArray[np.uint8]]:
            shown = islice(read_pictures(episodes[number], dataset.fps), 0, None, step)
            return (pictures[0] for pictures in shown)

        return [len(episode) for episode in episodes], of_dataset

    recordings = [(recording, image_topic(recording, camera)) for recording in _recordings(source)]

    def of_recordings(number: int, step: int) -> Iterator[NDArray[np.uint8]]:
        recording, topic = recordings[number]
        for message in islice(recording.messages([topic]), 0, None, step):
            yield viewable(decode_picture(recording, topic, message.data))

    return [recording.topics[topic].count for recording, topic in recordings], of_recordings


def _recordings(source: Path) -> list[Episode]:
    opened = [Episode.open(directory) for directory in find_episodes(source)]
    kept = [recording for recording in opened if recording.labels.outcome != DISCARD]
    if not kept:
        raise DatasetError(f"{source}: there are no recordings")
    return kept


def _colour(recording: Episode, camera: str) -> str:
    return image_topic(recording, camera).removesuffix(COMPRESSED_SUFFIX)


def _step(total: int, count: int) -> int:
    if not total:
        raise DatasetError("there are no pictures")
    return math.ceil(total / count)


def _write_pictures(pictures: Iterator[NDArray[np.uint8]], most: int, path: Path) -> int:
    """Into a file that is there as a whole or not at all; returns how many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npy")
    written = 0
    room = np.lib.format.open_memmap(partial, "w+", np.uint8, (most, PICTURE_SIZE, PICTURE_SIZE))
    for picture in pictures:
        room[written] = picture
        written += 1
    room.flush()
    if written < most:
        np.save(partial, np.array(room[:written]))
    os.replace(partial, path)
    return written


def _train(options: argparse.Namespace) -> int:
    settings = VQVAESettings() if options.config is None else _settings(options.config)
    pictures = _read_pictures(options.pictures)
    held_out = max(1, round(HELD_OUT * len(pictures)))
    trained_on = len(pictures) - held_out
    options.out.mkdir(parents=True, exist_ok=True)
    vqvae = train_vqvae(pictures[:trained_on], settings, options.out, _device())
    unseen = np.array(pictures[trained_on:])
    codes = encode_pictures(vqvae, unseen)
    numbers = {**report(vqvae, unseen, codes), "pictures": len(pictures), "held_out": held_out}
    (options.out / REPORT_FILE).write_text(json.dumps(numbers, indent=1), encoding="utf-8")
    write_page(vqvae, unseen, codes, numbers, options.out / PAGE_FILE)
    print_json(numbers)
    print(f"{options.out}; look at {options.out / PAGE_FILE}")
    return GOOD


def _settings(path: Path) -> VQVAESettings:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        section = content[SECTION]
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise PresetError(f"{path}: expected YAML with a section {SECTION}: {error!r}") from error
    return VQVAESettings.from_dict(section, f"{path}: {SECTION}")


def _read_pictures(paths: Sequence[Path]) -> Pictures:
    files = []
    for path in paths:
        try:
            files.append(np.load(path, mmap_mode="r"))
        except (OSError, ValueError, EOFError) as error:
            raise DatasetError(f"{path}: not readable as .npy: {error}") from error
        if files[-1].ndim != 3 or files[-1].dtype != np.uint8 or not files[-1].size:
            raise DatasetError(f"{path}: is {files[-1].dtype} {list(files[-1].shape)}, expected uint8 [n, h, w]")
        if files[-1].shape[1:] != files[0].shape[1:]:
            raise DatasetError(
                f"{path}: pictures of {files[-1].shape[1:]}, those of {paths[0]} are {files[0].shape[1:]}"
            )
    return files[0] if len(files) == 1 else np.concatenate(files)


@torch.inference_mode()
def write_page(
    vqvae: DepthVQVAE, pictures: Pictures, codes: NDArray[np.uint8], numbers: dict[str, float], path: Path
) -> None:
    """One file: some pictures [n, h, w] with what their codes [n, 100] give back, and how often each code is used."""
    chosen = np.unique(np.linspace(0, len(pictures) - 1, SHOWN).astype(int))
    rows = []
    for index in chosen:
        given = to_input(pictures[index][None])
        back = vqvae.decode(torch.from_numpy(codes[index][None].astype(np.int64))).clamp(0, 1)
        off = (given - back).abs()
        shown = [_grey(image[0, 0].numpy()) for image in (given, back, (4 * off).clamp(0, 1))]
        rows.append(
            "<p>" + " ".join(map(_image, [*shown, _coloured(codes[index])])) + f" mse {(off**2).mean():.5f}</p>"
        )
    summary = html.escape(", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    uses = np.bincount(codes.ravel(), minlength=vqvae.config.num_tokens)
    path.write_text(
        f"<!doctype html>\n<html lang=en><meta charset=utf-8><title>Depth VQVAE</title><style>{STYLE}</style>\n"
        f"<h1>Depth VQVAE</h1>\n<p>{summary}</p>\n<h2>Uses of each code</h2>\n{_bars(uses)}\n"
        "<h2>Pictures it was not trained on</h2>\n<p>Picture, what its codes give back, four times the difference, "
        "the codes in colours.</p>\n" + "\n".join(rows) + "\n</html>\n",
        encoding="utf-8",
    )


def _grey(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """0..1 [h, w] -> RGB uint8 [h, w, 3]."""
    return np.repeat((values * 255).astype(np.uint8)[..., None], 3, 2)


def _coloured(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[100] -> RGB uint8 [200, 200, 3], a colour for each code."""
    # OpenCV has 180 hues. A factor that shares no divisor with them gives every code its own, neighbours far apart.
    hues = (codes.astype(int) * 77 % 180).astype(np.uint8).reshape(10, 10)
    full = np.full_like(hues, 220)
    rgb = cv2.cvtColor(np.stack([hues, full, full], -1), cv2.COLOR_HSV2RGB)
    return np.asarray(cv2.resize(rgb, (200, 200), interpolation=cv2.INTER_NEAREST), np.uint8)


def _image(picture: NDArray[np.uint8]) -> str:
    return f"<img src='data:image/jpeg;base64,{base64.b64encode(encode_image(picture)).decode()}' alt=''>"


def _bars(uses: NDArray[np.int64]) -> str:
    heights = 80 * uses / max(int(uses.max()), 1)
    bars = "".join(
        f"<rect x='{6 * code}' y='{80 - height:.1f}' width='5' height='{height:.1f}'>"
        f"<title>{code}: {use}</title></rect>"
        for code, (height, use) in enumerate(zip(heights, uses, strict=True))
    )
    return f"<svg width='{6 * len(uses)}' height='80' fill='#1f64be'>{bars}</svg>"
