"""How far from the demonstrated way the first rows of a checkpoint's chunks lead, on posed frames held out.

Training's own figures for actions are given the rows before, which the model copies; here it has to know them by
itself. Each frame is asked twice: for the whole reply, and for the actions with the demonstrated trace drawn. Seconds
per task.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from molmoact_policy.errors import ReplyError
from molmoact_policy.policy import Observation, Policy
from molmoact_training.annotated_dataset import AnnotatedDataset, Frame
from molmoact_training.mixture import held_out
from molmoact_training.presets import Preset
from nano_success import EXECUTE_ROWS

VERBS = {"pick": "pick", "place": "put", "push": "push"}  # first words of the instructions


def frames_of(dataset: AnnotatedDataset, verb: str, count: int, seed: int) -> Iterator[Frame]:
    """Up to `count` frames of the validation episodes whose traces can be drawn: those of one point cannot."""
    starts = np.array([text.startswith(verb) for text in dataset.column("instruction")])
    steered = np.array(dataset.column("steered"))
    rows = np.flatnonzero(starts & ~steered & held_out(dataset, Preset.from_file("nano")))
    for row in np.random.default_rng(seed).choice(rows, min(count, len(rows)), replace=False):
        frame = dataset[int(row)]
        if frame.traces and len(frame.traces[0]) > 1:
            yield frame


def error_mm(policy: Policy, frame: Frame, *, drawn: bool) -> float:
    """Distance of where the first rows lead from where the demonstrated ones do; a reply without actions stays put."""
    assert frame.traces is not None
    policy.forget()
    trace = [(int(x), int(y)) for x, y in frame.traces[0]] if drawn else None
    wanted = frame.actions[:EXECUTE_ROWS, :3].sum(0)
    try:
        led = policy.act(Observation(frame.images, frame.instruction, trace)).actions[:EXECUTE_ROWS, :3].sum(0)
    except ReplyError:
        led = np.zeros(3)
    return 1000 * float(np.linalg.norm(led - wanted))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="posed scenes, data/nano/posed")
    parser.add_argument("--frames", type=int, default=60, help="of each task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset, policy = AnnotatedDataset(arguments.data), Policy.from_pretrained(arguments.checkpoint)
    report = []
    for task, verb in VERBS.items():
        frames = list(frames_of(dataset, verb, arguments.frames, arguments.seed))
        way = [1000 * float(np.linalg.norm(frame.actions[:EXECUTE_ROWS, :3].sum(0))) for frame in frames]
        for drawn in (False, True):
            errors = [error_mm(policy, frame, drawn=drawn) for frame in frames]
            report.append(
                {
                    "task": task,
                    "trace": "drawn" if drawn else "its own",
                    "frames": len(frames),
                    "median_error_mm": round(float(np.median(errors)), 1),
                    "mean_error_mm": round(float(np.mean(errors)), 1),
                    "mean_way_mm": round(float(np.mean(way)), 1),
                }
            )
            print(json.dumps(report[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
