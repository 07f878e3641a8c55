"""What is measured of replies, and how sure one can be of it.

Every metric is a ratio of two sums over steps, frames or points. The sums are kept for each episode, because frames of
one episode are alike: it is episodes that are drawn again to see how much a metric depends on which were recorded.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from molmoact_policy.embodiment import ROW
from numpy.typing import ArrayLike, NDArray

CRITICAL_S = 0.5
# A gripper that is recorded within less than this has no decisions to make.
LEAST_GRIPPER_RANGE = 0.1
MATCHED_POINTS = 5
RESAMPLES = 2000
AXES = ("x", "y", "z", "rx", "ry", "rz", "gripper")
GROUPS = {"translation": (0, 1, 2), "rotation": (3, 4, 5)}

Points = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Recording:
    """One recorded episode as a whole, whichever of its frames are looked at.

    frames: int [T], ascending; openings: float [T, A], the gripper (0 closed .. 1 open) at the end of each frame's
    step; period: s between frames whose numbers follow each other.
    """

    name: str
    frames: NDArray[np.int64]
    openings: NDArray[np.float64]
    period: float


@dataclass(frozen=True)
class Answer:
    """A reply beside what was recorded. `predicted` and what belongs to it are None for a reply that does not parse.

    recorded, predicted: [rows, 7 · A] in SI units (units.py), as many rows as each has; the bins of both [rows, 7 · A]
    in the checkpoint's own encoding. Depth codes [100] and traces (points in 0..255 across and down the first image,
    which has `image_size` (W, H) pixels) are None where nobody annotated them, or the reply has none. previous_codes:
    recorded one frame before.
    """

    episode: str
    frame: int
    instruction: str
    image_size: tuple[int, int]
    recorded: NDArray[np.float64]
    recorded_bins: NDArray[np.int64]
    predicted: NDArray[np.float64] | None = None
    predicted_bins: NDArray[np.int64] | None = None
    recorded_codes: Sequence[int] | None = None
    previous_codes: Sequence[int] | None = None
    predicted_codes: Sequence[int] | None = None
    recorded_trace: Points | None = None
    predicted_trace: Points | None = None
    text: str = ""
    error: str = ""  # why the reply gave no actions
    latency: float | None = None  # s
    passes: int | None = None  # of the language model


class Estimate(NamedTuple):
    """A metric with its 95 % interval; None where there is nothing to compute. over: what the ratio divides by."""

    value: float | None
    low: float | None
    high: float | None
    over: float


@dataclass
class Sums:
    """Numerator and denominator of every metric over one episode."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, numerator: float, denominator: float) -> None:
        total = self.values.setdefault(name, [0.0, 0.0])
        total[0] += numerator
        total[1] += denominator


def axis_names(dimensions: int) -> list[str]:
    """x, y, z, rx, ry, rz, gripper; of several arms each with the arm's number, x_1 and so on."""
    arms = dimensions // ROW
    return [axis if arms == 1 else f"{axis}_{arm + 1}" for arm in range(arms) for axis in AXES]


def definitions() -> dict[str, str]:
    """What each metric is, in words; AXIS stands for a dimension or for translation and rotation as a whole."""
    return {
        "l1/AXIS": "mean absolute error over all compared rows, in m, rad or shares of the opening",
        "mse/AXIS": "mean squared error over all compared rows, in m², rad² or squared shares of the opening",
        "critical_mse/AXIS": f"mse over the rows within ±{CRITICAL_S} s of a recorded gripper change only: a frame "
        "after which the recorded gripper is on the other side of the threshold than one frame before",
        "bins/exact": "share of action values in the same bin, by the checkpoint's statistics, as the recorded value",
        "bins/within_1": "share of action values at most one bin from the recorded value",
        "gripper/f1": "F1 of closing and opening decisions together. A frame decides to close when the gripper was "
        "open before it and some row is below the threshold, to open when it was closed and some row is not. The "
        "threshold is halfway between the smallest and the largest recorded opening of the arm",
        "gripper/f1_closing": "the same of closing decisions alone",
        "gripper/f1_opening": "the same of opening decisions alone",
        "trace/mean_px": f"distance between the traces in pixels of the first image, mean over {MATCHED_POINTS} "
        f"points: both are read as paths from now to the end, and compared at {MATCHED_POINTS} equal parts of the way "
        "from their first to their last point",
        "trace/max_px": "the largest of these distances in a frame, mean over frames",
        "trace/end_px": "distance between the last points, mean over frames",
        "depth/accuracy": "share of depth codes that are the recorded ones, over frames with a recorded frame before",
        "depth/copy": "share that copying the codes recorded one frame before would have right, over the same frames",
        "depth/gain": "depth/accuracy minus depth/copy",
        "failures": "share of replies from which no actions can be read",
        "passes": "forward passes of the language model per reply",
    }


