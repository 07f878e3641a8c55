"""A rosbag2 directory with one MCAP file, written from serialized messages. No ROS in here."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import yaml
from mcap.writer import CompressionType, Writer
from rosbags.typesys.store import Typestore

from teleop_recorder.episode import METADATA, TopicFacts, write_atomically
from teleop_recorder.errors import DiskFullError, RecordingError

# What is left to the rest of the machine, and to closing the bag: a bag without its index is hard to read.
RESERVE_BYTES = 100 * 2**20
# How much may be written between two looks at the free space.
CHECK_EVERY_BYTES = 4 * 2**20
# A killed process loses what it has not flushed.
FLUSH_PERIOD_S = 0.5

# What is indexed together. The index stays in memory until the bag is closed, so small chunks of large images add up.
CHUNK_BYTES = 2 * 2**20

# Names and values that rosbag2 of Jazzy gives to its files and what is in them.
PROFILE: Final = "ros2"
QOS_KEY: Final = "offered_qos_profiles"
HASH_KEY: Final = "topic_type_hash"
_ENCODING: Final = "cdr"
_SCHEMA_ENCODING: Final = "ros2msg"
_METADATA_VERSION: Final = 9
_FOREVER: Final = {"sec": 9223372036, "nsec": 854775807}
_NO_MESSAGE_NS: Final = 2**63 - 1


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
        DiskFullError: its disk has less than `reserve_bytes` free; nothing was created.
        RecordingError: the directory exists or cannot be created.
    """

    def __init__(self, directory: Path, typestore: Typestore, reserve_bytes: int = RESERVE_BYTES) -> None:
        self.directory = directory
        self.bytes_written = 0
        self.topics: dict[str, TopicFacts] = {}
        self._typestore = typestore
        self._reserve_bytes = reserve_bytes
        self._unchecked_bytes = 0
        self._channels: dict[str, int] = {}
        self._channel_metadata: dict[str, dict[str, str]] = {}
        self._schemas: dict[str, int] = {}
        self._writer: Writer | None = None
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            self._check_free_space(directory.parent)
            directory.mkdir()
            self._path = directory / f"{directory.name}_0.mcap"
            self._file: BinaryIO = self._path.open("xb")
            # Not compressed: images would cost a core, and are JPEG where space counts.
            writer = Writer(self._file, chunk_size=CHUNK_BYTES, compression=CompressionType.NONE)
            writer.start(profile=PROFILE, library="teleop_recorder")
        except FileExistsError:
            raise RecordingError(f"bag {directory}: exists already") from None
        except OSError as error:
            raise RecordingError(f"bag {directory}: cannot be created: {error}") from error
        self._writer = writer
        self._flushed_s = time.monotonic()

    def add_topic(self, topic: TopicInfo) -> None:
        """Announce a topic; once for each."""
        writer = self._opened()
        if topic.type not in self._schemas:
            definition, _ = self._typestore.generate_msgdef(topic.type, ros_version=2)
            self._schemas[topic.type] = writer.register_schema(topic.type, _SCHEMA_ENCODING, definition.encode())
        metadata = {
            QOS_KEY: yaml.safe_dump([_offered_qos(topic)], sort_keys=False),
            HASH_KEY: self._typestore.hash_rihs01(topic.type),
        }
        self._channels[topic.name] = writer.register_channel(topic.name, _ENCODING, self._schemas[topic.type], metadata)
        self._channel_metadata[topic.name] = metadata
        self.topics[topic.name] = TopicFacts(topic.type)

    def write(self, topic: str, stamp_ns: int, message: bytes, published_ns: int | None = None) -> None:
        """Append a serialized message (CDR) received at `stamp_ns`, published at `published_ns` (None: then, too).

        Raises:
            DiskFullError: the disk is almost full; the message was not written, the bag waits to be closed.
            RecordingError: the disk fails. The bag is closed, its end may be missing.
        """
        writer = self._opened()
        if self._unchecked_bytes > CHECK_EVERY_BYTES:
            self.check_free_space()
        try:
            writer.add_message(
                self._channels[topic], stamp_ns, message, stamp_ns if published_ns is None else published_ns
            )
            if time.monotonic() - self._flushed_s > FLUSH_PERIOD_S:
                self._flush(writer)
        except OSError as error:
            raise self._failed(error) from error
        self.topics[topic].add(stamp_ns)
        self._unchecked_bytes += len(message)
        self.bytes_written += len(message)

    def flush(self) -> None:
        """Hand everything written so far to the operating system. Raises as `write`."""
        try:
            self._flush(self._opened())
        except OSError as error:
            raise self._failed(error) from error

    def check_free_space(self) -> None:
        """Raises DiskFullError when there is less left than the reserve."""
        self._check_free_space(self.directory)
        self._unchecked_bytes = 0

    def use_reserve(self) -> None:
        """From now on the reserve may be written to: it is there for the last words."""
        self._reserve_bytes = 0

    def close(self, custom_data: Mapping[str, str] | None = None) -> None:
        """Write the index, then the metadata with `custom_data` in it. Closing a closed bag does nothing.

        Raises:
            RecordingError: the disk is full or fails; the bag lacks its index.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            with self._file:
                writer.finish()
                self._file.flush()
                os.fsync(self._file.fileno())
            text = metadata_text(self._path.name, self.topics, self._channel_metadata, custom_data or {})
            write_atomically(self.directory / METADATA, text)
        except OSError as error:
            raise RecordingError(f"bag {self.directory}: closing failed, its index is missing: {error}") from error

    def _opened(self) -> Writer:
        if self._writer is None:
            raise RecordingError(f"bag {self.directory}: is closed")
        return self._writer

    def _flush(self, writer: Writer) -> None:
        writer.flush()
        self._flushed_s = time.monotonic()

    def _failed(self, error: OSError) -> RecordingError:
        self._writer = None
        with suppress(OSError):  # of the same disk: it is being reported already
            self._file.close()
        return RecordingError(f"bag {self.directory}: writing failed, its end is missing: {error}")

    def _check_free_space(self, folder: Path) -> None:
        free_bytes = shutil.disk_usage(folder).free
        if free_bytes < self._reserve_bytes:
            raise DiskFullError(
                f"bag {self.directory}: the disk is full: {free_bytes / 2**20:.0f} MiB free, "
                f"recording stops below {self._reserve_bytes / 2**20:.0f} MiB"
            )


def metadata_text(
    file_name: str,
    topics: Mapping[str, TopicFacts],
    channel_metadata: Mapping[str, Mapping[str, str]],
    custom_data: Mapping[str, str],
) -> str:
    """The metadata.yaml of a bag of one file, as rosbag2 lays it out.

    Args:
        file_name: The MCAP file.
        topics: What it holds.
        channel_metadata: What its channels say of each topic: QOS_KEY as YAML, HASH_KEY.
        custom_data: What we add.
    """
    filled = [facts for facts in topics.values() if facts.count]
    begin_ns = min((facts.first_ns for facts in filled), default=_NO_MESSAGE_NS)
    end_ns = max((facts.last_ns for facts in filled), default=begin_ns)
    extent = {
        "starting_time": {"nanoseconds_since_epoch": begin_ns},
        "duration": {"nanoseconds": end_ns - begin_ns},
        "message_count": sum(facts.count for facts in filled),
    }
    information = {
        "version": _METADATA_VERSION,
        "storage_identifier": "mcap",
        "relative_file_paths": [file_name],
        **extent,
        "topics_with_message_count": [
            {"topic_metadata": _topic_metadata(name, facts.type, channel_metadata[name]), "message_count": facts.count}
            for name, facts in topics.items()
        ],
        "compression_format": "",
        "compression_mode": "",
        "files": [{"path": file_name, **extent}],
        "custom_data": dict(custom_data) or None,
        "ros_distro": "jazzy",
    }
    return yaml.dump({"rosbag2_bagfile_information": information}, Dumper=_WithoutAliases, sort_keys=False)


class _WithoutAliases(yaml.SafeDumper):
    """Writes out what occurs twice: not every reader of rosbag2's metadata knows anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _topic_metadata(name: str, type_name: str, channel: Mapping[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "type": type_name,
        "serialization_format": _ENCODING,
        "offered_qos_profiles": yaml.safe_load(channel.get(QOS_KEY, "")) or [],
        "type_description_hash": channel.get(HASH_KEY, ""),
    }


def _offered_qos(topic: TopicInfo) -> dict[str, Any]:
    return {
        "history": "keep_last",
        "depth": 1,
        "reliability": "reliable" if topic.reliable else "best_effort",
        "durability": "transient_local" if topic.latched else "volatile",
        "deadline": dict(_FOREVER),
        "lifespan": dict(_FOREVER),
        "liveliness": "automatic",
        "liveliness_lease_duration": dict(_FOREVER),
        "avoid_ros_namespace_conventions": False,
    }
