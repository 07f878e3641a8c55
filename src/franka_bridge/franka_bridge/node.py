"""The safety layer as a ROS node: topics, services, and the one thread that keeps time."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from molmoact_msgs.msg import ActionChunk, BridgeStatus, TeleopCommand
from molmoact_msgs.srv import SetMode
from molmoact_ros.diagnostics import ERROR, OK, WARN, DiagnosticsPublisher, Status
from molmoact_ros.node import ConfigurationError, ManagedNode, Worker, run
from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import LATCHED, qos_profile
from molmoact_ros.stamps import to_nanoseconds
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.duration import Duration
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from franka_bridge.arbitration import Arm, ArmSetup, Mode
from franka_bridge.arm_topics import ArmTopics
from franka_bridge.bridge import Bridge
from franka_bridge.chunk import ArmFrames
from franka_bridge.errors import ChunkRefused, LimitError, RequestRefused
from franka_bridge.gripper import GripperThresholds
from franka_bridge.limits import Limits, Timeouts
from franka_bridge.messages import chunk_from, status_message, teleop_step_from
from franka_bridge.parameters import BridgeParameters
from franka_bridge.poses import Pose
from franka_bridge.timing import TickStatistics, run_at_rate, schedule_first

STATUS_PERIOD_S = 0.05
# Discovery itself takes tens of milliseconds; asking oftener finds nothing sooner.
GRAPH_PERIOD_S = 0.1
# An ordinary stop takes a fraction of a second. Longer, and a deactivation hangs.
STOP_TIMEOUT_S = 2.0
# A listener on this machine answers within milliseconds; one that was killed never does.
LAST_WORD_TIMEOUT_S = 0.3
# Error recovery takes one to three seconds on a robot; then its state has to say so.
RECOVERY_TIMEOUT_S = 10.0
RECOVERED_TIMEOUT_S = 3.0
# The robot speaks at 100 Hz or more. One that does not is refused control for its silence.
NEWS_TIMEOUT_S = 0.5
POLL_S = 0.02
LOG_PERIOD_S = 2.0
MAX_NOTES = 20
# Python threads give way after 5 ms by default, which is a whole tick.
SWITCH_INTERVAL_S = 0.0005

LEVELS = {Mode.FAULT: ERROR, Mode.EMERGENCY_STOP: ERROR}


class BridgeNode(ManagedNode):
    """Targets are published while the node is active. Callbacks and the tick share the bridge under one lock."""

    p: BridgeParameters

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("franka_bridge", BridgeParameters, **kwargs)
        self._lock = threading.Lock()
        self._recovering = threading.Lock()
        self._loops: list[Worker] = []
        self._notes: deque[str] = deque(maxlen=MAX_NOTES)

    # Lifecycle

    def set_up(self) -> None:
        try:
            self._bridge = self._make_bridge()
        except LimitError as error:
            raise ConfigurationError(f"parameter {error}") from error
        self._take_priority()
        self._statistics = TickStatistics()
        self._topics = {
            name: ArmTopics(self, self.p, self._bridge.arms[name], prefix, self._note)
            for name, prefix in zip(self.p.arms, self.p.arm_prefixes, strict=True)
        }
        self._create_interfaces()

    def start(self) -> None:
        self._published: dict[str, tuple[Any, ...]] = {}
        self._status_due_s = 0.0
        with self._lock:
            self._bridge.restart()
        for topics in self._topics.values():
            topics.open()
        self._loops = [self.spawn("tick", self._keep_time), self.spawn("graph", self._watch_graph)]

    def stop(self, reason: str) -> None:
        with self._lock:
            self._bridge.hold(reason)
        deadline_s = time.monotonic() + STOP_TIMEOUT_S
        while not self._bridge.at_rest and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        for loop in self._loops:
            loop.stop()
        self._publish_statuses()  # the last word is why it stopped: it must not get lost with its publisher
        self._status.wait_for_all_acked(Duration(seconds=LAST_WORD_TIMEOUT_S))
        for topics in self._topics.values():
            topics.close()

    def _make_bridge(self) -> Bridge:
        p = self.p
        if len(p.arm_prefixes) != len(p.arms) or len(set(p.arms)) != len(p.arms) or not p.arms:
            raise LimitError(f"arm_prefixes: {p.arm_prefixes}, expected one for each of the different arms {p.arms}")
        values = asdict(p)
        thresholds = GripperThresholds(p.gripper_close_below, p.gripper_open_above)
        setups = []
        for index, (name, prefix) in enumerate(zip(p.arms, p.arm_prefixes, strict=True)):
            frame_prefix = prefix.replace("/", "_")
            frames = ArmFrames(frame_prefix + p.base_frame, frame_prefix + p.tcp_frame)
            setups.append(ArmSetup(name, frames, self._home(index), thresholds))
        return Bridge(setups, Limits.from_values(values), Timeouts.from_values(values), 1.0 / p.rate)

    def _home(self, index: int) -> Pose:
        """The home pose of one arm. LimitError if the parameters have none for it."""
        for name, size in (("home_position", 3), ("home_quaternion", 4)):
            value = getattr(self.p, name)
            if value is None or len(value) != size * len(self.p.arms):
                raise LimitError(f"{name}: {value}, expected {size} numbers for each of {len(self.p.arms)} arm(s)")
        position, quaternion = self.p.home_position, self.p.home_quaternion
        try:
            return Pose.of(position[3 * index : 3 * index + 3], quaternion[4 * index : 4 * index + 4])
        except ValueError as error:
            raise LimitError(f"home_position, home_quaternion: {error}") from error

    def _take_priority(self) -> None:
        if self.p.realtime_priority == 0:
            return
        try:
            schedule_first(self.p.realtime_priority)
        except OSError as error:
            self.get_logger().info(f"ordinary scheduling, ticks may come late on a busy machine: {error.strerror}")

    def _create_interfaces(self) -> None:
        self._status = self.create_publisher(BridgeStatus, "bridge_status", qos_profile("reliable", depth=10))
        self._simulated_time = PolledSubscription(self, Clock, "/clock", qos_profile("best_effort"))
        self._simulated_ns = 0  # before it has begun
        # An emergency stop waits for no other callback: the tick reads the topic, the service has its own group.
        self._stops = PolledSubscription(self, Bool, "emergency_stop", qos_profile("reliable", depth=10))
        stop_group, recovery_group = MutuallyExclusiveCallbackGroup(), MutuallyExclusiveCallbackGroup()
        self.create_service(Trigger, "trigger_emergency_stop", self._on_trigger, callback_group=stop_group)
        self.create_service(Trigger, "release_emergency_stop", self._on_release)
        self.create_service(Trigger, "recover", self._on_recover, callback_group=recovery_group)
        self.create_service(SetMode, "set_mode", self._on_set_mode, callback_group=MutuallyExclusiveCallbackGroup())
        queue = qos_profile("reliable", depth=10)
        self._chunks = self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, queue)
        self.create_subscription(TeleopCommand, "teleop_command", self._on_teleop, qos_profile("best_effort", depth=10))
        self.create_subscription(String, "task", self._on_task, LATCHED)
        DiagnosticsPublisher(self, self._report)

    # What comes in

    def _now_ns(self) -> int:
        """The node's time. Simulated time is read by the tick, as are the poses it is compared with: none is late."""
        clock = self.get_clock()
        return self._simulated_ns if clock.ros_time_is_active else clock.now().nanoseconds

    def _on_chunk(self, message: ActionChunk) -> None:
        # A policy that was started again may have been quicker than the watch on the graph.
        policies = self._policies()
        with self._lock:
            self._bridge.on_policies(policies)
            try:
                self._bridge.on_chunk(chunk_from(message), self._now_ns())
            except ChunkRefused:
                self._note(f"refused {self._bridge.last_refusal}")

    def _on_teleop(self, message: TeleopCommand) -> None:
        with self._lock:
            try:
                self._bridge.on_teleop(teleop_step_from(message), self._now_ns())
            except RequestRefused as refused:
                self._note(f"teleop_command refused: {refused}")

    def _on_task(self, message: String) -> None:
        with self._lock:
            self._bridge.on_task(message.data)

    def _on_set_mode(self, request: SetMode.Request, response: SetMode.Response) -> SetMode.Response:
        def set_mode() -> str:
            self._bridge.set_mode(request.arm, request.mode, self._now_ns())
            return ""

        if request.mode != Mode.HOLD:
            self._hear_from_the_robot()
        return self._answer(response, set_mode)

    def _hear_from_the_robot(self) -> None:
        """Wait, bounded, for news of every arm: nothing from before a request shall be found out after granting it."""
        asked_ns, deadline_s = self._now_ns(), time.monotonic() + NEWS_TIMEOUT_S
        while time.monotonic() < deadline_s and self.active:
            with self._lock:
                if all(arm.heard_since(asked_ns) for arm in self._bridge.arms.values()):
                    return
            time.sleep(POLL_S)

    def _on_trigger(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def trigger() -> str:
            self._bridge.emergency_stop("asked for by the operator")
            return "stopping; call release_emergency_stop to go on"

        return self._answer(response, trigger)

    def _on_release(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        def release() -> str:
            self._bridge.release_emergency_stop()
            return "released: the arm holds"

        return self._answer(response, release)

    def _answer(self, response: Any, work: Callable[[], str]) -> Any:
        """Do `work` on the bridge and say how it went."""
        try:
            if not self.active:
                raise RequestRefused("the bridge is not active")
            with self._lock:
                response.message = work()
            response.success = True
        except RequestRefused as refused:
            response.message = str(refused)
        return response

    # Recovery: the only work that takes time, one at a time

    def _on_recover(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if not self._recovering.acquire(blocking=False):
            response.message = "a recovery is under way"
            return response
        try:
            response.message = self._recover()
            response.success = True
        except RequestRefused as refused:
            response.message = str(refused)
        finally:
            self._recovering.release()
        return response

    def _recover(self) -> str:
        if not self.active:
            raise RequestRefused("the bridge is not active")
        with self._lock:
            faulty = [arm for arm in self._bridge.arms.values() if arm.mode is Mode.FAULT]
            in_reflex = [self._topics[arm.setup.name] for arm in faulty if arm.begin_recovery()]
        if not faulty:
            raise RequestRefused("no arm has a fault to recover from")
        for topics in in_reflex:
            topics.recover(RECOVERY_TIMEOUT_S)
        for arm in faulty:
            self._finish_recovery(arm)
        return "recovered: the arm holds"

    def _finish_recovery(self, arm: Arm) -> None:
        """Wait, bounded, until the robot's state agrees that the fault is gone. RequestRefused if it does not."""
        deadline_s = time.monotonic() + RECOVERED_TIMEOUT_S
        while True:
            with self._lock:
                try:
                    return arm.finish_recovery(self._now_ns())
                except RequestRefused:
                    if time.monotonic() > deadline_s:
                        raise
            time.sleep(POLL_S)

    # The tick

    def _keep_time(self, stop: threading.Event) -> None:
        run_at_rate(1.0 / self.p.rate, self._tick, stop, self._statistics)

    def _tick(self) -> None:
        stops = self._stops.take()
        with self._lock:
            if any(message.data for message in stops):
                self._bridge.emergency_stop("topic emergency_stop")
            for topics in self._topics.values():
                topics.read()
            # After the poses, which are not newer than it, however long this thread had to wait before it read them.
            for message in self._simulated_time.take():
                self._simulated_ns = to_nanoseconds(message.clock)
            now_ns = self._now_ns()
            targets = self._bridge.advance(now_ns, time.monotonic_ns())
            for topics in self._topics.values():
                topics.command_hand()
        for target in targets:
            self._topics[target.arm].send(target.pose, target.stamp_ns)
        self._publish_statuses()

    def _publish_statuses(self) -> None:
        with self._lock:
            statuses = self._statuses(self._now_ns())
        for status in statuses:
            self._status.publish(status)

    def _statuses(self, now_ns: int) -> list[BridgeStatus]:
        """The status of every arm when it is time, and at once of an arm whose mode, reason or refusals changed."""
        now_s = time.monotonic()
        due = now_s >= self._status_due_s
        if due:
            self._status_due_s = now_s + STATUS_PERIOD_S
        statuses = []
        for name, arm in self._bridge.arms.items():
            state = (arm.mode, arm.reason, self._bridge.counters["chunks_refused"], self._bridge.last_refusal)
            if due or state != self._published.get(name):
                self._published[name] = state
                statuses.append(status_message(self._bridge, arm, now_ns))
        return statuses

    # What else has to be watched

    def _watch_graph(self, stop: threading.Event) -> None:
        modes: dict[str, Mode] = {}
        while not stop.wait(GRAPH_PERIOD_S):
            self._log(modes)
            policies = self._policies()
            conflicts = {name: topics.conflict() for name, topics in self._topics.items()}
            with self._lock:
                self._bridge.on_policies(policies)
                for name, conflict in conflicts.items():
                    self._bridge.arms[name].on_conflict(conflict)

    def _log(self, modes: dict[str, Mode]) -> None:
        """Log what was noted and which of `modes` changed. Here, because a line of rclpy's log takes up to 20 ms."""
        while self._notes:
            self.get_logger().warning(self._notes.popleft(), throttle_duration_sec=LOG_PERIOD_S)
        for name, arm in self._bridge.arms.items():
            if arm.mode is modes.get(name):
                continue
            modes[name] = arm.mode
            text = f"{name}: {arm.mode.name}: {arm.reason}"
            if arm.mode in LEVELS:
                self.get_logger().error(text)
            else:
                self.get_logger().info(text)

    def _policies(self) -> frozenset[bytes]:
        publishers = self.get_publishers_info_by_topic(self._chunks.topic_name)
        return frozenset(bytes(publisher.endpoint_gid) for publisher in publishers)

    def _report(self) -> list[Status]:
        with self._lock:
            arms = [self._arm_report(name, arm) for name, arm in self._bridge.arms.items()]
            refused = self._bridge.counters["chunks_refused"]
            chunks = Status(
                "chunks",
                WARN if refused else OK,
                self._bridge.last_refusal or "ok",
                {name: count for name, count in sorted(self._bridge.counters.items()) if name != "periods_skipped"},
            )
            skipped = self._bridge.counters["periods_skipped"]
        timing = {f"{name}_ms": value for name, value in self._statistics.milliseconds().items()}
        return [*arms, chunks, Status("tick", values={**timing, "periods_skipped": skipped})]

    @staticmethod
    def _arm_report(name: str, arm: Arm) -> Status:
        values = {"mode": arm.mode.name, "target_distance": arm.target_distance, **dict(sorted(arm.counters.items()))}
        return Status(name, LEVELS.get(arm.mode, OK), arm.reason, values)

    def _note(self, text: str) -> None:
        """Leave a warning for the log; what came before and is not written yet may be lost, the newest is not."""
        self._notes.append(text)


def main() -> None:
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    sys.exit(run(BridgeNode))
