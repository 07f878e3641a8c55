from __future__ import annotations

import json
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
from rosbags.rosbag2 import Reader
from teleop_recorder import index
from teleop_recorder.bag import TopicInfo
from teleop_recorder.definitions import add_installed_type, begins_with_stamp, installed_typestore, leading_stamp
from teleop_recorder.episode import (
    DISCARD,
    FAILURE,
    INTERRUPTED,
    STATUS_TOPIC,
    STATUS_TYPE,
    SUCCESS,
    Episode,
    Labels,
    find_episodes,
)
from teleop_recorder.errors import RecordingError, RequestRefused
from teleop_recorder.session import Received, RecordedTopic, Session, SessionSettings
from teleop_recorder.status import RECORDING, Status, TopicStatus, encode

PATIENCE_S = 20.0
STATE = RecordedTopic(TopicInfo("/state", "std_msgs/msg/String"), TopicInfo("/state", "std_msgs/msg/String"), 100.0)
TASK = RecordedTopic(
    TopicInfo("/task", "std_msgs/msg/String", latched=True), TopicInfo("/task", "std_msgs/msg/String", latched=True)
)
HELLO = b"\0\1\0\0\6\0\0\0hello\0"


@pytest.fixture(scope="module")
def typestore():
    store = installed_typestore()
    add_installed_type(store, STATUS_TYPE)
    return store


def as_it_came(topic, data):
    return topic.stored, data


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def open_session(tmp_path, typestore, warnings):
    """Sessions on one root, and none left open; a required topic that has spoken, and one that speaks once."""
    opened = []

    def open_session(silence_s=1e6, reserve_bytes=0, buffer_bytes=2**20, pack=as_it_came):
        session = Session(
            SessionSettings(tmp_path, reserve_bytes, silence_s, buffer_bytes), typestore, pack, warnings.append
        )
        opened.append(session)
        session.add_topic(STATE)
        session.add_topic(TASK)
        speak(session)
        return session

    yield open_session
    for session in opened:
        session.close("the test is over")


def speak(session, count=1, topic=STATE):
    for _ in range(count):
        session.receive([Received(topic, time.time_ns(), time.time_ns(), None, HELLO)])


def wait_until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.005)


def written(session, typestore):
    """Messages on the disk of each topic, as the status says."""
    status = typestore.deserialize_cdr(session.tick(0), STATUS_TYPE)
    return dict(zip(status.topics, status.messages, strict=True))


def statuses(episode):
    return [status for _, status in episode.decoded(STATUS_TOPIC)]


def test_episode_holds_what_came_between_start_and_stop_and_says_what_it_is(open_session, tmp_path):
    session = open_session()
    name = session.start("pick", "pick up the cube")
    speak(session, 10)
    session.tick(1)
    session.stop(SUCCESS, "in the box")
    speak(session, 10)
    episode = Episode.open(tmp_path / name)
    assert episode.labels == Labels("pick", "pick up the cube", SUCCESS, "in the box")
    assert episode.topics["/state"].count == 10
    first, *_, last = statuses(episode)
    assert (first.state, first.outcome, first.instruction) == (1, "", "pick up the cube")
    assert (last.state, last.outcome, last.reason) == (2, SUCCESS, "in the box")
    assert dict(zip(last.topics, last.messages, strict=True)) == {"/state": 10, "/task": 0}
    with Reader(tmp_path / name) as reader:
        assert reader.message_count == 10 + len(statuses(episode))


def test_what_was_said_once_before_is_in_every_episode(open_session, tmp_path):
    session = open_session()
    speak(session, topic=TASK)
    for _ in range(2):
        name = session.start("pick", "")
        session.stop(SUCCESS, "")
        episode = Episode.open(tmp_path / name)
        assert episode.topics["/task"].count == 1
        assert episode.topics["/task"].first_ns >= episode.begin_ns


def test_start_is_refused_while_a_required_topic_is_silent(open_session, tmp_path):
    session = open_session()
    session.await_topic("/camera", 30.0)
    with pytest.raises(RequestRefused, match="nothing has come on /camera"):
        session.start("pick", "")
    assert find_episodes(tmp_path) == []