def thresholds(recordings: Iterable[Recording]) -> list[float | None]:
    """For each arm the opening that divides closed from open; None where the gripper hardly moves."""
    openings = np.concatenate([recording.openings for recording in recordings])
    low, high = openings.min(0), openings.max(0)
    return [
        float((least + most) / 2) if most - least >= LEAST_GRIPPER_RANGE else None
        for least, most in zip(low, high, strict=True)
    ]


def sums_of(answers: Iterable[Answer], recording: Recording, levels: Sequence[float | None]) -> Sums:
    """The sums of one episode; `levels`: see `thresholds`."""
    sums = Sums()
    changes = _changes(recording, levels)
    for answer in answers:
        sums.add("failures", answer.predicted is None, 1)
        if answer.passes is not None:
            sums.add("passes", answer.passes, 1)
        _add_depth(sums, answer)
        _add_trace(sums, answer)
        if answer.predicted is not None:
            near = _near(changes, recording.period, answer)
            _add_errors(sums, answer, near)
            _add_decisions(sums, answer, _opening_before(recording, answer), levels)
    return sums


def bin_distance(answer: Answer) -> float:
    """How wrong the actions are, whatever their units: mean distance in bins. nan for a reply without actions."""
    if answer.predicted_bins is None:
        return math.nan
    rows = compared_rows(answer)
    return float(np.abs(answer.predicted_bins[:rows] - answer.recorded_bins[:rows]).mean())


def compared_rows(answer: Answer) -> int:
    """How many rows both the reply and the recording have."""
    return 0 if answer.predicted is None else min(len(answer.predicted), len(answer.recorded))


def trace_distances(first: Points, second: Points, image_size: tuple[int, int]) -> NDArray[np.float64]:
    """Pixels between two traces at MATCHED_POINTS equal parts of the way from the first to the last point."""
    scale = (np.array(image_size) - 1) / 255.0
    return np.linalg.norm((_along(first) - _along(second)) * scale, axis=1)


