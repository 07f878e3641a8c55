"""Who moves one arm: the modes, what leads from one to another, and the target that follows from it, tick by tick."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from franka_bridge.chunk import CLOCK_TOLERANCE_S, NANOSECONDS, ArmFrames, ArmSteps, Chunk
from franka_bridge.errors import ChunkRefused, MotionError, Refusal, RequestRefused
from franka_bridge.gripper import Gripper, GripperThresholds
from franka_bridge.limits import Limits, Timeouts
from franka_bridge.motion import MotionGenerator
from franka_bridge.poses import Pose, Vector, norm
from franka_bridge.schedule import PoseHistory, Schedule
from franka_bridge.watchdogs import Freshness, jump

# Homing is finished, and a target is back at the arm, this close.
ARRIVED_M = 1e-6
ARRIVED_RAD = 1e-6
# An arm this far outside the workspace box is where the policy was never meant to be; closer, it leans on an edge.
WORKSPACE_TOLERANCE_M = 0.01


class Mode(IntEnum):
    """The modes of molmoact_msgs/BridgeStatus, by their numbers there."""

    HOLD = 0
    POLICY = 1
    TELEOP = 2
    HOMING = 3
    FAULT = 4
    EMERGENCY_STOP = 5


class RobotMode(IntEnum):
    """franka_msgs/FrankaRobotState.robot_mode."""

    OTHER = 0
    IDLE = 1
    MOVE = 2
    GUIDING = 3
    REFLEX = 4
    USER_STOPPED = 5
    AUTOMATIC_ERROR_RECOVERY = 6


_ROBOT_MODES = frozenset(RobotMode)
# In these modes something moves the target; in the others it is at rest or on its way there.
MOVING_MODES = (Mode.POLICY, Mode.TELEOP, Mode.HOMING)
# The modes an operator may ask for; the others are entered by what happens.
REQUESTABLE_MODES = (Mode.HOLD, *MOVING_MODES)
# After these nothing moves again before the operator asks for recovery.
STOPPED_AT_THE_ROBOT = {
    RobotMode.REFLEX: "reflex: the robot stopped itself",
    RobotMode.USER_STOPPED: "user stop: the robot was stopped by hand",
}


@dataclass(frozen=True)
class ArmSetup:
    """What the bridge knows about one arm."""

    name: str
    frames: ArmFrames
    home: Pose
    gripper: GripperThresholds


@dataclass(frozen=True)
class TeleopStep:
    """molmoact_msgs/TeleopCommand without ROS."""

    arm: str
    stamp_ns: int
    frame_id: str  # the frame the delta is expressed in
    translation: Vector  # [3] m
    rotation: Vector  # [3] rotation vector, rad
    gripper: float  # 0 closed .. 1 open
    enabled: bool

    def check(self, now_ns: int, frames: ArmFrames, limits: Limits, timeouts: Timeouts) -> None:
        """RequestRefused for a step in another frame, not finite, too large, or not of the present."""
        if self.frame_id not in (frames.base, frames.tool):
            raise RequestRefused(f"frame '{self.frame_id}' is neither '{frames.base}' nor '{frames.tool}'")
        if not (np.isfinite(self.translation).all() and np.isfinite(self.rotation).all()):
            raise RequestRefused("a number of the delta is NaN or infinite")
        if not 0.0 <= self.gripper <= 1.0:
            raise RequestRefused(f"gripper is {self.gripper}, expected 0 .. 1")
        translation, rotation = norm(self.translation), norm(self.rotation)
        if translation > limits.max_delta_translation:
            raise RequestRefused(f"translation is {translation:.4g} m, at most {limits.max_delta_translation} m")
        if rotation > limits.max_delta_rotation:
            raise RequestRefused(f"rotation is {rotation:.4g} rad, at most {limits.max_delta_rotation} rad")
        age = (now_ns - self.stamp_ns) / NANOSECONDS
        if not -CLOCK_TOLERANCE_S <= age <= timeouts.teleop_timeout:
            raise RequestRefused(f"the command is {age:.3f} s old, at most {timeouts.teleop_timeout} s")


class Arm:
    """One arm's mode, goal and target. Not thread-safe; times are nanoseconds of the ROS clock.

    `tick` is the only thing that moves the target; everything else says where it should go, or that it must not.
    """

    def __init__(self, setup: ArmSetup, limits: Limits, timeouts: Timeouts, period: float) -> None:
        self.setup = setup
        self.mode = Mode.HOLD
        self.reason = "started"
        self.counters: Counter[str] = Counter()
        self.gripper = Gripper(setup.gripper)
        self._limits = limits
        self._timeouts = timeouts
        self._period = period
        self._history = PoseHistory(timeouts.max_observation_age + timeouts.pose_timeout)
        self._pose_freshness = Freshness("current_pose", timeouts.pose_timeout)
        self._state_freshness = Freshness("robot_state", timeouts.robot_state_timeout)
        self._measured: Pose | None = None
        self._measured_ns = 0
        self._robot_mode = RobotMode.OTHER
        self._state_ns = 0
        self._not_ready = False
        self._conflict: str | None = None
        self._motion: MotionGenerator | None = None
        self._schedule: Schedule | None = None
        self._goal: Pose | None = None
        self._teleop_ns = 0
        self._emergency_braking = False

    def restart(self) -> None:
        """Forget where the arm was, others may have moved it, and hold. Emergency stop and fault stay what they are."""
        self.hold("started")
        self._history.clear()
        self._measured = None
        self._measured_ns = 0
        self._motion = None

    # What the robot says.

    def on_pose(self, stamp_ns: int, pose: Pose) -> None:
        """A measured pose in the base frame. One that is not newer than the last is ignored."""
        before, before_ns = self._measured, self._measured_ns
        if before is not None and stamp_ns <= before_ns:
            return
        self._measured, self._measured_ns = pose, stamp_ns
        self._pose_freshness.seen(stamp_ns)
        jumped = before and jump(before, pose, (stamp_ns - before_ns) / NANOSECONDS, self._limits)
        if jumped:
            self._history.clear()  # nothing may be anchored, or interpolated, across the jump
        if jumped and self._motion is not None and self._robot_mode is RobotMode.MOVE:
            self._motion.seed(pose)
            self._watchdog_stop(Mode.HOLD, jumped)
        self._history.add(stamp_ns, pose)

    def on_robot_state(self, stamp_ns: int, robot_mode: int) -> None:
        """The robot's own mode; a number franka_msgs does not define counts as OTHER."""
        self._state_freshness.seen(stamp_ns)
        self._state_ns = stamp_ns
        self._robot_mode = RobotMode(robot_mode) if robot_mode in _ROBOT_MODES else RobotMode.OTHER

    def on_conflict(self, conflict: str | None) -> None:
        """Why the controller does not take this bridge's target, or None while it does."""
        if conflict is not None and conflict != self._conflict:
            self._watchdog_stop(Mode.HOLD, conflict)
        self._conflict = conflict

    def on_clock_jump(self, now_ns: int, reason: str) -> None:
        """Stamps from before cannot be compared with those to come."""
        self._history.clear()
        self._measured_ns = 0
        self._pose_freshness.clock_jumped(now_ns)
        self._state_freshness.clock_jumped(now_ns)
        self._watchdog_stop(Mode.HOLD, reason)

    def heard_since(self, stamp_ns: int) -> bool:
        """Pose and state are both stamped at `stamp_ns` or later."""
        return self._measured_ns >= stamp_ns and self._state_ns >= stamp_ns

    # What the operator asks for.

    def check_mode(self, mode: Mode, now_ns: int) -> None:
        """RequestRefused, with the reason, if the arm cannot be handed to `mode` now."""
        if mode not in REQUESTABLE_MODES:
            names = ", ".join(each.name for each in REQUESTABLE_MODES)
            raise RequestRefused(f"mode {mode.name} cannot be asked for (one of {names})")
        if self.mode is Mode.EMERGENCY_STOP:
            raise RequestRefused("the emergency stop is latched: call release_emergency_stop first")
        if self.mode is Mode.FAULT:
            raise RequestRefused(f"fault ({self.reason}): call recover first")
        if mode is not Mode.HOLD:
            self._check_ready(mode, now_ns)

    def set_mode(self, mode: Mode, now_ns: int) -> None:
        """Hand the arm to `mode`; asking for the mode it is in changes nothing. RequestRefused says why not.

        HOLD asked for while the target is further from the arm than the limit leads the target back to the arm.
        """
        self.check_mode(mode, now_ns)
        if mode is self.mode and mode in MOVING_MODES:
            return
        self._enter(mode, f"{mode.name} asked for by the operator")
        if mode is Mode.HOLD:
            self._return_to_arm()
        elif mode is Mode.HOMING:
            self._goal = self.setup.home
        else:
            self.gripper.forget()

    def emergency_stop(self, reason: str) -> None:
        """Stop as fast as the emergency limits allow, and stay stopped until released. The first reason stays."""
        if self.mode is not Mode.EMERGENCY_STOP:
            self._enter(Mode.EMERGENCY_STOP, f"emergency stop: {reason}")
            self._emergency_braking = True

    def release_emergency_stop(self) -> None:
        """Leave the emergency stop for HOLD. RequestRefused if there is none, or the arm is still stopping."""
        if self.mode is not Mode.EMERGENCY_STOP:
            raise RequestRefused(f"there is no emergency stop: mode {self.mode.name}")
        if not self.at_rest:
            raise RequestRefused("the arm is still stopping")
        self._emergency_braking = False
        self._enter(Mode.HOLD, "emergency stop released by the operator")

    def begin_recovery(self) -> bool:
        """Whether the robot's own error recovery has to be called to leave the fault. RequestRefused says why not."""
        if self.mode is not Mode.FAULT:
            raise RequestRefused(f"there is no fault to recover from: mode {self.mode.name}")
        if self._robot_mode is RobotMode.USER_STOPPED:
            raise RequestRefused("the user stop is pressed: release it at the robot first")
        return self._robot_mode is RobotMode.REFLEX

    def finish_recovery(self, now_ns: int) -> None:
        """Leave the fault for HOLD. RequestRefused says what is still wrong."""
        if self.mode is not Mode.FAULT:
            raise RequestRefused(f"overtaken by another stop: {self.reason}")
        fault = self._fault(now_ns)
        if fault:
            raise RequestRefused(fault)
        self._enter(Mode.HOLD, "recovered")
        self._return_to_arm()

    def hold(self, reason: str) -> None:
        """Stop and hold; an emergency stop and a fault stay what they are."""
        if self.mode in REQUESTABLE_MODES:
            self._enter(Mode.HOLD, reason)

    # What the policy and the teleoperator ask for.

    def check_takes_chunks(self) -> None:
        """ChunkRefused(WRONG_MODE) unless the arm is the policy's."""
        if self.mode is not Mode.POLICY:
            raise ChunkRefused(Refusal.WRONG_MODE, f"arm '{self.setup.name}' is in mode {self.mode.name}, not POLICY")

    def anchor(self, observation_ns: int) -> Pose:
        """The measured pose at the time of an observation. ChunkRefused(STALE) if it is not known."""
        pose = self._history.at(observation_ns, self._timeouts.pose_timeout)
        if pose is None:
            raise ChunkRefused(
                Refusal.STALE, f"the pose of arm '{self.setup.name}' at the stamp of the observation is not known"
            )
        return pose

    def execute(self, chunk: Chunk, steps: ArmSteps, anchor: Pose, now_ns: int) -> None:
        """Replace what is left of an older chunk. Only the goal jumps; the target goes there within the limits."""
        in_tool_frame = chunk.frame_id == self.setup.frames.tool
        self._schedule = Schedule(chunk, steps, in_tool_frame, anchor, now_ns, self._limits)
        self.counters["rows_integrated_late"] += self._schedule.late_rows
        self.reason = f"executing chunk {chunk.sequence}"

    def drop_rows(self, reason: str) -> None:
        """Forget the rows not yet executed, if there are any, and stop; the mode stays."""
        if self._schedule is not None:
            self._schedule = None
            self.gripper.leave_as_is()
            self.reason = reason

    def policy_died(self, reason: str) -> None:
        """Stop and hold if the arm is the policy's."""
        if self.mode is Mode.POLICY:
            self._watchdog_stop(Mode.HOLD, reason)

    def on_teleop(self, step: TeleopStep, now_ns: int) -> None:
        """Move the teleoperator's goal while the dead-man switch is held. RequestRefused if the step breaks a rule."""
        if self.mode is not Mode.TELEOP or self._motion is None:
            return
        if not step.enabled:
            self._release_teleop("dead-man switch released")
            return
        frames = self.setup.frames
        step.check(now_ns, frames, self._limits, self._timeouts)
        self._teleop_ns = step.stamp_ns
        self.gripper.want(step.gripper)
        self.reason = "teleop: dead-man switch held"
        before = self._goal or self._motion.stopping_pose()
        move = before.moved_in_tool if step.frame_id == frames.tool else before.moved
        moved = move(step.translation, step.rotation)
        goal = Pose(self._limits.clipped(moved.position), moved.quaternion)
        self.counters["limited_workspace"] += goal.distance(moved) > 0.0
        # What a hand does faster than the arm can follow is lost, or the arm would go on moving after the hand rests.
        near = self._limits.near(goal, self._motion.pose)
        self.counters["limited_speed"] += not near
        self._goal = goal if near else before

    # What is published.

    def tick(self, now_ns: int) -> Pose | None:
        """The target one period on; None as long as there is no measured pose."""
        if self._measured is None:
            self.reason = "waiting for current_pose"
            self._not_ready = True
            return None
        if self._motion is None:
            self._motion = MotionGenerator(self._limits, self._period, self._measured)
        self._watch_robot(now_ns)
        self._watch_inputs(now_ns)
        if self._robot_mode is not RobotMode.MOVE:
            # The controller does not listen; when it does again it must find its target where the arm is.
            self._motion.seed(self._measured)
        else:
            self._move(now_ns, self._motion, self._measured)
        return self._motion.pose

    @property
    def target_distance(self) -> float:
        """Metres between the target and the measured pose; 0.0 as long as there is neither."""
        if self._motion is None or self._measured is None:
            return 0.0
        return self._motion.pose.distance(self._measured)

    @property
    def sequence(self) -> int:
        """The chunk being executed, 0 when none is."""
        return self._schedule.sequence if self._schedule is not None else 0

    @property
    def row(self) -> int:
        """The row being executed, 0 when none is."""
        return self._schedule.row if self._schedule is not None else 0

    @property
    def at_rest(self) -> bool:
        """The target does not move."""
        return self._motion is None or self._motion.at_rest

    # How the target moves.

    def _move(self, now_ns: int, motion: MotionGenerator, measured: Pose) -> None:
        try:
            if self.mode in MOVING_MODES:
                self._watch_following(motion, measured)
            goal = self._next_goal(now_ns, motion)
            if self._emergency_braking:
                motion.brake(emergency=True)
                self._emergency_braking = not motion.at_rest
            elif goal is None:
                motion.brake()
            else:
                self._advance(goal, motion)
        except MotionError as error:
            motion.seed(motion.pose)
            self._watchdog_stop(Mode.FAULT, str(error))

    def _advance(self, goal: Pose, motion: MotionGenerator) -> None:
        limits = self._limits
        if self.mode in (Mode.POLICY, Mode.TELEOP):
            motion.advance(goal, limits.linear_speed, limits.angular_speed)
        else:
            motion.advance(goal, limits.homing_speed, limits.homing_angular_speed)
            if motion.at_rest and goal.distance(motion.pose) < ARRIVED_M and goal.angle(motion.pose) < ARRIVED_RAD:
                self._arrived()

    def _arrived(self) -> None:
        self._goal = None
        if self.mode is Mode.HOMING:
            self._enter(Mode.HOLD, "homing finished")

    def _next_goal(self, now_ns: int, motion: MotionGenerator) -> Pose | None:
        schedule = self._schedule
        if schedule is None:
            return self._goal
        goal = schedule.follow(now_ns, motion.pose)
        self.counters["limited_workspace"] += schedule.clipped
        self.counters["limited_speed"] += schedule.too_fast
        opening = schedule.gripper(now_ns)
        if opening is not None:
            self.gripper.want(opening)
        if schedule.finished and motion.at_rest:
            self.reason = f"chunk {schedule.sequence} finished: waiting for the next"
        return goal

    def _return_to_arm(self) -> None:
        """Lead the target back to an arm that was pushed away from it, slowly, so that the force on the arm fades."""
        measured = self._measured
        if self._motion is not None and measured is not None and not self._limits.near(self._motion.pose, measured):
            self._goal = measured

    def _release_teleop(self, reason: str) -> None:
        self._goal = None
        self.gripper.leave_as_is()
        self.reason = f"teleop: {reason}: holding"

    # What stops it.

    def _enter(self, mode: Mode, reason: str) -> None:
        """The one place where modes change: whatever was going on is over, so the arm stops unless given a new goal."""
        self.mode = mode
        self.reason = reason
        self._schedule = None
        self._goal = None
        self.gripper.leave_as_is()

    def _watchdog_stop(self, mode: Mode, reason: str) -> None:
        """Enter HOLD or FAULT for a cause nobody asked for. What was stopped for good keeps its first reason."""
        if self.mode in (Mode.EMERGENCY_STOP, Mode.FAULT):
            return
        if self.mode in MOVING_MODES or mode is Mode.FAULT:
            self.counters["watchdog_stops"] += 1
        self._enter(mode, reason)

    def _watch_inputs(self, now_ns: int) -> None:
        timeout = self._timeouts.chunk_timeout
        if self._schedule is not None and now_ns > self._schedule.end_ns + timeout * NANOSECONDS:
            self.counters["watchdog_stops"] += not self.at_rest
            self.drop_rows(f"no chunk for {timeout} s after the last row was due: holding")
        age = (now_ns - self._teleop_ns) / NANOSECONDS
        if self.mode is Mode.TELEOP and self._goal is not None and age > self._timeouts.teleop_timeout:
            self.counters["watchdog_stops"] += 1
            self._release_teleop(f"no teleop_command for {age:.2f} s")

    def _watch_robot(self, now_ns: int) -> None:
        fault = self._fault(now_ns)
        if fault and (self.mode in MOVING_MODES or self._robot_mode in STOPPED_AT_THE_ROBOT):
            self._watchdog_stop(Mode.FAULT, fault)
        elif fault:
            # Nothing was moving, and nothing will before the operator asks: the robot may come back by itself.
            self._wait(f"waiting for the robot: {fault}")
        elif self._robot_mode is not RobotMode.MOVE:
            self._wait(f"robot mode is {self._robot_mode.name}: the target follows the measured pose")
        elif self._not_ready:
            self._not_ready = False
            if self.mode is Mode.HOLD:
                self.reason = "holding: the robot is ready"

    def _wait(self, reason: str) -> None:
        self._not_ready = True
        if self.mode not in (Mode.EMERGENCY_STOP, Mode.FAULT):
            self._watchdog_stop(Mode.HOLD, reason)

    def _fault(self, now_ns: int) -> str | None:
        if self._robot_mode in STOPPED_AT_THE_ROBOT:
            return STOPPED_AT_THE_ROBOT[self._robot_mode]
        return self._pose_freshness.complaint(now_ns) or self._state_freshness.complaint(now_ns)

    def _watch_following(self, motion: MotionGenerator, measured: Pose) -> None:
        """Stop an arm that does not follow early enough for the end of the stop to be within the largest distance."""
        limits = self._limits
        if motion.at_rest and limits.near(motion.pose, measured):
            return
        end = motion.stopping_pose()
        # The state a tick from now is what a stop would start from.
        distance = measured.distance(end) + limits.linear_speed * self._period
        angle = measured.angle(end) + limits.angular_speed * self._period
        if distance > limits.max_target_distance:
            stop = f"target {distance:.3f} m ahead of the measured pose, at most {limits.max_target_distance} m"
        elif angle > limits.max_target_angle:
            stop = f"target {angle:.3f} rad ahead of the measured pose, at most {limits.max_target_angle} rad"
        else:
            return
        self._watchdog_stop(Mode.HOLD, f"the arm does not follow: {stop}")

    def _check_ready(self, mode: Mode, now_ns: int) -> None:
        fault = self._fault(now_ns)
        if fault:
            raise RequestRefused(fault)
        if self._robot_mode is not RobotMode.MOVE:
            raise RequestRefused(f"robot mode is {self._robot_mode.name}: the controller does not take targets")
        if self._motion is None or self._measured is None:
            raise RequestRefused("the bridge has not begun to publish targets")
        if self._conflict:
            raise RequestRefused(self._conflict)
        if not self._limits.near(self._motion.pose, self._measured):
            angle = self._motion.pose.angle(self._measured)
            raise RequestRefused(
                f"the target is {self.target_distance:.3f} m and {angle:.3f} rad from the arm, more than the limit: "
                "ask for HOLD to lead it back"
            )
        outside = self._limits.outside(self._motion.pose.position, WORKSPACE_TOLERANCE_M)
        if outside and mode is not Mode.HOMING:
            raise RequestRefused(f"the arm is outside the workspace box ({outside}): ask for HOMING or guide it back")
