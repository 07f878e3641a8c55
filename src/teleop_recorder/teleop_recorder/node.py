"""The recorder as a ROS node: raw subscriptions, services, and the thread that takes what has come."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from molmoact_msgs.msg import EpisodeStatus
from molmoact_msgs.srv import RelabelEpisode, StartEpisode, StopEpisode
from molmoact_ros.node import ConfigurationError, ManagedNode, run
from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import qos_profile
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import Trigger

from teleop_recorder.bag import TopicInfo
from teleop_recorder.definitions import add_installed_type, begins_with_stamp, installed_typestore, message_class
from teleop_recorder.episode import LABELS, STATUS_TYPE
from teleop_recorder.errors import DefinitionError, EpisodeError, RecordingError, RequestRefused, TopicError
from teleop_recorder.parameters import RecorderParameters
from teleop_recorder.recorder import COMPRESSED_TYPE, compressed, compressed_topic
from teleop_recorder.session import Received, RecordedTopic, Session, SessionSettings
from teleop_recorder.topics import IMAGE_TYPE, TopicSpec, parse_topic

# Taking is cheap when a few messages have come together; a camera's frame may wait this long in the middleware.
POLL_PERIOD_S = 0.005
STATUS_PERIOD_S = 0.5
MIB = 2**20


class RecorderNode(ManagedNode):
    """Records while an episode is under way; watches its topics whenever it is active."""

    p: RecorderParameters

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("recorder", RecorderParameters, **kwargs)
        self._session: Session | None = None

    # Lifecycle

    def set_up(self) -> None:
        self._specs = self._topics_from_parameters()
        self._typestore = installed_typestore()
        add_installed_type(self._typestore, STATUS_TYPE)
        add_installed_type(self._typestore, COMPRESSED_TYPE)
        self._subscriptions_of: dict[str, tuple[RecordedTopic, PolledSubscription]] = {}
        self._refused: set[str] = set()
        self._status = self.create_publisher(EpisodeStatus, "episode_status", qos_profile("reliable", depth=10))
        self.create_service(StartEpisode, "start_episode", self._on_start)
        # A disk may take its time to swallow the end of an episode; nothing else waits for it.
        slow = MutuallyExclusiveCallbackGroup()
        self.create_service(StopEpisode, "stop_episode", self._on_stop, callback_group=slow)
        self.create_service(RelabelEpisode, "relabel_episode", self._on_relabel, callback_group=slow)
        self.create_service(Trigger, "undo_episode", self._on_undo, callback_group=slow)

    def start(self) -> None:
        p = self.p
        settings = SessionSettings(
            Path(p.directory).expanduser().resolve(), p.disk_reserve * MIB, p.silence_timeout, p.buffer * MIB
        )
        try:
            self._session = Session(settings, self._typestore, self._pack, self.get_logger().warning)
        except RecordingError as error:
            raise ConfigurationError(f"parameter 'directory': {error}") from error
        for name, spec in self._specs.items():
            if spec.required_hz is not None:
                self._session.await_topic(name, spec.required_hz)
        self._loop = self.spawn("receive", self._receive)

    def stop(self, reason: str) -> None:
        if self._session is None:  # activation failed
            return
        self._loop.stop()
        self._session.close(reason)
        self._publish_status()  # how it ended
        self._session = None
        for _, subscription in self._subscriptions_of.values():
            subscription.close()
        self._subscriptions_of.clear()

    def _topics_from_parameters(self) -> dict[str, TopicSpec]:
        """By resolved name. ConfigurationError names the line that is wrong."""
        specs: dict[str, TopicSpec] = {}
        for line in self.p.topics:
            try:
                spec = parse_topic(line)
            except TopicError as error:
                raise ConfigurationError(f"parameter 'topics': {error}") from error
            name = self.resolve_topic_name(spec.name)
            if name in specs:
                raise ConfigurationError(f"parameter 'topics': {line!r}: {name} is there twice")
            specs[name] = spec
        if not specs:
            raise ConfigurationError("parameter 'topics': is empty, so nothing would be recorded")
        return specs

    # What an operator asks for

    def _on_start(self, request: StartEpisode.Request, response: StartEpisode.Response) -> StartEpisode.Response:
        return self._answer(response, "recording", lambda it: it.start(request.task, request.instruction))

    def _on_stop(self, request: StopEpisode.Request, response: StopEpisode.Response) -> StopEpisode.Response:
        return self._answer(response, request.outcome, lambda it: it.stop(request.outcome, request.reason))

    def _on_relabel(
        self, request: RelabelEpisode.Request, response: RelabelEpisode.Response
    ) -> RelabelEpisode.Response:
        changes = {name: value for name in LABELS if (value := getattr(request, name))}
        return self._answer(response, "relabelled", lambda it: it.relabel(request.episode, **changes))

    def _on_undo(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        return self._answer(response, "discarded", Session.undo_last)

    def _answer(self, response: Any, done: str, work: Callable[[Session], str]) -> Any:
        """Do `work`, which returns the name of an episode, and say how it went."""
        session = self._session
        try:
            if session is None or not self.active:
                raise RequestRefused("the recorder is not active")
            episode = work(session)
            response.success, response.message = True, f"episode {episode}: {done}"
            if hasattr(response, "episode"):
                response.episode = episode
        except (RequestRefused, EpisodeError, OSError) as refused:
            response.message = str(refused)
        self.get_logger().info(response.message)
        return response

    # The thread that receives

    def _receive(self, stop: threading.Event) -> None:
        status_due_s = 0.0
        while not stop.wait(POLL_PERIOD_S):
            self._take_messages()
            if time.monotonic() >= status_due_s:
                status_due_s = time.monotonic() + STATUS_PERIOD_S
                self._watch_graph()
                self._take_messages()  # looking at the graph takes a while, in which nothing was silent
                self._publish_status()

    def _take_messages(self) -> None:
        batch = [
            Received(
                topic, info["received_timestamp"], info["source_timestamp"], info["publication_sequence_number"], data
            )
            for topic, subscription in self._subscriptions_of.values()
            for data, info in subscription.take_with_info()
        ]
        if batch:
            batch.sort(key=lambda message: message.receipt_ns)
            self._session.receive(batch)

    def _publish_status(self) -> None:
        self._status.publish(self._session.tick(self.get_clock().now().nanoseconds))

    def _watch_graph(self) -> None:
        """Subscribe to topics that have appeared, and see who publishes those that are there."""
        for name, spec in self._specs.items():
            publishers = self.get_publishers_info_by_topic(name)
            if not publishers:
                continue
            if name not in self._subscriptions_of and name not in self._refused:
                self._subscribe(name, spec, publishers)
            if name in self._subscriptions_of:
                self._session.on_publishers(name, [bytes(publisher.endpoint_gid) for publisher in publishers])

    def _subscribe(self, name: str, spec: TopicSpec, publishers: list[Any]) -> None:
        types = {spec.type} if spec.type else {publisher.topic_type for publisher in publishers}
        if len(types) > 1:
            return self._refuse(name, f"its publishers have different types, {', '.join(sorted(types))}")
        (type_name,) = types
        try:
            add_installed_type(self._typestore, type_name)
            kind = message_class(type_name)
        except DefinitionError as error:
            return self._refuse(name, str(error))
        if spec.compression == "jpeg" and type_name != IMAGE_TYPE:
            return self._refuse(name, f"jpeg is for {IMAGE_TYPE}, and it is {type_name}")
        # The strictest profile that every publisher can serve.
        profiles = [publisher.qos_profile for publisher in publishers]
        reliable = all(profile.reliability == ReliabilityPolicy.RELIABLE for profile in profiles)
        latched = all(profile.durability == DurabilityPolicy.TRANSIENT_LOCAL for profile in profiles)
        info = TopicInfo(name, type_name, reliable, latched)
        topic = RecordedTopic(
            info,
            compressed_topic(info) if spec.compression == "jpeg" else info,
            spec.required_hz,
            camera=type_name == IMAGE_TYPE and spec.required_hz is not None,
            stamped=begins_with_stamp(self._typestore, type_name),
        )
        self._session.add_topic(topic)
        qos = QoSProfile(
            history=HistoryPolicy.KEEP_LAST,
            depth=self.p.depth,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
            durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        )
        self._subscriptions_of[name] = topic, PolledSubscription(self, kind, name, qos, raw=True)

    def _refuse(self, name: str, reason: str) -> None:
        self._refused.add(name)
        self.get_logger().error(f"{name} is not recorded: {reason}")

    def _pack(self, topic: RecordedTopic, data: bytes) -> tuple[TopicInfo, bytes]:
        """As the bag shall hold it."""
        return (topic.info, data) if topic.stored is topic.info else compressed(topic.info, data, self.p.jpeg_quality)


def main() -> None:
    """Entry point of ``ros2 run teleop_recorder recorder``."""
    sys.exit(run(RecorderNode))


if __name__ == "__main__":
    main()
