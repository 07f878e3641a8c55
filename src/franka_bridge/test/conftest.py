"""A bridge over one arm with a fake robot at the far side of its interface, on a clock the test moves."""

from __future__ import annotations

import numpy as np
import pytest
from franka_bridge.arbitration import Arm, ArmSetup, Mode, RobotMode
from franka_bridge.bridge import Bridge, Target
from franka_bridge.chunk import ArmFrames, ArmSteps, Chunk
from franka_bridge.gripper import GripperThresholds
from franka_bridge.limits import Limits, Timeouts
from franka_bridge.poses import Pose

PERIOD = 0.005
PERIOD_NS = 5_000_000
SECOND_NS = 1_000_000_000
STEP_NS = 100_000_000
TASK = "pick up the red cube"
# Fingers down, in the middle of the box.
HOME = Pose.of((0.5, 0.0, 0.3), (1.0, 0.0, 0.0, 0.0))

LIMITS = {
    "workspace_min": (0.25, -0.4, 0.005),
    "workspace_max": (0.75, 0.4, 0.6),
    "linear_speed": 0.3,
    "linear_acceleration": 4.0,
    "linear_jerk": 200.0,
    "angular_speed": 1.5,
    "angular_acceleration": 15.0,
    "angular_jerk": 600.0,
    "emergency_linear_acceleration": 8.0,
    "emergency_linear_jerk": 1000.0,
    "emergency_angular_acceleration": 30.0,
    "emergency_angular_jerk": 3000.0,
    "homing_speed": 0.1,
    "homing_angular_speed": 0.5,
    "max_delta_translation": 0.05,
    "max_delta_rotation": 0.3,
    "max_target_distance": 0.1,
    "max_target_angle": 0.5,
    "max_measured_speed": 3.0,
    "max_measured_angular_speed": 10.0,
}
TIMEOUTS = {
    "max_observation_age": 2.0,
    "chunk_timeout": 0.5,
    "pose_timeout": 0.1,
    "robot_state_timeout": 0.1,
    "teleop_timeout": 0.1,
    "clock_jump": 0.5,
}


class Rig:
    """A bridge, the clock it lives by, and a robot that is where its target was a tick ago unless told otherwise."""

    def __init__(self, limits: Limits, timeouts: Timeouts, home: Pose = HOME) -> None:
        setup = ArmSetup("fr3", ArmFrames("fr3_link0", "fr3_hand_tcp"), home, GripperThresholds(0.3, 0.7))
        self.bridge = Bridge([setup], limits, timeouts, PERIOD)
        self.limits = limits
        self.now_ns = 100_000 * SECOND_NS
        self.steady_ns = 0
        self.measured = HOME
        self.robot_mode = RobotMode.MOVE
        self.publishes_pose = True
        self.publishes_state = True
        self.follows = True
        self.targets: list[Target] = []
        self.sequence = 0

    @property
    def arm(self) -> Arm:
        return self.bridge.arms["fr3"]

    @property
    def target(self) -> Pose:
        return self.targets[-1].pose

    def tick(self, ticks: int = 1) -> Rig:
        for _ in range(ticks):
            self.now_ns += PERIOD_NS
            self.steady_ns += PERIOD_NS
            if self.publishes_pose:
                self.arm.on_pose(self.now_ns, self.measured)
            if self.publishes_state:
                self.arm.on_robot_state(self.now_ns, self.robot_mode)
            new = self.bridge.advance(self.now_ns, self.steady_ns)
            self.targets += new
            if self.follows and self.robot_mode is RobotMode.MOVE and new:
                self.measured = new[-1].pose
        return self

    def seconds(self, duration: float) -> Rig:
        return self.tick(round(duration / PERIOD))

    def until(self, condition, timeout: float = 20.0) -> Rig:
        for _ in range(round(timeout / PERIOD)):
            if condition():
                return self
            self.tick()
        raise AssertionError(f"not reached: mode {self.arm.mode.name}, {self.arm.reason}")

    def in_mode(self, mode: Mode, task: str = TASK) -> Rig:
        """A rig whose robot is ready, with the task set and control handed over."""
        self.tick(3)
        self.bridge.on_task(task)
        self.bridge.set_mode("fr3", mode, self.now_ns)
        return self

    def chunk(self, translations=((0.01, 0.0, 0.0),) * 8, rotations=None, gripper=None, **changes) -> Chunk:
        """A valid chunk observed and starting now; `changes` are fields of Chunk."""
        self.sequence += 1
        translations = np.array(translations, dtype=float).reshape(-1, 3)
        rows = len(translations)
        rotations = np.zeros((rows, 3)) if rotations is None else np.array(rotations, dtype=float).reshape(-1, 3)
        gripper = np.ones(rows) if gripper is None else np.array(gripper, dtype=float)
        values = {
            "sequence": self.sequence,
            "frame_id": "fr3_link0",
            "observation_ns": self.now_ns,
            "start_ns": self.now_ns,
            "step_period_ns": STEP_NS,
            "arms": (ArmSteps("fr3", translations, rotations, gripper),),
            "instruction": TASK,
        }
        return Chunk(**(values | changes))

    def send(self, *arguments, **changes) -> Rig:
        self.bridge.on_chunk(self.chunk(*arguments, **changes), self.now_ns)
        return self


@pytest.fixture
def limits() -> Limits:
    return Limits(**LIMITS)


@pytest.fixture
def timeouts() -> Timeouts:
    return Timeouts(**TIMEOUTS)


@pytest.fixture
def limit_values() -> dict:
    """What a parameter file gives: every limit and timeout by name."""
    return LIMITS | TIMEOUTS


@pytest.fixture
def new_rig():
    """Makes rigs, with changed limits by name."""
    return lambda home=HOME, **changes: Rig(Limits(**(LIMITS | changes)), Timeouts(**TIMEOUTS), home)


@pytest.fixture
def rig(new_rig) -> Rig:
    return new_rig()
