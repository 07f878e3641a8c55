"""The recorder as a process: killed, out of disk, beside another one, and deprived of its topics."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from molmoact_msgs.msg import EpisodeStatus
from molmoact_msgs.srv import RelabelEpisode, StartEpisode, StopEpisode
from molmoact_ros.images import array_to_image, compressed_to_array
from molmoact_ros.stamps import from_nanoseconds
from processes import Processes, TestProcess, wait_for
from rclpy.node import Node
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image, JointState
from std_srvs.srv import Trigger
from systems import Latest, call
from teleop_recorder.episode import DISCARD, FAILURE, INTERRUPTED, STATUS_TOPIC, SUCCESS, Episode, find_episodes

STATE_RATE_HZ = 100.0
# What a recorder that is killed may lose, at most.
LAST_SECONDS = 1.0
ROUNDS = 4
SEED = 20261125


class Source:
    """Publishes a state, which counts, at STATE_RATE_HZ; `published` says when each was."""

    def __init__(self, node: Node) -> None:
        self.published: list[float] = []
        self.shift_ns = 0
        self._node = node
        self._publisher = node.create_publisher(JointState, "state", 1000)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def restart(self) -> None:
        """Another publisher takes its place."""
        old, self._publisher = self._publisher, self._node.create_publisher(JointState, "state", 1000)
        self._node.destroy_publisher(old)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0 / STATE_RATE_HZ):
            message = JointState(position=[float(len(self.published))])
            message.header.stamp = from_nanoseconds(time.time_ns() + self.shift_ns)
            self.published.append(time.monotonic())
            self._publisher.publish(message)


@pytest.fixture
def source(ros_node: Node) -> Iterator[Source]:
    source = Source(ros_node)
    yield source
    source.close()


class Recorder:
    """A recorder process and what it says and is asked."""

    def __init__(self, processes: Processes, node: Node, root: Path, **parameters: object) -> None:
        self._node = node
        self._processes = processes
        self._root = root
        self._parameters = {"topics": ["state 20 Hz"], "directory": str(root), "disk_reserve": 16, **parameters}
        self.status = Latest(node, EpisodeStatus, "episode_status")
        self._start, self._stop = (
            node.create_client(kind, name)
            for kind, name in ((StartEpisode, "start_episode"), (StopEpisode, "stop_episode"))
        )
        self.process = self.launch()

    def launch(self) -> TestProcess:
        """Start it (again) and wait for its first word."""
        before = self.status.count
        self.process = self._processes.start_node("teleop_recorder", "recorder", parameters=self._parameters)
        wait_for(lambda: self.status.count > before or self.process.returncode is not None, "a status")
        assert self.process.returncode is None, self.process.output
        return self.process

    def start(self) -> Path:
        """Begin an episode, as soon as its topics have been heard."""

        def started() -> str:
            answer = call(self._start, StartEpisode.Request(task="pick", instruction="pick up the cube"))
            assert answer.success or "nothing has come" in answer.message or "silent" in answer.message, answer.message
            return answer.episode

        return self._root / wait_for(started, "the start of an episode")

    def stop(self, outcome: str) -> None:
        answer = call(self._stop, StopEpisode.Request(outcome=outcome, reason="by the test"))
        assert answer.success, answer.message

    def wait_for_messages(self, count: int) -> None:
        """Until so many states are on the disk."""
        wait_for(lambda: self._messages() >= count, f"{count} messages")

    def _messages(self) -> int:
        status = self.status.message
        return status.messages[0] if status.state == EpisodeStatus.RECORDING and status.messages else 0


@contextmanager
def unchanged(directories: list[Path]) -> Iterator[None]:
    before = {path: path.read_bytes() for directory in directories for path in directory.iterdir()}
    yield
    assert {path: path.read_bytes() for directory in directories for path in directory.iterdir()} == before


def counted(episode: Episode) -> list[int]:
    return [int(message.position[0]) for _, message in episode.decoded("/state")]


def test_killed_recorder_loses_at_most_the_last_second_and_no_finished_episode(
    processes: Processes, ros_node: Node, source: Source, tmp_path: Path
) -> None:
    root = tmp_path / "episodes"
    recorder = Recorder(processes, ros_node, root)
    moments = random.Random(SEED)
    finished: list[Path] = []
    for _ in range(ROUNDS):
        finished.append(recorder.start())
        recorder.wait_for_messages(20)
        recorder.stop(SUCCESS)
        with unchanged(finished):
            current = recorder.start()
            begun = len(source.published)
            enough = begun + moments.randrange(1, 250)
            wait_for(lambda enough=enough: len(source.published) >= enough, "a random moment")
            killed_s = time.monotonic()
            recorder.process.signal(9)
            recorder.process.wait()
            before = counted(Episode.open(current))
            recorder.launch()
        episode = Episode.open(current)
        states = counted(episode)
        assert states[: len(before)] == before
        assert states == list(range(states[0], states[-1] + 1)) if states else True
        last_s = source.published[states[-1]] if states else source.published[begun]
        assert killed_s - last_s < LAST_SECONDS
        assert (episode.closed, episode.labels.outcome) == (True, INTERRUPTED)
        assert episode.labels.instruction == "pick up the cube"
        with Reader(current) as reader:
            assert reader.message_count == sum(facts.count for facts in episode.topics.values())
        finished.append(current)
    lines = map(json.loads, (root / "episodes.jsonl").read_text().splitlines())
    assert [line["outcome"] for line in lines] == [SUCCESS, INTERRUPTED] * ROUNDS


@pytest.fixture
def memory_disk() -> Iterator[Path]:
    """A directory on a disk that hardly anybody else fills or empties meanwhile."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_episode_ends_before_the_disk_is_full(
    processes: Processes, ros_node: Node, source: Source, memory_disk: Path
) -> None:
    picture = Image(height=1000, width=1000, encoding="mono8", step=1000)
    picture.data.frombytes(bytes(10**6))
    pictures = ros_node.create_publisher(Image, "picture", 10)
    reserve = shutil.disk_usage(memory_disk).free // 2**20 - 200
    recorder = Recorder(
        processes, ros_node, memory_disk / "episodes", topics=["state 20 Hz", "picture"], disk_reserve=reserve
    )
    wait_for(lambda: pictures.get_subscription_count() > 0, "a subscription")
    directory = recorder.start()

    def ended() -> bool:
        pictures.publish(picture)
        return recorder.status.message.state == EpisodeStatus.FINISHED

    wait_for(ended, "the end of the episode")
    wait_for((directory / "metadata.yaml").exists, "a closed episode")
    episode = Episode.open(directory)
    assert episode.labels.outcome == recorder.status.message.outcome == FAILURE
    assert "the disk is full" in episode.labels.reason
    assert episode.topics["/picture"].count > 0


