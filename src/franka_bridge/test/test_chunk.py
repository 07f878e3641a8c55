"""Every rule a chunk must keep, broken one at a time: refused as a whole, counted, named, and nothing moves."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from franka_bridge.arbitration import Mode
from franka_bridge.chunk import ArmSteps
from franka_bridge.errors import ChunkRefused

MS = 1_000_000
GOOD = ((0.01, 0.0, 0.0),) * 8


@pytest.fixture
def policy(rig):
    return rig.in_mode(Mode.POLICY).tick(10)


def refused(rig, refusal: str, chunk) -> str:
    """Send a chunk that must be refused for one reason; the text of the refusal."""
    before = rig.target
    accepted = rig.bridge.counters["chunks_accepted"]
    with pytest.raises(ChunkRefused) as caught:
        rig.bridge.on_chunk(chunk, rig.now_ns)
    assert caught.value.refusal.value == refusal
    assert rig.bridge.counters[f"refused_{refusal}"] == 1
    assert rig.bridge.counters["chunks_refused"] == 1
    assert rig.bridge.counters["chunks_accepted"] == accepted
    assert refusal in rig.bridge.last_refusal
    rig.seconds(1.0)
    assert rig.target.distance(before) == 0.0
    return str(caught.value)


def steps(translations=GOOD, rotations=None, gripper=None, arm="fr3") -> ArmSteps:
    translations = np.array(translations, dtype=float).reshape(-1, 3)
    rows = len(translations)
    return ArmSteps(
        arm,
        translations,
        np.zeros((rows, 3)) if rotations is None else np.array(rotations, dtype=float),
        np.ones(rows) if gripper is None else np.array(gripper, dtype=float),
    )


def test_good_chunk_is_accepted_and_counted(policy):
    policy.send()
    assert policy.bridge.counters["chunks_accepted"] == 1
    assert policy.bridge.counters["chunks_refused"] == 0
    assert policy.arm.sequence == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["translations", "rotations", "gripper"])
def test_number_that_is_not_finite_is_refused_in_any_row(policy, where, bad):
    values = {"translations": np.zeros((8, 3)), "rotations": np.zeros((8, 3)), "gripper": np.ones(8)}
    values[where].reshape(-1)[-1] = bad
    message = refused(policy, "not_finite", policy.chunk(arms=(steps(**values),)))
    assert "row 7" in message


def test_unknown_arm_is_refused_with_the_known_ones(policy):
    assert "'ur5' is not one of fr3" in refused(policy, "unknown_arm", policy.chunk(arms=(steps(arm="ur5"),)))


def test_one_unknown_arm_refuses_the_whole_chunk(policy):
    refused(policy, "unknown_arm", policy.chunk(arms=(steps(), steps(arm="ur5"))))


def test_arm_named_twice_is_refused(policy):
    assert "more than once" in refused(policy, "malformed", policy.chunk(arms=(steps(), steps())))


def test_wrong_frame_is_refused(policy):
    assert "'map'" in refused(policy, "wrong_frame", policy.chunk(frame_id="map"))


def test_tool_frame_is_accepted(policy):
    # Fingers down: the tool's z axis is the base's -z.
    policy.send([(0.0, 0.0, 0.01)] * 2, frame_id="fr3_hand_tcp").seconds(2.0)
    assert policy.target.position[2] == pytest.approx(0.28, abs=1e-6)


def test_chunk_for_no_arm_is_refused(policy):
    refused(policy, "empty", policy.chunk(arms=()))


def test_chunk_without_rows_is_refused(policy):
    refused(policy, "empty", policy.chunk(arms=(steps(np.zeros((0, 3))),)))


def test_chunk_of_endless_rows_is_refused(policy):
    refused(policy, "malformed", policy.chunk(arms=(steps(np.zeros((100_000, 3))),)))


def test_old_observation_is_refused_with_its_age(policy):
    chunk = policy.chunk(observation_ns=policy.now_ns - 2001 * MS)
    assert "2.001 s old" in refused(policy, "stale", chunk)


def test_chunk_whose_rows_are_all_past_is_refused(policy):
    chunk = policy.chunk(observation_ns=policy.now_ns - 1000 * MS, start_ns=policy.now_ns - 800 * MS)
    assert "every row is past" in refused(policy, "stale", chunk)


def test_observation_from_the_future_is_refused(policy):
    chunk = policy.chunk(observation_ns=policy.now_ns + 500 * MS, start_ns=policy.now_ns + 500 * MS)
    assert "in the future" in refused(policy, "stale", chunk)


def test_start_far_ahead_is_refused(policy):
    refused(policy, "stale", policy.chunk(start_ns=policy.now_ns + 3600 * 1000 * MS))


def test_start_before_the_observation_is_refused(policy):
    refused(policy, "malformed", policy.chunk(start_ns=policy.now_ns - 10 * MS))


def test_observation_from_before_any_measured_pose_is_refused(policy):
    chunk = policy.chunk(observation_ns=policy.now_ns - 1500 * MS, start_ns=policy.now_ns)
    assert "not known" in refused(policy, "stale", chunk)


@pytest.mark.parametrize("period_ns", [0, -100 * MS, 1, 3600 * 1000 * MS])
def test_absurd_step_period_is_refused(policy, period_ns):
    assert "step_period" in refused(policy, "malformed", policy.chunk(step_period_ns=period_ns))


@pytest.mark.parametrize("opening", [-0.01, 1.01, 255.0])
def test_gripper_outside_its_range_is_refused(policy, opening):
    assert "gripper" in refused(policy, "malformed", policy.chunk(gripper=[1.0] * 7 + [opening]))


def test_translation_larger_than_the_largest_delta_is_refused_by_row_and_size(policy):
    message = refused(policy, "delta_too_large", policy.chunk([(0.01, 0, 0), (0.04, 0.04, 0.0)]))
    assert "row 1" in message and "0.05657" in message


def test_rotation_larger_than_the_largest_delta_is_refused(policy):
    refused(policy, "delta_too_large", policy.chunk([(0, 0, 0)], rotations=[(0.0, 0.31, 0.0)]))


def test_numbers_near_overflow_are_refused_as_too_large(policy):
    refused(policy, "delta_too_large", policy.chunk([(1e200, 1e200, 1e200)]))


def test_largest_delta_of_zero_refuses_every_motion(new_rig):
    rig = new_rig(max_delta_translation=0.0).in_mode(Mode.POLICY).tick(10)
    refused(rig, "delta_too_large", rig.chunk([(1e-9, 0.0, 0.0)]))


def test_chunk_for_another_task_is_refused_with_both(policy):
    message = refused(policy, "wrong_task", policy.chunk(instruction="juggle"))
    assert "juggle" in message and "pick up the red cube" in message


def test_chunk_is_refused_while_no_task_is_set(rig):
    rig.in_mode(Mode.POLICY, task="").tick(10)
    assert "no task is set" in refused(rig, "wrong_task", rig.chunk())


@pytest.mark.parametrize("mode", [Mode.HOLD, Mode.TELEOP, Mode.HOMING])
def test_chunk_is_refused_in_any_other_mode(rig, mode):
    rig.in_mode(mode)
    rig.until(lambda: rig.arm.at_rest)
    before = rig.arm.mode.name
    assert before in refused(rig, "wrong_mode", rig.chunk())


def test_broken_chunk_is_named_for_what_is_broken_whatever_the_mode(rig):
    refused(rig.in_mode(Mode.HOLD), "not_finite", rig.chunk([(math.nan, 0.0, 0.0)]))


@pytest.mark.parametrize("sequence", [7, 6, 1, 0])
def test_chunk_that_is_not_newer_than_the_last_is_refused(policy, sequence):
    policy.send(sequence=7)
    policy.seconds(2.0)
    refused(policy, "out_of_order", policy.chunk(sequence=sequence))


def test_newer_sequence_with_an_older_observation_is_refused(policy):
    policy.send([(0.0, 0.0, 0.0)] * 8).tick(10)
    refused(policy, "out_of_order", policy.chunk(observation_ns=policy.now_ns - 60 * MS))


def test_policy_that_was_started_again_may_count_from_one_again(policy):
    policy.bridge.on_policies(frozenset({b"first"}))
    policy.send(sequence=40).tick(10)
    policy.bridge.on_policies(frozenset({b"first", b"second"}))
    policy.send(sequence=1)
    assert policy.bridge.counters["chunks_accepted"] == 2


def test_started_again_the_policy_cannot_repeat_what_it_saw_before(policy):
    policy.bridge.on_policies(frozenset({b"first"}))
    first = policy.chunk([(0.0, 0.0, 0.0)] * 8, sequence=40)
    policy.bridge.on_chunk(first, policy.now_ns)
    policy.tick(10)
    policy.bridge.on_policies(frozenset({b"first", b"second"}))
    refused(policy, "out_of_order", replace(first, sequence=1))


def test_new_task_begins_a_new_count(policy):
    policy.send(sequence=40).tick(10)
    policy.bridge.on_task("put the cube on the plate")
    policy.send(sequence=1, instruction="put the cube on the plate")
    assert policy.bridge.counters["chunks_accepted"] == 2


def test_control_handed_over_again_begins_a_new_count(policy):
    policy.send(sequence=40).tick(10)
    policy.bridge.set_mode("", Mode.HOLD, policy.now_ns)
    policy.bridge.set_mode("", Mode.POLICY, policy.now_ns)
    policy.send(sequence=1)
    assert policy.bridge.counters["chunks_accepted"] == 2


def test_refused_chunk_leaves_the_one_before_running(policy):
    policy.send([(0.01, 0.0, 0.0)] * 4).tick(10)
    with pytest.raises(ChunkRefused):
        policy.send([(math.nan, 0.0, 0.0)] * 4)
    policy.seconds(0.7)
    assert policy.target.position[0] == pytest.approx(0.54, abs=1e-5)
