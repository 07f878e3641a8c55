"""What must keep arriving, and what must not happen. Each watchdog answers with a reason a person can read, or None."""

from __future__ import annotations

from franka_bridge.chunk import CLOCK_TOLERANCE_S, NANOSECONDS
from franka_bridge.limits import Limits
from franka_bridge.poses import Pose

# Two measured poses further apart in time say nothing about the speed between them, so a gap allows no more than this.
LONGEST_STEP_S = 0.1
# Noise of the pose and of its stamp, beyond what the largest measured speed allows: 2 cm and 0.1 rad.
JUMP_TOLERANCE_M = 0.02
JUMP_TOLERANCE_RAD = 0.1


class Freshness:
    """That something stamped keeps arriving. Ages are of the header stamps, by the ROS clock."""

    def __init__(self, what: str, timeout: float) -> None:
        self._what = what
        self._timeout = timeout
        self._stamp_ns: int | None = None
        self._jump_ns: int | None = None

    def seen(self, stamp_ns: int) -> None:
        self._stamp_ns = stamp_ns

    def clock_jumped(self, now_ns: int) -> None:
        """Count the age from now, for one timeout: the stamps from before the jump say nothing."""
        self._jump_ns = now_ns

    def complaint(self, now_ns: int) -> str | None:
        """Why what was last seen cannot be relied on."""
        if self._stamp_ns is None:
            return f"no {self._what} yet"
        if self._jump_ns is not None and 0 <= now_ns - self._jump_ns <= self._timeout * NANOSECONDS:
            return None
        age = (now_ns - self._stamp_ns) / NANOSECONDS
        if age > self._timeout:
            return f"no {self._what} for more than {self._timeout} s"
        if age < -CLOCK_TOLERANCE_S:
            return f"{self._what} is stamped {-age:.1f} s in the future: are the clocks synchronised?"
        return None


class ClockWatch:
    """That the ROS clock never goes backward, nor forward by more than `largest_jump` seconds ahead of real time.

    A process that is not scheduled for a while sees a large step of both clocks, and that is no jump.
    """

    def __init__(self, largest_jump: float) -> None:
        self._largest_jump = largest_jump
        self._last: tuple[int, int] | None = None

    def complaint(self, now_ns: int, steady_ns: int) -> str | None:
        """How the ROS clock jumped since the last look; `steady_ns` is of a clock that cannot be set."""
        last, self._last = self._last, (now_ns, steady_ns)
        if last is None:
            return None
        step = (now_ns - last[0]) / NANOSECONDS
        if step < 0.0:
            return f"the clock jumped backward by {-step:.3f} s"
        if step - (steady_ns - last[1]) / NANOSECONDS > self._largest_jump:
            return f"the clock jumped forward by {step:.3f} s"
        return None


class PublisherWatch:
    """Who publishes chunks, by the identities the graph knows."""

    def __init__(self) -> None:
        self._publishers: frozenset[bytes] = frozenset()

    def update(self, publishers: frozenset[bytes]) -> tuple[bool, bool]:
        """(one has come, the last one has gone) since the last look."""
        before, self._publishers = self._publishers, publishers
        return bool(publishers - before), bool(before) and not publishers


def jump(before: Pose, after: Pose, elapsed: float, limits: Limits) -> str | None:
    """How an arm moved further in `elapsed` seconds than an arm can."""
    elapsed = min(elapsed, LONGEST_STEP_S)
    distance = before.distance(after)
    if distance > limits.max_measured_speed * elapsed + JUMP_TOLERANCE_M:
        return f"the measured pose jumped by {distance:.3f} m within {elapsed:.3f} s"
    angle = before.angle(after)
    if angle > limits.max_measured_angular_speed * elapsed + JUMP_TOLERANCE_RAD:
        return f"the measured pose jumped by {angle:.3f} rad within {elapsed:.3f} s"
    return None
