"""One episode on its way to the disk, and the lock of the directory that episodes are written to. No ROS in here."""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from rosbags.typesys.store import Typestore

from teleop_recorder.bag import BagWriter, TopicInfo
from teleop_recorder.episode import DISCARD, STATUS_TOPIC, STATUS_TYPE, Episode, Labels, mark_discarded
from teleop_recorder.errors import RecordingError

LOCK = ".lock"

_NUMBERED = re.compile(r".*_(\d{3,})")


class RootLock:
    """The right to write episodes below a directory, which is created; one process has it at a time.

    Raises:
        RecordingError: another process has it, or the directory cannot be written to.
    """

    def __init__(self, root: Path) -> None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._file = (root / LOCK).open("a+")
        except OSError as error:
            raise RecordingError(f"{root}: cannot be written to: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise RecordingError(f"{root}: another recorder (process {owner}) writes there") from None
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def release(self) -> None:
        """The kernel does it as well when the process ends, however it ends."""
        self._file.close()


class EpisodeWriter:
    """Writes one episode; use it from one thread.

    Args:
        root: Whose lock the caller has; the episode becomes a directory in it, named after UTC and a running number.
        topics: What will be written; others may be added.
        status: The first molmoact_msgs/EpisodeStatus, made from the name of the episode.
        typestore: Knows the types of the topics and of the status.
        reserve_bytes: Space that is left on the disk.

    Raises:
        DiskFullError: less than that is left now.
        RecordingError: the bag cannot be created.
    """

    def __init__(
        self, root: Path, topics: Sequence[TopicInfo], labels: Labels, typestore: Typestore, reserve_bytes: int
    ) -> None:
        self.labels = labels
        self.name = new_name(root)
        self._bag = BagWriter(root / self.name, typestore, reserve_bytes)
        for topic in (TopicInfo(STATUS_TOPIC, STATUS_TYPE), *topics):
            self._bag.add_topic(topic)

    @property
    def directory(self) -> Path:
        return self._bag.directory

    @property
    def bytes_written(self) -> int:
        return self._bag.bytes_written

    def count(self, topic: str) -> int:
        """Messages written of a topic."""
        return self._bag.topics[topic].count if topic in self._bag.topics else 0

    def write(self, topic: TopicInfo, receipt_ns: int, message: bytes, published_ns: int) -> None:
        """Raises as BagWriter.write."""
        if topic.name not in self._bag.topics:
            self._bag.add_topic(topic)
        self._bag.write(topic.name, receipt_ns, message, published_ns)

    def write_status(self, now_ns: int, status: bytes) -> None:
        """So that the bag says what it is, however it ends. Raises as BagWriter.write, and when the disk is full."""
        self._bag.write(STATUS_TOPIC, now_ns, status)
        self._bag.flush()
        self._bag.check_free_space()

    def finish(self, labels: Labels, status: bytes) -> Episode:
        """Write the last status, which says the outcome, and close the bag. RecordingError: the disk fails."""
        if labels.outcome == DISCARD:
            mark_discarded(self.directory)
        self._bag.use_reserve()
        self._bag.write(STATUS_TOPIC, time.time_ns(), status)
        self._bag.close()
        self.labels = labels
        filled = [facts for facts in self._bag.topics.values() if facts.count]
        return Episode(
            self.directory,
            labels,
            closed=True,
            topics=dict(self._bag.topics),
            begin_ns=min(facts.first_ns for facts in filled),
            end_ns=max(facts.last_ns for facts in filled),
        )


def new_name(root: Path) -> str:
    """UTC and the number after the highest one in `root`: the order of names is the order of recording."""
    numbers = [int(match[1]) for path in root.iterdir() if (match := _NUMBERED.fullmatch(path.name))]
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}_{max(numbers, default=0) + 1:03}"
