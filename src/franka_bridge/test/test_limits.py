from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from franka_bridge.errors import LimitError
from franka_bridge.limits import Limits, Timeouts

CONFIG = Path(__file__).parents[3] / "config"


def names(kind) -> list[str]:
    return list(kind.__dataclass_fields__)


@pytest.mark.parametrize("name", names(Limits))
def test_missing_limit_is_refused_by_name(limit_values, name):
    for missing in ({**limit_values, name: None}, {k: v for k, v in limit_values.items() if k != name}):
        with pytest.raises(LimitError, match=f"^{name}: not set"):
            Limits.from_values(missing)


@pytest.mark.parametrize("name", names(Timeouts))
def test_missing_timeout_is_refused_by_name(limit_values, name):
    with pytest.raises(LimitError, match=f"^{name}: not set"):
        Timeouts.from_values({**limit_values, name: None})


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, "0.1", True])
@pytest.mark.parametrize("name", [name for name in names(Limits) if not name.startswith("workspace")])
def test_limit_that_is_no_number_of_at_least_zero_is_refused_by_name(limit_values, name, value):
    with pytest.raises(LimitError, match=f"^{name}: "):
        Limits.from_values({**limit_values, name: value})


@pytest.mark.parametrize("corner", [(0.1, 0.2), (0.1, math.nan, 0.2), 0.3, ("0.1", 0.2, 0.3)])
def test_corner_that_is_no_point_is_refused_by_name(limit_values, corner):
    with pytest.raises(LimitError, match="^workspace_min: "):
        Limits.from_values({**limit_values, "workspace_min": corner})


def test_workspace_box_that_is_inside_out_is_refused_by_its_axis(limit_values):
    with pytest.raises(LimitError, match="workspace_min: y is 0.5"):
        Limits.from_values({**limit_values, "workspace_min": (0.2, 0.5, 0.0)})


def test_emergency_stop_softer_than_an_ordinary_one_is_refused(limit_values):
    with pytest.raises(LimitError, match="linear_jerk: 200.0 is above emergency_linear_jerk"):
        Limits.from_values({**limit_values, "emergency_linear_jerk": 100.0})


@pytest.mark.parametrize("name", ["max_delta_rotation", "max_target_angle"])
def test_angle_of_half_a_turn_is_refused_because_it_has_no_short_way(limit_values, name):
    with pytest.raises(LimitError, match=name):
        Limits.from_values({**limit_values, name: math.pi})


def test_zero_is_a_limit(limit_values):
    assert Limits.from_values({**limit_values, "max_delta_translation": 0.0}).max_delta_translation == 0.0


def test_clipping_leads_to_the_nearest_point_of_the_box(limits):
    assert limits.clipped(np.array([0.9, 0.0, -1.0])).tolist() == [0.75, 0.0, 0.005]
    assert limits.clipped(np.array([0.5, 0.1, 0.2])).tolist() == [0.5, 0.1, 0.2]


def test_outside_names_the_coordinate_that_is_furthest_out(limits):
    assert limits.outside(np.array([0.76, 0.0, 0.8])).startswith("z 0.800 m")
    assert limits.outside(np.array([0.76, 0.0, 0.3]), tolerance=0.02) is None


@pytest.mark.parametrize("robot", [None, "sim", "fr3"])
def test_settings_of_every_robot_are_complete_and_consistent(robot):
    values = yaml.safe_load((CONFIG / "bridge.yaml").read_text())["franka_bridge"]["ros__parameters"]
    if robot:
        overrides = yaml.safe_load((CONFIG / f"robots/{robot}.yaml").read_text())
        values |= overrides["franka_bridge"]["ros__parameters"]
    limits = Limits.from_values(values)
    Timeouts.from_values(values)
    assert limits.outside(np.array(values["home_position"])) is None
    if robot != "sim":
        assert limits.linear_speed <= 0.1  # an arm among people is slow unless somebody decides otherwise
