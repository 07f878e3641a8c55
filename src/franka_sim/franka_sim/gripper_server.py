"""The Franka Hand on the interfaces of franka_gripper: homing, move, grasp, stop."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from franka_msgs.action import Grasp, Homing, Move
from molmoact_ros.node import ManagedNode
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from std_srvs.srv import Trigger

from franka_sim.gripper import GripperState
from franka_sim.simulation import Simulation

FEEDBACK_PERIOD_S = 1.0 / 30.0  # also how late the end of a command may be noticed
MOVE_TOLERANCE_M = 0.005  # a move has succeeded when the width is this close to the goal's
CLOSED_M = 0.002  # fingers closer than this have nothing between them


class _Command:
    """A gripper command under way. Whoever ends it early says why; the first reason counts."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.interrupted = threading.Event()
        self.reason = ""

    def interrupt(self, reason: str) -> None:
        with self._lock:
            self.reason = self.reason or reason
        self.interrupted.set()


class GripperServer:
    """Actions and service of one hand. Like the hand, it knows one command at a time: a newer one replaces the older,
    which is aborted. Like franka_gripper, it accepts every goal and aborts, with `error`, what cannot be done.
    """

    def __init__(self, node: ManagedNode, simulation: Simulation, arm: int, arm_prefix: str) -> None:
        self._node = node
        self._simulation = simulation
        self._arm = arm
        self._maximum_width = simulation.config.gripper.maximum_width
        self._lock = threading.Lock()
        self._running: _Command | None = None
        # A running command waits in its callback, and the goal that replaces it has to get through meanwhile.
        group = ReentrantCallbackGroup()
        for name, action, execute in (
            ("homing", Homing, self._home),
            ("move", Move, self._move),
            ("grasp", Grasp, self._grasp),
        ):
            ActionServer(
                node,
                action,
                f"{arm_prefix}franka_gripper/{name}",
                execute,
                callback_group=group,
                cancel_callback=lambda _: CancelResponse.ACCEPT,
            )
        node.create_service(Trigger, f"{arm_prefix}franka_gripper/stop", self._stop, callback_group=group)

    def interrupt(self, reason: str) -> bool:
        """End the running command where it is, with this reason in its result; False when none is running."""
        with self._lock:
            running = self._running
            if running is not None:
                self._simulation.stop_gripper(self._arm)
                running.interrupt(reason)
        return running is not None

    def _home(self, goal: ServerGoalHandle) -> Homing.Result:
        def complaint(state: GripperState) -> str:
            return _missed(state.width, self._maximum_width, MOVE_TOLERANCE_M, MOVE_TOLERANCE_M)

        return self._execute(goal, Homing, partial(self._simulation.home_gripper, self._arm), complaint)

    def _move(self, goal: ServerGoalHandle) -> Move.Result:
        width, speed = goal.request.width, goal.request.speed
        refusal = self._width_refusal(width) or _not_positive("speed", speed, "m/s")

        def complaint(state: GripperState) -> str:
            return _missed(state.width, width, MOVE_TOLERANCE_M, MOVE_TOLERANCE_M)

        start = partial(self._simulation.set_gripper, self._arm, width, speed)
        return self._execute(goal, Move, start, complaint, refusal)

    def _grasp(self, goal: ServerGoalHandle) -> Grasp.Result:
        request = goal.request
        width, speed, force = request.width, request.speed, request.force
        refusal = (
            self._width_refusal(width) or _not_positive("speed", speed, "m/s") or _not_positive("force", force, "N")
        )

        def complaint(state: GripperState) -> str:
            if state.width < CLOSED_M:
                return "nothing between the fingers"
            return _missed(state.width, width, request.epsilon.inner, request.epsilon.outer)

        start = partial(self._simulation.set_gripper, self._arm, width, speed, force)
        return self._execute(goal, Grasp, start, complaint, refusal)

    def _execute(
        self,
        goal: ServerGoalHandle,
        action: Any,
        start: Callable[[], object],
        complaint: Callable[[GripperState], str],
        refusal: str = "",
    ) -> Any:
        """Run one command to its end; `complaint` says of the final state why it is no success, "" when it is one."""
        if refusal:
            goal.abort()
            return action.Result(success=False, error=refusal)
        command = _Command()
        self._replace_running(command, start)
        state = self._follow(goal, action, command)
        error = command.reason or complaint(state)
        if goal.is_cancel_requested:
            goal.canceled()
        elif error:
            goal.abort()
        else:
            goal.succeed()
        return action.Result(success=not error, error=error)

    def _replace_running(self, command: _Command, start: Callable[[], object]) -> None:
        with self._lock:
            if self._running is not None:
                self._running.interrupt("replaced by a newer command")
            self._running = command
            start()

    def _follow(self, goal: ServerGoalHandle, action: Any, command: _Command) -> GripperState:
        """Feedback until the fingers stand, the goal is cancelled or the command is interrupted; the state then."""
        while True:
            state = self._simulation.gripper_state(self._arm)
            goal.publish_feedback(action.Feedback(current_width=state.width))
            if not state.moving or command.interrupted.wait(FEEDBACK_PERIOD_S):
                break
            if goal.is_cancel_requested:
                self._simulation.stop_gripper(self._arm)
                command.interrupt("cancelled")
        with self._lock:
            if self._running is command:
                self._running = None
        return state

    def _stop(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = True
        response.message = "stopped" if self.interrupt("stopped by franka_gripper/stop") else "no command was running"
        return response

    def _width_refusal(self, width: float) -> str:
        if math.isfinite(width) and 0.0 <= width <= self._maximum_width:
            return ""
        return f"width {width} m is outside 0.0 .. {self._maximum_width}"


def _not_positive(name: str, value: float, unit: str) -> str:
    return "" if math.isfinite(value) and value > 0.0 else f"{name} {value} {unit} is not a positive number"


def _missed(width: float, goal: float, inner: float, outer: float) -> str:
    """As libfranka: the final width has to be within goal - inner .. goal + outer."""
    if goal - inner < width < goal + outer:
        return ""
    return f"final width {width:.4f} m is outside {goal - inner:.4f} .. {goal + outer:.4f}"
