"""What must keep arriving and what must not happen: a smooth stop, hold, and the reason."""

from __future__ import annotations

import itertools

import pytest
from franka_bridge.arbitration import Mode
from franka_bridge.errors import ChunkRefused, MotionError, RequestRefused
from franka_bridge.poses import Pose
from franka_bridge.watchdogs import ClockWatch

MS = 1_000_000
SECOND = 1_000_000_000
DOWN = (1.0, 0.0, 0.0, 0.0)


@pytest.fixture
def moving(rig):
    """A rig in the middle of a long chunk, at speed."""
    rig.in_mode(Mode.POLICY).send([(0.02, 0.0, 0.0)] * 10).seconds(0.4)
    assert not rig.arm.at_rest
    return rig


def check_stopped(rig, mode: Mode, *words: str) -> None:
    """In `mode` with a reason, and at rest within the ordinary stopping distance."""
    assert rig.arm.mode is mode
    assert all(word in rig.arm.reason for word in words), rig.arm.reason
    assert rig.arm.counters["watchdog_stops"] == 1
    end = rig.arm._motion.stopping_pose()
    rig.seconds(1.0)
    assert rig.target.distance(end) < 1e-9


def test_no_chunk_stops_where_it_is_and_keeps_the_mode(new_rig):
    # So slow that the last row is due long before the arm is there.
    rig = new_rig(linear_speed=0.02, homing_speed=0.02).in_mode(Mode.POLICY)
    rig.send([(0.01, 0.0, 0.0)] * 8).seconds(1.2)
    assert not rig.arm.at_rest
    rig.seconds(0.11)
    check_stopped(rig, Mode.POLICY, "no chunk for 0.5 s")
    assert rig.target.position[0] < 0.53


def test_policy_that_thinks_between_chunks_is_no_watchdog_stop(rig):
    rig.in_mode(Mode.POLICY).send([(0.01, 0.0, 0.0)] * 4).seconds(0.6)
    assert "chunk 1 finished" in rig.arm.reason
    rig.seconds(10.0)
    assert rig.arm.mode is Mode.POLICY and rig.arm.counters["watchdog_stops"] == 0
    rig.send([(0.01, 0.0, 0.0)] * 4).seconds(1.0)
    assert rig.target.position[0] == pytest.approx(0.58, abs=1e-6)


def test_lost_robot_state_is_a_fault_with_its_age(moving):
    moving.publishes_state = False
    moving.tick(22)
    check_stopped(moving, Mode.FAULT, "no robot_state for more than 0.1 s")


def test_lost_pose_is_a_fault_with_its_age(moving):
    moving.publishes_pose = False
    moving.tick(22)
    check_stopped(moving, Mode.FAULT, "no current_pose for more than 0.1 s")


def test_fault_stays_after_the_robot_is_back_until_recovery_is_asked_for(moving):
    moving.publishes_state = False
    moving.tick(30)
    with pytest.raises(RequestRefused, match="robot_state"):
        moving.arm.finish_recovery(moving.now_ns)
    moving.publishes_state = True
    moving.seconds(1.0)
    assert moving.arm.mode is Mode.FAULT
    moving.arm.finish_recovery(moving.now_ns)
    assert moving.arm.mode is Mode.HOLD


def test_robot_that_was_lost_while_holding_may_come_back_by_itself(rig):
    rig.tick(5)
    rig.publishes_pose = rig.publishes_state = False
    rig.seconds(1.0)
    assert rig.arm.mode is Mode.HOLD and "waiting for the robot: no current_pose" in rig.arm.reason
    with pytest.raises(RequestRefused, match="no current_pose"):
        rig.bridge.set_mode("", Mode.POLICY, rig.now_ns)
    rig.publishes_pose = rig.publishes_state = True
    rig.tick()
    assert "ready" in rig.arm.reason
    rig.bridge.set_mode("", Mode.POLICY, rig.now_ns)


