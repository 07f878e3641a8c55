"""Every topic of a graph into one bag: raw subscriptions, and one thread that writes."""

from __future__ import annotations

import queue
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from molmoact_ros.errors import ImageError
from molmoact_ros.images import array_to_compressed, image_to_array
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import Image

from teleop_recorder.bag import BagWriter, TopicInfo
from teleop_recorder.definitions import add_installed_type, installed_typestore, leading_stamp, message_class
from teleop_recorder.errors import DefinitionError, DiskFullError, RecordingError

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"
# How often the graph is searched for new topics.
DISCOVERY_PERIOD_S = 1.0
# Messages waiting for the disk; at 1000 a second this rides out a disk that stalls for 4 s.
QUEUE_LENGTH = 4096
# Rates over less are not given: a few messages after one another say nothing.
SHORTEST_MEASUREMENT_S = 1.0
# Share of its period by which an image may come early and still count as due.
JITTER = 0.15
# Messages kept by the middleware until the callback takes them.
SUBSCRIPTION_DEPTH = 100


@dataclass(frozen=True)
class RecorderSettings:
    """What is recorded, and how images are."""

    exclude: tuple[str, ...] = ()  # regular expressions of whole topic names
    image_rate: float = 10.0  # Hz, of each image topic in the bag
    jpeg_quality: int = 90  # of 8 bit images; deeper ones become PNG


@dataclass
class TopicCount:
    """What happened to the messages of one topic."""

    received: int = 0
    written: int = 0
    dropped: int = 0  # because the disk was too slow
    first_ns: int = 0  # receipt, on the node's clock
    last_ns: int = 0

    @property
    def rate_hz(self) -> float:
        """Mean rate of receipt; 0.0 where it cannot be told from a burst."""
        duration_s = (self.last_ns - self.first_ns) / 1e9
        return (self.received - 1) / duration_s if duration_s >= SHORTEST_MEASUREMENT_S else 0.0


