from __future__ import annotations

import resource
import shutil
from types import SimpleNamespace

import pytest
import yaml
from rosbags.rosbag2 import Reader
from teleop_recorder.bag import BagWriter, TopicInfo
from teleop_recorder.definitions import add_installed_type, installed_typestore
from teleop_recorder.episode import Episode
from teleop_recorder.errors import DefinitionError, RecordingError

TOPIC = TopicInfo("/chatter", "std_msgs/msg/String")


@pytest.fixture
def typestore():
    return installed_typestore()


def text(typestore, data: str) -> bytes:
    return bytes(typestore.serialize_cdr(typestore.types["std_msgs/msg/String"](data=data), "std_msgs/msg/String"))


def test_messages_come_back_byte_for_byte_with_stamp_type_and_hash(tmp_path, typestore):
    messages = [(1_000_000_000 + index, text(typestore, f"message {index}")) for index in range(100)]
    bag = BagWriter(tmp_path / "runs" / "bag", typestore)
    bag.add_topic(TOPIC)
    for stamp, message in messages:
        bag.write("/chatter", stamp, message)
    bag.close()
    with Reader(tmp_path / "runs" / "bag") as reader:
        (connection,) = reader.connections
        assert (connection.topic, connection.msgtype) == ("/chatter", "std_msgs/msg/String")
        assert connection.digest == typestore.hash_rihs01("std_msgs/msg/String")
        assert [(stamp, bytes(data)) for _, stamp, data in reader.messages()] == messages
    assert "storage_identifier: mcap" in (tmp_path / "runs" / "bag" / "metadata.yaml").read_text()


def test_bag_of_the_same_name_is_not_overwritten(tmp_path, typestore):
    BagWriter(tmp_path / "bag", typestore).close()
    with pytest.raises(RecordingError, match="exists already"):
        BagWriter(tmp_path / "bag", typestore)


def test_full_disk_at_the_start_is_named_with_its_free_space(tmp_path, typestore, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**20))
    with pytest.raises(RecordingError, match=r"disk is full: 3 MiB free, recording stops below 100 MiB"):
        BagWriter(tmp_path / "bag", typestore)


def test_disk_that_fills_up_leaves_a_readable_bag(tmp_path, typestore, monkeypatch):
    bag = BagWriter(tmp_path / "bag", typestore)
    bag.add_topic(TOPIC)
    message = text(typestore, "x" * 2**20)
    written = 0
    with pytest.raises(RecordingError, match="disk is full"):
        for written in range(100):
            if written == 10:
                monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
            bag.write("/chatter", 1_000 + written, message)
    bag.close()
    with Reader(tmp_path / "bag") as reader:
        assert reader.message_count == written
    with pytest.raises(RecordingError, match="is closed"):
        bag.write("/chatter", 2_000, message)


@pytest.fixture
def small_files():
    """No file may grow beyond 1 MiB: what a disk does that is full or fails, at a size that suits a test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_write_error_names_the_bag_and_does_not_crash_the_close(tmp_path, typestore, small_files):
    bag = BagWriter(tmp_path / "bag", typestore)
    bag.add_topic(TOPIC)
    with pytest.raises(RecordingError, match=r"bag .*bag: writing failed.*File too large"):
        for stamp in range(10):
            bag.write("/chatter", stamp, text(typestore, "x" * 2**20))
    bag.close()


def test_close_error_says_that_the_index_is_missing(tmp_path, typestore, small_files):
    bag = BagWriter(tmp_path / "bag", typestore)
    bag.add_topic(TOPIC)
    bag.write("/chatter", 1, text(typestore, "x" * (2**20 - 1000)))
    with pytest.raises(RecordingError, match="index is missing"):
        bag.close()


def test_flushed_messages_are_in_the_file_before_the_bag_is_closed(tmp_path, typestore):
    bag = BagWriter(tmp_path / "bag", typestore)
    bag.add_topic(TOPIC)
    bag.write("/chatter", 5, text(typestore, "hello"))
    bag.flush()
    assert [message.log_ns for message in Episode.open(tmp_path / "bag").messages()] == [5]


def test_metadata_has_what_was_added_and_no_anchors(tmp_path, typestore):
    bag = BagWriter(tmp_path / "bag", typestore)
    for name in ("/one", "/two"):
        bag.add_topic(TopicInfo(name, "std_msgs/msg/String", reliable=False, latched=True))
        bag.write(name, 5, text(typestore, "hello"))
    bag.close({"task": "pick"})
    written = (tmp_path / "bag" / "metadata.yaml").read_text()
    assert "&" not in written
    information = yaml.safe_load(written)["rosbag2_bagfile_information"]
    assert information["custom_data"] == {"task": "pick"}
    assert information["version"] == 9
    with Reader(tmp_path / "bag") as reader:
        (qos,) = reader.connections[0].ext.offered_qos_profiles
        assert (qos.reliability.name, qos.durability.name) == ("BEST_EFFORT", "TRANSIENT_LOCAL")


def test_own_types_are_found_with_the_messages_inside_them(typestore):
    add_installed_type(typestore, "molmoact_msgs/msg/ActionChunk")
    assert "molmoact_msgs/msg/CartesianDelta" in typestore.fielddefs
    assert typestore.hash_rihs01("molmoact_msgs/msg/ActionChunk").startswith("RIHS01_")


def test_type_of_a_package_that_is_not_installed_is_named(typestore):
    with pytest.raises(DefinitionError, match="ghost_msgs/msg/Boo: package 'ghost_msgs' is not installed"):
        add_installed_type(typestore, "ghost_msgs/msg/Boo")
