"""Modes: who may move the arm, what takes it away again, and the reason a person reads."""

from __future__ import annotations

import numpy as np
import pytest
from franka_bridge.arbitration import ArmSetup, Mode, RobotMode, TeleopStep
from franka_bridge.bridge import Bridge
from franka_bridge.chunk import ArmFrames
from franka_bridge.errors import LimitError, RequestRefused
from franka_bridge.gripper import GripperThresholds
from franka_bridge.poses import Pose

MS = 1_000_000
DOWN = (1.0, 0.0, 0.0, 0.0)


def moving(rig):
    """A rig in the middle of a long chunk, at speed."""
    rig.in_mode(Mode.POLICY).send([(0.02, 0.0, 0.0)] * 8).seconds(0.4)
    assert not rig.arm.at_rest
    return rig


def refusal(rig, mode: Mode) -> str:
    with pytest.raises(RequestRefused) as caught:
        rig.bridge.set_mode("", mode, rig.now_ns)
    return str(caught.value)


def teleop(rig, translation=(0.002, 0.0, 0.0), enabled=True, frame_id="fr3_link0", age_ms=0, arm="fr3", **changes):
    values = {"rotation": (0.0, 0.0, 0.0), "gripper": 1.0} | changes
    rig.bridge.on_teleop(
        TeleopStep(
            arm, rig.now_ns - age_ms * MS, frame_id, np.array(translation), np.array(values["rotation"]),
            values["gripper"], enabled,
        ),
        rig.now_ns,
    )  # fmt: skip


def test_starts_in_hold_at_the_measured_pose(rig):
    rig.tick(5)
    assert rig.arm.mode is Mode.HOLD
    assert rig.target.distance(rig.measured) == 0.0


def test_publishes_nothing_before_it_knows_where_the_arm_is(rig):
    rig.publishes_pose = False
    rig.tick(20)
    assert rig.targets == []
    assert "current_pose" in rig.arm.reason
    assert "current_pose" in refusal(rig, Mode.POLICY)


def test_control_is_refused_before_the_robot_has_said_how_it_is(rig):
    rig.publishes_state = False
    rig.tick(20)
    assert rig.arm.mode is Mode.HOLD  # not a fault: it has not begun
    assert "robot_state" in refusal(rig, Mode.POLICY)


def test_handing_over_again_while_the_policy_moves_changes_nothing(rig):
    moving(rig)
    rig.bridge.set_mode("fr3", Mode.POLICY, rig.now_ns)
    assert rig.arm.sequence == 1


@pytest.mark.parametrize("mode", [Mode.FAULT, Mode.EMERGENCY_STOP])
def test_modes_that_happen_cannot_be_asked_for(rig, mode):
    assert mode.name in refusal(rig.tick(5), mode)


def test_mode_that_does_not_exist_and_unknown_arm_are_refused(rig):
    with pytest.raises(RequestRefused, match="mode 17 does not exist"):
        rig.bridge.set_mode("", 17, rig.now_ns)
    with pytest.raises(RequestRefused, match="arm 'left' is not one of fr3"):
        rig.bridge.set_mode("left", Mode.POLICY, rig.now_ns)


def test_hold_stops_smoothly_and_stays_there(rig):
    moving(rig)
    rig.bridge.set_mode("", Mode.HOLD, rig.now_ns)
    end = rig.arm._motion.stopping_pose()
    rig.seconds(1.0)
    assert rig.arm.at_rest
    assert rig.target.distance(end) < 1e-9
    assert rig.arm.sequence == 0


def test_task_change_drops_the_rows_and_keeps_the_mode(rig):
    moving(rig)
    rig.bridge.on_task("put the cube on the plate")
    rig.seconds(1.0)
    assert rig.arm.mode is Mode.POLICY and rig.arm.at_rest
    assert "put the cube on the plate" in rig.arm.reason


def test_same_task_again_changes_nothing(rig):
    moving(rig)
    rig.bridge.on_task("pick up the red cube")
    assert rig.arm.sequence == 1