def test_second_recorder_on_the_same_directory_ends_with_the_reason(
    processes: Processes, ros_node: Node, source: Source, tmp_path: Path
) -> None:
    first = Recorder(processes, ros_node, tmp_path / "episodes")
    second = processes.start_node(
        "teleop_recorder",
        "recorder",
        parameters={"topics": ["state"], "directory": str(tmp_path / "episodes")},
        remappings={"__node": "recorder_2", "start_episode": "start_episode_2", "episode_status": "episode_status_2"},
    )
    assert second.wait() == 1
    assert f"another recorder (process {first.process.pid}) writes there" in second.output
    first.start()
    first.wait_for_messages(1)
    first.stop(SUCCESS)


def test_silent_topic_prevents_an_episode_and_ends_one(
    processes: Processes, ros_node: Node, source: Source, tmp_path: Path
) -> None:
    recorder = Recorder(
        processes, ros_node, tmp_path / "episodes", topics=["state 20 Hz", "camera/front/color/image_raw 20 Hz"]
    )
    answer = call(ros_node.create_client(StartEpisode, "start_episode"), StartEpisode.Request(task="pick"))
    assert not answer.success
    assert "nothing has come on /camera/front/color/image_raw" in answer.message
    assert find_episodes(tmp_path) == []
    recorder.process.stop()

    other = Recorder(processes, ros_node, tmp_path / "others")
    directory = other.start()
    other.wait_for_messages(20)
    source.close()
    wait_for(lambda: other.status.message.state == EpisodeStatus.FINISHED, "the end of the episode")
    assert other.status.message.outcome == FAILURE
    assert other.status.message.reason.startswith("/state is silent for ")
    wait_for((directory / "metadata.yaml").exists, "a closed episode")
    assert Episode.open(directory).labels.reason == other.status.message.reason


