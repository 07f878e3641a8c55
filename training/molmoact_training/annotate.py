"""`molmoact annotate`: from a LeRobot dataset to action reasoning data, with depth codes and traces for every frame.

Everything that can be wrong with the request or the dataset is found before the first frame is annotated. Every
episode becomes a shard of its own, one process per core or spread over machines with Ray; what is interrupted goes on
with the episodes that are missing. The same input gives the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from molmoact_policy.actions import ActionStatistics
from molmoact_policy.embodiment import EMBODIMENT_FILE, Embodiment
from molmoact_policy.errors import PolicyError
from numpy.typing import NDArray
from tqdm import tqdm

from molmoact_training.annotated_dataset import (
    ALLOW_CONSTANT,
    ANNOTATION_FILE,
    STATISTICS_FILE,
    AnnotatedDataset,
    encode_image,
    finish_dataset,
    shard_path,
)
from molmoact_training.annotation import (
    CAMERA,
    DEPTHS,
    ESTIMATE,
    NONE,
    POINTING,
    PROJECTION,
    TRACES,
    Annotation,
    Work,
    annotate_episode,
    load_estimator,
    load_vqvae,
    stored_picture,
)
from molmoact_training.annotation_page import PAGE_FILE, write_page
from molmoact_training.calibration import CameraCalibration
from molmoact_training.errors import DatasetError, TrainingError
from molmoact_training.lerobot_dataset import (
    Demonstration,
    Demonstrations,
    arm_positions,
    constant_dimensions,
    open_demonstrations,
    read_pictures,
)
from molmoact_training.recorded_depth import DepthSource, find_depth

DEFAULT_ROWS = 8  # of the paper's post-training
DEPTH_CODES, DEPTH_TOKENS = 100, 128  # of a picture, and of the vocabulary
# There while the dataset is not finished: the settings it is made with.
STARTED_FILE = "annotation.started.json"
# The first picture of an episode says roughly how large the others become.
SPACE_FACTOR = 1.5
# 1: an episode cannot be annotated. 2: the request or the dataset makes no sense.
GOOD, BAD, USAGE = 0, 1, 2
NEEDED = {
    ("depth", CAMERA): ("vqvae", "recordings"),
    ("depth", ESTIMATE): ("vqvae", "depth_model"),
    ("trace", PROJECTION): ("calibration",),
    ("trace", POINTING): ("pointing_model",),
}


@dataclass(frozen=True)
class Plan:
    """What is to be done, checked. settings: everything the result depends on, as JSON can hold it."""

    key: str
    annotation: Annotation
    episodes: Sequence[Demonstration]
    depth: dict[int, DepthSource]
    settings: dict[str, Any]

    def work(self) -> list[Work]:
        return [Work(self.annotation, episode, self.depth.get(episode.number)) for episode in self.episodes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code, see GOOD, BAD and USAGE."""
    options = _parser().parse_args(arguments)
    try:
        plan = _plan(options)
        _begin(plan)
    except (TrainingError, PolicyError) as error:
        print(f"molmoact annotate: {error}", file=sys.stderr)
        return USAGE
    try:
        return _annotate(plan, options)
    except (TrainingError, PolicyError, OSError) as error:
        print(f"molmoact annotate: {error}\nWhat is finished is kept for the next attempt.", file=sys.stderr)
        return BAD
    except BrokenExecutor:
        print("molmoact annotate: a process was killed: fewer --jobs need less memory", file=sys.stderr)
        return BAD
    except KeyboardInterrupt:
        return BAD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="molmoact annotate", description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", type=Path, metavar="DATASET", help="LeRobot dataset, v3.0 or v2.x")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the annotated dataset")
    parser.add_argument("--depth", choices=DEPTHS, required=True, help="from the recorded depth camera, or estimated")
    parser.add_argument("--vqvae", type=Path, metavar="PATH", help="depth VQVAE: directory or weight file")
    parser.add_argument("--recordings", type=Path, metavar="DIR", help="--depth camera: what DATASET was exported from")
    parser.add_argument("--depth-model", type=Path, metavar="DIR", help="--depth estimate: Depth-Anything-V2")
    parser.add_argument(
        "--trace", choices=TRACES, required=True, help="from measured positions, or from a model that points"
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="--trace projection: of the first camera; for two arms one in each arm's base frame",
    )
    parser.add_argument("--pointing-model", type=Path, metavar="DIR", help="--trace pointing: a Molmo checkpoint")
    parser.add_argument(
        "--pointing-python", type=Path, metavar="FILE", help="of the environment that model runs in [this one]"
    )
    parser.add_argument(
        "--embodiment", metavar="KEY", help="conventions of the actions [those of DATASET's embodiment.yaml]"
    )
    parser.add_argument(
        "--embodiments", type=Path, metavar="FILE", help="where KEY is described [config/embodiments.yaml]"
    )
    parser.add_argument("--rows", type=int, metavar="N", help=f"of a chunk [of the embodiment, or {DEFAULT_ROWS}]")
    parser.add_argument(
        "--allow-constant",
        action="store_true",
        help="dimensions of the actions may be constant; they are made exactly so",
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes [cores]")
    parser.add_argument("--ray", metavar="ADDRESS", help="on the machines of a Ray cluster; local: on this one")
    return parser


def _plan(options: argparse.Namespace) -> Plan:
    _check_options(options)
    key, embodiment = _conventions(options)
    demonstrations = open_demonstrations(options.dataset, embodiment.cameras)
    if options.embodiment is None:
        _check_statistics(options.dataset, demonstrations)
    demonstrations = _without_noise(demonstrations, options.allow_constant)
    embodiment = replace(
        embodiment,
        step_period=1.0 / demonstrations.fps,
        rows=options.rows or embodiment.rows or DEFAULT_ROWS,
    )
    first = [
        stored_picture(it, embodiment) for it in next(read_pictures(demonstrations.episodes[0], demonstrations.fps))
    ]
    assert embodiment.rows is not None
    annotation = Annotation(
        out=options.out.resolve(),
        fps=demonstrations.fps,
        embodiment=embodiment,
        rows=embodiment.rows,
        arms=demonstrations.arms,
        picture_size=(first[0].shape[1], first[0].shape[0]),
        depth=options.depth,
        vqvae=_checked_vqvae(options.vqvae) if options.depth != NONE else None,
        depth_model=_checked_estimator(options.depth_model) if options.depth == ESTIMATE else None,
        trace=options.trace,
        calibrations=_calibrations(options, demonstrations.arms) if options.trace == PROJECTION else (),
        positions=tuple(arm_positions(demonstrations)) if options.trace == PROJECTION else (),
        pointing_model=_checked_pointer(options.pointing_model) if options.trace == POINTING else None,
        pointing_python=options.pointing_python,
    )
    depth = {}
    if options.depth == CAMERA:
        frames = {episode.number: len(episode) for episode in demonstrations.episodes}
        depth = find_depth(options.dataset, options.recordings, embodiment.cameras[0], frames)
    _check_space(annotation.out, demonstrations, first)
    settings = _described(key, annotation, demonstrations) | {ALLOW_CONSTANT: options.allow_constant}
    return Plan(key, annotation, demonstrations.episodes, depth, settings)


def _check_options(options: argparse.Namespace) -> None:
    for (option, choice), names in NEEDED.items():
        for name in names:
            if getattr(options, option) == choice and getattr(options, name) is None:
                raise DatasetError(
                    f"--{option} {choice} needs --{name.replace('_', '-')}, see molmoact annotate --help"
                )
    for name in ("jobs", "rows"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise DatasetError(f"--{name} {getattr(options, name)}: expected at least 1")


def _conventions(options: argparse.Namespace) -> tuple[str, Embodiment]:
    """The unnorm_key and what its numbers mean: what the dataset says, or for one that says nothing what is asked."""
    own = options.dataset / EMBODIMENT_FILE
    if options.embodiment is not None:
        if own.exists():
            raise DatasetError(f"--embodiment {options.embodiment}: {own} says already what the actions mean")
        return options.embodiment, Embodiment.from_file(options.embodiments or _shipped(), options.embodiment)
    if not own.exists():
        raise DatasetError(f"{own} is missing: for a dataset that we did not export, say --embodiment KEY")
    key = _statistics(options.dataset).key
    return key, Embodiment.from_file(own, key)


def _shipped() -> Path:
    try:
        return Path(get_package_share_directory("molmoact_bringup")) / "config" / "embodiments.yaml"
    except PackageNotFoundError:
        raise DatasetError("package molmoact_bringup is not installed: pass --embodiments") from None


def _statistics(dataset: Path) -> ActionStatistics:
    path = dataset / STATISTICS_FILE
    try:
        return ActionStatistics.from_norm_stats(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path}: expected the statistics `molmoact episodes export` writes: {error}") from error


def _check_statistics(dataset: Path, demonstrations: Demonstrations) -> None:
    statistics, dimensions = _statistics(dataset), demonstrations.all_actions().shape[1]
    if statistics.dimensions != dimensions:
        raise DatasetError(
            f"{dataset / STATISTICS_FILE}: of {statistics.dimensions} degrees of freedom, the actions have {dimensions}"
        )


def _without_noise(demonstrations: Demonstrations, allowed: bool) -> Demonstrations:
    """Dimensions that never change set to one value, where that is allowed: normalising would make them noise."""
    constant = constant_dimensions(demonstrations.all_actions())
    if not constant:
        return demonstrations
    if not allowed:
        values = ", ".join(f"action[{dimension}] is always {value:.3g}" for dimension, value in constant.items())
        raise DatasetError(f"{demonstrations.root}: {values}: if that is meant, say --allow-constant")

    def exact(actions: NDArray[np.float32]) -> NDArray[np.float32]:
        changed = actions.copy()
        for dimension, value in constant.items():
            changed[:, dimension] = value
        return changed

    episodes = tuple(replace(episode, actions=exact(episode.actions)) for episode in demonstrations.episodes)
    return replace(demonstrations, episodes=episodes)


def _checked_vqvae(path: Path) -> Path:
    config = load_vqvae(path).config
    codes = (config.image_size // config.downsample_ratio) ** 2
    if codes != DEPTH_CODES or config.num_tokens > DEPTH_TOKENS:
        raise DatasetError(
            f"{path}: {codes} codes out of {config.num_tokens}, expected {DEPTH_CODES} out of {DEPTH_TOKENS} or less"
        )
    return path.resolve()


def _checked_estimator(path: Path) -> Path:
    load_estimator(path)
    return path.resolve()


def _checked_pointer(path: Path) -> Path:
    """Its weights are too many to load them only to see whether they can be."""
    if not (path / "config.json").is_file():
        raise DatasetError(f"{path}: config.json is missing, expected the directory of Molmo-7B-D-0924")
    return path.resolve()


def _calibrations(options: argparse.Namespace, arms: int) -> tuple[CameraCalibration, ...]:
    if len(options.calibration) != arms:
        raise DatasetError(f"--calibration: {len(options.calibration)} files, expected one for each of {arms} arm(s)")
    return tuple(CameraCalibration.from_file(path) for path in options.calibration)


def _check_space(out: Path, demonstrations: Demonstrations, pictures: Sequence[NDArray[np.uint8]]) -> None:
    missing = [episode for episode in demonstrations.episodes if not shard_path(out, episode.number).exists()]
    frames = sum(len(episode) for episode in missing)
    needed = int(SPACE_FACTOR * frames * sum(len(encode_image(picture)) for picture in pictures))
    there = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DatasetError(f"{out}: needs about {needed / 2**20:.0f} MiB, the disk has {free / 2**20:.0f} MiB left")


def _described(key: str, annotation: Annotation, demonstrations: Demonstrations) -> dict[str, Any]:
    """Everything the result depends on; files by what is in them, so that they can be moved."""
    described = {
        "dataset": {"name": demonstrations.root.resolve().name, "sha256": _fingerprint(demonstrations)},
        "unnorm_key": key,
        "embodiment": asdict(annotation.embodiment),
        "arms": annotation.arms,
        "depth": annotation.depth,
        "vqvae": None if annotation.vqvae is None else _content(annotation.vqvae),
        "depth_model": None if annotation.depth_model is None else annotation.depth_model.name,
        "trace": annotation.trace,
        "calibrations": [asdict(calibration) for calibration in annotation.calibrations],
        "pointing_model": None if annotation.pointing_model is None else annotation.pointing_model.name,
    }
    return json.loads(json.dumps(described))


def _fingerprint(demonstrations: Demonstrations) -> str:
    """Of the numbers and words, and of the sizes of the files with the pictures."""
    digest = hashlib.sha256()
    for episode in demonstrations.episodes:
        digest.update(f"{episode.number} {episode.instruction}".encode())
        for numbers in (episode.times, episode.actions, episode.state):
            digest.update(b"" if numbers is None else numbers.tobytes())
        for film in episode.films:
            digest.update(f"{film.key} {film.begin} {film.path.stat().st_size}".encode())
    return digest.hexdigest()


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _begin(plan: Plan) -> None:
    """Prepare the directory, or take up what another run left in it. Raises DatasetError when that was another one."""
    out = plan.annotation.out
    noted = next((out / name for name in (ANNOTATION_FILE, STARTED_FILE) if (out / name).exists()), None)
    if noted is not None:
        _check_same(noted, plan.settings)
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out}: is there already, and is no annotated dataset: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / STARTED_FILE).write_text(json.dumps(plan.settings, indent=1), encoding="utf-8")


def _check_same(path: Path, settings: dict[str, Any]) -> None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in settings if found.get(name) != settings[name]]
    except (OSError, ValueError, AttributeError) as error:
        raise DatasetError(f"{path}: not readable: {error}: choose another --out, or remove it") from error
    if different:
        raise DatasetError(f"{path}: was made with another {', '.join(different)}: choose another --out, or remove it")


