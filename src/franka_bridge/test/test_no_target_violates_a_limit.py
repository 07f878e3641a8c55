"""Whatever arrives, in whatever order: no published target violates a limit or is NaN, and the path is continuous."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from franka_bridge.arbitration import Mode, RobotMode, TeleopStep
from franka_bridge.errors import ChunkRefused, RequestRefused
from franka_bridge.poses import Pose, quaternion_conjugate, quaternion_exp, quaternion_log, quaternion_multiply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

PERIOD = 0.005
# Relative, of every derivative: what finite differences of float64 positions lose in the third one.
TOLERANCE = 1e-5
BOX_TOLERANCE_M = 1e-6

number = st.one_of(
    st.floats(-0.06, 0.06), st.sampled_from([0.0, 0.05, -0.05, 1e9, math.nan, math.inf, -math.inf, 1e-300])
)
ordinary = st.floats(-0.028, 0.028)
row = st.one_of(st.tuples(ordinary, ordinary, ordinary), st.tuples(number, number, number))
rows = st.lists(row, min_size=0, max_size=8)
milliseconds = st.one_of(st.integers(-300, 300), st.integers(-3000, 3000))

chunk_event = st.fixed_dictionaries(
    {
        "kind": st.just("chunk"),
        "translations": rows,
        "turn": st.floats(-0.29, 0.29),
        "observed_ms": milliseconds,
        "start_ms": milliseconds,
        "period_ms": st.sampled_from([100, 100, 100, 20, 1, 0, -100]),
        "frame": st.sampled_from(["fr3_link0", "fr3_link0", "fr3_hand_tcp", "map"]),
        "skip": st.sampled_from([0, 0, 0, -1, 5]),
    }
)
straight_event = st.fixed_dictionaries(
    {
        "kind": st.just("straight"),
        "direction": st.tuples(*(st.floats(-1.0, 1.0),) * 3),
        "spin": st.tuples(*(st.floats(-1.0, 1.0),) * 3),
        "size": st.sampled_from([0.01, 0.028, 0.05]),
    }
)
teleop_event = st.fixed_dictionaries(
    {"kind": st.just("teleop"), "translation": row, "rotation": row, "enabled": st.booleans()}
)
mode_event = st.fixed_dictionaries(
    {"kind": st.just("mode"), "mode": st.sampled_from([Mode.POLICY, Mode.POLICY, Mode.TELEOP, Mode.HOMING, Mode.HOLD])}
)
robot_event = st.fixed_dictionaries(
    {"kind": st.just("robot"), "mode": st.sampled_from([RobotMode.MOVE, RobotMode.IDLE, RobotMode.REFLEX])}
)
plain_event = st.sampled_from(
    ["stop", "release", "recover", "task", "blocked", "free", "pushed", "jumped", "second", "alone", "clock", "silence"]
).map(lambda kind: {"kind": kind})
event = st.one_of(
    chunk_event, straight_event, straight_event, teleop_event, mode_event, mode_event, robot_event, plain_event
)
script = st.lists(st.tuples(event, st.integers(1, 60)), min_size=1, max_size=25)


class Script:
    """Plays events on a rig and notes which targets the motion generator made, and under which limits."""

    def __init__(self, rig) -> None:
        self.rig = rig
        self.positions, self.quaternions = [], []
        self.free = []  # the target followed the measured pose, or was set to it after a jump
        self.emergency = []
        self.outside_start = False

    def play(self, events) -> None:
        for event, ticks in events:
            reseeded = self.apply(event)
            for index in range(ticks):
                self.tick(reseeded and index == 0)

    def tick(self, reseeded: bool) -> None:
        rig = self.rig
        before = len(rig.targets)
        rig.tick()
        for target in rig.targets[before:]:
            self.positions.append(target.pose.position)
            self.quaternions.append(target.pose.quaternion)
            self.free.append(reseeded or rig.robot_mode is not RobotMode.MOVE)
            self.emergency.append(rig.arm.mode is Mode.EMERGENCY_STOP)

    def apply(self, event) -> bool:
        """Play one event; True if it moved the measured pose in a way the target has to follow at once."""
        rig = self.rig
        try:
            return bool(getattr(self, "on_" + event["kind"])(rig, event))
        except (ChunkRefused, RequestRefused):
            return False

    def on_chunk(self, rig, event):
        rig.sequence += event["skip"]
        rotations = [(0.0, 0.0, event["turn"])] * len(event["translations"])
        rig.send(
            event["translations"],
            rotations,
            observation_ns=rig.now_ns + event["observed_ms"] * 1_000_000,
            start_ns=rig.now_ns + event["start_ms"] * 1_000_000,
            step_period_ns=event["period_ms"] * 1_000_000,
            frame_id=event["frame"],
        )

    def on_straight(self, rig, event):
        """What a policy in good order sends, so that the arm is often at full speed when something else happens."""
        direction = np.array(event["direction"]) / max(1e-3, np.linalg.norm(event["direction"]))
        spin = np.array(event["spin"]) / max(1e-3, np.linalg.norm(event["spin"]))
        rig.send([event["size"] * direction] * 8, [5.0 * event["size"] * spin] * 8)

    def on_teleop(self, rig, event):
        translation, rotation = np.array(event["translation"]), np.array(event["rotation"])
        step = TeleopStep("fr3", rig.now_ns, "fr3_link0", translation, rotation, 1.0, event["enabled"])
        rig.arm.on_teleop(step, rig.now_ns)

    def on_mode(self, rig, event):
        rig.bridge.set_mode("", event["mode"], rig.now_ns)

    def on_robot(self, rig, event):
        rig.robot_mode = event["mode"]

    def on_stop(self, rig, event):
        rig.bridge.emergency_stop("button")

    def on_release(self, rig, event):
        rig.bridge.release_emergency_stop()

    def on_recover(self, rig, event):
        rig.arm.begin_recovery()
        rig.robot_mode = RobotMode.MOVE
        rig.tick()  # not recorded: the state that lets the arm leave the fault
        self.positions.append(rig.target.position)
        self.quaternions.append(rig.target.quaternion)
        self.free.append(True)
        self.emergency.append(False)
        rig.arm.finish_recovery(rig.now_ns)

    def on_task(self, rig, event):
        rig.bridge.on_task("" if rig.bridge._task else "pick up the red cube")

    def on_blocked(self, rig, event):
        rig.follows = False

    def on_free(self, rig, event):
        rig.follows = True

    def on_pushed(self, rig, event):
        rig.measured = Pose(rig.limits.clipped(rig.measured.position + 0.015), rig.measured.quaternion)

    def on_jumped(self, rig, event):
        position = 1.0 - rig.measured.position  # somewhere else in the box
        moved = np.linalg.norm(position - rig.measured.position) > 0.05
        rig.measured = Pose(rig.limits.clipped(position), rig.measured.quaternion)
        return moved

    def on_second(self, rig, event):
        rig.arm.on_conflict("another node publishes target_pose")

    def on_alone(self, rig, event):
        rig.arm.on_conflict(None)

    def on_clock(self, rig, event):
        rig.now_ns += 2_000_000_000

    def on_silence(self, rig, event):
        rig.publishes_state = not rig.publishes_state


def norms(rows: np.ndarray) -> np.ndarray:
    return np.linalg.norm(rows, axis=1)


def angular_velocities(quaternions) -> np.ndarray:
    steps = [quaternion_multiply(b, quaternion_conjugate(a)) for a, b in pairwise(quaternions)]
    return np.array([quaternion_log(step) for step in steps]).reshape(-1, 3) / PERIOD


def check(script: Script, limits) -> None:
    positions, free = np.array(script.positions), np.array(script.free)
    emergency = np.array(script.emergency)
    assert np.isfinite(positions).all()
    assert np.isfinite(np.array(script.quaternions)).all()
    assert np.abs(np.linalg.norm(script.quaternions, axis=1) - 1.0).max() < 1e-9
    assert (positions >= np.array(limits.workspace_min) - BOX_TOLERANCE_M).all()
    assert (positions <= np.array(limits.workspace_max) + BOX_TOLERANCE_M).all()
    for velocity, normal, hard in (
        (np.diff(positions, axis=0) / PERIOD, limits.linear, limits.emergency_linear),
        (angular_velocities(script.quaternions), limits.angular, limits.emergency_angular),
    ):
        acceleration = np.diff(velocity, axis=0) / PERIOD
        jerk = np.diff(acceleration, axis=0) / PERIOD
        for order, (values, largest, largest_hard) in enumerate(
            (
                (velocity, normal.speed, hard.speed),
                (acceleration, normal.acceleration, hard.acceleration),
                (jerk, normal.jerk, hard.jerk),
            ),
            start=1,
        ):
            # A derivative of this order is made from order + 1 targets; all of them have to be the generator's.
            windows = len(free) - order
            if windows < 1:
                break
            touched = np.any([free[i : i + windows] for i in range(order + 1)], axis=0)
            braking = np.any([emergency[i : i + windows] for i in range(order + 1)], axis=0)
            allowed = np.where(braking, largest_hard, largest)
            # Differences of positions near 1 m are good to 1e-16 m.
            rounding = 1e-15 / PERIOD**order
            excess = norms(values) - allowed * (1.0 + TOLERANCE) - rounding
            assert (excess[~touched] <= 0.0).all(), f"derivative {order}: {norms(values)[~touched].max()} > {largest}"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script)
def test_no_published_target_violates_a_limit_whatever_arrives(new_rig, events):
    played = Script(new_rig().in_mode(Mode.POLICY))
    played.play(events)
    check(played, played.rig.limits)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script)
def test_slow_limits_hold_as_well(new_rig, events):
    slow = {
        "linear_speed": 0.1,
        "linear_acceleration": 1.0,
        "linear_jerk": 20.0,
        "angular_speed": 0.5,
        "angular_acceleration": 3.0,
        "angular_jerk": 60.0,
        "homing_speed": 0.05,
        "homing_angular_speed": 0.3,
    }
    played = Script(new_rig(**slow).in_mode(Mode.POLICY))
    played.play(events)
    check(played, played.rig.limits)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(*(st.sampled_from([-1, 0, 1]),) * 3), min_size=1, max_size=12))
def test_arm_driven_into_the_walls_stays_in_the_box(new_rig, directions):
    rig = new_rig().in_mode(Mode.POLICY)
    played = Script(rig)
    for direction in directions:
        rig.send([np.array(direction) * 0.0288] * 8, rotations=[quaternion_log(quaternion_exp(np.zeros(3)))] * 8)
        for _ in range(200):
            played.tick(False)
    check(played, rig.limits)
