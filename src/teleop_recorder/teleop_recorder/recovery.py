"""Closes what a crash left open: nothing that can be read is lost, and the episode says that it was interrupted.

A recorder that was killed leaves an MCAP file without its index, whose last chunk may be torn, and no metadata.yaml.
Everything before the last chunk stays where it is; what can be read of the last chunk is written again in its place,
and the index after it. The caller holds the lock of the directory (episode_writer.RootLock).
"""

from __future__ import annotations

import os
import struct
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from mcap.data_stream import ReadDataStream, RecordBuilder
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import (
    Channel,
    Chunk,
    ChunkIndex,
    DataEnd,
    Footer,
    Header,
    McapRecord,
    Message,
    MessageIndex,
    Schema,
    Statistics,
    SummaryOffset,
)
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import MCAP0_MAGIC

from teleop_recorder.bag import PROFILE, metadata_text
from teleop_recorder.episode import (
    INTERRUPTED,
    METADATA,
    Episode,
    TopicFacts,
    find_episodes,
    write_atomically,
)
from teleop_recorder.errors import EpisodeError

REASON = "the recorder ended without closing the episode"

_FRAME = struct.Struct("<BQ")  # of every record: what it is, and its length without this
_CHUNK_HEAD = struct.Struct("<QQQII")  # first time, last time, size, checksum, length of the name of the compression
_LENGTH = struct.Struct("<Q")


def recover_all(root: Path) -> list[str]:
    """Recover every episode below `root` that has no metadata.yaml; a sentence for each, also for one that failed."""
    sentences = []
    for directory in find_episodes(root):
        if (directory / METADATA).is_file():
            continue
        try:
            episode = recover(directory)
            sentences.append(f"episode {episode.name}: recovered as {episode.labels.outcome}")
        except (EpisodeError, OSError) as error:
            sentences.append(f"episode {directory.name}: not recovered: {error}")
    return sentences


def recover(directory: Path) -> Episode:
    """Make the MCAP file of an episode whole and write its metadata.yaml.

    Raises:
        EpisodeError: there is not exactly one MCAP file, or it is none.
        OSError: of the disk.
    """
    files = sorted(directory.glob("*.mcap"))
    if len(files) != 1:
        raise EpisodeError(f"episode {directory}: has {len(files)} MCAP files, expected one")
    with files[0].open("r+b") as stream:
        contents = _scan(stream)
        if not contents.whole:
            _complete(stream, contents)
    labels = Episode.open(directory).labels
    decided = {"outcome": INTERRUPTED, "reason": REASON} if labels.outcome == INTERRUPTED else {}
    topics = {channel.topic: contents.facts[channel.id] for channel in contents.channels.values()}
    metadata = {channel.topic: channel.metadata for channel in contents.channels.values()}
    write_atomically(directory / METADATA, metadata_text(files[0].name, topics, metadata, decided))
    return Episode.open(directory)


@dataclass
class _Contents:
    """What an MCAP file holds up to `end`, where what is missing has to be written."""

    end: int = 0
    whole: bool = False
    schemas: dict[int, Schema] = field(default_factory=dict)
    channels: dict[int, Channel] = field(default_factory=dict)
    chunks: list[ChunkIndex] = field(default_factory=list)
    facts: dict[int, TopicFacts] = field(default_factory=dict)  # by channel
    tail: list[McapRecord] = field(default_factory=list)  # read from behind `end`: to be written again

    def add(self, record: McapRecord) -> bool:
        """False for a record that makes no sense after those before it."""
        if isinstance(record, Schema):
            self.schemas[record.id] = record
        elif isinstance(record, Channel):
            if record.schema_id not in self.schemas:
                return False
            self.channels[record.id] = record
            self.facts.setdefault(record.id, TopicFacts(self.schemas[record.schema_id].name))
        elif isinstance(record, Message):
            if record.channel_id not in self.facts:
                return False
            self.facts[record.channel_id].add(record.log_time)
        return True


@dataclass
class _OpenChunk:
    """A chunk whose message indexes may still come."""

    start: int
    length: int
    chunk: Chunk
    indexes: dict[int, int] = field(default_factory=dict)  # where, by channel
    index_length: int = 0

    def index(self) -> ChunkIndex:
        return ChunkIndex(
            chunk_start_offset=self.start,
            chunk_length=self.length,
            message_index_offsets=self.indexes,
            message_index_length=self.index_length,
            message_start_time=self.chunk.message_start_time,
            message_end_time=self.chunk.message_end_time,
            compression=self.chunk.compression,
            compressed_size=len(self.chunk.data),
            uncompressed_size=self.chunk.uncompressed_size,
        )


def _scan(stream: BinaryIO) -> _Contents:
    """Everything that can be read. EpisodeError when the file is no MCAP file, however short."""
    contents = _Contents()
    magic = stream.read(len(MCAP0_MAGIC))
    if not MCAP0_MAGIC.startswith(magic):
        raise EpisodeError(f"{stream.name}: is no MCAP file")
    chunk: _OpenChunk | None = None
    ended = False  # whether the data are, so that only the index may be missing
    torn_at = 0
    for start, end, record in _records_from(stream):
        torn_at = end
        if isinstance(record, MessageIndex) and chunk is not None:
            chunk.indexes[record.channel_id] = start
            chunk.index_length += end - start
            continue
        if chunk is not None:
            _keep(contents, chunk)
            chunk = None
        if isinstance(record, Chunk):
            chunk = _OpenChunk(start, end - start, record)
        elif isinstance(record, DataEnd):
            ended = True
        elif isinstance(record, Footer):
            contents.whole = stream.read(len(MCAP0_MAGIC)) == MCAP0_MAGIC
        elif not ended:
            contents.add(record)
            contents.end = end
    if not ended and contents.end:
        # Of a chunk that is the last, it cannot be told whether all its indexes are there.
        stream.seek(torn_at)
        of_chunk = breakup_chunk(chunk.chunk) if chunk is not None else []
        contents.tail = [record for record in (*of_chunk, *_salvaged(stream.read())) if contents.add(record)]
    return contents


