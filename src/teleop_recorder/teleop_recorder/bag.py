"""A rosbag2 directory with one MCAP file, written from serialized messages. No ROS in here."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.errors import WriterError
from rosbags.typesys.store import Typestore

from teleop_recorder.errors import RecordingError

# What is left to the rest of the machine, and to closing the bag: a bag without its index is hard to read.
RESERVE_BYTES = 100 * 2**20
# How much may be written between two looks at the free space.
CHECK_EVERY_BYTES = 4 * 2**20

_VERSION: Final = 9  # of metadata.yaml, as rosbag2 of Jazzy writes it
_FOREVER = QosTime(sec=9223372036, nsec=854775807)


@dataclass(frozen=True)
class TopicInfo:
    """A topic as it stands in the bag."""

    name: str
    type: str  # "sensor_msgs/msg/Image"
    reliable: bool = True
    latched: bool = False


class BagWriter:
    """Writes one bag; use it from one thread.

    Args:
        directory: The bag to create; its parent folders are created as well.
        typestore: Knows every type that will be added.
        reserve_bytes: Free space below which nothing more is written.

    Raises:
        RecordingError: the directory exists, cannot be created, or its disk has less than `reserve_bytes` free.
    """

    def __init__(self, directory: Path, typestore: Typestore, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.directory = directory
        self.bytes_written = 0
        self._typestore = typestore
        self._reserve_bytes = reserve_bytes
        self._unchecked_bytes = 0
        self._connections: dict[str, Connection] = {}
        self._writer: Writer | None = None
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._check_free_space(directory.parent)
            writer = Writer(directory, version=_VERSION, storage_plugin=StoragePlugin.MCAP)
            writer.open()
        except (OSError, WriterError) as error:
            raise RecordingError(f"bag {directory}: cannot be created: {error}") from error
        self._writer = writer

    def add_topic(self, topic: TopicInfo) -> None:
        """Announce a topic; once for each."""
        if self._writer is None:
            raise RecordingError(f"bag {self.directory}: is closed")
        self._connections[topic.name] = self._writer.add_connection(
            topic.name, topic.type, typestore=self._typestore, offered_qos_profiles=[_offered_qos(topic)]
        )

    def write(self, topic: str, stamp_ns: int, message: bytes) -> None:
        """Append a serialized message (CDR) received at `stamp_ns`.

        Raises:
            RecordingError: the disk is (almost) full or fails. The bag is closed; after a disk that is only almost
                full it is complete up to here.
        """
        if self._writer is None:
            raise RecordingError(f"bag {self.directory}: is closed")
        try:
            if self._unchecked_bytes > CHECK_EVERY_BYTES:
                self._check_free_space(self.directory)
                self._unchecked_bytes = 0
            self._writer.write(self._connections[topic], stamp_ns, message)
        except OSError as error:
            self._abort()
            raise RecordingError(f"bag {self.directory}: writing failed, its end is missing: {error}") from error
        self._unchecked_bytes += len(message)
        self.bytes_written += len(message)

    def close(self) -> None:
        """Write the index and the metadata. Closing a closed bag does nothing.

        Raises:
            RecordingError: the disk is full or fails; the bag lacks its index.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.close()
        except OSError as error:
            with suppress(OSError):
                writer.abort()
            raise RecordingError(f"bag {self.directory}: closing failed, its index is missing: {error}") from error

    def _abort(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):  # of the same disk: it has been reported already
                writer.abort()

    def _check_free_space(self, folder: Path) -> None:
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < self._reserve_bytes:
            self.close()
            raise RecordingError(
                f"bag {self.directory}: the disk is full: {free_bytes / 2**20:.0f} MiB free, "
                f"recording stops below {self._reserve_bytes / 2**20:.0f} MiB"
            )


def _offered_qos(topic: TopicInfo) -> Qos:
    return Qos(
        history=QosHistory.KEEP_LAST,
        depth=1,
        reliability=QosReliability.RELIABLE if topic.reliable else QosReliability.BEST_EFFORT,
        durability=QosDurability.TRANSIENT_LOCAL if topic.latched else QosDurability.VOLATILE,
        deadline=_FOREVER,
        lifespan=_FOREVER,
        liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=_FOREVER,
        avoid_ros_namespace_conventions=False,
    )
