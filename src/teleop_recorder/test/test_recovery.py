from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from rosbags.rosbag2 import Reader
from teleop_recorder import bag as bag_module
from teleop_recorder.bag import BagWriter, TopicInfo
from teleop_recorder.definitions import add_installed_type, installed_typestore
from teleop_recorder.episode import DISCARD, INTERRUPTED, STATUS_TYPE, SUCCESS, Episode, Labels
from teleop_recorder.episode_writer import EpisodeWriter
from teleop_recorder.errors import EpisodeError
from teleop_recorder.recovery import recover, recover_all
from teleop_recorder.status import Status, encode

TOPICS = [TopicInfo("/chatter", "std_msgs/msg/String"), TopicInfo("/count", "std_msgs/msg/Int64")]


@pytest.fixture(scope="module")
def typestore():
    store = installed_typestore()
    add_installed_type(store, STATUS_TYPE)
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory, typestore) -> bytes:
    """An MCAP file of many small chunks that was closed."""
    directory = tmp_path_factory.mktemp("whole") / "bag"
    bag = BagWriter(directory, typestore)
    for topic in TOPICS:
        bag.add_topic(topic)
    text = typestore.types["std_msgs/msg/String"]
    for index in range(60):
        data = bytes(typestore.serialize_cdr(text(data=f"{index} " + "x" * (index * 7 % 50)), "std_msgs/msg/String"))
        bag.write(TOPICS[index % 2].name, 1000 + index, data)
        if index % 9 == 0:
            bag.flush()
    bag.close()
    return (directory / "bag_0.mcap").read_bytes()


def torn(root, data: bytes):
    directory = root / "torn"
    directory.mkdir(parents=True, exist_ok=True)
    for file in directory.iterdir():
        file.unlink()
    (directory / "torn_0.mcap").write_bytes(data)
    return directory


def contents(directory) -> list[tuple]:
    return [tuple(message) for message in Episode.open(directory).messages()]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_wherever_a_file_is_torn_nothing_readable_is_lost_and_every_reader_takes_it(data, tmp_path, whole):
    cut = data.draw(st.integers(0, len(whole)))
    directory = torn(tmp_path, whole[:cut])
    readable = contents(directory)
    episode = recover(directory)
    recovered = contents(directory)
    assert recovered[: len(readable)] == readable
    assert [log_ns for _, log_ns, _ in recovered] == list(range(1000, 1000 + len(recovered)))
    assert episode.closed
    assert episode.labels.outcome == INTERRUPTED
    with (directory / "torn_0.mcap").open("rb") as stream:
        by_index = [
            (channel.topic, message.log_time, message.data)
            for _, channel, message in make_reader(stream).iter_messages()
        ]
    assert by_index == recovered
    if recovered:
        with Reader(directory) as reader:
            assert reader.message_count == len(recovered)
            assert [(c.topic, at, bytes(raw)) for c, at, raw in reader.messages()] == recovered


def test_complete_messages_of_a_torn_chunk_are_kept(tmp_path, typestore, whole, monkeypatch):
    monkeypatch.setattr(bag_module, "FLUSH_PERIOD_S", 1e9)
    bag = BagWriter(tmp_path / "bag", typestore)
    bag.add_topic(TOPICS[0])
    for stamp in range(10):
        bag.write("/chatter", stamp, b"\0\1\0\0\1\0\0\0\0" * 10)
    bag.flush()
    data = (tmp_path / "bag" / "bag_0.mcap").read_bytes()
    directory = torn(tmp_path, data[: len(data) // 2])
    assert contents(directory) == []  # readers give up a torn chunk
    recover(directory)
    kept = contents(directory)
    assert 0 < len(kept) < 10
    assert [log_ns for _, log_ns, _ in kept] == list(range(len(kept)))


def test_zeros_behind_the_end_are_cut_off(tmp_path, whole):
    directory = torn(tmp_path, whole[: len(whole) // 2] + bytes(5000))
    readable = contents(directory)
    recover(directory)
    assert contents(directory)[: len(readable)] == readable


def write_episode(root, typestore, outcome=None):
    labels = Labels("pick", "pick up the cube", outcome="")
    writer = EpisodeWriter(root, TOPICS, labels, typestore, reserve_bytes=0)
    writer.write(TOPICS[0], 10, b"\0\1\0\0\1\0\0\0\0", 9)
    writer.write_status(11, encode(Status(state=1, task=labels.task, instruction=labels.instruction), 0, typestore))
    if outcome:
        last = Status(state=2, task=labels.task, instruction=labels.instruction, outcome=outcome, reason="done")
        writer.finish(Labels(labels.task, labels.instruction, outcome, "done"), encode(last, 0, typestore))
    return writer.directory


def test_finished_episodes_are_left_alone_and_open_ones_marked_interrupted(tmp_path, typestore):
    finished = write_episode(tmp_path, typestore, SUCCESS)
    left_open = write_episode(tmp_path, typestore)
    before = {path: path.read_bytes() for path in finished.iterdir()}
    assert recover_all(tmp_path) == [f"episode {left_open.name}: recovered as interrupted"]
    assert {path: path.read_bytes() for path in finished.iterdir()} == before
    episode = Episode.open(left_open)
    assert episode.labels == Labels(
        "pick", "pick up the cube", INTERRUPTED, "the recorder ended without closing the episode"
    )
    assert recover_all(tmp_path) == []


def test_outcome_that_was_written_before_the_crash_counts(tmp_path, typestore):
    directory = write_episode(tmp_path, typestore, SUCCESS)
    (directory / "metadata.yaml").unlink()
    assert recover(directory).labels.outcome == SUCCESS


def test_discarded_episode_stays_discarded_when_its_metadata_are_lost(tmp_path, typestore):
    stopped = write_episode(tmp_path, typestore, DISCARD)
    undone = write_episode(tmp_path, typestore, SUCCESS)
    Episode.open(undone).label(outcome=DISCARD)
    for directory in (stopped, undone):
        (directory / "metadata.yaml").unlink()
        assert Episode.open(directory).labels.outcome == DISCARD
        assert recover(directory).labels.outcome == DISCARD
        with pytest.raises(EpisodeError, match="for good"):
            Episode.open(directory).label(outcome=SUCCESS)


def test_file_that_is_no_mcap_is_named_and_not_touched(tmp_path):
    directory = torn(tmp_path, b"something else entirely")
    assert recover_all(tmp_path) == [f"episode torn: not recovered: {directory}/torn_0.mcap: is no MCAP file"]
    assert (directory / "torn_0.mcap").read_bytes() == b"something else entirely"


def test_names_of_episodes_sort_as_they_were_recorded(tmp_path, typestore):
    names = [write_episode(tmp_path, typestore, SUCCESS).name for _ in range(3)]
    assert all(first < second for first, second in pairwise(names))
    assert [name[-3:] for name in names] == ["001", "002", "003"]
