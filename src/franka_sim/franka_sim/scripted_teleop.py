"""The scripted operator at the controls of the real bridge: it sees the simulator's truth and sends TeleopCommands.

As a person would, it looks, and pushes the tool on by what is right for the next moment, 50 times a second; the bridge
limits it as it limits a person. `scripted_teleop` runs episodes from the command line; whoever records them uses
`ScriptedTeleoperator`.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from molmoact_msgs.msg import BridgeStatus, SceneStatus, TeleopCommand
from molmoact_msgs.srv import ResetScene, SetMode
from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import NANOSECONDS, to_nanoseconds
from rcl_interfaces.srv import GetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage

from franka_sim.errors import FrankaSimError
from franka_sim.operator import SceneView, ScriptedOperator, Step, WanderingOperator
from franka_sim.rotations import matrix_from_quaternion
from franka_sim.scene import SceneConfig
from franka_sim.tasks import TaskSpec

PERIOD_S = 0.02
# A command after a pause makes up for no more than this.
MAX_STEP_S = 0.04
# Real seconds: for an answer, for the arm to be where its target is, for a sign of life.
ANSWER_TIMEOUT_S = 20.0
SETTLE_TIMEOUT_S = 20.0
SILENCE_S = 10.0
SETTLED_DISTANCE_M = 0.01
EPISODE_LIMIT_S = 40.0  # on the system's clock
POLL_S = 0.002
WANDERING = ("none", "half", "all")

T = TypeVar("T")


class TeleoperationError(FrankaSimError):
    """The system does not do its part: a node is missing, silent or refuses; the message says which."""


@dataclass(frozen=True)
class Outcome:
    """How an episode ended: success, what there was to see, and the seconds on the system's clock."""

    success: bool
    reason: str
    duration_s: float


