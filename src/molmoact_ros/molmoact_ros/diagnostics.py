"""What a node reports about itself on /diagnostics: rates, ages, latencies, and what is wrong."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from molmoact_ros.matching import mismatches

OK = DiagnosticStatus.OK
WARN = DiagnosticStatus.WARN
ERROR = DiagnosticStatus.ERROR

# Long enough for a steady figure at 1 Hz, short enough to see a camera fade.
RATE_WINDOW_S = 3.0
LATENCY_SAMPLES = 500


@dataclasses.dataclass(frozen=True)
class Status:
    """One line of a report; `values` are shown as they print, floats with four digits."""

    name: str
    level: bytes = OK
    message: str = "ok"
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class RateMeter:
    """Rate and age of a stream, from the moments (s, any one clock) at which its samples came. Thread-safe."""

    def __init__(self, window_s: float = RATE_WINDOW_S) -> None:
        self._window_s = window_s
        self._times: collections.deque[float] = collections.deque()
        self._lock = threading.Lock()
        self.total = 0

    def tick(self, now_s: float) -> None:
        with self._lock:
            # A clock that jumped back (a simulation that was reset) begins a new measurement.
            if self._times and now_s < self._times[-1]:
                self._times.clear()
            self._times.append(now_s)
            self.total += 1
            self._forget(now_s)

    def rate(self, now_s: float) -> float:
        """Samples per second over the window; 0 before the second sample and after the last has left the window."""
        with self._lock:
            self._forget(now_s)
            if len(self._times) < 2 or self._times[-1] <= self._times[0]:
                return 0.0
            return (len(self._times) - 1) / (self._times[-1] - self._times[0])

    def _forget(self, now_s: float) -> None:
        while self._times and self._times[0] < now_s - self._window_s:
            self._times.popleft()


class LatencyMeter:
    """Median, 99th percentile and maximum of the newest latencies, s. Thread-safe."""

    def __init__(self, samples: int = LATENCY_SAMPLES) -> None:
        self._values: collections.deque[float] = collections.deque(maxlen=samples)
        self._lock = threading.Lock()

    def add(self, seconds: float) -> None:
        with self._lock:
            self._values.append(seconds)

    def milliseconds(self) -> dict[str, float]:
        """{"median", "p99", "max"} in ms; empty before the first sample."""
        with self._lock:
            values = 1000.0 * np.array(self._values)
        if not values.size:
            return {}
        median, p99 = np.percentile(values, (50, 99))
        return {"median": float(median), "p99": float(p99), "max": float(values.max())}


class DiagnosticsPublisher:
    """Publishes what `collect()` returns, on /diagnostics, once a period of real time and whenever asked.

    A peer that the node cannot exchange messages with is added as status "connections", and logged when it appears.
    """

    def __init__(self, node: Node, collect: Callable[[], list[Status]], period_s: float = 1.0) -> None:
        self._node = node
        self._collect = collect
        self._mismatches: list[str] = []
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Not the node's clock: a report is due also while simulated time stands still.
        node.create_timer(period_s, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        statuses = [*self._collect(), *self._connections()]
        message = DiagnosticArray(status=[self._status(status) for status in statuses])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)

    def _connections(self) -> list[Status]:
        known, self._mismatches = self._mismatches, mismatches(self._node)
        for mismatch in self._mismatches:
            if mismatch not in known:
                self._node.get_logger().warning(mismatch)
        return [Status("connections", WARN, "; ".join(self._mismatches))] if self._mismatches else []

    def _status(self, status: Status) -> DiagnosticStatus:
        name = self._node.get_fully_qualified_name().lstrip("/")
        return DiagnosticStatus(
            level=status.level,
            name=f"{name}: {status.name}",
            message=status.message,
            hardware_id=name,
            values=[KeyValue(key=key, value=_text(value)) for key, value in status.values.items()],
        )


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
