"""Teleoperation with real processes: a person at a keyboard, devices that fail, and the scripted operator."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from ament_index_python.packages import get_package_prefix
from franka_sim.scene import SceneConfig
from franka_sim.scripted_teleop import Outcome, ScriptedTeleoperator, scene_of_the_simulator, wanders
from geometry_msgs.msg import PoseStamped
from molmoact_bringup.analysis import TargetPath, limit_violations
from molmoact_bringup.local import config_directory
from molmoact_bringup.operator import Operator
from molmoact_msgs.msg import BridgeStatus, SceneStatus, TeleopCommand
from molmoact_ros.stamps import to_nanoseconds
from processes import POLL_PERIOD_S, Processes, TestProcess, wait_for
from sensor_msgs.msg import JointState
from systems import Latest, nodes_of_the_graph, start_node
from tf2_msgs.msg import TFMessage

REPEAT_PERIOD_S = 0.03  # of a terminal, while a key is down
SPEED = 0.1  # m/s, of the keyboard node
# The bridge takes this long a silence for a release; then the arm brakes, at 8 m/s^2 and 400 m/s^3 from 0.1 m/s.
TELEOP_TIMEOUT_S = 0.1
BRAKING_S = 0.06
TICKS_S = 0.03
COASTING_M = 0.03  # what the arm still does when the eye says stop
MAX_TAPS = 10


@dataclass(frozen=True)
class Target:
    """A published target: stamp in s and position [3] m, with the orientation x y z w."""

    time: float
    position: np.ndarray
    quaternion: np.ndarray


class Stand:
    """The simulator and the bridge, seen as a person beside the robot sees them."""

    def __init__(self, processes: Processes, operator: Operator) -> None:
        self.processes, self.operator = processes, operator
        graph = nodes_of_the_graph()
        self.simulator = start_node(processes, graph["franka_sim"])
        self.bridge = start_node(processes, graph["franka_bridge"])
        node = operator.node
        self._lock = threading.Lock()
        self._targets: list[Target] = []
        self.commands: list[TeleopCommand] = []
        self.statuses: list[BridgeStatus] = []
        self._pose = Latest(node, PoseStamped, "current_pose")
        self._fingers = Latest(node, JointState, "franka_gripper/joint_states")
        self._objects = Latest(node, TFMessage, "franka_sim/objects")
        self._scene = Latest(node, SceneStatus, "franka_sim/scene_status")
        node.create_subscription(PoseStamped, "target_pose", self._on_target, 1000)
        node.create_subscription(TeleopCommand, "teleop_command", self.commands.append, 1000)
        node.create_subscription(BridgeStatus, "bridge_status", self.statuses.append, 1000)
        operator.wait_until_ready(("franka_sim", "franka_bridge"))
        self.limits = operator.parameters_of("franka_bridge")

    def _on_target(self, message: PoseStamped) -> None:
        p, q = message.pose.position, message.pose.orientation
        target = Target(
            to_nanoseconds(message.header.stamp) / 1e9, np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])
        )
        with self._lock:
            self._targets.append(target)

    @property
    def targets(self) -> list[Target]:
        with self._lock:
            return list(self._targets)

    def forget_targets(self) -> None:
        """Those of a reset, which moves the arm and the target with it, keep no limit."""
        with self._lock:
            self._targets.clear()

    @property
    def status(self) -> BridgeStatus:
        return self.statuses[-1]

    @property
    def scene(self) -> SceneStatus:
        return self._scene.message

    @property
    def tool(self) -> np.ndarray:
        """[3] m."""
        point = self._pose.message.pose.position
        return np.array([point.x, point.y, point.z])

    @property
    def tool_yaw(self) -> float:
        """Of a tool that points down, rad."""
        q = self._pose.message.pose.orientation
        return float(2.0 * np.arctan2(q.y, q.x))

    @property
    def opening(self) -> float:
        """m between the fingers."""
        return float(sum(self._fingers.message.position))

    def object(self, name: str) -> tuple[np.ndarray, float]:
        """(position [3] m, yaw rad)."""
        transforms = wait_for(lambda: self._objects.message, "franka_sim/objects").transforms
        found = next(each.transform for each in transforms if each.child_frame_id == name)
        at, turn = found.translation, found.rotation
        return np.array([at.x, at.y, at.z]), float(2.0 * np.arctan2(turn.z, turn.w))

    def travelled_since(self, time_s: float) -> float:
        """Path length of the targets stamped later, m."""
        positions = np.array([target.position for target in self.targets if target.time >= time_s])
        return float(np.linalg.norm(np.diff(positions, axis=0), axis=1).sum())

    def last_motion_s(self) -> float:
        """The stamp of the last target that was not where the one before it was."""
        targets = self.targets
        moved = [b.time for a, b in pairwise(targets) if np.any(a.position != b.position)]
        return moved[-1]

    def wait_for_rest(self) -> None:
        """Until 20 targets in a row are one."""

        def at_rest() -> bool:
            last = [target.position for target in self.targets[-20:]]
            return len(last) == 20 and not np.ptp(last, axis=0).any()

        wait_for(at_rest, "the target to rest")

    def violations(self) -> int:
        """How often the targets so far broke a limit."""
        targets = self.targets
        path = TargetPath(
            np.array([target.time - targets[0].time for target in targets]),
            np.array([target.position for target in targets]),
            np.array([target.quaternion for target in targets]),
            np.zeros(len(targets)),
        )
        return sum(limit_violations(path, self.limits).values())


class Person:
    """Somebody with one finger on a key, who looks at the robot while pressing it."""

    def __init__(self, processes: Processes) -> None:
        self._keys, terminal = pty.openpty()
        program = f"{get_package_prefix('teleop_recorder')}/lib/teleop_recorder/teleop_keyboard"
        arguments = ["--ros-args", "--params-file", str(config_directory() / "teleop.yaml"), "-p", "use_sim_time:=true"]
        command = f"exec {shlex.join([program, *arguments])} < {os.ttyname(terminal)}"
        self.node: TestProcess = processes.start(["sh", "-c", command], "teleop_keyboard")
        self.node.wait_for_output("Ctrl-C")
        os.close(terminal)

    def tap(self, key: str) -> None:
        os.write(self._keys, key.encode())

    def hold(self, key: str, until: Callable[[], bool], what: str) -> None:
        """Keep a key down until something is seen."""

        def seen() -> bool:
            if until():
                return True
            self.tap(key)
            time.sleep(REPEAT_PERIOD_S - POLL_PERIOD_S)  # what a terminal does, not a wait
            return False

        wait_for(seen, what)

    def unplug(self) -> None:
        os.close(self._keys)


@pytest.fixture
def stand(processes: Processes) -> Iterator[Stand]:
    operator = Operator(int(os.environ["ROS_DOMAIN_ID"]), use_sim_time=True, alarm=lambda: None)
    try:
        yield Stand(processes, operator)
    finally:
        operator.close()


def move_to(person: Person, stand: Stand, axis: int, goal: float, close: float) -> None:
    """Hold the key of an axis until the tool is nearly there, then tap it on, 1 cm at a time."""
    forward, back = "wsadrf"[2 * axis], "wsadrf"[2 * axis + 1]

    def error() -> float:
        return goal - stand.tool[axis]

    key, sign = (forward, 1.0) if error() > 0.0 else (back, -1.0)
    person.hold(key, lambda: sign * error() < COASTING_M, f"{'xyz'[axis]} near {goal:.3f}")
    stand.wait_for_rest()
    for _ in range(MAX_TAPS):
        if abs(error()) < close:
            return
        person.tap(forward if error() > 0.0 else back)
        wait_for(lambda since=stand.targets[-1].time: stand.last_motion_s() > since, "the tap to move the arm")
        stand.wait_for_rest()
    raise AssertionError(f"{'xyz'[axis]} is {stand.tool[axis]:.3f}, not {goal:.3f}")


def turn_to(person: Person, stand: Stand, yaw: float) -> None:
    def error() -> float:
        return (yaw - stand.tool_yaw + np.pi / 4) % (np.pi / 2) - np.pi / 4  # a cube has four sides

    key, sign = ("q", 1.0) if error() > 0.0 else ("e", -1.0)
    person.hold(key, lambda: sign * error() < 0.05, "the fingers along the cube's sides")
    stand.wait_for_rest()


def test_a_person_at_a_keyboard_picks_up_a_cube(processes, stand):
    stand.operator.prepare("pick", 3)
    stand.forget_targets()
    person = Person(processes)
    cube, yaw = stand.object("red_cube")
    # The first press takes the arm, which holds; it moves once the bridge has handed it over.
    person.hold("r", lambda: stand.status.mode == BridgeStatus.TELEOP, "the arm to be handed over")
    turn_to(person, stand, yaw)
    move_to(person, stand, 0, cube[0], 0.008)
    move_to(person, stand, 1, cube[1], 0.008)
    move_to(person, stand, 2, cube[2], 0.01)
    person.hold("g", lambda: stand.opening < 0.045, "the fingers at the cube")
    person.hold("r", lambda: stand.scene.success, "the cube in the air")
    stand.wait_for_rest()
    assert stand.status.mode == BridgeStatus.TELEOP, stand.status.reason
    assert stand.violations() == 0


@pytest.fixture
def moving(processes, stand) -> Person:
    """A person whose arm is on its way up."""
    stand.operator.prepare("pick", 3)
    stand.forget_targets()
    person = Person(processes)
    start = stand.tool[2]
    person.hold("r", lambda: stand.tool[2] > start + 0.03, "the arm to move")
    return person


def last_command_s(stand: Stand) -> float:
    return to_nanoseconds([each for each in stand.commands if each.enabled][-1].header.stamp) / 1e9


def test_letting_go_of_the_key_stops_the_arm_smoothly(moving, stand):
    wait_for(lambda: not stand.commands[-1].enabled, "the release to be said")
    released_s = last_command_s(stand)
    stand.wait_for_rest()
    assert "dead-man switch released" in stand.status.reason
    assert stand.last_motion_s() < released_s + TELEOP_TIMEOUT_S + BRAKING_S + TICKS_S
    assert stand.travelled_since(released_s) < SPEED * (TELEOP_TIMEOUT_S + BRAKING_S + TICKS_S)
    assert stand.violations() == 0
    said = len(stand.commands)
    assert sum(not command.enabled for command in stand.commands) <= 2  # one for each time a key was let go
    moving.hold("f", lambda: len(stand.commands) > said and stand.commands[-1].enabled, "the next press")


def test_killed_teleop_process_stops_the_arm_within_the_silence_and_its_limits(moving, stand):
    moving.node.signal(signal.SIGKILL)
    moving.node.wait()
    wait_for(lambda: "no teleop_command for" in stand.status.reason, "the silence to be noticed")
    silent_s = last_command_s(stand)
    stand.wait_for_rest()
    assert stand.last_motion_s() < silent_s + TELEOP_TIMEOUT_S + BRAKING_S + TICKS_S
    assert stand.travelled_since(silent_s) < SPEED * (TELEOP_TIMEOUT_S + BRAKING_S + TICKS_S)
    assert stand.violations() == 0
    assert stand.status.mode == BridgeStatus.TELEOP


def test_closed_terminal_stops_the_arm_and_ends_the_node_with_its_reason(moving, stand):
    moving.unplug()
    assert moving.node.wait() == 1
    assert "the terminal was closed" in moving.node.output
    # The last word of a process that ends may be lost with it; the silence that follows says the same.
    wait_for(lambda: stand.status.reason.endswith(": holding"), "the bridge to take it for a release")
    stand.wait_for_rest()
    assert stand.violations() == 0


@pytest.fixture
def scripted(processes, stand) -> ScriptedTeleoperator:
    scene: SceneConfig = scene_of_the_simulator(stand.operator.node)
    return ScriptedTeleoperator(stand.operator.node, scene)


@pytest.mark.parametrize("wander", [False, True])
@pytest.mark.parametrize("task", ["pick", "place", "push"])
def test_scripted_operator_does_a_task_through_the_bridge_within_its_limits(stand, scripted, task, wander):
    scripted.prepare(task, 40)
    stand.forget_targets()
    outcome = scripted.operate(task, 40, wander)
    assert outcome.success, outcome.reason
    wait_for(lambda: stand.status.mode == BridgeStatus.HOLD, "the arm to be given back")
    stand.wait_for_rest()
    assert stand.violations() == 0


def test_scripted_operator_says_who_took_the_arm_away(stand, scripted):
    scripted.prepare("pick", 40)
    outcomes: list[Outcome] = []
    episode = threading.Thread(target=lambda: outcomes.append(scripted.operate("pick", 40)), daemon=True)
    start = stand.tool.copy()
    episode.start()
    wait_for(lambda: np.linalg.norm(stand.tool - start) > 0.02, "the arm to move")
    stand.operator.hold()
    episode.join(30.0)
    assert not outcomes[0].success and "taken away: HOLD asked for by the operator" in outcomes[0].reason


@pytest.mark.campaign
@pytest.mark.parametrize("wandering", ["none", "all"])
@pytest.mark.parametrize("task", ["pick", "place", "push"])
def test_scripted_operator_succeeds_in_twenty_scenes(scripted, task, wandering):
    outcomes = {seed: scripted.run_episode(task, seed, wanders(wandering, seed)) for seed in range(200, 220)}
    failures = {seed: outcome.reason for seed, outcome in outcomes.items() if not outcome.success}
    print(f"{task}, wandering {wandering}: {20 - len(failures)} of 20")
    assert len(failures) <= 1, failures
