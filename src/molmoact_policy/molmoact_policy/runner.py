"""From frames to chunks: when the policy looks, what it is shown, and what of its reply may be sent to the robot."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from molmoact_policy.errors import Interrupted, ObservationError, ReplyError
from molmoact_policy.frames import SECOND, Frame, FrameBuffer
from molmoact_policy.policy import Observation, Prediction
from molmoact_policy.task import Task, Tasks, Trace

# Ages are looked at this often (s of real time) when nothing wakes the worker.
POLL_S = 0.05


@dataclass(frozen=True)
class Settings:
    """How chunks follow one another, and when a task is given up."""

    synchronous: bool  # look again when the chunk has run and the arm has settled; else as soon as there is a new image
    action_prefix: bool  # a reply begins with the rows of the chunk before that run while the policy thinks
    execute_rows: int  # rows of a reply that are sent; 0: all
    step_period: int  # ns between rows
    settle_time: int  # ns
    observation_timeout: int  # ns without usable images after which run_task ends
    max_bad_replies: int  # consecutive replies without a chunk after which the task ends


@dataclass(frozen=True)
class Seen:
    """One observation: when it was taken (ns, newest image), its pictures (uint8 RGB [H, W, 3]) and the trace given."""

    stamp: int
    images: list[NDArray[np.uint8]]
    trace: Trace | None


@dataclass(frozen=True)
class Chunk:
    """Rows to execute, [rows, D] in the dataset's units; stamps in ns."""

    sequence: int
    observation_stamp: int
    start: int
    instruction: str
    actions: NDArray[np.float64]


@dataclass
class Counters:
    """What happened since the node was configured, for the diagnostics. Written by the worker only."""

    chunks: int = 0
    bad_replies: int = 0
    observations_refused: int = 0  # times that images stopped being usable
    discarded: int = 0  # replies, also unfinished ones, to a task or trace that had changed meanwhile
    unusable: str = ""  # why there is no observation at the moment; empty when there is
    last_error: str = ""  # of the newest reply; empty when it gave a chunk


class Actor(Protocol):
    """What thinks: a Policy."""

    def act(self, observation: Observation, should_stop: Callable[[], bool]) -> Prediction: ...

    def forget(self) -> None: ...


class Output(Protocol):
    """Where the runner's results go; called from its thread."""

    def chunk(self, chunk: Chunk) -> None: ...

    def reply(self, seen: Seen, reply: Prediction | ReplyError, sequence: int, error: str) -> None: ...

    def unusable(self, reason: str) -> None: ...

    def given_up(self, task: Task) -> None: ...


