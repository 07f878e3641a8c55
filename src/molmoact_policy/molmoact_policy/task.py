"""What the policy is asked to do: one task at a time, claimed and ended under one lock, each end with its reason."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from molmoact_policy.errors import PolicyError
from molmoact_policy.frames import SECOND

MAX_INSTRUCTION_LENGTH = 500
MIN_TRACE_POINTS, MAX_TRACE_POINTS = 2, 5
TRACE_LIMIT = 255

Trace = tuple[tuple[int, int], ...]


class Refused(PolicyError):
    """A request that is not granted; the message says why, for the person who asked."""


def checked_instruction(text: str) -> str:
    """The instruction without surrounding blanks. Raises Refused when nothing is left or it is too long."""
    if len(text) > MAX_INSTRUCTION_LENGTH:
        raise Refused(f"instruction has {len(text)} characters, expected 1..{MAX_INSTRUCTION_LENGTH}")
    if not text.strip():
        raise Refused(f"instruction is empty, expected 1..{MAX_INSTRUCTION_LENGTH} characters")
    return text.strip()


def checked_trace(x: Sequence[int], y: Sequence[int]) -> Trace | None:
    """Points (x, y) in 0..255 across and down the first image; None for no points. Raises Refused for anything else."""
    if len(x) != len(y):
        raise Refused(f"trace has {len(x)} x and {len(y)} y coordinates, expected as many of each")
    if len(x) == 0:
        return None
    if not MIN_TRACE_POINTS <= len(x) <= MAX_TRACE_POINTS:
        raise Refused(
            f"trace has {len(x)} point{'s' * (len(x) > 1)}, expected {MIN_TRACE_POINTS}..{MAX_TRACE_POINTS}, "
            "or none to stop steering"
        )
    trace = tuple((int(across), int(down)) for across, down in zip(x, y, strict=True))
    for index, point in enumerate(trace):
        if not all(0 <= coordinate <= TRACE_LIMIT for coordinate in point):
            raise Refused(f"trace point {index} is {point}, expected coordinates 0..{TRACE_LIMIT}")
    return trace


@dataclass(eq=False)
class Task:
    """One task from claim to end. `claimed` and `deadline` in ns of the node's clock; no deadline: until ended."""

    instruction: str
    claimed: int
    deadline: int | None = None
    run: bool = False  # claimed by run_task, which waits for the end; else set_task's, which stands until replaced
    chunks: int = 0
    sequence: int = 0  # of the newest chunk
    ended: threading.Event = field(default_factory=threading.Event)
    success: bool = False
    reason: str = ""


class Tasks:
    """The one task. `announce(instruction)` is called at every change, in order; with "" when there is none."""

    def __init__(self, announce: Callable[[str], None]) -> None:
        self._announce = announce
        self._lock = threading.RLock()
        self._closed: str | None = "the policy node is not active"
        self._current: Task | None = None
        self._trace: Trace | None = None

    @property
    def current(self) -> Task | None:
        return self._current

    @property
    def trace(self) -> Trace | None:
        return self._trace

    def open(self) -> None:
        """Take claims from now on."""
        with self._lock:
            self._closed = None
            self._announce("")

    def close(self, reason: str) -> None:
        """Refuse claims from now on and end the current task, both for `reason`."""
        with self._lock:
            self._closed = f"the policy node is not active: {reason}"
            self._trace = None
            if self._current is not None:
                self.end(self._current, False, reason)

    def set(self, instruction: str, now: int) -> Task:
        """Let the policy act on `instruction` until another is set or run. Raises Refused."""
        return self._claim(Task(checked_instruction(instruction), now), "replaced by set_task")

    def run(self, instruction: str, now: int, timeout: int = 0) -> Task:
        """Claim the policy until the task ends; `timeout` in ns, 0: none. Takes the place of a task that was set.

        Raises Refused.
        """
        if timeout < 0:
            raise Refused(f"timeout is {timeout / SECOND:g} s, expected 0 (until cancelled) or more")
        deadline = now + timeout if timeout else None
        return self._claim(Task(checked_instruction(instruction), now, deadline, run=True), "replaced by run_task")

    def steer(self, x: Sequence[int], y: Sequence[int]) -> Trace | None:
        """Give the policy a trace, or take it away (no points). Raises Refused."""
        trace = checked_trace(x, y)
        with self._lock:
            self._refuse_closed()
            self._trace = trace
        return trace

    def end(self, task: Task, success: bool, reason: str) -> bool:
        """End this task and no other; False when it had ended already, whose reason then stands."""
        with self._lock:
            if task.ended.is_set():
                return False
            task.success, task.reason = success, reason
            if self._current is task:
                self._current = None
                self._announce("")
            task.ended.set()
            return True

    def expire(self, now: int) -> None:
        """End the current task when its time is used up, or when the clock is from before it."""
        with self._lock:
            task = self._current
            if task is None:
                return
            if task.deadline is not None and now >= task.deadline:
                self.end(task, True, f"the time of {(task.deadline - task.claimed) / SECOND:g} s was used up")
            elif now < task.claimed:
                self.end(task, False, f"the clock jumped back by {(task.claimed - now) / SECOND:.3f} s or more")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Inside the block, the current task and trace stay what they are."""
        with self._lock:
            yield

    def _claim(self, task: Task, reason: str) -> Task:
        with self._lock:
            self._refuse_closed()
            running = self._current
            if running is not None and running.run:
                raise Refused(f"busy with run_task '{running.instruction}': cancel it first")
            self._current = task
            if running is not None:
                self.end(running, False, reason)
            self._announce(task.instruction)
            return task

    def _refuse_closed(self) -> None:
        if self._closed is not None:
            raise Refused(self._closed)
