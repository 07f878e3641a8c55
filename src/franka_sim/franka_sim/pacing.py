"""Keeps simulated time beside the wall clock, and says how well that went. It has no clock: seconds come in."""

from __future__ import annotations

import math
from collections import deque

# Simulated time that may be made up for after a stall. More of it would let the arm race; less would turn every
# hiccup of the machine into lost time.
MAX_BACKLOG_S = 0.05
# Window over which the achieved factor is measured.
ACHIEVED_WINDOW_S = 2.0


class Pacer:
    """How many physics steps are due so that simulated time advances `factor` times as fast as the wall clock.

    A backlog beyond MAX_BACKLOG_S is forgotten: the simulation then runs slower than asked, which `achieved` shows.
    """

    def __init__(self, factor: float, step: float) -> None:
        if not (math.isfinite(factor) and factor > 0.0):
            raise ValueError(f"real time factor {factor} is not a positive number")
        self._factor = factor
        self._step = step
        self._max_backlog = max(1, round(MAX_BACKLOG_S / step))
        self._owed = 0.0  # steps, including the fraction of one that is not due yet
        self._last: float | None = None
        self._history: deque[tuple[float, float]] = deque()  # (wall seconds, simulated seconds)
        self._simulated = 0.0

    def steps_due(self, now: float) -> int:
        """Steps to take at wall time `now` (s, any epoch, never backwards); the caller takes all of them."""
        elapsed = 0.0 if self._last is None else now - self._last
        self._last = now
        self._owed = min(self._owed + elapsed * self._factor / self._step, self._max_backlog)
        steps = int(self._owed)
        self._owed -= steps
        self._simulated += steps * self._step
        self._remember(now)
        return steps

    @property
    def achieved(self) -> float:
        """Simulated seconds per wall second over the last ACHIEVED_WINDOW_S; 0.0 before there is anything to tell."""
        if len(self._history) < 2:
            return 0.0
        (wall_0, simulated_0), (wall_1, simulated_1) = self._history[0], self._history[-1]
        return (simulated_1 - simulated_0) / (wall_1 - wall_0)

    def _remember(self, now: float) -> None:
        if self._history and now <= self._history[-1][0]:
            return
        self._history.append((now, self._simulated))
        while now - self._history[0][0] > ACHIEVED_WINDOW_S:
            self._history.popleft()


class Periodic:
    """An event at `rate` per simulated second, on the grid of the physics steps and without drift.

    It comes `phase` periods (0 to 1) before that of another event at the same rate.
    """

    def __init__(self, rate: float, step: float, now: int, phase: float = 0.0) -> None:
        self._events_per_step = rate * step
        self._phase = phase
        self._count = self._events_until(now)

    def take(self, now: int) -> bool:
        """True when an event has come due by step number `now`; events that were slept over are one."""
        count = self._events_until(now)
        due = count > self._count
        self._count = count
        return due

    def _events_until(self, step: int) -> int:
        # The margin keeps an event that falls on a step from slipping to the next one by rounding.
        return math.floor(step * self._events_per_step + self._phase + 1e-9)
