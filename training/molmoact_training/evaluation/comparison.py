"""From checkpoints and data to numbers: what is evaluated, checked before the first prediction, and what comes out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from molmoact_policy.depth import DepthVQVAE

from molmoact_training.evaluation.looks import Look, Source
from molmoact_training.evaluation.metrics import (
    RESAMPLES,
    Answer,
    Estimate,
    Recording,
    Sums,
    bin_distance,
    compared_rows,
    definitions,
    differences,
    estimates,
    failure_reasons,
    sums_of,
    thresholds,
)
from molmoact_training.evaluation.prediction import (
    Actor,
    Conventions,
    check_looks,
    check_match,
    conventions_of,
    predict,
)

LooksAt = Callable[[str, Sequence[int]], Iterable[Look]]
RESULTS_FILE, PREDICTIONS_FILE, REPORT_FILE = "results.json", "predictions.jsonl", "report.html"


@dataclass(frozen=True)
class Candidate:
    """A checkpoint by the name it has in the results."""

    name: str
    load: Callable[[], Actor]


@dataclass(frozen=True)
class Evaluated:
    """What one checkpoint answered. `answers` by episode; `depth_vqvae` decodes its codes, None if it has none."""

    name: str
    conventions: Conventions
    depth_vqvae: DepthVQVAE | None
    answers: Mapping[str, list[Answer]]
    metrics: Mapping[str, Estimate]

    def all_answers(self) -> list[Answer]:
        return [answer for answers in self.answers.values() for answer in answers]


@dataclass(frozen=True)
class Comparison:
    """One or two checkpoints on the same frames. `difference`: the second minus the first; `looks` finds pictures."""

    data: Mapping[str, Any]  # what they were evaluated on, for people and results.json
    recordings: Mapping[str, Recording]
    levels: Sequence[float | None]
    candidates: Sequence[Evaluated]
    difference: Mapping[str, Estimate] | None
    looks: LooksAt


def evaluate(
    candidates: Sequence[Candidate],
    open_data: Callable[[Conventions], Callable[[], Source]],
    *,
    every: int = 1,
    jobs: int = 1,
    seed: int = 0,
) -> Comparison:
    """Let every candidate answer every `every`-th frame of all episodes.

    open_data: for the conventions of the first candidate, what opens the data in any process.
    Raises DatasetError, TrainingError or PolicyError, all before the first prediction.
    """
    loaded: list[tuple[Conventions, DepthVQVAE | None]] = []
    for candidate in candidates:
        actor = candidate.load()  # and let go of it again: two large ones do not fit beside each other
        loaded.append((conventions_of(actor, candidate.name), actor.depth_vqvae))
    opener = open_data(loaded[0][0])
    source = opener()
    for candidate, (conventions, _) in zip(candidates, loaded, strict=True):
        check_match(conventions, source, candidate.name)
    recordings = {name: source.recording(name) for name in source.names()}
    work = {name: recording.frames[::every].tolist() for name, recording in recordings.items()}
    check_looks(opener, work, jobs)
    answered = [predict(candidate.load, opener, work, jobs, candidate.name) for candidate in candidates]
    data = {
        "kind": source.kind,
        "episodes": len(work),
        "frames": sum(len(frames) for frames in work.values()),
        "every": every,
        "jobs": jobs,
        "left_out": dict(source.left_out),
    }
    names = [candidate.name for candidate in candidates]
    return compare(names, loaded, answered, recordings, source.looks, data, seed)


def compare(
    names: Sequence[str],
    loaded: Sequence[tuple[Conventions, DepthVQVAE | None]],
    answered: Sequence[Mapping[str, list[Answer]]],
    recordings: Mapping[str, Recording],
    looks: LooksAt,
    data: Mapping[str, Any],
    seed: int,
) -> Comparison:
    """The metrics of answers that are there, by live replay or by `evaluate`."""
    levels = thresholds(recordings.values())
    sums: list[list[Sums]] = []
    evaluated = []
    for name, (conventions, vqvae), answers in zip(names, loaded, answered, strict=True):
        sums.append([sums_of(answers[episode], recordings[episode], levels) for episode in recordings])
        evaluated.append(Evaluated(name, conventions, vqvae, answers, estimates(sums[-1], seed)))
    difference = differences(sums[0], sums[1], seed) if len(sums) == 2 else None
    data = {**data, "seed": seed, "resamples": RESAMPLES}
    return Comparison(data, recordings, levels, evaluated, difference, looks)


def results(comparison: Comparison) -> dict[str, Any]:
    """results.json: settings, definitions, and every metric with its interval, None where there is none."""
    return {
        "data": {**comparison.data, "gripper_thresholds": list(comparison.levels)},
        "definitions": definitions(),
        "checkpoints": [
            {
                "name": one.name,
                "unnorm_key": one.conventions.statistics.key,
                "conventions_confirmed": one.conventions.embodiment.confirmed,
                "metrics": _as_json(one.metrics),
                "failure_reasons": failure_reasons(one.all_answers()),
                "latency": latency(one.all_answers()),
            }
            for one in comparison.candidates
        ],
        "difference": None if comparison.difference is None else _as_json(comparison.difference),
    }


def latency(answers: Sequence[Answer]) -> dict[str, float | None]:
    """Seconds per reply that parses: median and 99th percentile."""
    values = [answer.latency for answer in answers if answer.latency is not None]
    if not values:
        return {"median_s": None, "p99_s": None}
    return {"median_s": float(np.median(values)), "p99_s": float(np.quantile(values, 0.99))}


def write_predictions(comparison: Comparison, path: Path) -> None:
    """One JSON object for each reply: see docs/how-to/evaluate.md."""
    with path.open("w", encoding="utf-8") as file:
        for one in comparison.candidates:
            for answer in one.all_answers():
                file.write(json.dumps(_line(one.name, answer)) + "\n")


def _line(checkpoint: str, answer: Answer) -> dict[str, Any]:
    distance = bin_distance(answer)
    return {
        "checkpoint": checkpoint,
        "episode": answer.episode,
        "frame": answer.frame,
        "instruction": answer.instruction,
        "recorded": answer.recorded.tolist(),
        "predicted": None if answer.predicted is None else answer.predicted.tolist(),
        "compared_rows": compared_rows(answer),
        "mean_bin_distance": None if np.isnan(distance) else distance,
        "recorded_codes": answer.recorded_codes,
        "predicted_codes": answer.predicted_codes,
        "recorded_trace": answer.recorded_trace,
        "predicted_trace": answer.predicted_trace,
        "text": answer.text,
        "error": answer.error,
        "latency_s": answer.latency,
        "forward_passes": answer.passes,
    }


def _as_json(found: Mapping[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: estimate._asdict() for name, estimate in found.items()}