def test_restarted_source_and_time_that_goes_back_are_marked_in_the_episode(
    processes: Processes, ros_node: Node, source: Source, tmp_path: Path
) -> None:
    recorder = Recorder(processes, ros_node, tmp_path / "episodes")
    directory = recorder.start()
    recorder.wait_for_messages(20)
    source.shift_ns = -5 * 10**9
    wait_for(lambda: any("time went back" in event for event in recorder.status.message.events), "the mark")
    source.restart()
    wait_for(lambda: any("restarted" in event for event in recorder.status.message.events), "the mark")
    recorder.stop(SUCCESS)
    _, last = Episode.open(directory).decoded(STATUS_TOPIC)[-1]
    back, restarted = last.events
    assert re.fullmatch(r"\d+\.\d s: time went back: /state \(by [45]\.\d\d s\)", back)
    assert re.fullmatch(r"\d+\.\d s: the publisher was restarted: /state", restarted)


def test_relabelled_and_undone_episodes_say_so_and_other_readers_open_them(
    processes: Processes, ros_node: Node, source: Source, tmp_path: Path
) -> None:
    recorder = Recorder(processes, ros_node, tmp_path / "episodes")
    directories = []
    for _ in range(2):
        directories.append(recorder.start())
        recorder.wait_for_messages(20)
        recorder.stop(SUCCESS)
    relabel = ros_node.create_client(RelabelEpisode, "relabel_episode")
    first, second = directories
    assert call(relabel, RelabelEpisode.Request(episode=first.name, instruction="lift the cube")).success
    assert call(ros_node.create_client(Trigger, "undo_episode"), Trigger.Request()).success
    refused = call(relabel, RelabelEpisode.Request(outcome=SUCCESS))
    assert not refused.success
    assert "for good" in refused.message
    assert Episode.open(first).labels.instruction == "lift the cube"
    assert Episode.open(second).labels.outcome == DISCARD
    with (first / f"{first.name}_0.mcap").open("rb") as stream:
        summary = make_reader(stream).get_summary()
    assert {channel.topic for channel in summary.channels.values()} == {"/state", "/episode_status"}


def test_images_are_stored_as_asked_for_byte_for_byte_or_as_jpeg(
    processes: Processes, ros_node: Node, source: Source, tmp_path: Path
) -> None:
    picture = array_to_image(np.full((48, 64, 3), 90, np.uint8), "rgb8", from_nanoseconds(7 * 10**9), "camera")
    names = "raw_picture", "small_picture"
    publishers = [ros_node.create_publisher(Image, name, 10) for name in names]
    recorder = Recorder(
        processes, ros_node, tmp_path / "episodes", topics=["state 20 Hz", "raw_picture", "small_picture jpeg"]
    )
    heard: set[bytes] = set()  # bytes between the fields are the middleware's, and others in every message
    ros_node.create_subscription(Image, "raw_picture", lambda data: heard.add(data), 100, raw=True)
    wait_for(lambda: [each.get_subscription_count() for each in publishers] == [2, 1], "subscriptions")
    directory = recorder.start()

    def recorded() -> bool:
        for publisher in publishers:
            publisher.publish(picture)
        status = recorder.status.message
        counts = dict(zip(status.topics, status.messages, strict=True))
        return all(counts.get(f"/{name}", 0) > 0 for name in names)

    wait_for(recorded, "pictures")
    recorder.stop(SUCCESS)
    episode = Episode.open(directory)
    assert {message.data for message in episode.messages(["/raw_picture"])} <= heard
    _, compressed = episode.decoded("/small_picture/compressed")[0]
    assert (compressed.header.stamp.sec, compressed.header.frame_id) == (7, "camera")
    assert np.abs(compressed_to_array(compressed).astype(int) - 90).max() <= 3
    assert "/small_picture" not in episode.topics


def test_interrupted_recorder_closes_the_episode_as_interrupted(
    processes: Processes, ros_node: Node, source: Source, tmp_path: Path
) -> None:
    recorder = Recorder(processes, ros_node, tmp_path / "episodes")
    directory = recorder.start()
    recorder.wait_for_messages(20)
    assert recorder.process.stop() == 0
    episode = Episode.open(directory)
    assert (episode.closed, episode.labels.outcome) == (True, INTERRUPTED)
    assert episode.labels.reason == "interrupted by the operator"