class ScriptedTeleoperator:
    """Does tasks with the first arm through `teleop_command`.

    `node` has to be spun by somebody else while a method is called. Every method raises TeleoperationError.
    """

    def __init__(self, node: Node, config: SceneConfig, arm: str = "fr3", base_frame: str = "fr3_link0") -> None:
        self._config, self._arm, self._base_frame = config, arm, base_frame
        newest = qos_profile("reliable")
        self._poses = PolledSubscription(node, PoseStamped, "current_pose", newest)
        self._fingers = PolledSubscription(node, JointState, "franka_gripper/joint_states", newest)
        self._objects = PolledSubscription(node, TFMessage, "franka_sim/objects", newest)
        self._scenes = PolledSubscription(node, SceneStatus, "franka_sim/scene_status", newest)
        self._statuses = PolledSubscription(node, BridgeStatus, "bridge_status", qos_profile("reliable", depth=10))
        self._commands = node.create_publisher(TeleopCommand, "teleop_command", qos_profile("reliable", depth=10))
        self._reset = node.create_client(ResetScene, "franka_sim/reset")
        self._set_mode = node.create_client(SetMode, "set_mode")
        self._recover = node.create_client(Trigger, "recover")
        self._pose: PoseStamped | None = None
        self._width: float | None = None
        self._seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._scene: SceneStatus | None = None
        self._status: BridgeStatus | None = None

    def run_episode(self, task: str, seed: int, wander: bool = False, timeout_s: float = EPISODE_LIMIT_S) -> Outcome:
        """`prepare` and `operate`."""
        self.prepare(task, seed)
        return self.operate(task, seed, wander, timeout_s)

    def prepare(self, task: str, seed: int) -> str:
        """Hold, lay out the scene, and wait until the arm is in control again; the instruction of the scene."""
        self._wait(lambda: self._scene, ANSWER_TIMEOUT_S, "franka_sim/scene_status: is the simulator active?")
        self.hold()
        answer = self._require(self._reset, ResetScene.Request(task=task, seed=seed))
        self._forget()
        reset_ns = to_nanoseconds(self._wait(lambda: self._pose, ANSWER_TIMEOUT_S, "current_pose").header.stamp)
        self._wait(
            lambda: self._settled_since(reset_ns), SETTLE_TIMEOUT_S, "the bridge to hold the arm", self._describe
        )
        return str(answer.instruction)

    def operate(self, task: str, seed: int, wander: bool = False, timeout_s: float = EPISODE_LIMIT_S) -> Outcome:
        """Do the task of the scene as `prepare` has laid it out, and hold.

        The outcome is a failure when it is not done in time, or when the bridge or somebody else takes the arm away.
        """
        scripted = ScriptedOperator(TaskSpec.parse(task, self._config), self._config)
        operator = WanderingOperator(scripted, seed) if wander else scripted
        self._take_arm()
        self._forget()
        start_ns = to_nanoseconds(self._wait(lambda: self._pose, ANSWER_TIMEOUT_S, "current_pose").header.stamp)
        try:
            success, reason = self._drive(operator, start_ns, timeout_s)
        finally:
            self._send(None)
        duration_s = (self._now_ns() - start_ns) / NANOSECONDS
        self.hold()
        return Outcome(success, reason, duration_s)

    def hold(self) -> None:
        """The arm holds; out of a fault by way of recovery."""
        self._status = None
        status: BridgeStatus = self._wait(lambda: self._status, ANSWER_TIMEOUT_S, "bridge_status")
        if status.mode == BridgeStatus.FAULT:
            self._require(self._recover, Trigger.Request())
        self._require(self._set_mode, SetMode.Request(arm=self._arm, mode=BridgeStatus.HOLD))

    # At the controls

    def _drive(
        self, operator: ScriptedOperator | WanderingOperator, start_ns: int, timeout_s: float
    ) -> tuple[bool, str]:
        """(success, why it ended); one command per period of the stamps of the measured pose."""
        last_ns = start_ns
        while True:
            now_ns = self._next_pose(last_ns)
            verdict = self._verdict(start_ns, now_ns, timeout_s)
            if verdict is not None:
                return verdict
            view = self._view()
            elapsed_s = (now_ns - last_ns) / NANOSECONDS
            if view is not None:
                share = min(elapsed_s, MAX_STEP_S) / self._config.operator.step_period
                step = operator.step(view)
                self._send(Step(share * step.translation, share * step.rotation, step.gripper))
            last_ns = now_ns

    def _next_pose(self, last_ns: int) -> int:
        """The stamp of the first pose that is a period later."""
        due_ns = last_ns + round(PERIOD_S * NANOSECONDS)
        self._wait(lambda: self._now_ns() >= due_ns, SILENCE_S, "a newer current_pose: is the simulator running?")
        return self._now_ns()

    def _verdict(self, start_ns: int, now_ns: int, timeout_s: float) -> tuple[bool, str] | None:
        scene, status = self._scene, self._status
        if scene is not None and scene.success and to_nanoseconds(scene.header.stamp) > start_ns:
            return True, scene.detail
        if status is not None and status.mode != BridgeStatus.TELEOP:
            return False, f"the arm was taken away: {status.reason}"
        if now_ns - start_ns > timeout_s * NANOSECONDS:
            return False, f"not done in {timeout_s:g} s: {scene.detail if scene is not None else 'no scene_status'}"
        return None

    def _view(self) -> SceneView | None:
        """What there is to see; None as long as a topic is missing."""
        if self._pose is None or self._width is None or not self._seen:
            return None
        position, rotation = self._pose.pose.position, self._pose.pose.orientation
        return SceneView(
            np.array([position.x, position.y, position.z]),
            matrix_from_quaternion(np.array([rotation.x, rotation.y, rotation.z, rotation.w])),
            self._width,
            self._seen,
        )

    def _send(self, step: Step | None) -> None:
        """A command of the moment; None: the dead-man switch is let go."""
        message = TeleopCommand(arm=self._arm, enabled=step is not None)
        message.header.frame_id = self._base_frame
        if self._pose is not None:
            message.header.stamp = self._pose.header.stamp
        if step is not None:
            delta = message.delta
            delta.translation.x, delta.translation.y, delta.translation.z = step.translation.tolist()
            delta.rotation.x, delta.rotation.y, delta.rotation.z = step.rotation.tolist()
            delta.gripper = float(step.gripper)
        self._commands.publish(message)

    # The system

    def _take_arm(self) -> None:
        answers: list[Any] = []

        def granted() -> bool:
            answers.append(self._call(self._set_mode, SetMode.Request(arm=self._arm, mode=BridgeStatus.TELEOP)))
            return bool(answers[-1].success)

        self._wait(granted, SETTLE_TIMEOUT_S, "the bridge to hand over the arm", lambda: answers[-1].message)
        self._wait(
            lambda: self._status is not None and self._status.mode == BridgeStatus.TELEOP,
            ANSWER_TIMEOUT_S,
            "bridge_status to show TELEOP",
            self._describe,
        )

    def _settled_since(self, reset_ns: int) -> bool:
        status = self._status
        if status is None or to_nanoseconds(status.header.stamp) <= reset_ns:
            return False
        if status.mode == BridgeStatus.FAULT:  # the reset itself looks like a robot that jumps
            self.hold()
            return False
        return bool(status.mode == BridgeStatus.HOLD and status.target_distance < SETTLED_DISTANCE_M)

    def _describe(self) -> str:
        status = self._status
        if status is None:
            return "no bridge_status"
        return f"mode {status.mode} ({status.reason}), {status.target_distance:.3f} m away"

    def _forget(self) -> None:
        """What was seen before is of another scene, or another moment."""
        for topic in (self._poses, self._fingers, self._objects, self._scenes, self._statuses):
            topic.take()
        self._pose = self._width = self._scene = self._status = None
        self._seen = {}

    def _listen(self) -> None:
        for pose in self._poses.take():
            self._pose = pose
        for fingers in self._fingers.take():
            self._width = float(sum(fingers.position))
        for objects in self._objects.take():
            self._seen = {each.child_frame_id: _pose_of(each.transform) for each in objects.transforms}
        for scene in self._scenes.take():
            self._scene = scene
        for status in self._statuses.take():
            if status.arm == self._arm:
                self._status = status

    def _now_ns(self) -> int:
        return to_nanoseconds(self._pose.header.stamp) if self._pose is not None else 0

    def _require(self, client: Any, request: Any) -> Any:
        answer = self._call(client, request)
        if not answer.success:
            raise TeleoperationError(f"{client.srv_name}: refused: {answer.message}")
        return answer

    def _call(self, client: Any, request: Any) -> Any:
        self._wait(client.service_is_ready, ANSWER_TIMEOUT_S, f"service {client.srv_name}")
        future = client.call_async(request)
        self._wait(future.done, ANSWER_TIMEOUT_S, f"an answer of {client.srv_name}")
        return future.result()

    def _wait(
        self, condition: Callable[[], T | None], timeout_s: float, what: str, state: Callable[[], str] | None = None
    ) -> T:
        """Listen until `condition` gives something true, and return that."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._listen()
            if result := condition():
                return result
            if time.monotonic() > deadline_s:
                detail = f" ({state()})" if state else ""
                raise TeleoperationError(f"waited {timeout_s:g} s for {what}{detail}")
            time.sleep(POLL_S)


def scene_of_the_simulator(node: Node) -> SceneConfig:
    """The scene file of the running simulator. TeleoperationError if there is none."""
    client = node.create_client(GetParameters, "franka_sim/get_parameters")
    if not client.wait_for_service(ANSWER_TIMEOUT_S):
        raise TeleoperationError("no node franka_sim: start the system first (molmoact up robot:=sim)")
    answer: Any = client.call(GetParameters.Request(names=["scene"]))
    node.destroy_client(client)
    return SceneConfig.load(answer.values[0].string_value)


def _pose_of(transform: Any) -> tuple[np.ndarray, np.ndarray]:
    at, turn = transform.translation, transform.rotation
    return np.array([at.x, at.y, at.z]), matrix_from_quaternion(np.array([turn.x, turn.y, turn.z, turn.w]))


def wanders(wandering: str, index: int) -> bool:
    """Whether episode number `index`, from 0, goes other ways; `wandering` is one of WANDERING."""
    return wandering == "all" or (wandering == "half" and index % 2 == 1)


def run_episodes(node: Node, options: argparse.Namespace) -> int:
    """Run them, print a line for each; how many succeeded."""
    operator = ScriptedTeleoperator(node, scene_of_the_simulator(node))
    successes = 0
    for index in range(options.episodes):
        seed, wander = options.seed + index, wanders(options.wander, index)
        outcome = operator.run_episode(options.task, seed, wander, options.timeout)
        successes += outcome.success
        word, way = "success" if outcome.success else "failure", "another way" if wander else "the straight way"
        print(f"{options.task} seed {seed} {way}: {word} in {outcome.duration_s:.1f} s: {outcome.reason}", flush=True)
    print(f"{successes} of {options.episodes} succeeded", flush=True)
    return successes


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripted_teleop", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--task", default="pick", help="as in the service franka_sim/reset (pick, place:red:blue, ...)")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene; the following count up")
    parser.add_argument("--episodes", type=int, default=1)
    parser.add_argument("--wander", choices=WANDERING, default="none", help="which episodes go other ways to the goal")
    parser.add_argument("--timeout", type=float, default=EPISODE_LIMIT_S, help="s per episode, on the system's clock")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every episode succeeded."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    rclpy.init(args=[])
    node = Node("scripted_teleop")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=_spin, args=(executor,), daemon=True)
    spinner.start()
    try:
        return int(run_episodes(node, options) < options.episodes)
    except FrankaSimError as error:
        print(f"scripted_teleop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        executor.shutdown()
        spinner.join()
        node.destroy_node()
        rclpy.try_shutdown()


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        pass


if __name__ == "__main__":
    sys.exit(main())