def test_stamps_from_the_future_are_a_fault_that_asks_for_the_clocks(moving):
    moving.publishes_pose = False
    moving.arm.on_pose(moving.now_ns + SECOND, moving.measured)
    moving.tick(2)
    check_stopped(moving, Mode.FAULT, "in the future", "clocks")


@pytest.mark.parametrize(("step_ns", "word"), [(3600 * SECOND, "forward"), (-3600 * SECOND, "backward")])
def test_clock_jump_stops_and_is_named(moving, step_ns, word):
    moving.now_ns += step_ns
    moving.tick()
    check_stopped(moving, Mode.HOLD, "the clock jumped", word)


@pytest.mark.parametrize("step_ns", [3600 * SECOND, -3600 * SECOND])
def test_after_a_clock_jump_the_policy_can_go_on(moving, step_ns):
    moving.now_ns += step_ns
    moving.seconds(1.0)
    moving.bridge.set_mode("", Mode.POLICY, moving.now_ns)
    x = moving.measured.position[0]
    moving.send([(0.01, 0.0, 0.0)] * 2).seconds(1.0)
    assert moving.target.position[0] == pytest.approx(x + 0.02, abs=1e-6)


def test_observation_from_before_a_clock_jump_is_refused(moving):
    old_ns = moving.now_ns
    moving.now_ns += SECOND
    moving.tick(5)
    moving.bridge.set_mode("", Mode.POLICY, moving.now_ns)
    with pytest.raises(ChunkRefused, match="stale"):
        moving.send(observation_ns=old_ns)


def test_process_that_was_not_scheduled_for_a_while_is_no_clock_jump(moving):
    x = moving.target.position[0]
    moving.now_ns += 2 * SECOND
    moving.steady_ns += 2 * SECOND
    moving.tick()
    assert moving.arm.mode is Mode.POLICY
    # The target's time stood still: it does not hurry after what it missed.
    assert moving.target.position[0] - x <= 0.3 * 0.02 + 1e-9
    assert moving.bridge.counters["periods_skipped"] > 0


def test_clock_that_runs_slower_or_faster_than_real_time_is_no_jump():
    watch = ClockWatch(0.5)
    for tick in range(100):
        assert watch.complaint(10**12 + tick * 20 * MS, tick * 5 * MS) is None
    for tick in range(100):
        assert watch.complaint(10**12 + 2 * SECOND + tick * MS, 10 * SECOND + tick * 5 * MS) is None


def test_simulated_clock_that_stands_still_moves_nothing(moving):
    count = len(moving.targets)
    for _ in range(100):
        moving.steady_ns += 5 * MS
        moving.targets += moving.bridge.advance(moving.now_ns, moving.steady_ns)
    assert len(moving.targets) == count


def test_simulated_clock_in_larger_steps_gives_targets_on_an_even_grid(moving):
    first = len(moving.targets)
    for _ in range(20):
        moving.now_ns += 10 * MS
        moving.steady_ns += 10 * MS
        moving.arm.on_pose(moving.now_ns, moving.target)
        moving.arm.on_robot_state(moving.now_ns, 2)
        moving.targets += moving.bridge.advance(moving.now_ns, moving.steady_ns)
    stamps = [target.stamp_ns for target in moving.targets[first:]]
    assert len(stamps) == 40
    assert {b - a for a, b in itertools.pairwise(stamps)} == {5 * MS}


def test_clock_that_has_not_begun_is_waited_for(rig):
    assert rig.bridge.advance(0, 0) == []


def test_policy_that_died_stops_the_arm(moving):
    moving.bridge.on_policies(frozenset({b"policy"}))
    moving.tick()
    moving.bridge.on_policies(frozenset())
    check_stopped(moving, Mode.HOLD, "the policy died")


def test_policy_that_has_not_come_yet_has_not_died(rig):
    rig.in_mode(Mode.POLICY)
    rig.bridge.on_policies(frozenset())
    assert rig.arm.mode is Mode.POLICY


