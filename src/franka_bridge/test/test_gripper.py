from __future__ import annotations

from itertools import pairwise

import pytest
from franka_bridge.arbitration import Mode
from franka_bridge.errors import LimitError
from franka_bridge.gripper import Gripper, GripperCommand, GripperThresholds
from hypothesis import given
from hypothesis import strategies as st

OPEN, CLOSE = GripperCommand.OPEN, GripperCommand.CLOSE


@pytest.fixture
def gripper() -> Gripper:
    return Gripper(GripperThresholds(0.3, 0.7))


def commands(gripper: Gripper, openings) -> list[GripperCommand]:
    """What is sent to a hand that is always through before the next opening comes."""
    sent = []
    for opening in openings:
        gripper.want(opening)
        command = gripper.take()
        if command is not None:
            sent.append(command)
            gripper.done()
    return sent


def test_stream_of_openings_becomes_one_command_per_edge(gripper):
    assert commands(gripper, [1.0] * 50 + [0.0] * 50 + [1.0] * 50) == [OPEN, CLOSE, OPEN]


def test_noise_between_the_thresholds_sends_nothing(gripper):
    assert commands(gripper, [0.0, 0.31, 0.69, 0.5, 0.3, 0.7, 0.29]) == [CLOSE]


@given(st.lists(st.floats(0.0, 1.0), max_size=100))
def test_two_commands_in_a_row_are_never_the_same(openings):
    sent = commands(Gripper(GripperThresholds(0.3, 0.7)), openings)
    assert all(a is not b for a, b in pairwise(sent))


def test_busy_hand_gets_the_newest_wish_only(gripper):
    gripper.want(0.0)
    assert gripper.take() is CLOSE
    for opening in (1.0, 0.0, 1.0):
        gripper.want(opening)
        assert gripper.take() is None
    gripper.done()
    assert gripper.take() is OPEN


def test_wish_that_was_taken_back_while_the_hand_was_busy_sends_nothing(gripper):
    gripper.want(0.0)
    gripper.take()
    gripper.want(1.0)
    gripper.want(0.0)
    gripper.done()
    assert gripper.take() is None


@pytest.mark.parametrize(("close", "open_"), [(0.7, 0.3), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_thresholds_without_hysteresis_are_refused(close, open_):
    with pytest.raises(LimitError, match="gripper_close_below"):
        GripperThresholds(close, open_)


def test_rows_of_a_chunk_move_the_hand_when_they_are_executed(rig):
    rig.in_mode(Mode.POLICY).send([(0.0, 0.0, 0.0)] * 4, gripper=[1.0, 1.0, 0.0, 0.0])
    sent = []
    for tick in range(80):
        rig.tick()
        command = rig.arm.gripper.take()
        if command:
            sent.append((tick // 20, command))
            rig.arm.gripper.done()
    assert sent == [(0, OPEN), (2, CLOSE)] or sent == [(0, OPEN), (1, CLOSE)]  # the tick at 0.2 s is either's


def test_emergency_stop_leaves_the_hand_as_it_is(rig):
    rig.in_mode(Mode.POLICY).send([(0.0, 0.0, 0.0)] * 8, gripper=[1.0] + [0.0] * 7).tick(2)
    assert rig.arm.gripper.take() is OPEN  # and is still busy when the next wish comes
    rig.seconds(0.3)
    rig.bridge.emergency_stop("button")
    rig.arm.gripper.done()
    rig.seconds(0.5)
    assert rig.arm.gripper.take() is None


def test_first_wish_after_control_was_handed_over_is_sent_whatever_it_is(rig):
    rig.in_mode(Mode.POLICY).send([(0.0, 0.0, 0.0)], gripper=[0.0]).tick(2)
    assert rig.arm.gripper.take() is CLOSE
    rig.arm.gripper.done()
    rig.bridge.set_mode("", Mode.HOLD, rig.now_ns)  # somebody opens the hand, or the scene is reset
    rig.bridge.set_mode("", Mode.POLICY, rig.now_ns)
    rig.send([(0.0, 0.0, 0.0)], gripper=[0.0]).tick(2)
    assert rig.arm.gripper.take() is CLOSE