def test_topic_that_goes_silent_ends_the_episode_as_failure_with_the_reason(open_session, tmp_path, warnings):
    session = open_session(silence_s=0.05)
    speak(session)
    name = session.start("pick", "")
    wait_until(lambda: session.tick(0) and not session.recording)
    labels = Episode.open(tmp_path / name).labels
    assert labels.outcome == FAILURE
    assert labels.reason.startswith("/state is silent for ")
    assert warnings == [f"episode {name} ends as failure: {labels.reason}"]
    with pytest.raises(RequestRefused, match=f"no episode is under way; {name} ended as failure: /state is silent"):
        session.stop(SUCCESS, "")


def test_full_disk_ends_the_episode_cleanly_before_it_is_full(open_session, tmp_path, monkeypatch, typestore):
    session = open_session(reserve_bytes=100 * 2**20)
    name = session.start("pick", "")
    speak(session, 5)
    wait_until(lambda: written(session, typestore)["/state"] == 5)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99 * 2**20))
    wait_until(lambda: session.tick(0) and not session.recording)
    episode = Episode.open(tmp_path / name)
    assert episode.closed
    assert episode.labels.outcome == FAILURE
    assert "disk is full: 99 MiB free, recording stops below 100 MiB" in episode.labels.reason
    assert episode.topics["/state"].count == 5
    with pytest.raises(RequestRefused, match="the disk is full"):
        session.start("pick", "")


def test_disk_that_is_full_when_much_is_written_leaves_room_for_the_last_word(
    open_session, tmp_path, monkeypatch, typestore
):
    session = open_session(reserve_bytes=100 * 2**20, buffer_bytes=2**30)
    name = session.start("pick", "")
    large = Received(STATE, time.time_ns(), time.time_ns(), None, HELLO + bytes(2**20))
    session.receive([large] * 3)
    wait_until(lambda: written(session, typestore)["/state"] == 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=99 * 2**20))
    session.receive([large] * 100)
    wait_until(lambda: session.tick(0) and not session.recording)
    episode = Episode.open(tmp_path / name)
    assert (episode.closed, episode.labels.outcome) == (True, FAILURE)
    assert 3 <= episode.topics["/state"].count < 10


def test_disk_too_slow_for_the_buffer_costs_messages_that_are_counted(open_session, tmp_path):
    written = threading.Event()

    def slow_pack(topic, data):
        written.wait(PATIENCE_S)
        return topic.stored, data

    session = open_session(buffer_bytes=10 * len(HELLO), pack=slow_pack)
    name = session.start("pick", "")
    speak(session, 25)
    written.set()
    session.stop(SUCCESS, "")
    episode = Episode.open(tmp_path / name)
    assert episode.topics["/state"].count == 10
    assert list(statuses(episode)[-1].dropped) == [15, 0]


def test_error_while_writing_is_told_to_who_stops_the_episode(open_session):
    def broken_pack(topic, data):
        raise OSError("the cable was pulled")

    session = open_session(pack=broken_pack)
    session.start("pick", "")
    speak(session)
    wait_until(lambda: not session.recording)
    with pytest.raises(RequestRefused, match="ended as interrupted: .*the cable was pulled"):
        session.stop(SUCCESS, "")


def test_one_episode_at_a_time(open_session):
    session = open_session()
    name = session.start("pick", "")
    with pytest.raises(RequestRefused, match=f"episode {name} is under way"):
        session.start("place", "")
    with pytest.raises(RequestRefused, match=f"episode {name} is under way"):
        session.relabel("", task="place")
    with pytest.raises(RequestRefused, match="outcome 'good' is not one of success, failure, discard"):
        session.stop("good", "")
    session.stop(SUCCESS, "")
    with pytest.raises(RequestRefused, match="no episode is under way"):
        session.stop(SUCCESS, "")


def test_second_recorder_on_the_same_root_is_refused(open_session, tmp_path, typestore):
    session = open_session()
    settings = SessionSettings(tmp_path, 0, 1.0, 1)
    with pytest.raises(RecordingError, match="another recorder .process [0-9]+. writes there"):
        Session(settings, typestore, as_it_came, print)
    session.close("done")
    Session(settings, typestore, as_it_came, print).close("done")


def test_closing_interrupts_what_is_under_way(open_session, tmp_path):
    session = open_session()
    name = session.start("pick", "")
    session.close("interrupted by the operator")
    episode = Episode.open(tmp_path / name)
    assert (episode.closed, episode.labels.outcome) == (True, INTERRUPTED)
    assert episode.labels.reason == "interrupted by the operator"


def index_of(root):
    return {entry["episode"]: entry for entry in map(json.loads, (root / index.INDEX).read_text().splitlines())}