def _annotate(plan: Plan, options: argparse.Namespace) -> int:
    work, out = plan.work(), plan.annotation.out
    results = _on_ray(work, options.ray, options.jobs) if options.ray else _in_processes(work, options.jobs)
    frames = sum(tqdm(results, total=len(work), unit="episode", desc="annotate"))
    conventions = out / EMBODIMENT_FILE
    conventions.write_text(yaml.safe_dump(_entry(plan), sort_keys=False), encoding="utf-8")
    finish_dataset(out, plan.key, conventions, plan.settings)
    (out / STARTED_FILE).unlink(missing_ok=True)
    vqvae = None if plan.annotation.vqvae is None else load_vqvae(plan.annotation.vqvae)
    write_page(AnnotatedDataset(out), vqvae, out / PAGE_FILE)
    print(f"{out}: {frames} frames of {len(work)} episodes; look at {out / PAGE_FILE}")
    return GOOD


def _entry(plan: Plan) -> dict[str, Any]:
    """The embodiment as its file holds it."""
    embodiment = plan.annotation.embodiment
    values = {field.name: getattr(embodiment, field.name) for field in fields(Embodiment)}
    return {plan.key: {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}}


def _in_processes(work: Sequence[Work], jobs: int) -> Iterator[int]:
    if jobs == 1 or len(work) == 1:
        yield from map(annotate_episode, work)
        return
    # spawn: a forked process would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(work)), mp_context=context) as pool:
        try:
            yield from pool.map(annotate_episode, work)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _on_ray(work: Sequence[Work], address: str, jobs: int) -> Iterator[int]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise TrainingError("--ray: ray is not installed: pip install ray") from None
    ray.init(
        address=address,
        num_cpus=jobs if address == "local" else None,
        include_dashboard=False if address == "local" else None,
    )
    try:
        annotate = ray.remote(annotate_episode)
        pending = [annotate.remote(it) for it in work]
        while pending:
            done, pending = ray.wait(pending)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # without the other machine's traceback
    finally:
        ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
