"""`molmoact evaluate`: how far one or two checkpoints are from recorded demonstrations, without a robot.

DATA is an annotated dataset, a LeRobot dataset of `molmoact episodes export`, or a directory of recorded or imported
episodes. OUT gets results.json, predictions.jsonl and report.html.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from molmoact_policy.errors import PolicyError

from molmoact_training.errors import TrainingError
from molmoact_training.evaluation.comparison import (
    PREDICTIONS_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    Candidate,
    Comparison,
    evaluate,
    results,
    write_predictions,
)
from molmoact_training.evaluation.episode_source import COMMAND, MEASURED, EpisodeSettings
from molmoact_training.evaluation.looks import Source
from molmoact_training.evaluation.prediction import Checkpoint, Conventions
from molmoact_training.evaluation.report import write_report
from molmoact_training.evaluation.sources import open_source

SHOWN = ("l1/translation", "l1/rotation", "bins/within_1", "gripper/f1", "trace/mean_px", "depth/gain", "failures")


def main(arguments: Sequence[str] | None = None) -> int:
    """The subcommand; the exit code. 1: something is wrong with a checkpoint or the data, named on stderr."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except (TrainingError, PolicyError, OSError) as error:
        print(f"molmoact evaluate: {error}", file=sys.stderr)
        return 1


def check_out(out: Path) -> None:
    """Raises TrainingError when there is something at `out` already."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise TrainingError(f"{out} exists already; choose another --out, or remove it")


def write_results(comparison: Comparison, out: Path) -> None:
    """All files of an evaluation, and a line for each checkpoint on stdout."""
    out.mkdir(parents=True, exist_ok=True)
    write_predictions(comparison, out / PREDICTIONS_FILE)
    (out / RESULTS_FILE).write_text(json.dumps(results(comparison), indent=1) + "\n", encoding="utf-8")
    (out / REPORT_FILE).write_text(write_report(comparison), encoding="utf-8")
    for one in comparison.candidates:
        known = {name: one.metrics[name].value for name in SHOWN if name in one.metrics}
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in known.items() if value is not None)
        print(f"{one.name}: {numbers}")
    print(f"{out}: {RESULTS_FILE}, {PREDICTIONS_FILE}, {REPORT_FILE}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="molmoact evaluate", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="one, or two to compare")
    parser.add_argument("--data", type=Path, required=True, help="what was recorded")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="to be created")
    parser.add_argument("--every", type=_count, default=1, metavar="N", help="only every N-th frame")
    parser.add_argument("--jobs", type=_count, default=1, metavar="N", help="processes, each with the checkpoint [1]")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals [0]")
    parser.add_argument("--unnorm-key", help="which of the checkpoints' statistics; not needed when they have one")
    parser.add_argument("--embodiments", type=Path, help="conventions by unnorm_key, other than the shipped ones")
    parser.add_argument("--depth-vqvae", type=Path, help="directory or weight file, if not in the checkpoint")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add_episode_options(parser.add_argument_group("recorded episodes"))
    return parser


def add_episode_options(group: argparse._ArgumentGroup) -> None:
    """As those of `molmoact episodes export`."""
    group.add_argument("--cameras", nargs="+", metavar="NAME[=TOPIC]", help="in this order [those of the checkpoint]")
    group.add_argument("--arms", nargs="+", default=[""], metavar="PREFIX", help="before the topics of each arm [none]")
    group.add_argument(
        "--gripper",
        choices=(MEASURED, COMMAND),
        default=MEASURED,
        help="what counts as recorded: the opening, or what teleoperation asked for [measured]",
    )
    group.add_argument("--tolerance", type=float, default=0.05, metavar="S", help="see `molmoact episodes export`")
    group.add_argument("--sync-tolerance", type=float, default=0.05, metavar="S")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    if len(options.checkpoints) > 2:
        raise TrainingError(f"{len(options.checkpoints)} checkpoints: expected one, or two to compare")
    check_out(options.out)
    candidates = [
        Candidate(
            name,
            Checkpoint(
                checkpoint,
                options.unnorm_key,
                options.device,
                options.dtype,
                options.depth_vqvae,
                options.embodiments,
            ).load,
        )
        for name, checkpoint in zip(_names(options.checkpoints), options.checkpoints, strict=True)
    ]

    def open_data(conventions: Conventions) -> Callable[[], Source]:
        return partial(open_source, options.data, _settings(options, conventions))

    write_results(
        evaluate(candidates, open_data, every=options.every, jobs=options.jobs, seed=options.seed), options.out
    )
    return 0


def _settings(options: argparse.Namespace, conventions: Conventions) -> EpisodeSettings:
    return EpisodeSettings(
        embodiment=conventions.embodiment,
        cameras=tuple(options.cameras or conventions.embodiment.cameras),
        arms=tuple(options.arms),
        gripper=options.gripper,
        tolerance=options.tolerance,
        sync_tolerance=options.sync_tolerance,
    )


def _names(checkpoints: Sequence[str]) -> list[str]:
    """Short ones where they differ. Raises TrainingError for the same one twice."""
    if len(set(checkpoints)) < len(checkpoints):
        raise TrainingError(f"{checkpoints[0]}: the same checkpoint twice")
    short = [Path(checkpoint).name or checkpoint for checkpoint in checkpoints]
    return short if len(set(short)) == len(short) else list(checkpoints)
