"""Success rates, distributions, and whether the published targets kept the bridge's limits. No ROS in here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

# A pause of more periods than this starts a new path: the bridge's clock stood still, or targets were left out.
LONGEST_STEP_PERIODS = 1.5
# By which finite differences of rounded poses and stamps may exceed a limit that was kept.
RELATIVE_TOLERANCE = 0.02
ABSOLUTE_TOLERANCE_M = 1e-6

_Z_95 = 1.959964


@dataclass(frozen=True)
class TargetPath:
    """Targets that the arm had to follow, as they were published.

    times [N] s, by their stamps, from the first one on; positions [N, 3] m; quaternions [N, 4] x y z w; distances [N] m
    to the measured pose, NaN where that is not known.
    """

    times: np.ndarray
    positions: np.ndarray
    quaternions: np.ndarray
    distances: np.ndarray


def wilson_95(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a success rate, 95 %; (0, 1) without trials."""
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    scale = 1 + _Z_95**2 / trials
    centre = (rate + _Z_95**2 / (2 * trials)) / scale
    half = _Z_95 / scale * math.sqrt(rate * (1 - rate) / trials + _Z_95**2 / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def distribution(values: Sequence[float]) -> dict[str, float | int | None]:
    """Count, median, 90th and 99th percentile and maximum; None where there is nothing to measure."""
    names = ("median", "p90", "p99", "max")
    if not len(values):
        return {"count": 0, **dict.fromkeys(names)}
    found = np.percentile(values, (50, 90, 99, 100))
    return {"count": len(values), **{name: round(float(value), 3) for name, value in zip(names, found, strict=True)}}


def limit_violations(path: TargetPath, limits: Mapping[str, Any]) -> dict[str, int]:
    """How many published targets broke each limit of the bridge.

    Speeds, accelerations and jerks are divided differences of 2, 3 and 4 consecutive targets over their own stamps.
    Such a difference is a weighted mean of the derivative between the samples, so a path that keeps its limits never
    exceeds them.

    Args:
        path: In the base frame.
        limits: The bridge's parameters, by name; those that are no limit are ignored.
    """
    workspace_low, workspace_high = np.asarray(limits["workspace_min"]), np.asarray(limits["workspace_max"])
    outside = (path.positions < workspace_low - ABSOLUTE_TOLERANCE_M) | (
        path.positions > workspace_high + ABSOLUTE_TOLERANCE_M
    )
    finite = np.isfinite(path.positions).all(axis=1) & np.isfinite(path.quaternions).all(axis=1)
    finite_path = TargetPath(
        path.times[finite], path.positions[finite], path.quaternions[finite], path.distances[finite]
    )
    counts = {
        "not_finite": int((~finite).sum()),
        "workspace": int(outside.any(axis=1).sum()),
        "max_target_distance": _above(path.distances, limits["max_target_distance"]),
    }
    for kind, values in _derivatives(finite_path).items():
        counts[kind] = sum(_above(norms, limits[kind]) for norms in values)
    return counts


def _above(values: np.ndarray, limit: float) -> int:
    return int((values > limit * (1 + RELATIVE_TOLERANCE) + ABSOLUTE_TOLERANCE_M).sum())


def _derivatives(path: TargetPath) -> dict[str, list[np.ndarray]]:
    """Norms of the derivatives along each uninterrupted stretch of the path, by the name of their limit."""
    found: dict[str, list[np.ndarray]] = {
        f"{kind}_{order}": [] for kind in ("linear", "angular") for order in ("speed", "acceleration", "jerk")
    }
    for stretch in _stretches(path.times):
        times = path.times[stretch]
        turns = Rotation.from_quat(path.quaternions[stretch])
        # Rotation since the first target: its differences are those of the path to second order in the angle of a step.
        steps = (turns[1:] * turns[:-1].inv()).as_rotvec() if len(times) > 1 else np.zeros((0, 3))
        angles = np.vstack([np.zeros(3), np.cumsum(steps, axis=0)])
        for kind, values in (("linear", path.positions[stretch]), ("angular", angles)):
            for degree, order in enumerate(("speed", "acceleration", "jerk"), start=1):
                found[f"{kind}_{order}"].append(_divided_difference_norms(times, values, degree))
    return found


def _divided_difference_norms(times: np.ndarray, values: np.ndarray, degree: int) -> np.ndarray:
    """Norms of the degree-th derivative from degree + 1 consecutive samples; empty for fewer."""
    if len(times) <= degree:
        return np.zeros(0)
    for step in range(1, degree + 1):
        values = np.diff(values, axis=0) * step / (times[step:] - times[:-step])[:, None]
    return np.linalg.norm(values, axis=1)


def _stretches(times: np.ndarray) -> list[slice]:
    """Where the stamps follow each other with the period most of them have."""
    steps = np.diff(times)
    longest = LONGEST_STEP_PERIODS * float(np.median(steps)) if len(steps) else 0.0
    cuts = [0, *(np.flatnonzero((steps <= 0) | (steps > longest)) + 1).tolist(), len(times)]
    return [slice(start, end) for start, end in pairwise(cuts) if end > start]
