"""What a recorder does between its start and its end: one episode at a time, watched while it lasts. No ROS in here.

Three threads meet here. The one that receives calls `receive` and, twice a second, `tick`; those of the operator's
requests call the others; each episode has a thread that writes it, behind a queue.
"""

from __future__ import annotations

import queue
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from rosbags.typesys.store import Typestore

from teleop_recorder import index
from teleop_recorder.bag import TopicInfo
from teleop_recorder.definitions import leading_stamp
from teleop_recorder.episode import DISCARD, FAILURE, INTERRUPTED, SUCCESS, Episode, Labels
from teleop_recorder.episode_writer import EpisodeWriter, RootLock
from teleop_recorder.errors import DiskFullError, EpisodeError, RecordingError, RequestRefused
from teleop_recorder.monitor import Monitor
from teleop_recorder.recovery import recover_all
from teleop_recorder.status import ENDED_WITHOUT_OUTCOME, FINISHED, RECORDING, Status, TopicStatus, encode

# What an operator may end an episode with.
OUTCOMES = (SUCCESS, FAILURE, DISCARD)
# A slow disk may take long to swallow what waits in the queue.
FINISH_TIMEOUT_S = 60.0
# Ticks over which MB/s is measured.
SPEED_TICKS = 4


class Received(NamedTuple):
    """One message, as it came."""

    topic: RecordedTopic
    receipt_ns: int
    published_ns: int
    sequence: int | None
    data: bytes


@dataclass(frozen=True)
class RecordedTopic:
    """A topic of the graph that is recorded."""

    info: TopicInfo
    stored: TopicInfo  # as it is in the bag: compressed, where that was asked for
    required_hz: float | None = None
    camera: bool = False  # its frames have a period
    stamped: bool = False  # its messages begin with a time


# (message, jpeg or not) -> topic in the bag and bytes
Pack = Callable[[RecordedTopic, bytes], tuple[TopicInfo, bytes]]


@dataclass(frozen=True)
class SessionSettings:
    root: Path
    reserve_bytes: int
    silence_s: float
    buffer_bytes: int


