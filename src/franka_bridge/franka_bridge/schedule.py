"""A chunk in time: anchored once at the pose the arm had when the observation was taken, then followed row by row."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

import numpy as np

from franka_bridge.chunk import NANOSECONDS, ArmSteps, Chunk
from franka_bridge.limits import Limits
from franka_bridge.poses import Pose

# A goal may be this much faster than the limit before it counts as too fast: rounding of a policy's own clipping.
SPEED_TOLERANCE = 1e-6


class PoseHistory:
    """The measured poses of the last `span` seconds, by header stamp."""

    def __init__(self, span: float) -> None:
        self._span_ns = round(span * NANOSECONDS)
        self._stamps: deque[int] = deque()
        self._poses: deque[Pose] = deque()

    def add(self, stamp_ns: int, pose: Pose) -> None:
        """Append a pose; its stamp must be newer than the last."""
        self._stamps.append(stamp_ns)
        self._poses.append(pose)
        # The newest pose before the span stays, to interpolate from.
        while len(self._stamps) > 1 and self._stamps[1] < stamp_ns - self._span_ns:
            self._stamps.popleft()
            self._poses.popleft()

    def clear(self) -> None:
        self._stamps.clear()
        self._poses.clear()

    def at(self, stamp_ns: int, largest_gap: float) -> Pose | None:
        """The pose at `stamp_ns`, interpolated; None where no two poses at most `largest_gap` seconds apart enclose it.

        For a stamp newer than every pose, which an image may have by a few milliseconds, the newest pose if it is no
        further away than that.
        """
        gap_ns = round(largest_gap * NANOSECONDS)
        after = bisect_right(self._stamps, stamp_ns)
        if after == 0:
            return None
        since_ns = stamp_ns - self._stamps[after - 1]
        if after == len(self._stamps) or since_ns == 0:
            return self._poses[after - 1] if since_ns <= gap_ns else None
        length_ns = self._stamps[after] - self._stamps[after - 1]
        if length_ns > gap_ns:
            return None
        return self._poses[after - 1].towards(self._poses[after], since_ns / length_ns)


class Schedule:
    """The goal of one arm over the rows of one chunk.

    Row i is due at start + (i + 1) * step_period; in between the goal moves evenly, and before the start it is the
    anchor. Positions are clipped to the workspace box as absolute points, so a path that leaves the box and comes back
    comes back to where it would have been.

    The goal waits when it is further than `max_target_distance` or `max_target_angle` ahead of the reference that
    follows it, so it never runs away from an arm that is slower than the policy believes; once the arm is near the
    point that is due by the clock, the goal is there again.
    """

    def __init__(self, chunk: Chunk, steps: ArmSteps, in_tool_frame: bool, anchor: Pose, now_ns: int, limits: Limits):
        self.sequence = chunk.sequence
        self.end_ns = chunk.end_ns(steps)
        self._limits = limits
        self._start_ns = chunk.start_ns
        self._period_ns = chunk.step_period_ns
        self._gripper = steps.gripper
        self._rows = steps.rows
        # [rows + 1] poses, of which the first is the anchor
        raw = _integrate(anchor, steps, in_tool_frame)
        self._waypoints = [Pose(limits.clipped(pose.position), pose.quaternion) for pose in raw]
        self._clipped = [limits.outside(pose.position) is not None for pose in raw]
        self._too_fast = self._rows_too_fast(steps)
        # Rows whose time has passed on arrival are in the goal already: integrated, not replayed.
        self._progress = self._rows_due(now_ns)
        self._followed_ns = now_ns
        self.late_rows = int(self._progress)
        self.waiting = False

    def follow(self, now_ns: int, reference: Pose) -> Pose:
        """The goal at `now_ns` for a reference that has come as far as `reference`. Times must not decrease."""
        due = self._rows_due(now_ns)
        elapsed, self._followed_ns = (now_ns - self._followed_ns) / self._period_ns, now_ns
        for progress in (due, min(due, self._progress + elapsed)):
            goal = self._goal(progress)
            if self._limits.near(goal, reference):
                self._progress = progress
                break
        else:
            goal = self._goal(self._progress)
        self.waiting = self._progress < due
        return goal

    @property
    def row(self) -> int:
        """The row being executed, 0 .. rows - 1."""
        return min(int(self._progress), self._rows - 1)

    @property
    def finished(self) -> bool:
        """The goal is at the end of the last row."""
        return self._progress >= self._rows

    @property
    def clipped(self) -> bool:
        """The goal is on the workspace box because the chunk leads out of it."""
        return self._clipped[self.row + 1] or (self._clipped[self.row] and not self.finished)

    @property
    def too_fast(self) -> bool:
        """The row being executed asks for more than the speed limits, or the goal waits because an earlier one did."""
        return self.waiting or (self._too_fast[self.row] and not self.finished)

    def gripper(self, now_ns: int) -> float | None:
        """Opening (0 closed .. 1 open) the row being executed asks for; None before the chunk starts."""
        return None if now_ns < self._start_ns else float(self._gripper[self.row])

    def _rows_due(self, now_ns: int) -> float:
        """Rows, and the part of the present one, whose time has come: 0 .. rows."""
        return min(max((now_ns - self._start_ns) / self._period_ns, 0.0), float(self._rows))

    def _goal(self, progress: float) -> Pose:
        row = min(int(progress), self._rows - 1)
        return self._waypoints[row].towards(self._waypoints[row + 1], progress - row)

    def _rows_too_fast(self, steps: ArmSteps) -> list[bool]:
        period = self._period_ns / NANOSECONDS
        allowed = 1.0 + SPEED_TOLERANCE
        linear = np.linalg.norm(steps.translations, axis=1) > allowed * self._limits.linear_speed * period
        angular = np.linalg.norm(steps.rotations, axis=1) > allowed * self._limits.angular_speed * period
        return (linear | angular).tolist()


def _integrate(anchor: Pose, steps: ArmSteps, in_tool_frame: bool) -> list[Pose]:
    """The anchor and the pose after every row."""
    poses = [anchor]
    for translation, rotation in zip(steps.translations, steps.rotations, strict=True):
        step = poses[-1].moved_in_tool if in_tool_frame else poses[-1].moved
        poses.append(step(translation, rotation))
    return poses
