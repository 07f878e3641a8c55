"""The generator alone: speed, acceleration, jerk by norm, the box, and that it gets where it should without waste."""

from __future__ import annotations

import numpy as np
import pytest
from franka_bridge.limits import Limits
from franka_bridge.motion import MotionGenerator
from franka_bridge.poses import Pose, quaternion_exp, quaternion_multiply

PERIOD = 0.005
HOME = Pose.of((0.5, 0.0, 0.3), (1.0, 0.0, 0.0, 0.0))


@pytest.fixture
def motion(limits) -> MotionGenerator:
    return MotionGenerator(limits, PERIOD, HOME)


def run(motion: MotionGenerator, goal: Pose, limits: Limits, ticks: int) -> np.ndarray:
    """Positions [ticks, 3] on the way to `goal`."""
    return np.array([motion.advance(goal, limits.linear_speed, limits.angular_speed).position for _ in range(ticks)])


def goal_at(offset, turn=(0.0, 0.0, 0.0)) -> Pose:
    return Pose(
        HOME.position + np.array(offset, dtype=float),
        quaternion_multiply(quaternion_exp(np.array(turn)), HOME.quaternion),
    )


@pytest.mark.parametrize("direction", [(1, 0, 0), (0, -1, 0), (0, 0, 1), (1, 1, 0), (1, -1, 1), (0.2, 1.0, -0.3)])
def test_speed_limit_is_reached_in_every_direction_and_not_exceeded(motion, limits, direction):
    direction = np.array(direction) / np.linalg.norm(direction)
    positions = run(motion, goal_at(0.2 * direction), limits, 400)
    speeds = np.linalg.norm(np.diff(positions, axis=0), axis=1) / PERIOD
    assert speeds.max() <= limits.linear_speed * (1 + 1e-9)
    assert speeds.max() >= 0.95 * limits.linear_speed
    np.testing.assert_allclose(positions[-1], HOME.position + 0.2 * direction, atol=1e-9)
    assert motion.at_rest


def test_straight_way_stays_straight(motion, limits):
    direction = np.array([2.0, 1.0, 0.5]) / np.linalg.norm([2.0, 1.0, 0.5])
    offsets = run(motion, goal_at(0.2 * direction), limits, 400) - HOME.position
    across = offsets - np.outer(offsets @ direction, direction)
    assert np.linalg.norm(across, axis=1).max() < 0.005


def test_orientation_gets_there_the_short_way_within_the_angular_speed(motion, limits):
    goal = goal_at((0, 0, 0), (0.0, 0.0, 2.5))
    angles = []
    for _ in range(800):
        before = motion.pose
        angles.append(before.angle(motion.advance(goal, limits.linear_speed, limits.angular_speed)) / PERIOD)
    assert max(angles) <= limits.angular_speed * (1 + 1e-9)
    assert motion.pose.angle(goal) < 1e-9


def test_goal_that_moves_within_the_limits_is_followed_closely(motion):
    """0.25 m/s with the accelerations of config/robots/sim.yaml."""
    limits = Limits(**{**motion._limits.__dict__, "linear_acceleration": 8.0, "linear_jerk": 400.0,
                       "emergency_linear_acceleration": 8.0, "emergency_linear_jerk": 1000.0})  # fmt: skip
    motion = MotionGenerator(limits, PERIOD, HOME)
    for tick in range(1, 161):
        goal = goal_at((0.25 * PERIOD * tick, 0.0, 0.0))
        pose = motion.advance(goal, limits.linear_speed, limits.angular_speed)
    assert goal.distance(pose) < 0.25 * 0.06  # 60 ms behind


@pytest.mark.parametrize("limit", ["linear_speed", "linear_acceleration", "linear_jerk"])
def test_limit_of_zero_keeps_the_position_and_leaves_the_orientation(limit_values, limit):
    values = {**limit_values, limit: 0.0, "homing_speed": 0.0}
    limits = Limits.from_values(values)
    motion = MotionGenerator(limits, PERIOD, HOME)
    positions = run(motion, goal_at((0.1, 0.0, 0.0), (0.0, 0.0, 0.3)), limits, 400)
    assert (positions == HOME.position).all()
    assert motion.pose.angle(HOME) == pytest.approx(0.3)


def test_stop_ends_where_it_was_predicted_and_emergency_stop_ends_sooner(motion, limits):
    run(motion, goal_at((0.2, 0.1, 0.0)), limits, 60)
    here, predicted = motion.pose, motion.stopping_pose()
    hard = MotionGenerator(limits, PERIOD, HOME)
    run(hard, goal_at((0.2, 0.1, 0.0)), limits, 60)
    while not motion.at_rest:
        motion.brake()
    while not hard.at_rest:
        hard.brake(emergency=True)
    assert motion.pose.distance(predicted) < 1e-9
    assert hard.pose.distance(here) < 0.6 * motion.pose.distance(here)


def test_goal_in_a_corner_is_reached_without_touching_the_outside(motion, limits):
    corner = Pose(np.array(limits.workspace_max), HOME.quaternion)
    positions = run(motion, corner, limits, 800)
    assert (positions <= np.array(limits.workspace_max) + 1e-9).all()
    np.testing.assert_allclose(positions[-1], limits.workspace_max, atol=1e-9)


def test_seeding_is_at_rest(motion, limits):
    run(motion, goal_at((0.2, 0.1, 0.0)), limits, 60)
    motion.seed(HOME)
    assert motion.at_rest
    assert motion.stopping_pose().distance(HOME) == 0.0
