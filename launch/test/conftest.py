"""Small recordings for the tests: messages written as the recorder writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rclpy.serialization import serialize_message
from teleop_recorder.bag import BagWriter, TopicInfo
from teleop_recorder.definitions import add_installed_type, installed_typestore

# Topic, time of receipt in ns, message.
Message = tuple[str, int, Any]


@pytest.fixture
def write_bag(tmp_path: Path) -> Callable[[list[Message]], Path]:
    """Writes the messages, in the order of their receipt, to a new bag; its directory."""

    def write(messages: list[Message]) -> Path:
        typestore = installed_typestore()
        bag = BagWriter(tmp_path / "bag", typestore)
        known: set[str] = set()
        for topic, received_ns, message in sorted(messages, key=lambda entry: entry[1]):
            name = _type_name(type(message))
            if topic not in known:
                add_installed_type(typestore, name)
                bag.add_topic(TopicInfo(topic, name))
                known.add(topic)
            bag.write(topic, received_ns, serialize_message(message))
        bag.close()
        return bag.directory

    return write


def _type_name(message_type: type) -> str:
    """Such as molmoact_msgs/msg/ActionChunk."""
    package, kind = message_type.__module__.split(".")[:2]
    return f"{package}/{kind}/{message_type.__name__}"