# Emergency stop


def test_emergency_stop_is_faster_than_hold_latches_and_is_released_only_by_asking(rig, new_rig):
    gentle = moving(new_rig())
    before = gentle.target
    gentle.bridge.set_mode("", Mode.HOLD, gentle.now_ns)
    gentle.seconds(1.0)
    moving(rig)
    rig.bridge.emergency_stop("button")
    rig.seconds(1.0)
    assert rig.target.distance(before) < 0.8 * gentle.target.distance(before)
    assert rig.arm.mode is Mode.EMERGENCY_STOP and rig.arm.reason == "emergency stop: button"
    assert "release" in refusal(rig, Mode.POLICY) and "release" in refusal(rig, Mode.HOLD)
    rig.bridge.release_emergency_stop()
    assert rig.arm.mode is Mode.HOLD


def test_emergency_stop_is_not_released_while_the_arm_still_moves(rig):
    moving(rig)
    rig.bridge.emergency_stop("button")
    rig.tick()
    with pytest.raises(RequestRefused, match="still"):
        rig.bridge.release_emergency_stop()


def test_first_reason_of_an_emergency_stop_stays(rig):
    moving(rig)
    rig.bridge.emergency_stop("button")
    rig.bridge.emergency_stop("topic")
    rig.robot_mode = RobotMode.REFLEX
    rig.tick(5)
    assert rig.arm.mode is Mode.EMERGENCY_STOP and rig.arm.reason == "emergency stop: button"


def test_reflex_during_an_emergency_stop_is_a_fault_after_its_release(rig):
    moving(rig)
    rig.bridge.emergency_stop("button")
    rig.robot_mode = RobotMode.REFLEX
    rig.seconds(0.5)
    rig.bridge.release_emergency_stop()
    rig.tick()
    assert rig.arm.mode is Mode.FAULT and "reflex" in rig.arm.reason


def test_release_without_an_emergency_stop_is_refused(rig):
    with pytest.raises(RequestRefused, match="no emergency stop"):
        rig.tick(5).bridge.release_emergency_stop()


# The robot's own stops


@pytest.mark.parametrize(("robot_mode", "word"), [(RobotMode.REFLEX, "reflex"), (RobotMode.USER_STOPPED, "user stop")])
def test_stop_at_the_robot_holds_until_recovery_is_asked_for(rig, robot_mode, word):
    moving(rig)
    rig.robot_mode = robot_mode
    rig.tick()
    assert rig.arm.mode is Mode.FAULT and word in rig.arm.reason
    rig.robot_mode = RobotMode.MOVE
    rig.seconds(1.0)
    assert rig.arm.mode is Mode.FAULT and word in rig.arm.reason
    assert "recover" in refusal(rig, Mode.POLICY)
    assert rig.arm.begin_recovery() is False  # the robot has nothing left to recover from
    rig.arm.finish_recovery(rig.now_ns)
    assert rig.arm.mode is Mode.HOLD and rig.arm.reason == "recovered"


def test_recovery_asks_the_robot_to_recover_from_a_reflex_and_waits_for_it(rig):
    moving(rig)
    rig.robot_mode = RobotMode.REFLEX
    rig.tick()
    assert rig.arm.begin_recovery() is True
    with pytest.raises(RequestRefused, match="reflex"):
        rig.arm.finish_recovery(rig.now_ns)
    rig.robot_mode = RobotMode.IDLE
    rig.tick()
    rig.arm.finish_recovery(rig.now_ns)
    assert rig.arm.mode is Mode.HOLD


def test_recovery_from_a_pressed_user_stop_is_refused(rig):
    moving(rig)
    rig.robot_mode = RobotMode.USER_STOPPED
    rig.tick()
    with pytest.raises(RequestRefused, match="user stop is pressed"):
        rig.arm.begin_recovery()


def test_recovery_without_a_fault_is_refused(rig):
    with pytest.raises(RequestRefused, match="no fault"):
        rig.tick(5).arm.begin_recovery()


