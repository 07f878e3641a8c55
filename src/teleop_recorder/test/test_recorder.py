from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import rclpy
from molmoact_ros.images import array_to_image
from molmoact_ros.stamps import from_nanoseconds
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rosbags.rosbag2 import Reader
from sensor_msgs.msg import Image
from std_msgs.msg import String
from teleop_recorder.errors import RecordingError
from teleop_recorder.recorder import RecorderSettings, TopicRecorder

PATIENCE_S = 20.0


@pytest.fixture
def node():
    context = Context()
    rclpy.init(context=context)
    node = Node("recorder_test", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join()
    node.destroy_node()
    rclpy.shutdown(context=context)


def wait_until(condition) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.02)


def contents(bag) -> dict[str, int]:
    with Reader(bag) as reader:
        return {connection.topic: connection.msgcount for connection in reader.connections}


def publish_until_received(publisher, message, recorder, topic, count):
    wait_until(lambda: publisher.get_subscription_count() > 0)
    for wanted in range(1, count + 1):
        publisher.publish(message)
        wait_until(lambda wanted=wanted: recorder.counts[topic].received >= wanted)


def test_topics_that_appear_later_are_recorded_and_excluded_ones_are_not(node, tmp_path):
    recorder = TopicRecorder(
        node, tmp_path / "bag", RecorderSettings(exclude=("/rosout", "/parameter_events", "/secret.*"))
    )
    chatter = node.create_publisher(String, "chatter", 10)
    node.create_publisher(String, "secret/chatter", 10)
    recorder.subscribe_to_new_topics()
    publish_until_received(chatter, String(data="hello"), recorder, "/chatter", 5)
    recorder.close()
    assert contents(tmp_path / "bag") == {"/chatter": 5}
    assert recorder.counts["/chatter"].written == 5


def test_images_are_thinned_by_their_stamps_and_compressed_but_counted_all(node, tmp_path):
    images = node.create_publisher(Image, "camera/front/color/image_raw", 10)
    recorder = TopicRecorder(
        node, tmp_path / "bag", RecorderSettings(exclude=("/rosout", "/parameter_events"), image_rate=10.0)
    )
    wait_until(lambda: images.get_subscription_count() > 0)
    topic = "/camera/front/color/image_raw"
    picture = array_to_image(np.zeros((48, 64, 3), np.uint8), "rgb8")
    for frame in range(12):
        picture.header.stamp = from_nanoseconds(10**9 + frame * 33_000_000)
        images.publish(picture)
        wait_until(lambda wanted=frame + 1: recorder.counts[topic].received >= wanted)
    recorder.close()
    assert contents(tmp_path / "bag") == {f"{topic}/compressed": 4}
    assert recorder.counts[topic].received == 12


def test_full_disk_is_reported_while_messages_still_come(node, tmp_path, monkeypatch):
    chatter = node.create_publisher(String, "chatter", 10)
    recorder = TopicRecorder(node, tmp_path / "bag", RecorderSettings(exclude=("/rosout", "/parameter_events")))
    monkeypatch.setattr("teleop_recorder.bag.CHECK_EVERY_BYTES", 0)
    monkeypatch.setattr(recorder._bag, "_reserve_bytes", 2**62)
    publish_until_received(chatter, String(data="x" * 100), recorder, "/chatter", 5)
    wait_until(lambda: recorder.failure is not None)
    assert "the disk is full" in recorder.failure
    with pytest.raises(RecordingError, match="the disk is full"):
        recorder.close()
