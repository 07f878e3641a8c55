"""``molmoact predict``: what a checkpoint makes of a few pictures, without ROS and without a robot."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from molmoact_policy.config import VARIANTS
from molmoact_policy.embodiment import ROW, Delta, Embodiment
from molmoact_policy.errors import ObservationError, PolicyError, ReplyError
from molmoact_policy.policy import Observation, Policy, Prediction, check_trace
from molmoact_policy.quantization import QUANTIZATIONS
from molmoact_policy.trace import draw_trace

TRACE_PICTURE = "trace.png"
DEPTH_PICTURE = "depth.png"
RECORD = "prediction.json"


def main(arguments: Sequence[str]) -> int:
    """The subcommand; the exit code. 1: nothing was predicted, for the reason on stderr."""
    options = _parser().parse_args(arguments)
    try:
        observation = _observation(options)
        policy = _policy(options, observation)
        options.output.mkdir(parents=True, exist_ok=True)
        return _predict(policy, observation, options.output)
    except (PolicyError, OSError) as error:
        print(f"molmoact predict: {error}", file=sys.stderr)
        return 1


def shipped_conventions() -> Path | None:
    """embodiments.yaml of the launch package; None where only this package is installed."""
    try:
        return Path(get_package_share_directory("molmoact_bringup")) / "config" / "embodiments.yaml"
    except PackageNotFoundError:
        return None


def read_picture(path: Path) -> NDArray[np.uint8]:
    """uint8 RGB [H, W, 3]. Raises ObservationError for a file that is no complete RGB picture of 8 bits per channel."""
    try:
        with Image.open(path) as picture:
            if picture.mode != "RGB":
                raise ObservationError(f"{path}: is of mode {picture.mode}, expected RGB with 8 bits per channel")
            return np.array(picture)
    except (OSError, UnidentifiedImageError) as error:
        raise ObservationError(f"{path}: not readable as a picture: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="molmoact predict",
        description="Prints the actions in metres, radians and 0 (closed) to 1 (open); writes the first picture with "
        f"the trace ({TRACE_PICTURE}), the depth map ({DEPTH_PICTURE}) and everything as numbers ({RECORD}).",
    )
    parser.add_argument(
        "--checkpoint", required=True, help="'nano', a directory, or a hub repository in the local cache"
    )
    parser.add_argument("--image", type=Path, action="append", required=True, help="once per camera, in their order")
    parser.add_argument("--instruction", required=True, help="the task in words")
    parser.add_argument("--trace", type=_point, nargs="+", metavar="X,Y", help="steer: 2 to 5 points in 0..255")
    parser.add_argument("--resize", action="store_true", help="the pictures, as the policy node does with a camera's")
    parser.add_argument("--unnorm-key", help="which of the checkpoint's statistics; not needed when it has one")
    parser.add_argument("--embodiments", type=Path, help="conventions by unnorm_key, other than the shipped ones")
    parser.add_argument("--depth-vqvae", type=Path, help="directory or weight file, if not in the checkpoint")
    parser.add_argument("--variant", choices=VARIANTS, help="compute as one of the released codes; normally hf")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument(
        "--quantization", default=QUANTIZATIONS[0], choices=QUANTIZATIONS, help="of the language model; needs torchao"
    )
    parser.add_argument("--output", type=Path, default=Path("prediction"), help="directory (default: %(default)s)")
    return parser


def _point(text: str) -> tuple[int, int]:
    x, y = (int(number) for number in text.split(","))  # argparse names the argument when this fails
    return x, y


def _observation(options: argparse.Namespace) -> Observation:
    if options.trace is not None:
        check_trace(options.trace)
    return Observation([read_picture(path) for path in options.image], options.instruction, options.trace)


def _policy(options: argparse.Namespace, observation: Observation) -> Policy:
    policy = Policy.from_pretrained(
        options.checkpoint,
        options.unnorm_key,
        options.device,
        options.dtype,
        quantization=options.quantization,
        variant=options.variant,
        depth_vqvae=options.depth_vqvae,
        embodiments=options.embodiments,
    )
    table = shipped_conventions()
    if policy.embodiment is None and table is not None:
        policy.embodiment = Embodiment.find(table, policy.statistics.key)
    if policy.embodiment is not None and not options.resize:
        _mention_other_sizes(policy.embodiment, observation)
        # As the release's own script: the model sees what it is given.
        policy.embodiment = replace(policy.embodiment, image_size=None, image_crop_area=1.0)
    return policy


def _mention_other_sizes(embodiment: Embodiment, observation: Observation) -> None:
    for image in observation.images:
        if not np.array_equal(embodiment.picture(image), image):
            height, width = image.shape[:2]
            print(
                f"the model is shown {width}x{height} pixels as they are; for a robot's cameras the policy node makes "
                f"{embodiment.image_size or 'another crop'} of them, as --resize does",
                file=sys.stderr,
            )
            return


def _predict(policy: Policy, observation: Observation, output: Path) -> int:
    try:
        prediction = policy.act(observation)
    except ReplyError as error:
        _write_pictures(policy, observation, error.depth_codes, error.trace, output)
        print(f"molmoact predict: no action: {error}\nreply: {error.text}", file=sys.stderr)
        return 1
    _write_pictures(policy, observation, prediction.depth_codes, prediction.trace, output)
    rows = _rows(policy.embodiment, prediction)
    _write_record(policy, prediction, rows, output)
    print(prediction.text.strip())
    print(_units(policy))
    for number, row in enumerate(rows):
        print(f"{number:3d}  " + "  ".join(_readable(part) for part in row))
    print(f"{output}/: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return 0


@dataclass(frozen=True)
class Raw:
    """One arm's part of a row in the dataset's own units, whatever they are."""

    action: list[float]


def _rows(embodiment: Embodiment | None, prediction: Prediction) -> list[list[Delta | Raw]]:
    """For every row the arms' parts."""
    arms: list[Sequence[Delta | Raw]] = []
    for part in np.split(prediction.actions, prediction.actions.shape[1] // ROW, axis=1):
        arms.append([Raw(row) for row in part.tolist()] if embodiment is None else embodiment.to_deltas(part))
    return [list(row) for row in zip(*arms, strict=True)]


def _units(policy: Policy) -> str:
    key, embodiment = policy.statistics.key, policy.embodiment
    if embodiment is None:
        return f"actions in the units of '{key}': no embodiment says what they are"
    units = f"translation (m), rotation vector (rad) in the {embodiment.frame} frame, gripper (0 closed .. 1 open)"
    return units if embodiment.confirmed else f"{units}; ASSUMED: the conventions of '{key}' are published nowhere"


def _readable(part: Delta | Raw) -> str:
    if isinstance(part, Raw):
        return " ".join(f"{value:8.4f}" for value in part.action)
    numbers = [*part.translation, *part.rotation]
    return " ".join(f"{value:8.4f}" for value in numbers) + f"  {part.gripper:.3f}"


def _write_pictures(
    policy: Policy,
    observation: Observation,
    depth_codes: Sequence[int] | None,
    trace: Sequence[tuple[int, int]] | None,
    output: Path,
) -> None:
    for name in (TRACE_PICTURE, DEPTH_PICTURE):
        (output / name).unlink(missing_ok=True)  # of a prediction before this one
    if trace:
        Image.fromarray(draw_trace(observation.images[0], trace)).save(output / TRACE_PICTURE)
    depth = policy.decode_depth(depth_codes) if depth_codes else None
    if depth is not None:
        Image.fromarray(depth).save(output / DEPTH_PICTURE)


def _write_record(policy: Policy, prediction: Prediction, rows: list[list[Delta | Raw]], output: Path) -> None:
    def numbers(part: Delta | Raw) -> dict[str, Any]:
        if isinstance(part, Raw):
            return asdict(part)
        return {
            "translation_m": part.translation.tolist(),
            "rotation_vector_rad": part.rotation.tolist(),
            "gripper": part.gripper,
        }

    record = {
        "unnorm_key": policy.statistics.key,
        "frame": policy.embodiment.frame if policy.embodiment is not None else None,
        "actions": [[numbers(part) for part in row] for row in rows],  # row by row, arm by arm
        "unnormalised_actions": prediction.actions.tolist(),
        "trace": prediction.trace,
        "depth_codes": prediction.depth_codes,
        "text": prediction.text,
        "latency_s": prediction.latency,
        "forward_passes": prediction.forward_passes,
    }
    (output / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
