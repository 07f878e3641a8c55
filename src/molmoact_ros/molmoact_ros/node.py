"""The one lifecycle every node follows, and the one way a node process starts and ends.

A node fills in `set_up`, `start`, `stop` and `tear_down`; the transitions belong to the base and are not overridden:

    class BridgeNode(ManagedNode):
        def __init__(self, **kwargs):
            super().__init__("franka_bridge", BridgeParameters, **kwargs)

    def main():
        sys.exit(run(BridgeNode))
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.msg import State
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.action import ActionClient, ActionServer
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.exceptions import InvalidHandle, InvalidParameterTypeException
from rclpy.executors import Executor, ExternalShutdownException, MultiThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.publisher import Publisher
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription

from molmoact_ros.errors import ConfigurationError
from molmoact_ros.parameters import ParameterSet

__all__ = ["ConfigurationError", "ManagedNode", "Worker", "run", "spin"]

RCLError = rclpy_implementation.RCLError

# Enough for a callback that waits (an action) beside those that do not; more threads cost switches, not throughput.
EXECUTOR_THREADS = 4
# Without news from discovery for this long, the graph counts as known. Longer finds slow peers, shorter starts faster.
GRAPH_QUIET_S = 0.3
GRAPH_TIMEOUT_S = 1.0
# A peer may be silent for the middleware's announcement period (3 s by default). So long after `configure` a node
# still ends itself when it finds an older one of its name; later it is itself the older one.
NAMESAKE_WATCH_S = 4.0
NAMESAKE_PERIOD_S = 0.5
GRAPH_POLL_S = 0.05
# A worker may be inside a call that cannot be interrupted; the robot is already holding by then.
WORKER_STOP_TIMEOUT_S = 2.0
# Launch sends SIGTERM 5 s after SIGINT: be gone before.
END_TIMEOUT_S = 4.5
INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


class Worker:
    """A thread doing one node's slow work. `target(stop)` returns soon after the event `stop` is set."""

    def __init__(self, node: ManagedNode, name: str, target: Callable[[threading.Event], None]) -> None:
        self._node = node
        self._name = name
        self._target = target
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = WORKER_STOP_TIMEOUT_S) -> bool:
        """Ask the work to end and wait for it; False when it is still busy after `timeout_s`."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._node.get_logger().warning(f"{self._name}: still busy after {timeout_s} s")
            return False
        return True

    def _run(self) -> None:
        try:
            self._target(self._stop)
        except Exception as error:
            # What the work used may be gone when it overran its stop.
            if not self._stop.is_set():
                self._node.fail(f"{self._name}: {_reason(error)}", error)


class ManagedNode(LifecycleNode):
    """A lifecycle node whose parameters are a dataclass (molmoact_ros.parameters).

    `p` holds the values from `set_up` on. Raises ConfigurationError for parameters that are wrong or unknown.
    """

    p: Any

    def __init__(self, name: str, parameters_type: type, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self.ended = threading.Event()
        self.failure: str | None = None
        self._end_reason: str | None = None
        self._end_lock = threading.Lock()
        self._transition_lock = threading.RLock()
        self._workers: list[Worker] = []
        self._own_entities: set[tuple[Callable[[Any], object], Any]] = set()
        self._started = False
        self._finalized = False
        self.refusal = ""  # why the newest transition failed
        # What an executor has to know: whether entities it may wait for are being destroyed, and how often they were.
        self.destroying, self.destructions = False, 0
        try:
            self._declare_autostart()
            self._parameters_set = ParameterSet(self, parameters_type)
        except ConfigurationError:
            self.destroy_node()
            raise

    # What a node fills in.

    def set_up(self) -> None:
        """Create what the node needs. Raise ConfigurationError for anything the operator can put right."""

    def start(self) -> None:
        """Begin to act."""

    def stop(self, reason: str) -> None:
        """Cease to act and leave the robot holding. `reason` is for a person to read."""

    def tear_down(self) -> None:
        """Undo `set_up`, also a half-built one. Publishers, subscriptions, services and timers go by themselves."""

    # What a node may use.

    def create_subscription(self, *args: Any, **kwargs: Any) -> Subscription:
        """As rclpy's, without handlers for middleware events; molmoact_ros.matching finds what they would tell.

        A handler waits on a condition that is also true while messages wait to be taken. From the arrival of a message
        until its callback has the interpreter's lock the executor then spins, and spinning it lets nobody have that
        lock: the bridge stood still for 50 to 100 ms at every chunk.
        """
        return super().create_subscription(
            *args, event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False), **kwargs
        )

    def create_publisher(self, *args: Any, **kwargs: Any) -> Publisher:
        """As rclpy's, without handlers for middleware events, all of which the executor would have to wait for."""
        return super().create_publisher(
            *args, event_callbacks=PublisherEventCallbacks(use_default_callbacks=False), **kwargs
        )

    @property
    def active(self) -> bool:
        return self._started

    @property
    def finalized(self) -> bool:
        return self._finalized

    def spawn(self, name: str, target: Callable[[threading.Event], None]) -> Worker:
        """Run `target(stop)` in a thread until it returns, at the latest before `tear_down`.

        An exception in it ends the node with its reason.
        """
        worker = Worker(self, name, target)
        self._workers.append(worker)
        return worker

    def end(self, reason: str) -> None:
        """Ask the process to end in good order. The first reason given counts."""
        with self._end_lock:
            self._end_reason = self._end_reason or reason
        self.ended.set()

    def fail(self, reason: str, error: BaseException | None = None) -> None:
        """End the process with exit code 1. The first failure counts."""
        with self._end_lock:
            self.failure = self.failure or reason
        if error is not None:
            self.get_logger().error("".join(traceback.format_exception(error)))
        self.end(reason)

    def autostart(self) -> None:
        """Configure and activate; a transition that fails ends the process with its reason."""
        for trigger in (self.trigger_configure, self.trigger_activate):
            if self.ended.is_set():
                return
            if trigger() != TransitionCallbackReturn.SUCCESS:
                self.fail(self.refusal)

    # The transitions.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._transition_lock:
            return self._attempt("configure", self._configure, self._undo_configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._transition_lock:
            return self._attempt("activate", lambda: self._activate(state), lambda: self._stop("activation failed"))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._transition_lock:
            self._stop(self._end_reason or "deactivated")
            return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._transition_lock:
            self._undo_configure()
            return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._transition_lock:
            self._stop(self._end_reason or "shut down")
            if state.state_id != State.PRIMARY_STATE_UNCONFIGURED:
                self._undo_configure()
            self._finalized = True
            self.end("shut down by the lifecycle manager")
            return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        with self._transition_lock:
            self._stop("a lifecycle transition failed")
            self._undo_configure()
            return TransitionCallbackReturn.SUCCESS

    def _attempt(self, transition: str, step: Callable[[], None], undo: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except Exception as error:
            undo()
            # rclpy swallows what a transition raises; a configuration error explains itself without a traceback.
            if not isinstance(error, ConfigurationError):
                self.get_logger().error(traceback.format_exc())
            self.refusal = f"{transition} failed: {_reason(error)}"
            self.get_logger().error(self.refusal)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _declare_autostart(self) -> None:
        text = "configure and activate at start-up; false: a lifecycle manager does"
        try:
            self.declare_parameter("autostart", True, ParameterDescriptor(description=text, read_only=True))
        except InvalidParameterTypeException as error:
            raise ConfigurationError(f"parameter 'autostart': expected true or false ({text})") from error

    def _configure(self) -> None:
        # What exists now is rclpy's own; whatever `set_up` adds is destroyed again after `tear_down`.
        self._own_entities = self._entities()
        self._refuse_namesake()
        self.p = self._parameters_set.freeze()
        self.set_up()

    def _activate(self, state: LifecycleState) -> None:
        if super().on_activate(state) != TransitionCallbackReturn.SUCCESS:
            raise RuntimeError("a managed entity refused to be activated")
        self._started = True
        self.start()

    def _stop(self, reason: str) -> None:
        if not self._started:
            return
        self._started = False
        self._logged("stop", lambda: self.stop(reason))

    def _undo_configure(self) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        self._logged("tear_down", self.tear_down)
        self.destroying = True
        for destroy, entity in self._entities() - self._own_entities:
            destroy(entity)
        self.destructions += 1
        self.destroying = False
        self._parameters_set.thaw()

    def _entities(self) -> set[tuple[Callable[[Any], object], Any]]:
        actions = (waitable for waitable in self.waitables if isinstance(waitable, (ActionServer, ActionClient)))
        return {
            *((type(entity).destroy, entity) for entity in actions),
            *((self.destroy_subscription, entity) for entity in self.subscriptions),
            *((self.destroy_service, entity) for entity in self.services),
            *((self.destroy_client, entity) for entity in self.clients),
            *((self.destroy_timer, entity) for entity in self.timers),
            *((self.destroy_publisher, entity) for entity in self.publishers),
        }

    def _logged(self, name: str, step: Callable[[], None]) -> None:
        """Undoing goes on whatever one step of it raises; what it raised is logged."""
        try:
            step()
        except Exception:
            self.get_logger().error(f"{name} failed:\n{traceback.format_exc()}")

    def _refuse_namesake(self) -> None:
        self._wait_for_graph()
        if self._namesakes() > 1:
            raise ConfigurationError(self._namesake_complaint())
        self._namesake_deadline = time.monotonic() + NAMESAKE_WATCH_S
        self._namesake_timer = self.create_timer(
            NAMESAKE_PERIOD_S, self._watch_for_namesake, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def _watch_for_namesake(self) -> None:
        if self._namesakes() > 1:
            self.fail(self._namesake_complaint())
        if self.failure or time.monotonic() > self._namesake_deadline:
            self._namesake_timer.cancel()

    def _namesake_complaint(self) -> str:
        return (
            f"another node named '{self.get_fully_qualified_name()}' is running in ROS domain "
            f"{self.context.get_domain_id()}: end it, or give one of the two another name or ROS_DOMAIN_ID"
        )

    def _namesakes(self) -> int:
        return self.get_node_names_and_namespaces().count((self.get_name(), self.get_namespace()))

    def _wait_for_graph(self) -> None:
        deadline = time.monotonic() + GRAPH_TIMEOUT_S
        known, changed = None, time.monotonic()
        while time.monotonic() < min(deadline, changed + GRAPH_QUIET_S):
            nodes = sorted(self.get_node_names_and_namespaces())
            if nodes != known:
                known, changed = nodes, time.monotonic()
            time.sleep(GRAPH_POLL_S)


def run(node_type: Callable[[], ManagedNode], args: list[str] | None = None) -> int:
    """Run one node until it is interrupted, shut down or fails; the exit code of the process.

    0: interrupted (SIGINT, SIGTERM) or shut down in good order. 1: construction, configure, activate, a callback or
    a worker failed; the reason is the last line logged.
    """
    # A first SIGINT shall stop the node with a reason, which needs a context that is still alive.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = node_type()
    except ConfigurationError as error:
        get_logger(getattr(node_type, "__name__", "node")).fatal(str(error))
        rclpy.shutdown()
        return 1
    except KeyboardInterrupt:
        rclpy.shutdown()
        return 0
    for number in INTERRUPTS:
        signal.signal(number, lambda *_: _interrupt(node))
    executor = MultiThreadedExecutor(num_threads=EXECUTOR_THREADS)
    executor.add_node(node)
    spinner = threading.Thread(target=spin, args=(executor, node), name="executor", daemon=True)
    spinner.start()
    if node.get_parameter("autostart").value:
        node.autostart()
    node.ended.wait()
    _end(node, executor, spinner)
    if node.failure is not None:
        node.get_logger().fatal(node.failure)
    node.destroy_node()
    rclpy.shutdown()
    return int(node.failure is not None)


def _interrupt(node: ManagedNode) -> None:
    # `ros2 launch` repeats a Ctrl-C that its nodes had already: while the interpreter ends nobody would handle it.
    for number in INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_late, name="end watchdog", daemon=True).start()
    node.end("interrupted by the operator")


def _exit_late() -> None:
    time.sleep(END_TIMEOUT_S)
    get_logger("run").fatal(f"not ended {END_TIMEOUT_S} s after the interrupt: exiting without cleaning up")
    os._exit(1)


def spin(executor: Executor, node: ManagedNode) -> None:
    """Spin until the executor or the context is shut down; a callback that raises ends the node with its reason."""
    while True:
        destructions = node.destructions
        try:
            return executor.spin()
        except ExternalShutdownException:
            return node.end("the ROS context was shut down")
        except Exception as error:
            # What an executor is about to wait for cannot be destroyed without it noticing, nor can it itself be shut
            # down: its guard condition is then None.
            destroyed = node.destroying or node.destructions != destructions
            if isinstance(error, InvalidHandle) or (isinstance(error, (RCLError, AttributeError)) and destroyed):
                continue
            return node.fail(f"a callback failed: {_reason(error)}", error)


def _end(node: ManagedNode, executor: MultiThreadedExecutor, spinner: threading.Thread) -> None:
    """Deactivate, clean up, shut down, from whatever state the node is in."""
    if node.active:
        node.trigger_deactivate()
    if not node.finalized:
        node.trigger_shutdown()
    node.destroying = True
    executor.shutdown(timeout_sec=WORKER_STOP_TIMEOUT_S)
    spinner.join(WORKER_STOP_TIMEOUT_S)


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, ConfigurationError) else f"{type(error).__name__}: {error}"