def _keep(contents: _Contents, chunk: _OpenChunk) -> None:
    for record in breakup_chunk(chunk.chunk):
        contents.add(record)
    contents.chunks.append(chunk.index())
    contents.end = chunk.start + chunk.length + chunk.index_length


def _records_from(stream: BinaryIO) -> Iterator[tuple[int, int, McapRecord]]:
    """Start, end and content of each record up to where the file is torn off or ends."""
    start = stream.tell()
    try:
        for record in StreamReader(stream, skip_magic=True, emit_chunks=True).records:
            end = stream.tell()
            yield start, end, record
            start = end
            if isinstance(record, Footer):
                return
    except (McapError, EOFError, struct.error, ValueError):
        return


def _salvaged(data: bytes) -> Iterator[McapRecord]:
    """Schemas, channels and messages among complete records, also of a chunk that is itself incomplete."""
    position = 0
    while position + _FRAME.size <= len(data):
        opcode, length = _FRAME.unpack_from(data, position)
        body = data[position + _FRAME.size : position + _FRAME.size + length]
        position += _FRAME.size + length
        if opcode == Opcode.CHUNK:
            yield from _salvaged(_chunk_data(body))
        elif len(body) < length or opcode == 0:
            return
        elif opcode in _READERS:
            yield _READERS[opcode](body)


def _chunk_data(body: bytes) -> bytes:
    """The records in a chunk, as far as they are there; none of a compressed one, which we do not write."""
    if len(body) < _CHUNK_HEAD.size + _LENGTH.size:
        return b""
    *_, name_length = _CHUNK_HEAD.unpack_from(body)
    return b"" if name_length else body[_CHUNK_HEAD.size + _LENGTH.size :]


_READERS = {
    Opcode.SCHEMA: lambda body: Schema.read(ReadDataStream(BytesIO(body))),
    Opcode.CHANNEL: lambda body: Channel.read(ReadDataStream(BytesIO(body))),
    Opcode.MESSAGE: lambda body: Message.read(ReadDataStream(BytesIO(body)), len(body)),
}


def _complete(stream: BinaryIO, contents: _Contents) -> None:
    """Write from `contents.end` what is missing: a chunk of the tail, the end of the data, the index."""
    out = RecordBuilder()
    start = contents.end
    if start == 0:
        out.write(MCAP0_MAGIC)
        Header(profile=PROFILE, library="teleop_recorder").write(out)
    if any(isinstance(record, Message) for record in contents.tail):
        contents.chunks.append(_write_chunk(out, start, contents.tail))
    DataEnd(0).write(out)
    _write_summary(out, start, contents)
    out.write(MCAP0_MAGIC)
    # One write over what was there: should this process be killed as well, the next one finds the same messages.
    stream.seek(start)
    stream.write(out.end())
    stream.truncate()
    stream.flush()
    os.fsync(stream.fileno())


def _write_chunk(out: RecordBuilder, start: int, records: list[McapRecord]) -> ChunkIndex:
    """A chunk of the records and its message indexes; `start` is where `out` begins in the file."""
    body = RecordBuilder()
    entries: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for record in records:
        if isinstance(record, Message):
            entries[record.channel_id].append((record.log_time, body.count))
        record.write(body)
    times = [log_time for of_channel in entries.values() for log_time, _ in of_channel]
    data = body.end()
    chunk = Chunk("", data, max(times), min(times), 0, len(data))
    chunk_start = out.count
    chunk.write(out)
    written = _OpenChunk(start + chunk_start, out.count - chunk_start, chunk)
    index_start = out.count
    for channel, of_channel in entries.items():
        written.indexes[channel] = start + out.count
        MessageIndex(channel, of_channel).write(out)
    written.index_length = out.count - index_start
    return written.index()


def _write_summary(out: RecordBuilder, start: int, contents: _Contents) -> None:
    summary_start = start + out.count
    groups: list[tuple[Opcode, list[Any]]] = [
        (Opcode.SCHEMA, list(contents.schemas.values())),
        (Opcode.CHANNEL, list(contents.channels.values())),
        (Opcode.STATISTICS, [_statistics(contents)]),
        (Opcode.CHUNK_INDEX, contents.chunks),
    ]
    offsets = []
    for opcode, records in groups:
        group_start = start + out.count
        for record in records:
            record.write(out)
        if records:
            offsets.append(SummaryOffset(opcode, group_start, start + out.count - group_start))
    offsets_start = start + out.count
    for offset in offsets:
        offset.write(out)
    Footer(summary_start=summary_start, summary_offset_start=offsets_start, summary_crc=0).write(out)


def _statistics(contents: _Contents) -> Statistics:
    filled = [facts for facts in contents.facts.values() if facts.count]
    return Statistics(
        attachment_count=0,
        channel_count=len(contents.channels),
        channel_message_counts={channel: facts.count for channel, facts in contents.facts.items() if facts.count},
        chunk_count=len(contents.chunks),
        message_count=sum(facts.count for facts in filled),
        message_start_time=min((facts.first_ns for facts in filled), default=0),
        message_end_time=max((facts.last_ns for facts in filled), default=0),
        metadata_count=0,
        schema_count=len(contents.schemas),
    )