def test_second_publisher_stops_the_arm_and_refuses_control_until_it_is_gone(moving):
    moving.arm.on_conflict("/target_pose has 2 publishers")
    check_stopped(moving, Mode.HOLD, "2 publishers")
    with pytest.raises(RequestRefused, match="2 publishers"):
        moving.bridge.set_mode("", Mode.POLICY, moving.now_ns)
    moving.arm.on_conflict(None)
    moving.bridge.set_mode("", Mode.POLICY, moving.now_ns)


def test_arm_that_is_blocked_stops_the_target_within_the_largest_distance(moving):
    moving.follows = False
    for _ in range(200):
        moving.tick()
        assert moving.arm.target_distance <= moving.limits.max_target_distance
    assert moving.arm.mode is Mode.HOLD and "does not follow" in moving.arm.reason
    assert moving.arm.target_distance > 0.7 * moving.limits.max_target_distance
    assert moving.arm.counters["watchdog_stops"] == 1


def test_arm_that_does_not_turn_stops_the_target_within_the_largest_angle(rig):
    rig.in_mode(Mode.POLICY).send([(0.0, 0.0, 0.0)] * 10, rotations=[(0.0, 0.0, 0.1)] * 10)
    rig.follows = False
    for _ in range(200):
        rig.tick()
        assert rig.target.angle(rig.measured) <= rig.limits.max_target_angle
    assert rig.arm.mode is Mode.HOLD and "rad" in rig.arm.reason


def test_asking_for_hold_leads_the_target_back_to_an_arm_that_was_pushed_away(rig):
    rig.in_mode(Mode.POLICY).tick(5)
    rig.follows = False
    for step in range(50):
        rig.measured = Pose.of((0.5 - 0.003 * step, 0.0, 0.3), DOWN)
        rig.tick()
    assert rig.arm.mode is Mode.HOLD and "does not follow" in rig.arm.reason
    assert rig.target.position[0] == 0.5
    with pytest.raises(RequestRefused, match="ask for HOLD"):
        rig.bridge.set_mode("", Mode.POLICY, rig.now_ns)
    rig.bridge.set_mode("", Mode.HOLD, rig.now_ns)
    rig.seconds(3.0)
    assert rig.target.distance(rig.measured) < 1e-6
    rig.bridge.set_mode("", Mode.POLICY, rig.now_ns)


def test_measured_pose_that_jumps_stops_and_reseeds_the_target(moving):
    moving.measured = Pose.of((0.3, 0.3, 0.3), DOWN)
    moving.tick()
    assert moving.arm.mode is Mode.HOLD and "jumped" in moving.arm.reason
    assert moving.target.distance(Pose.of((0.3, 0.3, 0.3), DOWN)) == 0.0
    moving.seconds(1.0)
    assert moving.target.distance(Pose.of((0.3, 0.3, 0.3), DOWN)) == 0.0


def test_chunk_is_never_anchored_across_a_jump(moving):
    observed_ns = moving.now_ns
    moving.measured = Pose.of((0.3, 0.3, 0.3), DOWN)
    moving.tick(5)
    moving.bridge.set_mode("", Mode.POLICY, moving.now_ns)
    with pytest.raises(ChunkRefused, match="not known"):
        moving.send(observation_ns=observed_ns, start_ns=moving.now_ns)


def test_generator_that_finds_no_way_is_a_fault_and_the_target_stands_still(moving, monkeypatch):
    def no_way(*_):
        raise MotionError("no way to rest")

    monkeypatch.setattr(moving.arm._motion, "advance", no_way)
    before = moving.target
    moving.tick()
    assert moving.arm.mode is Mode.FAULT and "no way" in moving.arm.reason
    moving.seconds(0.5)
    assert moving.target.distance(before) == 0.0


def test_deactivation_stops_smoothly_with_its_reason(moving):
    moving.bridge.hold("shut down")
    moving.until(lambda: moving.bridge.at_rest)
    assert moving.arm.mode is Mode.HOLD and moving.arm.reason == "shut down"