class TopicRecorder:
    """Records from its construction until :meth:`close`.

    Images are thinned to ``image_rate`` and compressed, as ``<topic>/compressed``; everything else is written as it
    came.

    Args:
        node: Subscriptions are made on it, so its executor has to spin.
        directory: The bag to create.
        settings: What and how.

    Raises:
        RecordingError: the bag cannot be created.
    """

    def __init__(self, node: Node, directory: Path, settings: RecorderSettings) -> None:
        self.counts: dict[str, TopicCount] = {}
        self._node = node
        self._settings = settings
        self._typestore = installed_typestore()
        self._bag = BagWriter(directory, self._typestore)
        self._failure: str | None = None
        self._ignored: set[str] = set()
        self._last_image_ns: dict[str, int] = {}
        self._queue: queue.Queue[tuple[TopicInfo, int, bytes] | None] = queue.Queue(QUEUE_LENGTH)
        self._subscriptions: list = []
        self._worker = threading.Thread(target=self._write_until_closed, name="recorder", daemon=True)
        self._worker.start()
        self._timer = node.create_timer(DISCOVERY_PERIOD_S, self.subscribe_to_new_topics)
        self.subscribe_to_new_topics()

    @property
    def failure(self) -> str | None:
        """Why nothing is recorded any more; None while all is well."""
        return self._failure

    @property
    def bytes_written(self) -> int:
        """Of messages, without the bag's own overhead."""
        return self._bag.bytes_written

    def subscribe_to_new_topics(self) -> None:
        """Record what has appeared in the graph since the last look."""
        for name, types in self._node.get_topic_names_and_types():
            if name in self.counts or name in self._ignored:
                continue
            if len(types) != 1 or any(re.fullmatch(pattern, name) for pattern in self._settings.exclude):
                self._ignored.add(name)
                continue
            publishers = self._node.get_publishers_info_by_topic(name)
            if publishers:
                self._subscribe(name, types[0], [publisher.qos_profile for publisher in publishers])

    def close(self) -> None:
        """Write what was received, then the index.

        Raises:
            RecordingError: the recording failed, now or earlier.
        """
        self._node.destroy_timer(self._timer)
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._queue.put(None)
        self._worker.join()
        if self._failure is not None:
            raise RecordingError(self._failure)

    def _subscribe(self, name: str, type_name: str, offered: list[QoSProfile]) -> None:
        # The strictest profile that every publisher can serve.
        reliable = all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in offered)
        latched = all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in offered)
        try:
            add_installed_type(self._typestore, type_name)
            kind = message_class(type_name)
        except DefinitionError as error:
            self._node.get_logger().warning(f"recorder: {name} is not recorded: {error}")
            self._ignored.add(name)
            return
        info = TopicInfo(name, type_name, reliable, latched)
        count = self.counts[name] = TopicCount()

        def receive(message: bytes, message_info: dict[str, int]) -> None:
            count.received += 1
            count.last_ns = self._node.get_clock().now().nanoseconds
            count.first_ns = count.first_ns or count.last_ns
            if type_name == IMAGE_TYPE and not self._image_is_due(name, message):
                return
            try:
                self._queue.put_nowait((info, message_info["received_timestamp"], message))
            except queue.Full:
                count.dropped += 1

        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=SUBSCRIPTION_DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self._subscriptions.append(self._node.create_subscription(kind, name, receive, qos, raw=True))

    def _image_is_due(self, name: str, message: bytes) -> bool:
        stamp_ns = leading_stamp(message)
        # Somewhat early counts as due: else 30 Hz thinned to 10 Hz becomes 7.5 Hz by jitter.
        since_ns = stamp_ns - self._last_image_ns.get(name, 0)
        if 0 <= since_ns < (1.0 - JITTER) * 1e9 / self._settings.image_rate:
            return False
        self._last_image_ns[name] = stamp_ns
        return True

    def _write_until_closed(self) -> None:
        known: set[str] = set()
        try:
            while (item := self._queue.get()) is not None:
                info, stamp_ns, message = item
                source = info.name
                if info.type == IMAGE_TYPE:
                    info, message = compressed(info, message, self._settings.jpeg_quality)
                if info.name not in known:
                    add_installed_type(self._typestore, info.type)
                    self._bag.add_topic(info)
                    known.add(info.name)
                self._bag.write(info.name, stamp_ns, message)
                self.counts[source].written += 1
            self._bag.close()
        except DiskFullError as error:
            self._failure = str(error)
            self._close_bag()
            self._discard_until_closed()
        except Exception as error:  # whatever it was, close() must not wait for a thread that is gone
            self._failure = str(error) if isinstance(error, RecordingError) else f"recorder: {error!r}"
            self._discard_until_closed()

    def _close_bag(self) -> None:
        try:
            self._bag.close()
        except RecordingError as error:
            self._failure = f"{self._failure}; {error}"

    def _discard_until_closed(self) -> None:
        """So that the callbacks count no drops."""
        while self._queue.get() is not None:
            pass


def compressed(info: TopicInfo, message: bytes, jpeg_quality: int) -> tuple[TopicInfo, bytes]:
    """An image as JPEG, or PNG when it has more than 8 bits; unchanged where the encoding is one neither can hold."""
    image = deserialize_message(message, Image)
    try:
        picture = image_to_array(image, info.name)
        encoding = "jpeg" if picture.dtype == "uint8" else "png"
        packed = array_to_compressed(picture, encoding, jpeg_quality, image.header.stamp, image.header.frame_id)
    except ImageError:
        return info, message
    return compressed_topic(info), serialize_message(packed)


def compressed_topic(info: TopicInfo) -> TopicInfo:
    """The topic that holds the images of `info` once they are compressed."""
    return TopicInfo(f"{info.name}/compressed", COMPRESSED_TYPE, info.reliable)
