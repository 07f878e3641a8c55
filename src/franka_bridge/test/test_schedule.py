"""A chunk in time: anchored once, late rows integrated, newer chunks joined, the goal never running away."""

from __future__ import annotations

import numpy as np
import pytest
from franka_bridge.arbitration import Mode
from franka_bridge.poses import Pose
from franka_bridge.schedule import PoseHistory, Schedule

MS = 1_000_000
STEP = 0.1


@pytest.fixture
def policy(rig):
    return rig.in_mode(Mode.POLICY).tick(100)


def make_schedule(rig, translations, now_ns=None, **changes) -> Schedule:
    chunk = rig.chunk(translations, **changes)
    return Schedule(chunk, chunk.arms[0], False, rig.measured, now_ns or rig.now_ns, rig.limits)


def at_x(x: float) -> Pose:
    return Pose.of((x, 0.0, 0.3), (1, 0, 0, 0))


def test_row_is_due_one_step_after_the_one_before(policy):
    schedule = make_schedule(policy, [(0.01, 0, 0), (0.02, 0, 0)])
    start = policy.now_ns
    expected = {0: 0.5, 50: 0.505, 100: 0.51, 150: 0.52, 200: 0.53, 900: 0.53}
    for milliseconds, x in expected.items():
        goal = schedule.follow(start + milliseconds * MS, at_x(x))
        assert goal.position[0] == pytest.approx(x)
    assert schedule.finished


def test_before_its_start_the_goal_is_the_anchor(policy):
    schedule = make_schedule(policy, [(0.01, 0, 0)] * 2, start_ns=policy.now_ns + 500 * MS)
    assert schedule.follow(policy.now_ns + 400 * MS, policy.measured).position[0] == 0.5
    assert schedule.gripper(policy.now_ns + 400 * MS) is None
    assert schedule.gripper(policy.now_ns + 500 * MS) == 1.0


def test_chunk_is_anchored_at_the_measured_pose_of_the_observation_not_of_its_arrival(policy):
    observed_ns = policy.now_ns
    policy.follows = False
    for tick in range(20):  # the arm is pushed 1 cm while the policy thinks
        policy.measured = at_x(0.5 + 0.0005 * (tick + 1))
        policy.tick()
    policy.follows = True
    policy.send([(0.0, 0.0, 0.0)] * 8, observation_ns=observed_ns, start_ns=policy.now_ns).seconds(0.5)
    assert policy.target.position[0] == pytest.approx(0.5, abs=1e-6)


def test_chunk_is_anchored_once_and_does_not_drift_with_an_arm_that_lags(policy):
    policy.follows = False
    policy.send([(0.01, 0.0, 0.0)] * 8)
    for _ in range(180):
        policy.tick()
        # 5 mm behind for as long as it moves, as an impedance controller is
        policy.measured = at_x(max(0.5, policy.target.position[0] - 0.005))
    assert policy.target.position[0] == pytest.approx(0.58, abs=1e-6)


def test_late_rows_are_integrated_not_replayed(policy):
    observed_ns = policy.now_ns
    policy.tick(70)  # 0.35 s: three rows and a half are past
    policy.send([(0.01, 0.0, 0.0)] * 8, observation_ns=observed_ns, start_ns=observed_ns)
    assert policy.arm.counters["rows_integrated_late"] == 3
    assert policy.arm.row == 3
    policy.seconds(0.45)  # the end by the clock, not by the number of rows
    assert policy.arm.row == 7
    policy.seconds(0.15)
    assert policy.target.position[0] == pytest.approx(0.58, abs=1e-5)