@pytest.mark.parametrize("robot_mode", [RobotMode.IDLE, RobotMode.GUIDING, RobotMode.OTHER, 99])
def test_target_follows_the_arm_while_the_robot_does_not_take_targets(rig, robot_mode):
    moving(rig)
    rig.robot_mode = robot_mode
    rig.tick()
    assert rig.arm.mode is Mode.HOLD
    rig.measured = Pose.of((0.4, 0.2, 0.5), DOWN)  # guided by hand
    rig.tick(2)
    assert rig.target.distance(rig.measured) == 0.0
    assert "MOVE" not in rig.arm.reason and "robot mode" in refusal(rig, Mode.POLICY)
    rig.robot_mode = RobotMode.MOVE
    rig.seconds(1.0)
    assert rig.target.distance(Pose.of((0.4, 0.2, 0.5), DOWN)) == 0.0  # no jump, and no rows left over
    assert "ready" in rig.arm.reason


# Homing


def test_homing_goes_home_slowly_and_holds(rig):
    rig.measured = Pose.of((0.6, 0.2, 0.2), DOWN)
    rig.in_mode(Mode.HOMING)
    first = len(rig.targets)
    rig.until(lambda: rig.arm.mode is Mode.HOLD)
    assert rig.arm.reason == "homing finished"
    assert rig.target.distance(rig.arm.setup.home) < 1e-6
    steps = np.diff([target.pose.position for target in rig.targets[first:]], axis=0)
    assert np.linalg.norm(steps, axis=1).max() <= rig.limits.homing_speed * 0.005 * (1 + 1e-9)


def test_homing_with_a_speed_of_zero_does_not_claim_to_be_home(new_rig):
    rig = new_rig(homing_speed=0.0)
    rig.measured = Pose.of((0.6, 0.2, 0.2), DOWN)
    rig.in_mode(Mode.HOMING).seconds(1.0)
    assert rig.arm.mode is Mode.HOMING
    assert rig.target.distance(rig.measured) == 0.0


def test_home_outside_the_box_is_refused_at_configuration(new_rig):
    with pytest.raises(LimitError, match="home_position: x"):
        new_rig(home=Pose.of((0.9, 0.0, 0.3), DOWN))


def test_homing_is_the_way_back_into_the_box(rig):
    rig.measured = Pose.of((0.5, 0.0, 0.7), DOWN)
    rig.tick(5)
    assert "outside the workspace box (z 0.700 m" in refusal(rig, Mode.POLICY)
    assert "HOMING" in refusal(rig, Mode.TELEOP)
    rig.in_mode(Mode.HOMING).until(lambda: rig.arm.mode is Mode.HOLD)
    heights = [target.pose.position[2] for target in rig.targets]
    assert max(heights) <= 0.7 + 1e-9
    rig.bridge.set_mode("", Mode.POLICY, rig.now_ns)


# Teleoperation


def test_teleoperation_moves_by_the_deltas_while_the_switch_is_held(rig):
    rig.in_mode(Mode.TELEOP)
    for _ in range(10):
        teleop(rig)
        rig.tick(4)
    rig.tick(15)
    assert rig.target.position[0] == pytest.approx(0.52, abs=1e-3)


def test_teleoperation_stops_when_the_switch_is_released(rig):
    rig.in_mode(Mode.TELEOP)
    teleop(rig, (0.05, 0.0, 0.0))
    rig.tick(10)
    teleop(rig, enabled=False)
    end = rig.arm._motion.stopping_pose()
    rig.seconds(1.0)
    assert rig.arm.mode is Mode.TELEOP and "released" in rig.arm.reason
    assert rig.target.distance(end) < 1e-9


def test_teleoperation_stops_when_commands_stop_coming(rig):
    rig.in_mode(Mode.TELEOP)
    teleop(rig, (0.05, 0.0, 0.0))
    rig.tick(21)
    assert "no teleop_command for 0.1" in rig.arm.reason
    end = rig.arm._motion.stopping_pose()
    rig.seconds(1.0)
    assert rig.target.distance(end) < 1e-9
    assert rig.arm.counters["watchdog_stops"] == 1


