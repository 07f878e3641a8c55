"""Watches the streams that are recorded: rates, losses, how far cameras are apart, and what befalls time. No ROS here.

Moments (`now_s`) are the recorder's steady clock; stamps are what the messages carry in their headers.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field

# Ticks over which rates are measured, at two a second.
RATE_TICKS = 6
# Of a required rate, so many periods may pass before the topic counts as silent, however short they are allowed.
SILENT_PERIODS = 3.0
# A frame is missing when the step between two stamps is longer than this many periods.
LATE_PERIODS = 1.5
# Steps from which the period of a camera is learnt, and how often it is learnt anew.
STEPS_KEPT = 31
# Stamps of a camera kept to find the one nearest to another camera's.
STAMPS_KEPT = 16
# Stamps come in order but for a little; more is a clock that was set back.
BACKWARDS_NS = 50_000_000
# Messages that still come with the same stamp for so long: the clock they are stamped by stands still.
STOPPED_CLOCK_S = 1.0
# The system's clock against the steady one, between two ticks.
CLOCK_STEP_S = 0.25
# The same thing on several topics within this time is one event.
SAME_EVENT_S = 2.0
MAX_EVENTS = 50

BACKWARDS = "time went back"
STOPPED = "the clock stands still"
RESTARTED = "the publisher was restarted"
SLOW = "slower than required"
SYSTEM_CLOCK = "the system's clock was set"


@dataclass
class Stream:
    """What is known of a topic. Counts are since the episode began."""

    required_hz: float | None = None
    camera: bool = False
    received: int = 0
    dropped: int = 0
    rate_hz: float = 0.0
    heard_s: float | None = None
    stamp_ns: int = 0
    stamp_changed_s: float = 0.0
    stopped: bool = False
    sequence: int | None = None
    publishers: frozenset[bytes] = frozenset()
    joined: frozenset[bytes] = frozenset()  # of publishers, those that were not there from the beginning
    total: int = 0
    history: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=RATE_TICKS + 1))
    steps: deque[int] = field(default_factory=lambda: deque(maxlen=STEPS_KEPT))
    period_ns: float = 0.0
    stamps: deque[int] = field(default_factory=lambda: deque(maxlen=STAMPS_KEPT))


@dataclass
class _Event:
    kind: str
    detail: str
    offset_s: float
    marked_s: float
    topics: list[str]

    def __str__(self) -> str:
        topics = f": {', '.join(self.topics)}" if self.topics else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.offset_s:.1f} s: {self.kind}{topics}{detail}"


class Monitor:
    """Use it under one lock. `silence_s`: a required topic may not be silent for longer."""

    def __init__(self, silence_s: float) -> None:
        self.streams: dict[str, Stream] = {}
        self.largest_camera_gap_ns = 0
        self._silence_s = silence_s
        self._events: list[_Event] = []
        self._began_s = 0.0
        self._clock_offset_s: float | None = None

    def add(self, topic: str, required_hz: float | None = None, camera: bool = False) -> None:
        self.streams[topic] = Stream(required_hz, camera)

    def begin(self, now_s: float) -> None:
        """Count from now on."""
        self._began_s = now_s
        self._events.clear()
        self.largest_camera_gap_ns = 0
        for stream in self.streams.values():
            stream.received = stream.dropped = 0
            stream.stopped = False

    def on_message(self, topic: str, now_s: float, stamp_ns: int | None, sequence: int | None) -> None:
        """A message has come.

        Args:
            stamp_ns: Of its header; None where it has none.
            sequence: How many its publisher had published before, as the middleware counts.
        """
        stream = self.streams[topic]
        stream.received += 1
        stream.total += 1
        stream.heard_s = now_s
        lost = self._lost(topic, stream, now_s, sequence)
        left_out = self._left_out(topic, stream, now_s, stamp_ns) if stamp_ns else 0
        stream.dropped += max(lost, left_out)

    def on_publishers(self, topic: str, publishers: Collection[bytes], now_s: float) -> None:
        """Who publishes a topic now, by the identifiers of the middleware."""
        stream = self.streams[topic]
        now = frozenset(publishers)
        if not now:
            return  # none for a moment; the next may be the same that was only slow to be found again
        if stream.publishers:
            stream.joined = (stream.joined | (now - stream.publishers)) & now
        # One that was killed stays in sight for seconds, beside the one that has taken its place.
        if stream.publishers - now and stream.joined:
            self._restarted(topic, stream, now_s)
            stream.joined = frozenset()
        stream.publishers = now

    def drop(self, topic: str) -> None:
        """A message was lost here, for want of a place to keep it."""
        self.streams[topic].dropped += 1

    def tick(self, now_s: float, system_s: float) -> None:
        """Measure; call it twice a second. `system_s`: what the system's clock says."""
        for topic, stream in self.streams.items():
            stream.history.append((now_s, stream.total))
            (first_s, first), (last_s, last) = stream.history[0], stream.history[-1]
            stream.rate_hz = (last - first) / (last_s - first_s) if last_s > first_s else 0.0
            if stream.required_hz is not None:
                self._check_rate(topic, stream, now_s)
                self._check_clock(topic, stream, now_s)
        offset_s = system_s - now_s
        if self._clock_offset_s is not None and abs(offset_s - self._clock_offset_s) > CLOCK_STEP_S:
            self._mark(SYSTEM_CLOCK, None, now_s, f"by {offset_s - self._clock_offset_s:+.2f} s")
        self._clock_offset_s = offset_s

    def silent(self, now_s: float) -> list[str]:
        """A phrase for every required topic that is silent."""
        phrases = []
        for topic, stream in self.streams.items():
            if stream.required_hz is None:
                continue
            if stream.heard_s is None:
                phrases.append(f"nothing has come on {topic}")
            elif now_s - stream.heard_s > max(self._silence_s, SILENT_PERIODS / stream.required_hz):
                phrases.append(f"{topic} is silent for {now_s - stream.heard_s:.1f} s")
        return phrases

    @property
    def events(self) -> list[str]:
        """What happened since the episode began, in words, with the time since then."""
        return [str(event) for event in self._events]

    def _lost(self, topic: str, stream: Stream, now_s: float, sequence: int | None) -> int:
        """Messages that the one publisher of the topic has sent and we have not got."""
        if sequence is None or len(stream.publishers) > 1:
            stream.sequence = None  # of several publishers, whose it is cannot be told
            return 0
        before, stream.sequence = stream.sequence, sequence
        if before is None:
            return 0
        if sequence <= before:
            self._restarted(topic, stream, now_s)
            stream.sequence = sequence
            return 0
        return sequence - before - 1

    def _left_out(self, topic: str, stream: Stream, now_s: float, stamp_ns: int) -> int:
        """Frames a camera has left out before this one."""
        before_ns, stream.stamp_ns = stream.stamp_ns, stamp_ns
        if stamp_ns != before_ns:
            stream.stamp_changed_s, stream.stopped = now_s, False
        if before_ns == 0:
            stream.stamps.append(stamp_ns)
            return 0
        step_ns = stamp_ns - before_ns
        if step_ns < -BACKWARDS_NS:
            self._mark(BACKWARDS, topic, now_s, f"by {-step_ns / 1e9:.2f} s")
            stream.steps.clear()
            stream.stamps.clear()
        if not stream.camera or step_ns <= 0:
            return 0
        self._compare(topic, stream, stamp_ns)
        stream.stamps.append(stamp_ns)
        left_out = round(step_ns / stream.period_ns) - 1 if 0 < LATE_PERIODS * stream.period_ns < step_ns else 0
        stream.steps.append(step_ns)
        if len(stream.steps) == STEPS_KEPT:
            stream.period_ns = statistics.median(stream.steps)
        return left_out

    def _compare(self, topic: str, stream: Stream, stamp_ns: int) -> None:
        """Each frame once with the nearest of every other camera: of two, when the later has come."""
        before_ns = stream.stamps[-1] if stream.stamps else stamp_ns
        for name, other in self.streams.items():
            if name == topic or not other.camera or not other.stamps:
                continue
            gaps = [min(stamp_ns - it, it - before_ns) for it in other.stamps if before_ns < it <= stamp_ns]
            if stamp_ns <= other.stamps[-1]:
                gaps.append(min(abs(stamp_ns - it) for it in other.stamps))
            self.largest_camera_gap_ns = max(self.largest_camera_gap_ns, *gaps, 0)

    def _check_rate(self, topic: str, stream: Stream, now_s: float) -> None:
        measured = len(stream.history) > RATE_TICKS and stream.history[0][0] >= self._began_s
        if measured and stream.required_hz is not None and stream.rate_hz < stream.required_hz:
            known = any(event.kind == SLOW and topic in event.topics for event in self._events)
            if not known:
                self._mark(SLOW, topic, now_s, f"{stream.rate_hz:.1f} Hz, required {stream.required_hz:g}")

    def _check_clock(self, topic: str, stream: Stream, now_s: float) -> None:
        if stream.stopped or not stream.stamp_ns or stream.heard_s is None:
            return
        if stream.heard_s - stream.stamp_changed_s > STOPPED_CLOCK_S:
            stream.stopped = True
            self._mark(STOPPED, topic, now_s, f"at {stream.stamp_ns / 1e9:.3f}")

    def _restarted(self, topic: str, stream: Stream, now_s: float) -> None:
        stream.sequence = None
        self._mark(RESTARTED, topic, now_s, "")

    def _mark(self, kind: str, topic: str | None, now_s: float, detail: str) -> None:
        for event in self._events:
            if event.kind == kind and now_s - event.marked_s < SAME_EVENT_S:
                if topic is not None and topic not in event.topics:
                    event.topics.append(topic)
                return
        if len(self._events) < MAX_EVENTS:
            topics = [] if topic is None else [topic]
            self._events.append(_Event(kind, detail, now_s - self._began_s, now_s, topics))