def estimates(episodes: Sequence[Sums], seed: int, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """Every metric over all episodes with the interval that drawing episodes again gives."""
    table = _Table(episodes)
    drawn = table.drawn(seed, resamples)
    return {name: _estimate(table, index, drawn[:, index]) for index, name in enumerate(table.names)}


def differences(
    first: Sequence[Sums], second: Sequence[Sums], seed: int, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Second minus first, paired: both lists are about the same episodes, and the same are drawn again for both."""
    tables = _Table(first), _Table(second)
    drawn = [table.drawn(seed, resamples) for table in tables]
    found = {}
    for name in tables[0].names:
        if name in tables[1].names:
            places = [table.names.index(name) for table in tables]
            values = [table.total[place] for table, place in zip(tables, places, strict=True)]
            spread = drawn[1][:, places[1]] - drawn[0][:, places[0]]
            low, high = _interval(spread, len(first))
            counts = [table.denominators[:, place].sum() for table, place in zip(tables, places, strict=True)]
            found[name] = Estimate(_or_none(values[1] - values[0]), low, high, float(min(counts)))
    return found


def failure_reasons(answers: Iterable[Answer]) -> dict[str, int]:
    """How often each reason was given, the most frequent first."""
    return dict(Counter(answer.error for answer in answers if answer.predicted is None).most_common())


class _Table:
    """The sums of all episodes as arrays [episodes, metrics]."""

    def __init__(self, episodes: Sequence[Sums]) -> None:
        self.names = list(dict.fromkeys(name for sums in episodes for name in sums.values))
        cells = [[sums.values.get(name, (0.0, 0.0)) for name in self.names] for sums in episodes]
        pairs = np.array(cells, np.float64).reshape(len(episodes), len(self.names), 2)
        self.numerators, self.denominators = pairs[..., 0], pairs[..., 1]
        self.total = _ratio(self.numerators.sum(0), self.denominators.sum(0))

    def drawn(self, seed: int, resamples: int) -> NDArray[np.float64]:
        """[resamples, metrics]; the same seed draws the same episodes."""
        count = len(self.numerators)
        weights = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        return _ratio(weights @ self.numerators, weights @ self.denominators)


def _ratio(numerators: NDArray[np.float64], denominators: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(denominators > 0, numerators / denominators, np.nan)


def _estimate(table: _Table, index: int, drawn: NDArray[np.float64]) -> Estimate:
    low, high = _interval(drawn, len(table.numerators))
    return Estimate(_or_none(table.total[index]), low, high, float(table.denominators[:, index].sum()))


def _interval(drawn: NDArray[np.float64], episodes: int) -> tuple[float | None, float | None]:
    """None, None where one episode is all there is, or where the metric is not there in most draws."""
    if episodes < 2 or np.isnan(drawn).mean() > 0.5:
        return None, None
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return float(low), float(high)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _changes(recording: Recording, levels: Sequence[float | None]) -> NDArray[np.int64]:
    """The frames after which the gripper of some arm is on the other side than one frame before."""
    follows = np.diff(recording.frames) == 1
    changed = np.zeros(len(follows), bool)
    for arm, level in enumerate(levels):
        if level is not None:
            changed |= np.diff(recording.openings[:, arm] < level) & follows
    return recording.frames[1:][changed]


def _near(changes: NDArray[np.int64], period: float, answer: Answer) -> NDArray[np.bool_]:
    """Which of the compared rows are within CRITICAL_S of a change."""
    steps = answer.frame + np.arange(compared_rows(answer))
    # Half a nanosecond: 5 · 0.1 s is meant to be 0.5 s.
    return (np.abs(steps[:, None] - changes[None, :]) * period <= CRITICAL_S + 5e-10).any(1)


def _add_errors(sums: Sums, answer: Answer, near: NDArray[np.bool_]) -> None:
    assert answer.predicted is not None and answer.predicted_bins is not None
    rows = len(near)
    errors = answer.predicted[:rows] - answer.recorded[:rows]
    for prefix, values in (("l1", np.abs(errors)), ("mse", errors**2), ("critical_mse", errors[near] ** 2)):
        for name, columns in _columns(errors.shape[1]).items():
            sums.add(f"{prefix}/{name}", float(values[:, columns].sum()), len(values) * len(columns))
    apart = np.abs(answer.predicted_bins[:rows] - answer.recorded_bins[:rows])
    for name, columns in {"": list(range(apart.shape[1])), **_axes(apart.shape[1])}.items():
        suffix = f"/{name}" if name else ""
        sums.add(f"bins/exact{suffix}", float((apart[:, columns] == 0).sum()), rows * len(columns))
        sums.add(f"bins/within_1{suffix}", float((apart[:, columns] <= 1).sum()), rows * len(columns))


def _axes(dimensions: int) -> dict[str, list[int]]:
    return {name: [index] for index, name in enumerate(axis_names(dimensions))}


def _columns(dimensions: int) -> dict[str, list[int]]:
    """Of each dimension and of the groups of all arms."""
    arms = range(0, dimensions, ROW)
    groups = {name: [arm + column for arm in arms for column in columns] for name, columns in GROUPS.items()}
    return {**_axes(dimensions), **groups}


def _opening_before(recording: Recording, answer: Answer) -> NDArray[np.float64]:
    """[A] of each arm one frame earlier; at the begin of an episode that after the first row."""
    (before,) = np.nonzero(recording.frames == answer.frame - 1)
    return recording.openings[before[0]] if len(before) else answer.recorded[0, ROW - 1 :: ROW]


def _add_decisions(sums: Sums, answer: Answer, before: NDArray[np.float64], levels: Sequence[float | None]) -> None:
    assert answer.predicted is not None
    rows = compared_rows(answer)
    for arm, level in enumerate(levels):
        if level is None:
            continue
        column = ROW * arm + ROW - 1
        closed = bool(before[arm] < level)
        decided = [bool(((rows_of[:rows, column] < level) != closed).any()) for rows_of in _both(answer)]
        hits, total = 2 * (decided[0] and decided[1]), sum(decided)  # F1 is 2 TP / (2 TP + FP + FN)
        sums.add("gripper/f1", hits, total)
        sums.add("gripper/f1_opening" if closed else "gripper/f1_closing", hits, total)


def _both(answer: Answer) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    assert answer.predicted is not None
    return answer.recorded, answer.predicted


def _add_trace(sums: Sums, answer: Answer) -> None:
    if answer.recorded_trace and answer.predicted_trace:
        distances = trace_distances(answer.recorded_trace, answer.predicted_trace, answer.image_size)
        sums.add("trace/mean_px", float(distances.mean()), 1)
        sums.add("trace/max_px", float(distances.max()), 1)
        sums.add("trace/end_px", float(distances[-1]), 1)


def _along(points: ArrayLike) -> NDArray[np.float64]:
    points = np.asarray(points, np.float64).reshape(-1, 2)
    places = np.linspace(0, len(points) - 1, MATCHED_POINTS)
    return np.stack([np.interp(places, np.arange(len(points)), column) for column in points.T], 1)


def _add_depth(sums: Sums, answer: Answer) -> None:
    if answer.recorded_codes is None or answer.previous_codes is None or not answer.predicted_codes:
        return
    recorded = np.asarray(answer.recorded_codes)
    hits = int((np.asarray(answer.predicted_codes) == recorded).sum())
    copied = int((np.asarray(answer.previous_codes) == recorded).sum())
    for name, right in (("accuracy", hits), ("copy", copied), ("gain", hits - copied)):
        sums.add(f"depth/{name}", right, len(recorded))
