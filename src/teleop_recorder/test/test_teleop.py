"""What a device says becomes commands: only while the switch is held, never faster than asked, one word at release."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from teleop_recorder.teleop import (
    AS_IT_IS,
    AxisMap,
    Clutch,
    LeaderPose,
    Reading,
    Speed,
    Teleoperator,
    TeleopError,
)

IDENTITY = AxisMap((0, 1, 2, 3, 4, 5), (1.0,) * 6)
LEADER_AXES = AxisMap((0, 1, 2, 0, 1, 2), (1.0,) * 6)
FAST = Speed(100.0, 100.0)
STEP = np.array([0.002, 0.0, 0.0])
RELEASED, HELD = Reading(held=False), Reading(held=True, translation=STEP)


def ready() -> Teleoperator:
    """One whose switch has been seen released."""
    teleoperator = Teleoperator()
    assert teleoperator.command(RELEASED, None) is None
    return teleoperator


def test_nothing_is_said_while_the_switch_is_not_held():
    teleoperator = ready()
    assert [teleoperator.command(RELEASED, 1.0) for _ in range(5)] == [None] * 5


def test_held_switch_passes_the_motion_on():
    command = ready().command(HELD, 1.0)
    assert command.enabled and (command.translation == STEP).all()


def test_release_is_said_once_without_motion():
    teleoperator = ready()
    teleoperator.command(HELD, 1.0)
    release = teleoperator.command(Reading(held=False, translation=STEP), 1.0)
    assert not release.enabled and not release.translation.any() and not release.rotation.any()
    assert teleoperator.command(RELEASED, 1.0) is None


def test_silent_device_is_released_and_needs_a_new_press():
    teleoperator = ready()
    teleoperator.command(HELD, 1.0)
    assert not teleoperator.command(None, 1.0).enabled
    assert teleoperator.command(None, 1.0) is None
    assert teleoperator.command(HELD, 1.0) is None  # it came back with the switch held: by whom?
    assert teleoperator.command(RELEASED, 1.0) is None
    assert teleoperator.command(HELD, 1.0).enabled


def test_switch_held_when_first_heard_of_moves_nothing():
    teleoperator = Teleoperator()
    assert teleoperator.command(HELD, 1.0) is None
    teleoperator.command(RELEASED, 1.0)
    assert teleoperator.command(HELD, 1.0).enabled


def test_gripper_toggles_at_the_edge_of_its_button():
    teleoperator = ready()
    pressed = Reading(held=True, gripper_pressed=True)
    readings = [HELD, pressed, pressed, HELD, pressed, HELD]
    assert [teleoperator.command(reading, 1.0).gripper for reading in readings] == [1.0, 0.0, 0.0, 0.0, 1.0, 1.0]


def test_gripper_button_without_the_switch_does_nothing_even_when_the_switch_follows():
    teleoperator = ready()
    assert teleoperator.command(Reading(held=False, gripper_pressed=True), 1.0) is None
    assert teleoperator.command(Reading(held=True, gripper_pressed=True), 1.0).gripper == 1.0


@pytest.mark.parametrize(
    ("measured", "said"), [(None, AS_IT_IS), (0.5, AS_IT_IS), (0.9, AS_IT_IS), (1.0, 1.0), (0.0, 0.0)]
)
def test_pressing_the_switch_does_not_move_a_hand_that_may_hold_something(measured, said):
    assert ready().command(HELD, measured).gripper == said


def test_first_toggle_opens_a_hand_that_is_not_open():
    teleoperator = ready()
    teleoperator.command(HELD, 0.5)
    assert teleoperator.command(Reading(held=True, gripper_pressed=True), 0.5).gripper == 1.0


def test_what_was_toggled_outlasts_a_release_while_the_fingers_are_still_on_their_way():
    teleoperator = ready()
    teleoperator.command(HELD, 1.0)
    teleoperator.command(Reading(held=True, gripper_pressed=True), 1.0)
    teleoperator.command(RELEASED, 1.0)
    assert teleoperator.command(HELD, 0.99).gripper == 0.0
    teleoperator.command(RELEASED, 1.0)
    teleoperator.forget_gripper()
    assert teleoperator.command(HELD, 1.0).gripper == 1.0


def test_leaders_own_gripper_wins_over_the_toggle():
    teleoperator = ready()
    reading = Reading(held=True, gripper_pressed=True, opening=0.25)
    assert teleoperator.command(reading, 1.0).gripper == 0.25
    assert teleoperator.command(Reading(held=True, opening=1.3), 1.0).gripper == 1.0


READINGS = st.lists(
    st.one_of(st.none(), st.builds(Reading, held=st.booleans(), gripper_pressed=st.booleans())), max_size=40
)


@given(READINGS)
def test_an_arm_is_enabled_only_by_a_held_switch_and_every_stop_is_said_exactly_once(readings):
    teleoperator = Teleoperator()
    enabled = False
    for reading in readings:
        command = teleoperator.command(reading, None)
        if command is None:
            assert not enabled
        elif command.enabled:
            assert reading is not None and reading.held
        else:
            assert enabled
        enabled = command is not None and command.enabled
        assert teleoperator.held == enabled


# Axes


@given(st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6), st.floats(0.0, 0.9))
def test_deflection_stays_in_range_and_is_zero_inside_the_dead_zone(values, dead_zone):
    deflection = AxisMap(IDENTITY.axes, IDENTITY.signs, dead_zone).deflection(values)
    assert (np.abs(deflection) <= 1.0).all()
    assert not deflection[np.abs(values) <= dead_zone].any()
    assert (deflection * values >= 0.0).all()


def test_deflection_begins_at_zero_beyond_the_dead_zone_and_reaches_one():
    axes = AxisMap(IDENTITY.axes, IDENTITY.signs, 0.2)
    np.testing.assert_allclose(axes.deflection([0.2001, -0.6, 1.0, 0.0, 0.0, -1.0]), [0, -0.5, 1, 0, 0, -1], atol=2e-4)


def test_axes_are_chosen_and_turned_by_number_and_sign():
    axes = AxisMap((1, 0, -1, 3, 3, 2), (1.0, -1.0, 1.0, 1.0, -1.0, 1.0))
    assert axes.deflection([0.1, 0.2, 0.3, 0.4]).tolist() == [0.2, -0.1, 0.0, 0.4, -0.4, 0.3]


@pytest.mark.parametrize(
    ("axes", "signs", "dead_zone", "word"),
    [
        ((0, 1), (1.0,) * 6, 0.0, "axes: 2 entries"),
        ((0,) * 6, (1.0,) * 5, 0.0, "signs: 5 entries"),
        ((0, 1, 2, 3, 4, -2), (1.0,) * 6, 0.0, "axes"),
        ((0,) * 6, (1.0, 1.0, 0.5, 1.0, 1.0, 1.0), 0.0, "signs"),
        ((0,) * 6, (1.0,) * 6, 1.0, "dead_zone"),
    ],
)
def test_wrong_axes_are_refused_by_name(axes, signs, dead_zone, word):
    with pytest.raises(TeleopError, match=word):
        AxisMap(axes, signs, dead_zone)


def test_axis_the_device_does_not_have_and_nan_are_errors_not_motion():
    with pytest.raises(TeleopError, match="axis 5"):
        IDENTITY.deflection([0.0] * 3)
    with pytest.raises(TeleopError, match="nan"):
        IDENTITY.deflection([float("nan")] + [0.0] * 5)


@given(st.lists(st.floats(-1.0, 1.0), min_size=6, max_size=6), st.floats(0.0, 0.1))
def test_step_is_never_faster_than_the_speed_also_with_all_axes_deflected(values, elapsed):
    translation, rotation = Speed(0.1, 0.5).step(np.array(values), elapsed)
    assert np.linalg.norm(translation) <= 0.1 * elapsed + 1e-12
    assert np.linalg.norm(rotation) <= 0.5 * elapsed + 1e-12


# Leaders


def pose(stamp: float, position=(0.0, 0.0, 0.0), turn=(0.0, 0.0, 0.0)) -> LeaderPose:
    return LeaderPose.of(stamp, position, Rotation.from_rotvec(turn).as_quat())


def test_leader_moves_the_arm_from_the_press_on_wherever_it_is():
    clutch = Clutch(LEADER_AXES, 1.0, FAST, in_tool_frame=False)
    assert not clutch.step(pose(0.0, (0.5, 0.0, 0.0)), held=False)[0].any()
    assert not clutch.step(pose(0.1, (0.9, 0.0, 0.0)), held=True)[0].any()
    np.testing.assert_allclose(clutch.step(pose(0.2, (0.9, 0.0, 0.1)), held=True)[0], [0, 0, 0.1])
    assert not clutch.step(pose(0.3, (0.1, 0.0, 0.1)), held=False)[0].any()  # put back while not held
    assert not clutch.step(pose(0.4, (0.1, 0.0, 0.1)), held=True)[0].any()


@given(st.lists(st.tuples(*[st.floats(-0.2, 0.2)] * 6), min_size=2, max_size=10), st.booleans())
def test_deltas_of_a_leader_add_up_to_its_motion(poses, in_tool_frame):
    clutch = Clutch(LEADER_AXES, 1.0, FAST, in_tool_frame)
    leader = [pose(0.1 * index, values[:3], values[3:]) for index, values in enumerate(poses)]
    position, rotation = leader[0].position, leader[0].rotation
    for each in leader:
        translation, turn = clutch.step(each, held=True)
        if in_tool_frame:
            translation, turn = rotation.apply(translation), rotation.apply(turn)
        position = position + translation
        rotation = Rotation.from_rotvec(turn) * rotation
    np.testing.assert_allclose(position, leader[-1].position, atol=1e-9)
    assert (rotation * leader[-1].rotation.inv()).magnitude() < 1e-9


def test_what_a_leader_does_too_fast_is_lost_and_not_made_up_for():
    clutch = Clutch(LEADER_AXES, 1.0, Speed(0.1, 0.5), in_tool_frame=False)
    clutch.step(pose(0.0), held=True)
    translation, rotation = clutch.step(pose(0.1, (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), held=True)
    np.testing.assert_allclose(translation, [0.01, 0, 0])
    np.testing.assert_allclose(rotation, [0, 0, 0.05])
    assert not clutch.step(pose(0.2, (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)), held=True)[0].any()


def test_leader_turned_on_the_table_moves_the_arm_the_same_way():
    sideways = Clutch(AxisMap((1, 0, 2, 1, 0, 2), (-1.0, 1.0, 1.0, -1.0, 1.0, 1.0)), 2.0, FAST, in_tool_frame=False)
    sideways.step(pose(0.0), held=True)
    translation, rotation = sideways.step(pose(0.1, (0.0, 0.1, 0.0), (0.1, 0.0, 0.0)), held=True)
    np.testing.assert_allclose(translation, [-0.2, 0, 0])
    np.testing.assert_allclose(rotation, [0, 0.1, 0], atol=1e-12)


def test_axes_that_mirror_a_leader_are_refused():
    with pytest.raises(TeleopError, match="right-handed"):
        Clutch(AxisMap((1, 0, 2, 1, 0, 2), (1.0,) * 6), 1.0, FAST, in_tool_frame=False)


@pytest.mark.parametrize(
    ("position", "quaternion"),
    [((np.nan, 0, 0), (0, 0, 0, 1)), ((0, 0, 0), (0, 0, 0, 0)), ((0, 0, 0), (np.inf, 0, 0, 1))],
)
def test_pose_that_is_none_is_refused(position, quaternion):
    with pytest.raises(TeleopError, match="pose"):
        LeaderPose.of(0.0, position, quaternion)


def test_hand_that_is_heard_of_after_the_press_is_toggled_from_what_it_is():
    teleoperator = Teleoperator()
    teleoperator.command(Reading(held=False), None)
    assert teleoperator.command(Reading(held=True), None).gripper == AS_IT_IS
    assert teleoperator.command(Reading(held=True, gripper_pressed=True), 1.0).gripper == 0.0
