"""What the operator of a system does, over ROS: wait until it is ready, reset the scene, let the policy act, watch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import rclpy
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from molmoact_msgs.action import RunTask
from molmoact_msgs.msg import BridgeStatus, SceneStatus
from molmoact_msgs.srv import ResetScene, SetMode, StartEpisode, StopEpisode
from molmoact_ros.actions import ActionClient
from molmoact_ros.stamps import to_nanoseconds
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.task import Future
from std_srvs.srv import Trigger

from molmoact_bringup.errors import SystemFailure

# From the start of the processes to a policy that is ready; a 7B checkpoint is read from disk in this time.
READY_TIMEOUT_S = 600.0
# For a service to answer: the simulator compiles a scene in less.
ANSWER_TIMEOUT_S = 20.0
# For a node's state, before it is asked for again.
STATE_TIMEOUT_S = 2.0
# For the arm to be where its target is after a reset.
SETTLE_TIMEOUT_S = 20.0
SETTLED_DISTANCE_M = 0.01
# The task's own time limit is this much later than the operator's, who decides first.
TASK_TIMEOUT_MARGIN_S = 5.0
POLL_S = 0.05

NODES = ("franka_sim", "franka_bridge", "policy")

T = TypeVar("T")


@dataclass(frozen=True)
class Episode:
    """One attempt at a task."""

    task: str
    seed: int
    instruction: str
    outcome: str  # "success", "failure"
    reason: str
    duration_s: float  # on the system's clock
    wall_duration_s: float
    chunks: int


class Operator:
    """A node of its own, spinning in a thread, for one system with one arm.

    Args:
        domain: The ROS domain of the system.
        use_sim_time: Whether the system runs on the simulator's clock.
        alarm: Asked during every wait; a text ends the wait with :class:`SystemFailure`.
    """

    def __init__(self, domain: int, use_sim_time: bool, alarm: Callable[[], str | None]) -> None:
        self._alarm = alarm
        self._context = Context()
        rclpy.init(args=[], context=self._context, domain_id=domain)
        self.node = Node(
            "operator",
            context=self._context,
            parameter_overrides=[Parameter("use_sim_time", value=use_sim_time)],
        )
        self._reset = self.node.create_client(ResetScene, "franka_sim/reset")
        self._set_mode = self.node.create_client(SetMode, "set_mode")
        self._recover = self.node.create_client(Trigger, "recover")
        self._start_episode = self.node.create_client(StartEpisode, "start_episode")
        self._stop_episode = self.node.create_client(StopEpisode, "stop_episode")
        self._run_task = ActionClient(self.node, RunTask, "run_task")
        self._bridge: BridgeStatus | None = None
        self._scene: SceneStatus | None = None
        self.node.create_subscription(BridgeStatus, "bridge_status", self._on_bridge_status, 10)
        self.node.create_subscription(SceneStatus, "franka_sim/scene_status", self._on_scene_status, 10)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, name="operator", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Leave the ROS graph."""
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_until_ready(self, nodes: Sequence[str] = NODES) -> None:
        """Wait until these nodes are active.

        Raises:
            SystemFailure: naming the one that is not.
        """
        for name in nodes:
            state = self.node.create_client(GetState, f"{name}/get_state")
            self._wait(state.service_is_ready, READY_TIMEOUT_S, f"node {name}")
            self._wait(lambda client=state: self._is_active(client), READY_TIMEOUT_S, f"node {name} to become active")
        self._wait(lambda: self._bridge and self._scene, ANSWER_TIMEOUT_S, "bridge_status and franka_sim/scene_status")

    def parameters_of(self, node: str) -> dict[str, Any]:
        """Values of all parameters of a running node."""
        names = self._call(self.node.create_client(ListParameters, f"{node}/list_parameters"), ListParameters.Request())
        request = GetParameters.Request(names=names.result.names)
        values = self._call(self.node.create_client(GetParameters, f"{node}/get_parameters"), request).values
        return {
            name: _plain(parameter_value_to_python(value)) for name, value in zip(request.names, values, strict=True)
        }

    def run_episode(self, task: str, seed: int, timeout_s: float) -> Episode:
        """Reset the scene, let the policy act until the task is done or the time is up, and hold.

        Raises:
            SystemFailure: something other than the policy's skill is at fault.
        """
        instruction = self.prepare(task, seed)
        start_ns, start_s = self._now_ns(), time.monotonic()
        self.let_the_policy_act()
        goal = self._start_task(instruction, timeout_s + TASK_TIMEOUT_MARGIN_S)
        result = goal.get_result_async()

        def verdict() -> tuple[str, str] | None:
            if self._scene.success:
                return "success", self._scene.detail
            if result.done():
                return "failure", f"the policy ended: {result.result().result.reason}"
            if self._bridge.mode != BridgeStatus.POLICY:
                return "failure", f"the bridge stopped: {self._bridge.reason}"
            if self._now_ns() - start_ns > timeout_s * 1e9:
                return "failure", f"not done in {timeout_s:g} s: {self._scene.detail}"
            return None

        outcome, reason = self._wait(verdict, float("inf"), "the episode to end")
        duration_s, wall_duration_s = (self._now_ns() - start_ns) / 1e9, time.monotonic() - start_s
        cancellation = None if result.done() else goal.cancel_goal_async()
        self.hold()
        if cancellation is not None:
            self._finish(cancellation, "the policy to accept the cancellation")
        chunks = self._finish(result, "the policy to end its task").result.chunks
        return Episode(task, seed, instruction, outcome, reason, duration_s, wall_duration_s, chunks)

    def prepare(self, task: str, seed: int) -> str:
        """Hold, reset the scene, and wait until the arm is in control again; the instruction of the scene.

        Raises:
            SystemFailure: a node refuses or does not answer.
        """
        self.hold()
        instruction = self._reset_scene(task, seed)
        self._wait(
            self._follows_the_arm, SETTLE_TIMEOUT_S, "the arm to be where the bridge's target is", self._describe_arm
        )
        return instruction

    def let_the_policy_act(self) -> None:
        """Hand the arm to the policy, as soon as the bridge agrees.

        Raises:
            SystemFailure: the bridge does not answer, or goes on refusing.
        """
        answers: list[SetMode.Response] = []

        def granted() -> bool:
            answers.append(self._call(self._set_mode, SetMode.Request(mode=BridgeStatus.POLICY)))
            return answers[-1].success

        self._wait(granted, SETTLE_TIMEOUT_S, "the bridge to hand over the arm", lambda: answers[-1].message)
        self._wait_for_mode(BridgeStatus.POLICY)

    def start_recording(self, task: str, instruction: str) -> None:
        """Begin an episode, as soon as the recorder hears all that it needs: its topics may have only just come up.

        Raises:
            SystemFailure: the recorder keeps refusing, or does not answer.
        """
        request = StartEpisode.Request(task=task, instruction=instruction)
        answers: list[StartEpisode.Response] = []

        def started() -> bool:
            answers.append(self._call(self._start_episode, request))
            return answers[-1].success

        self._wait(started, SETTLE_TIMEOUT_S, "the recorder to begin an episode", lambda: answers[-1].message)

    def stop_recording(self, outcome: str, reason: str) -> str:
        """End the episode that is being recorded ("success", "failure", "discard"); its name.

        Raises:
            SystemFailure: the recorder refuses, or does not answer.
        """
        return self._require(self._stop_episode, StopEpisode.Request(outcome=outcome, reason=reason)).episode

    def hold(self) -> None:
        """Stop the arm and keep it where it is; out of a fault by way of recovery.

        Raises:
            SystemFailure: the bridge does not answer or refuses.
        """
        if self._bridge is not None and self._bridge.mode == BridgeStatus.FAULT:
            self._require(self._recover, Trigger.Request())
            self._wait(lambda: self._bridge.mode != BridgeStatus.FAULT, SETTLE_TIMEOUT_S, "the bridge to recover")
        self._require(self._set_mode, SetMode.Request(mode=BridgeStatus.HOLD))
        self._wait_for_mode(BridgeStatus.HOLD)

    def _wait_for_mode(self, mode: int) -> None:
        self._wait(
            lambda: self._bridge.mode == mode,
            ANSWER_TIMEOUT_S,
            f"bridge_status to show mode {mode}",
            self._describe_arm,
        )

    def _reset_scene(self, task: str, seed: int) -> str:
        instruction = self._require(self._reset, ResetScene.Request(task=task, seed=seed)).instruction
        reset_ns = self._now_ns()
        # Both status messages from before the reset are worthless now.
        self._wait(
            lambda: (
                self._scene.seed == seed
                and self._scene.task == task
                and to_nanoseconds(self._bridge.header.stamp) > reset_ns
            ),
            ANSWER_TIMEOUT_S,
            "status messages of the new scene",
        )
        return instruction

    def _start_task(self, instruction: str, timeout_s: float) -> Any:
        goal = RunTask.Goal(instruction=instruction)
        goal.timeout.sec = int(timeout_s)
        self._wait(self._run_task.server_is_ready, ANSWER_TIMEOUT_S, "the policy's action run_task")
        handle = self._finish(self._run_task.send_goal_async(goal), "the policy to accept the task")
        if not handle.accepted:
            raise SystemFailure(f"policy: refused the task {instruction!r}")
        return handle

    def _follows_the_arm(self) -> bool:
        if self._bridge.mode == BridgeStatus.FAULT:
            self.hold()
        return self._bridge.mode == BridgeStatus.HOLD and self._bridge.target_distance < SETTLED_DISTANCE_M

    def _describe_arm(self) -> str:
        return f"mode {self._bridge.mode} ({self._bridge.reason}), {self._bridge.target_distance:.3f} m away"

    def _is_active(self, client: Any) -> bool:
        """Asked again and again: a node that is just starting may lose an answer before it knows who asked."""
        answer = client.call_async(GetState.Request())
        deadline = time.monotonic() + STATE_TIMEOUT_S
        self._wait(lambda: answer.done() or time.monotonic() > deadline, READY_TIMEOUT_S, client.srv_name)
        return answer.done() and answer.result().current_state.id == State.PRIMARY_STATE_ACTIVE

    def _require(self, client: Any, request: Any) -> Any:
        """Call a service whose answer says whether it was done."""
        answer = self._call(client, request)
        if not answer.success:
            raise SystemFailure(f"{client.srv_name}: refused: {answer.message}")
        return answer

    def _call(self, client: Any, request: Any) -> Any:
        self._wait(client.service_is_ready, ANSWER_TIMEOUT_S, f"service {client.srv_name}")
        return self._finish(client.call_async(request), f"an answer of {client.srv_name}")

    def _finish(self, future: Future, what: str) -> Any:
        self._wait(future.done, ANSWER_TIMEOUT_S, what)
        return future.result()

    def _wait(
        self, condition: Callable[[], T], timeout_s: float, what: str, state: Callable[[], str] | None = None
    ) -> T:
        """Wait until `condition` gives something true, and return that.

        Raises:
            SystemFailure: after `timeout_s`, or when the alarm goes off.
        """
        deadline = time.monotonic() + timeout_s
        while not (result := condition()):
            alarm = self._alarm()
            if alarm is not None:
                raise SystemFailure(alarm)
            if time.monotonic() > deadline:
                detail = f" ({state()})" if state else ""
                raise SystemFailure(f"waited {timeout_s:g} s for {what}{detail}")
            time.sleep(POLL_S)
        return result

    def _now_ns(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def _on_bridge_status(self, message: BridgeStatus) -> None:
        self._bridge = message

    def _on_scene_status(self, message: SceneStatus) -> None:
        self._scene = message

    def _spin(self) -> None:
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass


def _plain(value: Any) -> Any:
    """Arrays as lists, for JSON."""
    return value.tolist() if hasattr(value, "tolist") else value