def test_hand_faster_than_the_arm_does_not_pile_up_motion(rig):
    rig.in_mode(Mode.TELEOP)
    for _ in range(100):
        teleop(rig, (0.02, 0.0, 0.0))  # 4 m/s
        rig.tick()
        assert rig.arm._goal.distance(rig.target) <= rig.limits.max_target_distance + 1e-9
    assert rig.arm.counters["limited_speed"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"translation": (np.nan, 0.0, 0.0)}, "NaN"),
        ({"rotation": (np.inf, 0.0, 0.0)}, "NaN"),
        ({"translation": (0.06, 0.0, 0.0)}, "translation is 0.06 m"),
        ({"rotation": (0.4, 0.0, 0.0)}, "rotation is 0.4 rad"),
        ({"gripper": 1.5}, "gripper is 1.5"),
        ({"frame_id": "map"}, "frame 'map'"),
        ({"age_ms": 200}, "0.200 s old"),
        ({"age_ms": -500}, "-0.500 s old"),
        ({"arm": "ur5"}, "arm 'ur5'"),
        ({"arm": ""}, "arm ''"),
    ],
)
def test_bad_teleop_command_is_refused_and_moves_nothing(rig, changes, message):
    rig.in_mode(Mode.TELEOP)
    with pytest.raises(RequestRefused, match=message):
        teleop(rig, **changes)
    assert message in rig.bridge.last_refusal
    rig.seconds(0.5)
    assert rig.target.distance(rig.measured) == 0.0


def test_teleop_command_in_another_mode_moves_nothing(rig):
    rig.in_mode(Mode.POLICY)
    teleop(rig, (0.05, 0.0, 0.0))
    rig.seconds(0.5)
    assert rig.target.position[0] == 0.5


# Starting again


def test_bridge_that_starts_again_finds_its_target_where_the_arm_is_now(rig):
    moving(rig)
    rig.bridge.hold("deactivated")
    rig.until(lambda: rig.bridge.at_rest)
    rig.measured = Pose.of((0.35, 0.2, 0.4), DOWN)  # moved by another program in the meantime
    rig.now_ns += 60_000 * MS
    rig.steady_ns += 60_000 * MS
    rig.bridge.restart()
    rig.tick()
    assert rig.target.distance(Pose.of((0.35, 0.2, 0.4), DOWN)) == 0.0
    assert rig.arm.mode is Mode.HOLD


def test_emergency_stop_stays_latched_when_the_bridge_starts_again(rig):
    moving(rig)
    rig.bridge.emergency_stop("button")
    rig.seconds(1.0)
    rig.bridge.restart()
    rig.tick(5)
    assert rig.arm.mode is Mode.EMERGENCY_STOP


# Two arms


def test_two_arms_change_mode_together_or_not_at_all(limits, timeouts):
    home = Pose.of((0.5, 0.0, 0.3), DOWN)
    frames = {name: ArmFrames(f"{name}_fr3_link0", f"{name}_fr3_hand_tcp") for name in ("left", "right")}
    thresholds = GripperThresholds(0.3, 0.7)
    bridge = Bridge([ArmSetup(n, f, home, thresholds) for n, f in frames.items()], limits, timeouts, 0.005)
    now_ns = 10**12
    for name, robot_mode in (("left", RobotMode.MOVE), ("right", RobotMode.IDLE)):
        bridge.arms[name].on_pose(now_ns, home)
        bridge.arms[name].on_robot_state(now_ns, robot_mode)
    bridge.advance(now_ns, 0)
    with pytest.raises(RequestRefused, match="IDLE"):
        bridge.set_mode("", Mode.POLICY, now_ns)
    assert bridge.arms["left"].mode is Mode.HOLD
    bridge.set_mode("left", Mode.POLICY, now_ns)
    bridge.emergency_stop("button")
    assert all(arm.mode is Mode.EMERGENCY_STOP for arm in bridge.arms.values())
