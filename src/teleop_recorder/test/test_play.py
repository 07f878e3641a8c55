from __future__ import annotations

import threading
from pathlib import Path

import cv2
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from teleop_recorder import play
from teleop_recorder.commands import main
from teleop_recorder.curation import Curation
from teleop_recorder.episode import Episode
from teleop_recorder.errors import ConfigurationError
from teleop_recorder.play import replayed_topics

from .episodes import CAMERA_DELAY_NS, CAMERA_HZ, FRONT, GRIPPER, JOINTS, POSE, START_NS, WRIST, make_episode, number_of

CONFIG = Path(__file__).parents[3] / "config" / "curation.yaml"
SETTINGS = Curation.from_file(CONFIG)


def frames_of(path):
    video = cv2.VideoCapture(str(path))
    frames = []
    while (found := video.read())[0]:
        frames.append(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB))
    assert video.get(cv2.CAP_PROP_FPS) == play.VIDEO_HZ
    return frames


@pytest.mark.parametrize("compressed", [False, True])
def test_video_shows_at_each_moment_the_newest_picture_of_each_camera(tmp_path, capsys, compressed):
    directory = make_episode(tmp_path / "ep_1", seconds=2.0, compressed=compressed, size=(160, 120))
    assert main(["play", str(directory), "--config", str(CONFIG)]) == 0
    frames = frames_of(tmp_path / "ep_1.mp4")
    assert capsys.readouterr().out == f"{tmp_path / 'ep_1.mp4'}: {len(frames)} frames\n"
    assert len(frames) == pytest.approx(2.0 * play.VIDEO_HZ, abs=1)
    for index, frame in enumerate(frames):
        received = max(0.0, index / play.VIDEO_HZ - CAMERA_DELAY_NS / 1e9) * CAMERA_HZ
        front, wrist = frame[: play.PICTURE_HEIGHT, :480], frame[: play.PICTURE_HEIGHT, 480:960]
        assert number_of(front) == int(received + 1e-6)
        assert number_of(wrist) == max(0, int(received - 1 / 3 + 1e-6))


def test_camera_in_a_gap_is_marked_in_the_video(tmp_path):
    def gap(samples):
        return [it for it in samples if it.topic != WRIST or not 0.5 < (it.log_ns - START_NS) / 1e9 < 1.5]

    directory = make_episode(tmp_path / "ep_1", seconds=2.0, edit=gap)
    assert main(["play", str(directory), "--out", str(tmp_path / "videos" / "a.mp4"), "--config", str(CONFIG)]) == 0
    frames = frames_of(tmp_path / "videos" / "a.mp4")
    corners = [frame[3, 960 - 3].astype(int) for frame in frames]  # of the wrist's panel
    red = [corner[0] > corner[1] + 60 for corner in corners]
    assert red.index(True) == pytest.approx((0.5 + 0.25) * play.VIDEO_HZ, abs=2)
    assert sum(red) == pytest.approx((1.0 - 0.25) * play.VIDEO_HZ, abs=3)


def test_video_without_a_camera_is_refused_and_nothing_is_written(tmp_path, capsys):
    directory = make_episode(
        tmp_path / "ep_1", edit=lambda samples: [it for it in samples if it.topic not in (FRONT, WRIST)]
    )
    assert main(["play", str(directory), "--config", str(CONFIG)]) == 1
    assert "episode ep_1: has no pictures of /camera/front" in capsys.readouterr().err
    assert not (tmp_path / "ep_1.mp4").exists()


@pytest.mark.parametrize("prefix", ["", "/", "replay", "/replay/", "//replay", "/re play", "/1", "/a/../b"])
def test_prefix_that_could_leave_a_topic_its_own_name_is_refused(tmp_path, prefix, capsys):
    directory = make_episode(tmp_path / "ep_1", seconds=0.2)
    with pytest.raises(ConfigurationError, match="expected a namespace like /replay"):
        replayed_topics(Episode.open(directory), SETTINGS, prefix)
    assert main(["play", str(directory), "--ros", "--prefix", prefix, "--config", str(CONFIG)]) == 2


def test_only_cameras_and_state_are_replayed_and_none_under_its_own_name(tmp_path):
    episode = Episode.open(make_episode(tmp_path / "ep_1", seconds=0.2, compressed=True))
    topics = replayed_topics(episode, SETTINGS, "/replay")
    compressed = [f"{FRONT}/compressed", f"{WRIST}/compressed"]
    assert topics == {name: f"/replay{name}" for name in (*compressed, POSE, GRIPPER, JOINTS)}


def test_replay_publishes_the_recorded_messages_and_no_command(tmp_path, capsys):
    directory = make_episode(tmp_path / "ep_1", seconds=0.5)
    episode = Episode.open(directory)
    recorded = [message.data for message in episode.messages([POSE])]
    context = rclpy.Context()
    rclpy.init(args=[], context=context)
    node = rclpy.create_node("listener", context=context)
    received, published, complete = [], set(), threading.Event()

    def receive(message):
        received.append(bytes(message))
        published.update(name for name, _ in node.get_topic_names_and_types() if node.count_publishers(name))
        if len(received) == len(recorded):
            complete.set()

    node.create_subscription(PoseStamped, "/replay/current_pose", receive, 200, raw=True)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    try:
        assert main(["play", str(directory), "--ros", "--config", str(CONFIG)]) == 0
        assert complete.wait(10.0)
    finally:
        executor.shutdown()
        thread.join()
        node.destroy_node()
        rclpy.shutdown(context=context)
    assert received == recorded
    ours = {name for name in published if name not in ("/rosout", "/parameter_events")}
    assert ours == {f"/replay{name}" for name in (FRONT, WRIST, POSE, GRIPPER, JOINTS)}
    count = sum(episode.topics[name].count for name in (FRONT, WRIST, POSE, GRIPPER, JOINTS))
    assert f"{count} messages in 0.5 s" in capsys.readouterr().out