class Session:
    """Holds the lock of the root from its construction to `close`.

    Construction recovers what a crash left there. `warn` is told what was found, and of every episode that ends without
    having been asked to; it may be called by any thread.

    Raises:
        RecordingError: another recorder writes there, or nobody can.
    """

    def __init__(
        self, settings: SessionSettings, typestore: Typestore, pack: Pack, warn: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._typestore = typestore
        self._pack = pack
        self._warn = warn
        self._lock = threading.RLock()
        self._label_lock = threading.Lock()  # of what is on the disk; reading it takes long, so no other lock is held
        self._topics: list[RecordedTopic] = []
        self._latched: dict[str, Received] = {}
        self._monitor = Monitor(settings.silence_s)
        self._take: _Take | None = None
        self._last = Status()
        self._speeds: deque[tuple[float, int]] = deque(maxlen=SPEED_TICKS + 1)
        self._root_lock = RootLock(settings.root)
        try:
            notes = recover_all(settings.root)
            if notes or not index.is_current(settings.root):
                notes += index.rebuild(settings.root)
        except OSError as error:
            self._root_lock.release()
            raise RecordingError(f"{settings.root}: {error}") from error
        for note in notes:
            warn(note)

    # The thread that receives

    def add_topic(self, topic: RecordedTopic) -> None:
        with self._lock:
            self._topics.append(topic)
            self._monitor.add(topic.info.name, topic.required_hz, topic.camera)

    def await_topic(self, name: str, required_hz: float) -> None:
        """A required topic that nobody publishes yet counts as silent; `add_topic` follows when somebody does."""
        with self._lock:
            self._monitor.add(name, required_hz)

    def on_publishers(self, topic: str, publishers: Sequence[bytes]) -> None:
        with self._lock:
            self._monitor.on_publishers(topic, publishers, time.monotonic())

    def receive(self, batch: list[Received]) -> None:
        """Messages in the order of their receipt."""
        now_s = time.monotonic()
        with self._lock:
            for message in batch:
                topic = message.topic
                stamp_ns = leading_stamp(message.data) if topic.stamped else None
                self._monitor.on_message(topic.info.name, now_s, stamp_ns, message.sequence)
                if topic.info.latched:
                    self._latched[topic.info.name] = message
            if self._take is not None and not self._take.put(batch):
                for message in batch:
                    self._monitor.drop(message.topic.info.name)

    def tick(self, stamp_ns: int) -> bytes:
        """Twice a second, after everything that has come was given to `receive`: the status, also put into the bag.

        `stamp_ns` is the recorder's ROS time.
        """
        now_s = time.monotonic()
        with self._lock:
            self._monitor.tick(now_s, time.time())
            self._retire_finished()
            take = self._take
            if take is not None:
                silent = self._monitor.silent(now_s)
                if silent:
                    take.end_by_itself(FAILURE, "; ".join(silent))
                self._speeds.append((now_s, take.writer.bytes_written))
            status = encode(self._status(), stamp_ns, self._typestore)
            if take is not None:
                take.put_status(status)
            else:
                self._monitor.largest_camera_gap_ns = 0  # between episodes: since the last status
            return status

    # What an operator asks for. Each returns the name of the episode, or raises RequestRefused with the reason.

    def start(self, task: str, instruction: str) -> str:
        with self._lock:
            self._retire_finished()
            if self._take is not None:
                raise RequestRefused(f"episode {self._take.writer.name} is under way")
            now_s = time.monotonic()
            silent = self._monitor.silent(now_s)
            if silent:
                raise RequestRefused("; ".join(silent))
            labels = Labels(task, instruction, outcome="")
            try:
                writer = EpisodeWriter(
                    self._settings.root,
                    [topic.stored for topic in self._topics],
                    labels,
                    self._typestore,
                    self._settings.reserve_bytes,
                )
            except RecordingError as error:
                raise RequestRefused(str(error)) from error
            self._monitor.begin(now_s)
            self._speeds.clear()
            self._take = _Take(
                writer, self._pack, self._last_status, self._enter_into_index, self._warn, self._settings.buffer_bytes
            )
            self._take.put_status(encode(self._status(), time.time_ns(), self._typestore))
            # What was said once, before, holds for this episode as well.
            received_ns = time.time_ns()
            self._take.put([message._replace(receipt_ns=received_ns) for message in self._latched.values()])
            return writer.name

    def stop(self, outcome: str, reason: str) -> str:
        """The episode is on the disk when this returns."""
        if outcome not in OUTCOMES:
            raise RequestRefused(f"outcome '{outcome}' is not one of {', '.join(OUTCOMES)}")
        return self._stop(outcome, reason)

    def relabel(self, name: str, **changes: str) -> str:
        """`changes` of episode.LABELS; an empty `name` is the last episode."""
        if changes.get("outcome", SUCCESS) not in OUTCOMES:
            raise RequestRefused(f"outcome '{changes['outcome']}' is not one of {', '.join(OUTCOMES)}")
        if not changes:
            raise RequestRefused("nothing was to be changed")
        name = name or self._last_name()
        self._refuse_if_under_way(name)
        with self._label_lock:
            self._label(self._find(name), changes)
        return name

    def undo_last(self) -> str:
        """Discard the newest episode that is not discarded yet."""
        with self._label_lock:
            for directory in sorted(self._directories(), reverse=True):
                self._refuse_if_under_way(directory.name)
                episode = self._find(directory.name)
                if episode.labels.outcome != DISCARD:
                    self._label(episode, {"outcome": DISCARD, "reason": "undone by the operator"})
                    return episode.name
        raise RequestRefused(f"{self._settings.root}: there is no episode left to undo")

    def close(self, reason: str) -> None:
        """End what is under way, as interrupted, and release the root."""
        try:
            if self._take is not None:
                self._stop(INTERRUPTED, reason)
        except RequestRefused:
            pass  # it has just ended by itself
        finally:
            self._root_lock.release()

    @property
    def recording(self) -> bool:
        with self._lock:
            self._retire_finished()
            return self._take is not None

    def _stop(self, outcome: str, reason: str) -> str:
        with self._lock:
            self._retire_finished()
            take = self._take
        if take is None:
            ended = f"; {self._last.episode} ended as {self._last.outcome}: {self._last.reason}"
            raise RequestRefused(f"no episode is under way{ended if self._last.episode else ''}")
        if not take.end(outcome, reason):
            raise RequestRefused(f"episode {take.writer.name} is already ending as {take.labels.outcome}")
        if not take.finished.wait(FINISH_TIMEOUT_S):
            raise RequestRefused(f"episode {take.writer.name}: the disk is slow, it is still being written")
        with self._lock:
            self._retire_finished()
        if take.failure is not None:
            raise RequestRefused(take.failure)
        if take.labels.outcome != outcome:
            raise RequestRefused(f"episode {take.writer.name} ended as {take.labels.outcome}: {take.labels.reason}")
        return take.writer.name

    def _retire_finished(self) -> None:
        take = self._take
        if take is None or not take.finished.is_set():
            return
        self._last = replace(self._status(), megabytes_per_second=0.0)
        self._take = None

    def _enter_into_index(self, episode: Episode) -> None:
        """Called by the thread that writes."""
        with self._label_lock:
            index.put(self._settings.root, episode)

    def _refuse_if_under_way(self, name: str) -> None:
        with self._lock:
            self._retire_finished()
            if self._take is not None and self._take.writer.name == name:
                raise RequestRefused(
                    f"episode {name} is under way: stop it first, with outcome discard if it is no good"
                )

    def _label(self, episode: Episode, changes: dict[str, str]) -> None:
        try:
            episode.label(**changes)
            index.put(self._settings.root, episode)
        except (EpisodeError, OSError) as error:
            raise RequestRefused(str(error)) from error
        with self._lock:
            if self._last.episode == episode.name:
                self._last = replace(self._last, **changes)  # type: ignore[arg-type]

    def _find(self, name: str) -> Episode:
        for directory in self._directories():
            if directory.name == name:
                try:
                    return Episode.open(directory)
                except EpisodeError as error:
                    raise RequestRefused(str(error)) from error
        raise RequestRefused(f"there is no episode '{name}' in {self._settings.root}")

    def _directories(self) -> list[Path]:
        return sorted({file.parent for file in self._settings.root.glob("*/*.mcap")})

    def _last_name(self) -> str:
        directories = self._directories()
        if not directories:
            raise RequestRefused(f"{self._settings.root}: there is no episode")
        return directories[-1].name

    def _last_status(self) -> bytes:
        """The one that says the outcome. Called by the thread that writes."""
        with self._lock:
            return encode(self._status(), time.time_ns(), self._typestore)

    def _status(self) -> Status:
        take = self._take
        base = self._last if take is None else self._status_of(take)
        return replace(
            base,
            topics=self._topic_statuses(take),
            disk_free_bytes=shutil.disk_usage(self._settings.root).free,
        )

    def _status_of(self, take: _Take) -> Status:
        labels = take.labels
        state = RECORDING
        if labels.outcome:
            state = ENDED_WITHOUT_OUTCOME if labels.outcome == INTERRUPTED else FINISHED
        return Status(
            state=state,
            episode=take.writer.name,
            task=labels.task,
            instruction=labels.instruction,
            outcome=labels.outcome,
            reason=labels.reason,
            length_s=take.length_s,
            largest_camera_gap_ns=self._monitor.largest_camera_gap_ns,
            megabytes_per_second=self._speed(),
            bytes_written=take.writer.bytes_written,
            events=self._monitor.events,
        )

    def _topic_statuses(self, take: _Take | None) -> list[TopicStatus]:
        stored = {topic.info.name: topic.stored.name for topic in self._topics}
        return [
            TopicStatus(
                name,
                stream.rate_hz,
                stream.required_hz or 0.0,
                take.writer.count(stored[name]) if take is not None and name in stored else 0,
                stream.dropped,
            )
            for name, stream in self._monitor.streams.items()
        ]

    def _speed(self) -> float:
        if len(self._speeds) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._speeds[0], self._speeds[-1]
        return (last - first) / 1e6 / (last_s - first_s) if last_s > first_s else 0.0


class _Take:
    """The queue and the thread of one episode. `finished` is set when it is on the disk, or will never be."""

    def __init__(
        self,
        writer: EpisodeWriter,
        pack: Pack,
        last_status: Callable[[], bytes],
        closed: Callable[[Episode], None],
        warn: Callable[[str], None],
        buffer_bytes: int,
    ) -> None:
        self.writer = writer
        self.labels = writer.labels
        self.finished = threading.Event()
        self.failure: str | None = None
        self._pack = pack
        self._last_status = last_status
        self._closed = closed
        self._warn = warn
        self._buffer_bytes = buffer_bytes
        self._began_s = time.monotonic()
        self._ended_s: float | None = None
        self._end_lock = threading.Lock()
        self._queue: queue.SimpleQueue[list[Received] | tuple[int, bytes] | None] = queue.SimpleQueue()
        self._put_bytes = 0  # of the one thread that puts
        self._taken_bytes = 0  # of the one that takes
        threading.Thread(target=self._run, name=f"episode {writer.name}", daemon=True).start()

    @property
    def length_s(self) -> float:
        return (self._ended_s or time.monotonic()) - self._began_s

    def put(self, batch: list[Received]) -> bool:
        """False when there is no room: the disk is too slow."""
        if self.labels.outcome:
            return True  # it has ended; what comes now does not belong to it
        size = sum(len(message.data) for message in batch)
        if self._put_bytes - self._taken_bytes + size > self._buffer_bytes:
            return False
        self._put_bytes += size
        self._queue.put(batch)
        return True

    def put_status(self, status: bytes) -> None:
        if not self.labels.outcome:
            self._queue.put((time.time_ns(), status))

    def end(self, outcome: str, reason: str) -> bool:
        """End it, once all that was put is written. The first cause counts; False for a later one."""
        with self._end_lock:
            if self.labels.outcome:
                return False
            self._ended_s = time.monotonic()
            self.labels = replace(self.labels, outcome=outcome, reason=reason)
        self._queue.put(None)
        return True

    def end_by_itself(self, outcome: str, reason: str) -> None:
        """As `end`, and somebody has to be told."""
        if self.end(outcome, reason):
            self._warn(f"episode {self.writer.name} ends as {outcome}: {reason}")

    def _run(self) -> None:
        try:
            self._write_until_ended()
            self._closed(self.writer.finish(self.labels, self._last_status()))
        except Exception as error:  # whatever it was: who waits for this thread has to be told
            self.failure = str(error) if isinstance(error, RecordingError) else f"{self.writer.name}: {error!r}"
            self.end(INTERRUPTED, self.failure)
            self._warn(f"episode {self.writer.name} is not closed: {self.failure}")
        finally:
            self.finished.set()

    def _write_until_ended(self) -> None:
        try:
            while (item := self._queue.get()) is not None:
                if isinstance(item, tuple):
                    self.writer.write_status(*item)
                else:
                    self._write(item)
        except DiskFullError as error:
            self.end_by_itself(FAILURE, str(error))

    def _write(self, batch: list[Received]) -> None:
        for message in batch:
            stored, data = self._pack(message.topic, message.data)
            self.writer.write(stored, message.receipt_ns, data, message.published_ns)
        self._taken_bytes += sum(len(message.data) for message in batch)
