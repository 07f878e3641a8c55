"""A loop that keeps its rate against the monotonic clock, and measures how well."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np

# Ten seconds at 200 Hz: enough for a p99, short enough to show what the system does now.
SAMPLES = 2000


class TickStatistics:
    """Periods and costs of the newest ticks, in seconds."""

    def __init__(self) -> None:
        self._periods: deque[float] = deque(maxlen=SAMPLES)
        self._costs: deque[float] = deque(maxlen=SAMPLES)

    def add(self, period: float | None, cost: float) -> None:
        """Note a tick: seconds since the one before began (None for the first), and seconds it took."""
        if period is not None:
            self._periods.append(period)
        self._costs.append(cost)

    def milliseconds(self) -> dict[str, float]:
        """Percentiles; empty before the second tick."""
        # The ticking thread appends while this one reads; a copy of a deque is one step for the interpreter.
        periods, costs = 1e3 * np.array(self._periods.copy()), 1e3 * np.array(self._costs.copy())
        if not periods.size:
            return {}
        p1, p50, p99 = np.percentile(periods, (1, 50, 99))
        return {
            "period_p1": float(p1),
            "period_median": float(p50),
            "period_p99": float(p99),
            "period_max": float(periods.max()),
            "cost_median": float(np.median(costs)),
            "cost_p99": float(np.percentile(costs, 99)),
        }


def schedule_first(priority: int) -> None:
    """Let every thread of this process run before all ordinary ones (SCHED_FIFO, 1 .. 99).

    Not the ticking thread alone: it needs the interpreter's lock, and whoever holds that must not be kept waiting by a
    program that trains beside the robot. Raises PermissionError without the right to (`ulimit -r`, as franka_ros2 asks
    for).
    """
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(priority))


def run_at_rate(period: float, tick: Callable[[], None], stop: threading.Event, statistics: TickStatistics) -> None:
    """Call `tick` every `period` seconds until `stop` is set.

    Deadlines are multiples of the period, so lateness does not add up; those that were missed altogether are skipped,
    because what is due by the clock is for `tick` to find out.
    """
    deadline = time.monotonic()
    began: float | None = None
    while not stop.is_set():
        before, began = began, time.monotonic()
        tick()
        ended = time.monotonic()
        statistics.add(None if before is None else began - before, ended - began)
        deadline += period
        if deadline < ended:
            deadline += period * ((ended - deadline) // period + 1)
        time.sleep(deadline - ended)
