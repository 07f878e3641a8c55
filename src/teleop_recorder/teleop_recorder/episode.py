"""One recorded demonstration: a rosbag2 directory with one MCAP file that says about itself what it is.

The recorder writes molmoact_msgs/EpisodeStatus into the bag: first when the episode begins, then while it lasts, last
with its outcome. So the bag alone tells the task, and whether the take was finished; an index is only a copy. What a
person decides afterwards (another task, another outcome) is kept in the bag's metadata.yaml, under `custom_data`, and
wins. A bag that was never closed (a crash) has no metadata.yaml: it is read up to where it ends, as interrupted.

No ROS in here: messages are decoded with the definitions that the bag holds.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import yaml
from mcap.exceptions import McapError
from mcap.records import Channel, Message, Schema
from mcap.stream_reader import StreamReader
from rosbags.typesys import Stores, TypesysError, get_types_from_msg, get_typestore
from rosbags.typesys.store import Typestore

from teleop_recorder.errors import EpisodeError

METADATA = "metadata.yaml"
# A discarded episode has this file as well: metadata.yaml may be lost, or written anew by `ros2 bag reindex`.
DISCARD_MARK = "DISCARDED"
STATUS_TOPIC = "/episode_status"
STATUS_TYPE = "molmoact_msgs/msg/EpisodeStatus"

SUCCESS, FAILURE, DISCARD, INTERRUPTED = "success", "failure", "discard", "interrupted"
OUTCOMES = (SUCCESS, FAILURE, DISCARD, INTERRUPTED)
# What a person may decide after the recording, and under which keys of metadata.yaml's custom_data.
LABELS = ("task", "instruction", "outcome", "reason")


@dataclass(frozen=True)
class Labels:
    """What an episode is, in words; `outcome` is one of OUTCOMES."""

    task: str = ""
    instruction: str = ""
    outcome: str = INTERRUPTED
    reason: str = ""


class RecordedMessage(NamedTuple):
    """One message as it is in the bag."""

    topic: str
    log_ns: int  # of receipt, on the recorder's clock
    data: bytes  # CDR


@dataclass
class TopicFacts:
    """What a bag holds of a topic; times of receipt in ns."""

    type: str  # "sensor_msgs/msg/Image"
    count: int = 0
    first_ns: int = 0
    last_ns: int = 0

    def add(self, log_ns: int) -> None:
        """One more message."""
        self.first_ns = min(self.first_ns, log_ns) if self.count else log_ns
        self.last_ns = max(self.last_ns, log_ns)
        self.count += 1


@dataclass
class Episode:
    """A recorded episode; use `Episode.open`. Reading goes through the whole file: once for the facts, once for each
    call of `messages`."""

    directory: Path
    labels: Labels
    closed: bool  # it has its metadata.yaml; else it is what a crash left
    topics: dict[str, TopicFacts] = field(default_factory=dict)
    begin_ns: int = 0  # of the first and last message, time of receipt
    end_ns: int = 0

    @classmethod
    def open(cls, directory: str | Path) -> Episode:
        """Read what is there. Raises EpisodeError when there is no bag, or nothing in it can be read."""
        directory = Path(directory)
        episode = cls(directory, Labels(), closed=(directory / METADATA).is_file())
        status: bytes | None = None
        for message in episode._records():
            episode.topics[message.topic].add(message.log_ns)
            episode.begin_ns = episode.begin_ns or message.log_ns
            episode.end_ns = max(episode.end_ns, message.log_ns)
            if message.topic == STATUS_TOPIC:
                status = message.data
        if status is not None:
            try:
                episode.labels = _labels_from(episode.decode(STATUS_TOPIC, status))
            except AttributeError as error:
                raise EpisodeError(f"episode {episode.name}: {STATUS_TOPIC} is no {STATUS_TYPE}: {error}") from error
        episode.labels = _decided(episode.labels, episode._custom_data())
        if (directory / DISCARD_MARK).exists():
            episode.labels = replace(episode.labels, outcome=DISCARD)
        return episode

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def duration_s(self) -> float:
        """From the first to the last message."""
        return (self.end_ns - self.begin_ns) / 1e9

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.directory.iterdir() if path.is_file())

    def messages(self, topics: Sequence[str] | None = None) -> Iterator[RecordedMessage]:
        """Every message of the topics (None: of all), in the order of receipt; a torn end is left out."""
        for message in self._records():
            if topics is None or message.topic in topics:
                yield message

    def decode(self, topic: str, data: bytes) -> Any:
        """A message with attributes as its definition names them; arrays are numpy arrays.

        Raises EpisodeError for a damaged message.
        """
        try:
            return self.typestore.deserialize_cdr(data, self.topics[topic].type)
        except Exception as error:  # random bytes make a decoder raise anything
            raise EpisodeError(f"episode {self.name}: {topic}: a message cannot be decoded: {error!r}") from error

    def decoded(self, topic: str) -> list[tuple[int, Any]]:
        """All messages of a topic: (time of receipt in ns, message). Not for images: they would fill the memory."""
        if topic not in self.topics:
            return []
        return [(message.log_ns, self.decode(topic, message.data)) for message in self.messages([topic])]

    @cached_property
    def typestore(self) -> Typestore:
        """Knows the types of all topics, from the definitions in the bag."""
        return get_typestore(Stores.ROS2_JAZZY)

    def label(self, **changes: str) -> None:
        """Decide anew what the episode is: any of LABELS.

        Raises EpisodeError for another name or outcome, for a discarded episode that shall be anything else, and for
        one that was never closed (see `teleop_recorder.recovery`).
        """
        if not set(changes) <= set(LABELS):
            raise EpisodeError(f"episode {self.name}: {', '.join(changes)}: expected some of {', '.join(LABELS)}")
        outcome = changes.get("outcome", self.labels.outcome)
        if outcome not in OUTCOMES:
            raise EpisodeError(f"episode {self.name}: outcome {outcome!r}, expected one of {', '.join(OUTCOMES)}")
        if self.labels.outcome == DISCARD != outcome:
            raise EpisodeError(f"episode {self.name}: was discarded, which is for good")
        if not self.closed:
            raise EpisodeError(f"episode {self.name}: was never closed; recover it first")
        if outcome == DISCARD:
            mark_discarded(self.directory)
        metadata = self._metadata()
        information = metadata["rosbag2_bagfile_information"]
        information["custom_data"] = {**(information.get("custom_data") or {}), **changes}
        write_atomically(self.directory / METADATA, yaml.safe_dump(metadata, sort_keys=False))
        self.labels = replace(self.labels, **changes)

    def _records(self) -> Iterator[RecordedMessage]:
        """Messages, with `topics` and the typestore filled on the way."""
        channels: dict[int, Channel] = {}
        schemas: dict[int, Schema] = {}
        for file in self._files():
            with file.open("rb") as stream:
                for record in _readable(stream):
                    if isinstance(record, Schema):
                        schemas[record.id] = record
                    elif isinstance(record, Channel):
                        channels[record.id] = record
                        self._add_topic(record, schemas.get(record.schema_id))
                    elif isinstance(record, Message) and record.channel_id in channels:
                        yield RecordedMessage(channels[record.channel_id].topic, record.log_time, record.data)

    def _files(self) -> list[Path]:
        files = sorted(self.directory.glob("*.mcap"))
        if not files:
            raise EpisodeError(f"episode {self.directory}: there is no MCAP file")
        return files

    def _add_topic(self, channel: Channel, schema: Schema | None) -> None:
        if channel.topic in self.topics:
            return
        if schema is None:
            raise EpisodeError(f"episode {self.name}: {channel.topic}: its type is missing, the file is damaged")
        self.topics[channel.topic] = TopicFacts(schema.name)
        if schema.name not in self.typestore.fielddefs:
            try:
                types = get_types_from_msg(schema.data.decode(), schema.name)
            except (TypesysError, ValueError) as error:
                raise EpisodeError(f"episode {self.name}: {schema.name}: not readable: {error!r}") from error
            self.typestore.register({name: it for name, it in types.items() if name not in self.typestore.fielddefs})

    def _metadata(self) -> dict[str, Any]:
        path = self.directory / METADATA
        try:
            metadata = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise EpisodeError(f"{path}: not readable: {error}") from error
        information = metadata.get("rosbag2_bagfile_information") if isinstance(metadata, dict) else None
        if not isinstance(information, dict) or not isinstance(information.get("custom_data") or {}, dict):
            raise EpisodeError(f"{path}: not readable: it is not the metadata of a bag")
        return metadata

    def _custom_data(self) -> Mapping[str, str]:
        if not self.closed:
            return {}
        return self._metadata()["rosbag2_bagfile_information"].get("custom_data") or {}


def find_episodes(root: str | Path) -> list[Path]:
    """Directories below `root` (or `root` itself) that hold an MCAP file, by name."""
    root = Path(root)
    return sorted({file.parent for file in root.rglob("*.mcap")})


def mark_discarded(directory: Path) -> None:
    """Discard an episode for good, whatever becomes of its other files."""
    write_atomically(directory / DISCARD_MARK, "This episode was discarded and is never exported.\n")


def write_atomically(path: Path, text: str) -> None:
    """Replace a file by a whole one: a crash leaves the old or the new."""
    temporary = path.with_name(f".{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def to_index_line(episode: Episode) -> str:
    """What episodes.jsonl says about an episode; the bag says all of it, too."""
    return json.dumps(
        {
            "episode": episode.name,
            "task": episode.labels.task,
            "instruction": episode.labels.instruction,
            "outcome": episode.labels.outcome,
            "reason": episode.labels.reason,
            "duration_s": round(episode.duration_s, 3),
            "bytes": episode.size,
            "messages": {topic: facts.count for topic, facts in sorted(episode.topics.items())},
        }
    )


def _labels_from(status: Any) -> Labels:
    """An outcome is only there once the recorder has written it."""
    return Labels(status.task, status.instruction, status.outcome or INTERRUPTED, status.reason)


def _decided(labels: Labels, custom_data: Mapping[str, str]) -> Labels:
    """What was decided later wins, but a discarded episode stays discarded whatever is written later."""
    decided = replace(labels, **{name: custom_data[name] for name in LABELS if name in custom_data})
    return replace(decided, outcome=DISCARD) if labels.outcome == DISCARD else decided


def _readable(stream: BinaryIO) -> Iterator[Any]:
    """The records of an MCAP file up to where it is torn off or damaged, if it is."""
    try:
        yield from StreamReader(stream, skip_magic=False).records
    except (McapError, EOFError, struct.error, ValueError, OverflowError, MemoryError):
        return  # MemoryError: a damaged length of terabytes