class Runner:
    """Lets the policy act on the current task, one observation after another; `run` is the body of a worker thread.

    Args:
        decode: Turns the frames' messages into uint8 RGB arrays. Raises ObservationError naming the camera.
        clock: The node's time, ns.
    """

    def __init__(
        self,
        actor: Actor,
        decode: Callable[[Sequence[Frame]], list[NDArray[np.uint8]]],
        frames: FrameBuffer,
        tasks: Tasks,
        settings: Settings,
        clock: Callable[[], int],
        output: Output,
    ) -> None:
        self._actor = actor
        self._decode = decode
        self._frames = frames
        self._tasks = tasks
        self._settings = settings
        self._clock = clock
        self._output = output
        self._news = threading.Event()
        self._sequence = 0
        self._last_now = 0
        self._delay = 0  # ns from the newest reply's observation to its chunk
        self.counters = Counters()
        self._begin(None)

    def wake(self) -> None:
        """There may be something to do: a new frame, another task, the end."""
        self._news.set()

    def run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self._news.clear()
            if not self.step():
                self._news.wait(POLL_S)

    def step(self) -> bool:
        """One observation and its reply, if it is time for one; False when there was nothing to do."""
        now = self._clock()
        if now < self._last_now:
            # Simulated time was set back: what was planned by the old clock would never become due.
            self._frames.clear()
            self._not_before = now
            self._start_over()
        self._last_now = now
        task = self._tasks.current
        if task is not self._task:
            self._begin(task)
        if task is None:
            return False
        try:
            seen = self._look(now)
            if seen is None:
                return False
            self._think(task, seen)
        except ObservationError as error:
            self._unusable(task, now, str(error))
            return False
        return True

    def _begin(self, task: Task | None) -> None:
        self._task = task
        # Images from before the task may show another scene.
        self._not_before = task.claimed if task is not None else 0
        self._bad_replies = 0
        self._start_over()
        self._usable()

    def _start_over(self) -> None:
        """What comes next may show another scene: nothing of what was said and sent before leads on to it."""
        self._previous: Chunk | None = None
        self._actor.forget()

    def _look(self, now: int) -> Seen | None:
        frames = self._frames.newest(now, self._not_before)
        if frames is None:
            return None
        # Whatever becomes of these frames, they are not looked at twice.
        self._not_before = max(self._not_before, min(frame.stamp for frame in frames) + 1)
        return Seen(max(frame.stamp for frame in frames), self._decode(frames), self._tasks.trace)

    def _think(self, task: Task, seen: Seen) -> None:
        observation = Observation(seen.images, task.instruction, seen.trace, self._action_prefix(seen))
        try:
            prediction = self._actor.act(observation, lambda: self._is_outdated(task, seen))
            sequence = self._send(task, seen, _checked(prediction))
        except Interrupted:
            self.counters.discarded += 1
        except ReplyError as error:
            self._count_bad_reply(task, str(error))
            self._report(seen, error, 0, str(error))
        else:
            outdated = "" if sequence else "the task or the trace changed while the policy was thinking"
            self._report(seen, prediction, sequence, outdated)

    def _is_outdated(self, task: Task, seen: Seen) -> bool:
        return self._tasks.current is not task or self._tasks.trace is not seen.trace

    def _action_prefix(self, seen: Seen) -> NDArray[np.float64] | None:
        """Rows of the chunk before that will have run by the time this reply is there, if it takes as long as the one
        before; the nearest rows, as the observation falls between two."""
        if not self._settings.action_prefix or self._previous is None:
            return None
        period = self._settings.step_period
        begun = round((seen.stamp - self._previous.start) / period)
        return self._previous.actions[begun : begun + math.ceil(self._delay / period)]

    def _report(self, seen: Seen, reply: Prediction | ReplyError, sequence: int, error: str) -> None:
        self._usable()
        self.counters.last_error = error
        self._output.reply(seen, reply, sequence, error)

    def _send(self, task: Task, seen: Seen, actions: NDArray[np.float64]) -> int:
        """The sequence of the chunk; 0 when the task or the trace is no longer the current one and nothing was sent."""
        actions = actions[: self._settings.execute_rows or None]
        with self._tasks.held():
            if self._is_outdated(task, seen):
                self.counters.discarded += 1
                return 0
            self._sequence += 1
            now = self._clock()
            start = now if self._settings.synchronous else seen.stamp
            self._previous = Chunk(self._sequence, seen.stamp, start, task.instruction, actions)
            self._output.chunk(self._previous)
            task.chunks += 1
            task.sequence = self._sequence
        self._delay = now - seen.stamp
        self.counters.chunks += 1
        self._bad_replies = 0
        if self._settings.synchronous:
            duration = len(actions) * self._settings.step_period + self._settings.settle_time
            self._not_before = max(self._not_before, start + duration)
        return self._sequence

    def _count_bad_reply(self, task: Task, error: str) -> None:
        self.counters.bad_replies += 1
        self._bad_replies += 1
        if self._bad_replies >= self._settings.max_bad_replies:
            self._give_up(task, f"{self._bad_replies} replies in a row gave no chunk; the last: {error}")

    def _usable(self) -> None:
        self._unusable_since: int | None = None
        self.counters.unusable = ""

    def _unusable(self, task: Task, now: int, reason: str) -> None:
        if self._unusable_since is None:
            self._unusable_since = now
            self.counters.observations_refused += 1
        self.counters.unusable = reason
        self._output.unusable(reason)
        if task.run and now - self._unusable_since >= self._settings.observation_timeout:
            waited = (now - self._unusable_since) / SECOND
            self._give_up(task, f"nothing to look at for {waited:.1f} s: {reason}")

    def _give_up(self, task: Task, reason: str) -> None:
        if self._tasks.end(task, False, reason):
            self._output.given_up(task)


def _checked(prediction: Prediction) -> NDArray[np.float64]:
    """Actions that may be sent. The policy vouches for them; this is the last look before they become motion."""
    if not len(prediction.actions):
        raise ReplyError("reply has no actions", prediction.text, prediction.depth_codes, prediction.trace)
    if not np.isfinite(prediction.actions).all():
        raise ReplyError("actions are not finite", prediction.text, prediction.depth_codes, prediction.trace)
    return prediction.actions