def test_index_follows_every_change_and_is_the_one_that_the_bags_give(open_session, tmp_path):
    session = open_session()
    names = []
    for outcome in (SUCCESS, FAILURE, SUCCESS):
        names.append(session.start("pick", ""))
        session.stop(outcome, "")
    session.relabel(names[1], task="place", instruction="put it down")
    assert session.relabel("", reason="by hand") == names[2]
    assert session.undo_last() == names[2]
    assert session.undo_last() == names[1]
    followed = index_of(tmp_path)
    assert [followed[name]["outcome"] for name in names] == [SUCCESS, DISCARD, DISCARD]
    assert (followed[names[1]]["task"], followed[names[1]]["instruction"]) == ("place", "put it down")
    (tmp_path / index.INDEX).unlink()
    assert index.rebuild(tmp_path) == []
    rebuilt = index_of(tmp_path)
    assert {name: entry["outcome"] for name, entry in rebuilt.items()} == {
        name: entry["outcome"] for name, entry in followed.items()
    }
    assert {name: entry["messages"] for name, entry in rebuilt.items()} == {
        name: entry["messages"] for name, entry in followed.items()
    }


def test_discarded_episode_cannot_be_taken_back(open_session):
    session = open_session()
    session.start("pick", "")
    name = session.stop(DISCARD, "the cube fell")
    with pytest.raises(RequestRefused, match=f"episode {name}: was discarded, which is for good"):
        session.relabel(name, outcome=SUCCESS)
    with pytest.raises(RequestRefused, match="no episode left to undo"):
        session.undo_last()


@pytest.mark.parametrize("left", ["", "{", '{"episode": "another"}\n', "[]\n"])
def test_index_that_is_not_true_is_rebuilt_at_the_start(open_session, tmp_path, left):
    session = open_session()
    name = session.start("pick", "")
    session.stop(SUCCESS, "")
    session.close("done")
    (tmp_path / index.INDEX).write_text(left)
    open_session()
    assert list(index_of(tmp_path)) == [name]


def test_status_message_is_the_one_that_the_interface_declares(typestore):
    from molmoact_msgs.msg import EpisodeStatus
    from rclpy.serialization import deserialize_message

    topics = [TopicStatus("/state", 99.5, 100.0, 7, 1), TopicStatus("/task", 0.0, 0.0, 1, 0)]
    data = encode(
        Status(RECORDING, "e", "t", "i", "o", "r", 1.5, topics, 2_000_000_003, 4.5, 6, 7, ["one", "two"]),
        5_000_000_006,
        typestore,
    )
    message = deserialize_message(data, EpisodeStatus)
    assert (message.header.stamp.sec, message.header.stamp.nanosec) == (5, 6)
    assert (message.state, message.episode, message.task, message.instruction) == (RECORDING, "e", "t", "i")
    assert (message.outcome, message.reason) == ("o", "r")
    assert (message.length.sec, message.length.nanosec) == (1, 500_000_000)
    assert (list(message.topics), list(message.messages)) == (["/state", "/task"], [7, 1])
    assert (list(message.rates_hz), list(message.required_hz)) == ([99.5, 0.0], [100.0, 0.0])
    assert list(message.dropped) == [1, 0]
    assert (message.largest_camera_gap.sec, message.largest_camera_gap.nanosec) == (2, 3)
    assert message.megabytes_per_second == 4.5
    assert (message.bytes_written, message.disk_free_bytes) == (6, 7)
    assert list(message.events) == ["one", "two"]


def test_stamp_is_read_where_a_message_begins_with_one(typestore):
    add_installed_type(typestore, "tf2_msgs/msg/TFMessage")
    stamped = ["sensor_msgs/msg/Image", "geometry_msgs/msg/PoseStamped", "rosgraph_msgs/msg/Clock"]
    assert [begins_with_stamp(typestore, name) for name in stamped] == [True] * 3
    others = ["std_msgs/msg/String", "std_msgs/msg/Empty", "geometry_msgs/msg/Pose", "tf2_msgs/msg/TFMessage"]
    assert [begins_with_stamp(typestore, name) for name in others] == [False] * 4
    time_type, clock_type = (
        typestore.types[name] for name in ("builtin_interfaces/msg/Time", "rosgraph_msgs/msg/Clock")
    )
    clock = typestore.serialize_cdr(clock_type(clock=time_type(sec=3, nanosec=4)), "rosgraph_msgs/msg/Clock")
    assert leading_stamp(bytes(clock)) == 3_000_000_004
