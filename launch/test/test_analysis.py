from __future__ import annotations

import numpy as np
import pytest
from molmoact_bringup.analysis import TargetPath, distribution, limit_violations, wilson_95
from scipy.spatial.transform import Rotation

LIMITS = {
    "workspace_min": [0.2, -0.5, 0.0],
    "workspace_max": [0.8, 0.5, 0.8],
    "linear_speed": 0.3,
    "linear_acceleration": 1.0,
    "linear_jerk": 10.0,
    "angular_speed": 1.0,
    "angular_acceleration": 4.0,
    "angular_jerk": 40.0,
    "max_target_distance": 0.1,
    "unrelated": "text",
}
PERIOD_S = 0.01


def path(positions, angles=None, times=None, distances=None) -> TargetPath:
    positions = np.asarray(positions, float)
    count = len(positions)
    angles = np.zeros((count, 3)) if angles is None else np.asarray(angles, float)
    return TargetPath(
        times=np.arange(count) * PERIOD_S if times is None else np.asarray(times, float),
        positions=positions,
        quaternions=Rotation.from_rotvec(angles).as_quat(),
        distances=np.zeros(count) if distances is None else np.asarray(distances, float),
    )


def along_x(values) -> np.ndarray:
    return np.column_stack([0.5 + np.asarray(values), np.zeros(len(values)), np.full(len(values), 0.3)])


def sine(peak_speed: float, rate: float, count: int = 500) -> np.ndarray:
    times = np.arange(count) * PERIOD_S
    return peak_speed / rate * np.sin(rate * times)


def broken(found: dict[str, int]) -> set[str]:
    return {name for name, count in found.items() if count}


def test_path_at_its_limits_breaks_none():
    # speed 0.3, acceleration 0.9, jerk 2.7
    assert broken(limit_violations(path(along_x(sine(0.3, 3.0))), LIMITS)) == set()


@pytest.mark.parametrize(
    ("speed", "rate", "limits"),
    [
        (0.4, 2.0, {"linear_speed"}),
        (0.25, 6.0, {"linear_acceleration"}),
        (0.05, 15.0, {"linear_jerk"}),
    ],
)
def test_each_derivative_has_its_own_count(speed, rate, limits):
    assert broken(limit_violations(path(along_x(sine(speed, rate))), LIMITS)) == limits


def test_stamps_a_little_uneven_are_no_violation():
    rng = np.random.default_rng(1)
    times = np.arange(500) * PERIOD_S + rng.uniform(0.0, 0.4 * PERIOD_S, 500)
    found = limit_violations(path(along_x(0.1 * np.sin(3.0 * times)), times=times), LIMITS)
    assert broken(found) == set()


def test_jump_is_a_violation_but_a_gap_in_time_is_a_new_path():
    jump = along_x([0.0] * 50 + [0.05] * 50)
    assert {"linear_speed", "linear_acceleration", "linear_jerk"} <= broken(limit_violations(path(jump), LIMITS))
    times = np.arange(100) * PERIOD_S
    times[50:] += 1.0
    assert broken(limit_violations(path(jump, times=times), LIMITS)) == set()


def test_rotation_is_checked_like_translation():
    angles = np.column_stack([np.zeros(500), np.zeros(500), sine(1.2, 1.0)])
    assert broken(limit_violations(path(along_x(np.zeros(500)), angles=angles), LIMITS)) == {"angular_speed"}


def test_workspace_distance_and_nan_are_counted():
    positions = along_x(np.zeros(10))
    positions[3, 2] = -0.01
    assert limit_violations(path(positions[3:4]), LIMITS)["workspace"] == 1
    far = limit_violations(path(along_x(np.zeros(3)), distances=[0.0, np.nan, 0.2]), LIMITS)
    assert far["max_target_distance"] == 1


def test_nan_is_counted_and_does_not_hide_the_rest():
    positions = along_x([0.0] * 10 + [0.05] * 10)
    positions[3] = np.nan
    found = limit_violations(path(positions), LIMITS)
    assert found["not_finite"] == 1
    assert found["linear_speed"] == 1


def test_empty_path_breaks_no_limit():
    assert broken(limit_violations(path(np.zeros((0, 3))), LIMITS)) == set()


def test_limit_of_zero_is_a_limit():
    found = limit_violations(path(along_x(np.linspace(0, 0.001, 10))), {**LIMITS, "linear_speed": 0.0})
    assert found["linear_speed"] == 9


# Values of the interval from statsmodels' proportion_confint(method="wilson").
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"), [(0, 10, 0.0, 0.27753), (4, 10, 0.16818, 0.68733), (50, 50, 0.92865, 1.0)]
)
def test_wilson_interval_agrees_with_known_values(successes, trials, low, high):
    assert wilson_95(successes, trials) == pytest.approx((low, high), abs=2e-5)


def test_nothing_measured_is_none_not_zero():
    assert distribution([]) == {"count": 0, "median": None, "p90": None, "p99": None, "max": None}
    assert wilson_95(0, 0) == (0.0, 1.0)


def test_distribution_has_the_named_percentiles():
    assert distribution(list(range(101))) == {"count": 101, "median": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
