"""`molmoact episodes import`: recordings that others made become episodes in our layout.

Sources are a LeRobot dataset (v2.1 or v3), or rosbag2 bags (sqlite3 or MCAP) of a robot that never ran our recorder.
What is what in them, a YAML file says; docs/how-to/export.md explains it. A dataset of our own export needs none.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from teleop_recorder import index
from teleop_recorder.bag import BagWriter, TopicInfo
from teleop_recorder.definitions import add_installed_type, installed_typestore
from teleop_recorder.episode import FAILURE, STATUS_TOPIC, STATUS_TYPE, SUCCESS, Episode
from teleop_recorder.episode_writer import RootLock
from teleop_recorder.errors import ConfigurationError, DefinitionError, EpisodeError, RecordingError
from teleop_recorder.foreign import Recorded, header_of, message_of
from teleop_recorder.foreign_bag import load_bag_mapping, read_bag
from teleop_recorder.foreign_dataset import find_mapping, open_dataset, read_dataset_episode

# Episodes being written are below this directory, so that one that is cut off is never taken for a whole one.
UNFINISHED = ".importing"
FINISHED = 2  # EpisodeStatus.state


@dataclass(frozen=True)
class _Source:
    """An episode to be: its name, what was asked of the robot, and its messages."""

    name: str
    instruction: str
    messages: Callable[[], Iterator[Recorded]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="LeRobot dataset, rosbag2 bag, or directory of bags"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the episodes are put")
    parser.add_argument("--mapping", type=Path, metavar="FILE", help="YAML: what is what in the source")
    parser.add_argument(
        "--instruction", default="", help="what the robot was asked to do, where the source does not say"
    )
    parser.add_argument("--outcome", choices=(SUCCESS, FAILURE), default=SUCCESS, help="of every episode [success]")


def run(options: argparse.Namespace) -> int:
    """Exit code: 0 when all of the source is there, 1 when some of it is not, 2 when the request makes no sense."""
    try:
        sources = list(_sources(options.source, options.mapping, options.instruction))
        lock = RootLock(options.out)
    except (ConfigurationError, EpisodeError, RecordingError) as error:
        print(f"import: {error}", file=sys.stderr)
        return 2
    failures = 0
    unfinished = options.out / UNFINISHED
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for source in tqdm(sources, unit="episode", desc="import"):
            if (options.out / source.name).exists():
                continue
            try:
                _write(unfinished / source.name, source, options.outcome)
                (unfinished / source.name).rename(options.out / source.name)
                index.put(options.out, Episode.open(options.out / source.name))
            except (EpisodeError, RecordingError, DefinitionError) as error:
                failures += 1
                print(f"import: {source.name}: {error}", file=sys.stderr)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        lock.release()
    print(f"{options.out}: {len(sources) - failures} of {len(sources)} episodes of {options.source}")
    return 1 if failures else 0


def _sources(source: Path, mapping: Path | None, instruction: str) -> Iterator[_Source]:
    if (source / "meta" / "info.json").is_file():
        dataset = open_dataset(source)
        meaning = find_mapping(dataset, mapping)
        for number, task in dataset.episodes():
            read = partial(read_dataset_episode, dataset, number, meaning)
            yield _Source(f"{source.resolve().name}_{number:06d}", task or instruction, read)
        return
    bags = sorted({path.parent for kind in ("*.mcap", "*.db3") for path in source.rglob(kind)})
    if not bags:
        raise EpisodeError(f"{source}: is no LeRobot dataset (meta/info.json), and there is no bag (*.mcap, *.db3)")
    if mapping is None:
        raise ConfigurationError(f"{source}: bags need a --mapping that says what their topics are")
    topics = load_bag_mapping(mapping)
    for bag in bags:
        name = "_".join(bag.relative_to(source).parts) or source.resolve().name
        yield _Source(name, instruction, partial(read_bag, bag, topics))


def _write(directory: Path, source: _Source, outcome: str) -> None:
    """Raises EpisodeError when there is no message of what the mapping names, RecordingError for the disk."""
    typestore = installed_typestore()
    add_installed_type(typestore, STATUS_TYPE)
    bag = BagWriter(directory, typestore)
    bag.add_topic(TopicInfo(STATUS_TOPIC, STATUS_TYPE))
    last_ns = 0
    for message in source.messages():
        if message.topic not in bag.topics:
            add_installed_type(typestore, message.type)
            bag.add_topic(TopicInfo(message.topic, message.type))
        bag.write(message.topic, message.log_ns, message.data)
        last_ns = max(last_ns, message.log_ns)
    if not last_ns:
        raise EpisodeError("nothing of what the mapping names is there")
    status = message_of(
        typestore,
        STATUS_TYPE,
        header=header_of(typestore, last_ns, ""),
        state=FINISHED,
        episode=directory.name,
        instruction=source.instruction,
        outcome=outcome,
        reason="imported",
    )
    bag.write(STATUS_TOPIC, last_ns, bytes(typestore.serialize_cdr(status, STATUS_TYPE)))
    bag.close()
