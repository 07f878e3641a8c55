"""What an action chunk is, and every rule it must keep before a single row of it may move an arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from franka_bridge.errors import ChunkRefused, Refusal
from franka_bridge.limits import Limits
from franka_bridge.poses import Vector

NANOSECONDS = 1_000_000_000
# The clocks of two machines, or two looks at /clock, differ by this much without anything being wrong.
CLOCK_TOLERANCE_S = 0.1
# A chunk may announce its start; more than this ahead it is a plan for a scene nobody has seen.
MAX_START_AHEAD_S = 1.0
# Outside these a step period is a mistake in units. The arm could follow neither.
MIN_STEP_PERIOD_S = 0.001
MAX_STEP_PERIOD_S = 10.0
# A thousand rows are 100 s at 10 Hz: no policy means that, and building the schedule would delay a tick.
MAX_ROWS = 1000


@dataclass(frozen=True)
class ArmSteps:
    """The rows of a chunk for one arm."""

    arm: str
    translations: Vector  # [rows, 3] m
    rotations: Vector  # [rows, 3] rotation vectors, rad
    gripper: Vector  # [rows] 0 closed .. 1 open

    @property
    def rows(self) -> int:
        return len(self.gripper)


@dataclass(frozen=True)
class Chunk:
    """molmoact_msgs/ActionChunk without ROS. Times are nanoseconds of the ROS clock."""

    sequence: int
    frame_id: str  # the frame the deltas are expressed in
    observation_ns: int
    start_ns: int
    step_period_ns: int
    arms: tuple[ArmSteps, ...]
    instruction: str

    def end_ns(self, steps: ArmSteps) -> int:
        """When the last row of `steps` is due."""
        return self.start_ns + steps.rows * self.step_period_ns


@dataclass(frozen=True)
class ArmFrames:
    """The frames a chunk may use for one arm."""

    base: str
    tool: str


def check_content(chunk: Chunk, arms: Mapping[str, ArmFrames], limits: Limits) -> None:
    """Everything about a chunk that depends on nothing but the chunk. ChunkRefused names the first rule it breaks."""
    if not chunk.arms:
        raise ChunkRefused(Refusal.EMPTY, "the chunk is for no arm")
    period = chunk.step_period_ns / NANOSECONDS
    if not MIN_STEP_PERIOD_S <= period <= MAX_STEP_PERIOD_S:
        raise ChunkRefused(
            Refusal.MALFORMED, f"step_period is {period} s, expected {MIN_STEP_PERIOD_S} .. {MAX_STEP_PERIOD_S} s"
        )
    seen = set()
    for steps in chunk.arms:
        if steps.arm not in arms:
            raise ChunkRefused(Refusal.UNKNOWN_ARM, f"arm '{steps.arm}' is not one of {', '.join(sorted(arms))}")
        if steps.arm in seen:
            raise ChunkRefused(Refusal.MALFORMED, f"arm '{steps.arm}' is in the chunk more than once")
        seen.add(steps.arm)
        frames = arms[steps.arm]
        if chunk.frame_id not in (frames.base, frames.tool):
            raise ChunkRefused(
                Refusal.WRONG_FRAME,
                f"frame '{chunk.frame_id}' is neither '{frames.base}' nor '{frames.tool}', arm '{steps.arm}'",
            )
        _check_steps(steps, limits)


def _check_steps(steps: ArmSteps, limits: Limits) -> None:
    if not 1 <= steps.rows <= MAX_ROWS:
        refusal = Refusal.MALFORMED if steps.rows else Refusal.EMPTY
        raise ChunkRefused(refusal, f"{steps.rows} rows for arm '{steps.arm}', expected 1 .. {MAX_ROWS}")
    finite = np.isfinite(steps.translations).all(axis=1)
    finite &= np.isfinite(steps.rotations).all(axis=1) & np.isfinite(steps.gripper)
    if not finite.all():
        raise ChunkRefused(Refusal.NOT_FINITE, f"row {_first(~finite)} of arm '{steps.arm}' is NaN or infinite")
    for what, rows, largest, unit in (
        ("translation", steps.translations, limits.max_delta_translation, "m"),
        ("rotation", steps.rotations, limits.max_delta_rotation, "rad"),
    ):
        # Overflow to infinity is a large number like any other.
        with np.errstate(over="ignore"):
            sizes = np.linalg.norm(rows, axis=1)
        if (sizes > largest).any():
            row = _first(sizes > largest)
            raise ChunkRefused(
                Refusal.DELTA_TOO_LARGE,
                f"{what} of row {row} of arm '{steps.arm}' is {sizes[row]:.4g} {unit}, at most {largest} {unit}",
            )
    outside = (steps.gripper < 0.0) | (steps.gripper > 1.0)
    if outside.any():
        row = _first(outside)
        raise ChunkRefused(
            Refusal.MALFORMED, f"gripper of row {row} of arm '{steps.arm}' is {steps.gripper[row]}, expected 0 .. 1"
        )


def _first(where: np.ndarray) -> int:
    return int(np.argmax(where))


def check_timing(chunk: Chunk, now_ns: int, max_observation_age: float) -> None:
    """That a chunk belongs to the present (`max_observation_age` in s). ChunkRefused(STALE or MALFORMED) if not."""
    age = (now_ns - chunk.observation_ns) / NANOSECONDS
    if age < -CLOCK_TOLERANCE_S:
        raise ChunkRefused(Refusal.STALE, f"the observation is stamped {-age:.3f} s in the future")
    if age > max_observation_age:
        raise ChunkRefused(Refusal.STALE, f"the observation is {age:.3f} s old, at most {max_observation_age} s")
    if chunk.start_ns < chunk.observation_ns:
        early = (chunk.observation_ns - chunk.start_ns) / NANOSECONDS
        raise ChunkRefused(Refusal.MALFORMED, f"the chunk starts {early:.3f} s before its observation")
    ahead = (chunk.start_ns - now_ns) / NANOSECONDS
    if ahead > MAX_START_AHEAD_S:
        raise ChunkRefused(Refusal.STALE, f"the chunk starts {ahead:.3f} s ahead, at most {MAX_START_AHEAD_S} s")
    end_ns = max(chunk.end_ns(steps) for steps in chunk.arms)
    if end_ns <= now_ns:
        raise ChunkRefused(Refusal.STALE, f"every row is past, the last by {(now_ns - end_ns) / NANOSECONDS:.3f} s")


class ChunkOrder:
    """Lets chunks through in the order the policy made them.

    Within one run of a policy the sequence grows. A policy that was started again counts from 1 again; that it is a new
    run cannot be told from a chunk, so `new_run` has to be called for what can: another publisher, another task, the
    operator handing over control. Observations grow across runs too, so nothing that was seen before is acted on.
    """

    def __init__(self) -> None:
        self._sequence = 0
        self._observation_ns = 0

    def new_run(self) -> None:
        """The next chunk may have any sequence."""
        self._sequence = 0

    def clock_jumped(self) -> None:
        """Stamps before and after a jump of the clock cannot be compared."""
        self._observation_ns = 0

    def check(self, chunk: Chunk) -> None:
        """ChunkRefused(OUT_OF_ORDER) for a chunk that is not newer than the last accepted one."""
        if chunk.sequence <= self._sequence:
            raise ChunkRefused(Refusal.OUT_OF_ORDER, f"sequence {chunk.sequence} came after {self._sequence}")
        if chunk.observation_ns <= self._observation_ns:
            late = (self._observation_ns - chunk.observation_ns) / NANOSECONDS
            raise ChunkRefused(
                Refusal.OUT_OF_ORDER,
                f"the observation of sequence {chunk.sequence} is {late:.3f} s older than that of the chunk before",
            )

    def accept(self, chunk: Chunk) -> None:
        """Remember `chunk` as the last accepted one."""
        self._sequence = chunk.sequence
        self._observation_ns = chunk.observation_ns