def test_newer_chunk_replaces_the_rest_of_an_older_one_without_a_jump(policy):
    policy.send([(0.02, 0.0, 0.0)] * 8).seconds(0.3)
    x = policy.target.position[0]
    velocity = x - policy.targets[-2].pose.position[0]
    policy.send([(0.0, 0.02, 0.0)] * 4).tick()
    step = policy.target.position - policy.targets[-2].pose.position
    change = step - [velocity, 0.0, 0.0]
    assert np.linalg.norm(change) <= policy.limits.linear_acceleration * 0.005**2 * (1 + 1e-9)
    policy.seconds(1.0)
    # The rest of the older one (to x = 0.66) is gone; the newer one began where the arm was.
    assert policy.target.position[0] == pytest.approx(x, abs=0.03)
    assert policy.target.position[1] == pytest.approx(0.08, abs=1e-4)


def test_goal_that_is_too_fast_waits_for_the_arm_and_is_counted(policy):
    policy.send([(0.05, 0.0, 0.0)] * 4)  # 0.5 m/s, where 0.3 is allowed
    worst = 0.0
    for _ in range(160):
        policy.tick()
        worst = max(worst, np.abs(np.diff([t.pose.position[0] for t in policy.targets[-2:]]))[0])
    assert worst <= 0.3 * 0.005 * (1 + 1e-9)
    assert policy.arm.counters["limited_speed"] > 0
    assert policy.target.position[0] == pytest.approx(0.7, abs=1e-4)


def test_goal_is_never_further_ahead_than_the_largest_target_distance(policy):
    schedule = make_schedule(policy, [(0.05, 0.0, 0.0)] * 5)
    stuck = policy.measured
    goals = [schedule.follow(policy.now_ns + t * MS, stuck) for t in range(0, 2000, 5)]
    assert max(goal.distance(stuck) for goal in goals) <= policy.limits.max_target_distance
    assert schedule.waiting


def test_goal_that_waited_goes_on_along_the_rows_after_the_last_was_due(policy):
    schedule = make_schedule(policy, [(0.05, 0.0, 0.0)] * 4)
    reference, now_ns = policy.measured, policy.now_ns + 400 * MS
    schedule.follow(now_ns, reference)
    for _ in range(200):
        now_ns += 5 * MS
        goal = schedule.follow(now_ns, reference)
        reference = reference.towards(goal, 0.2)
    assert goal.position[0] == pytest.approx(0.7)
    assert not schedule.waiting


def test_path_that_leaves_the_box_is_clipped_and_comes_back_where_it_would_have_been(policy):
    out_and_back = [(0.025, 0.0, 0.0)] * 12 + [(-0.025, 0.0, 0.0)] * 12
    policy.send(out_and_back)
    xs = []
    for _ in range(560):
        policy.tick()
        xs.append(policy.target.position[0])
    assert max(xs) == pytest.approx(0.75, abs=1e-6)
    assert xs[-1] == pytest.approx(0.5, abs=1e-4)
    assert policy.arm.counters["limited_workspace"] > 0


def test_history_interpolates_and_does_not_guess(policy):
    history = PoseHistory(span=1.0)
    history.add(1000 * MS, at_x(0.5))
    history.add(1010 * MS, at_x(0.6))
    assert history.at(1005 * MS, 0.1).position[0] == pytest.approx(0.55)
    assert history.at(1010 * MS, 0.1).position[0] == 0.6
    assert history.at(1050 * MS, 0.1).position[0] == 0.6  # an image a little newer than the newest pose
    assert history.at(1200 * MS, 0.1) is None
    assert history.at(999 * MS, 0.1) is None


def test_history_does_not_interpolate_across_a_gap(policy):
    history = PoseHistory(span=1.0)
    history.add(1000 * MS, at_x(0.5))
    history.add(1500 * MS, at_x(0.6))
    assert history.at(1250 * MS, 0.1) is None


def test_history_forgets_what_is_older_than_its_span(policy):
    history = PoseHistory(span=1.0)
    for second in range(100):
        history.add(second * 100 * MS, at_x(0.5))
    assert history.at(8800 * MS, 0.2) is not None
    assert history.at(8000 * MS, 0.2) is None
