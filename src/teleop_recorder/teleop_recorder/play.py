"""An episode again: as a video, or as topics below a prefix, at the pace at which it was recorded.

Nothing here can move a robot: only topics that the settings name are published, each below the prefix and never under
its own name.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from teleop_recorder.curation import Curation
from teleop_recorder.definitions import message_class
from teleop_recorder.episode import Episode
from teleop_recorder.errors import ConfigurationError, EpisodeError
from teleop_recorder.lerobot_layout import VideoWriter
from teleop_recorder.pictures import decode_picture, recorded_name, viewable
from teleop_recorder.show import tool_speeds
from teleop_recorder.verification import ReceiptClock, Recording

PREFIX = "/replay"
VIDEO_HZ = 30
PICTURE_HEIGHT, CAPTION_HEIGHT = 360, 60  # even, as the codec wants it
WHITE, GREY, RED, BAR = (255, 255, 255), (170, 170, 170), (240, 90, 90), (90, 160, 230)  # RGB
# A picture older than this is marked, where the settings say nothing about the camera.
STALE_S = 0.5
# How long a replay waits for those who listen, before its first message.
DISCOVERY_TIMEOUT_S = 1.0
DISCOVERY_POLL_S = 0.02
QUEUE_LENGTH = 10  # of each publisher


def write_video(recording: Recording, path: Path) -> int:
    """Every camera side by side in real time, as an MP4; the number of frames.

    Raises EpisodeError without pictures, and when the file cannot be written.
    """
    frames = _frames(recording)
    first = next(frames, None)
    if first is None:
        cameras = ", ".join(recording.settings.cameras)
        raise EpisodeError(f"episode {recording.episode.name}: has no pictures of {cameras}")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with VideoWriter(path, (first.shape[1], first.shape[0]), VIDEO_HZ) as video:
            for frame in chain([first], frames):
                video.write(frame)
                count += 1
    except OSError as error:
        raise EpisodeError(f"video {path}: cannot be written: {error}") from error
    return count


def replayed_topics(episode: Episode, settings: Curation, prefix: str) -> dict[str, str]:
    """Under which name each topic of the bag is published: cameras and those of the settings' `play`, below `prefix`.

    Raises ConfigurationError for a prefix that is no namespace: a topic must never get its own name again.
    """
    if not re.fullmatch(r"(/[A-Za-z_]\w*)+", prefix, re.ASCII):
        raise ConfigurationError(f"prefix {prefix!r}: expected a namespace like {PREFIX}")
    names = (recorded_name(episode, topic) for topic in (*settings.cameras, *settings.play))
    return {name: prefix + name for name in names if name is not None}


def replay(episode: Episode, topics: Mapping[str, str]) -> int:
    """Publish the messages of the topics as they are in the bag, under the names given, in real time; their number.

    Raises DefinitionError for a type that is not installed here.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    context = rclpy.Context()
    # Ctrl-C ends the waiting between two messages, as in any program.
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("replay", context=context)
    try:
        publishers = {
            topic: node.create_publisher(message_class(episode.topics[topic].type), name, QUEUE_LENGTH)
            for topic, name in topics.items()
        }
        return _publish(episode, publishers)
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def _publish(episode: Episode, publishers: Mapping[str, Any]) -> int:
    deadline = time.monotonic() + DISCOVERY_TIMEOUT_S
    while time.monotonic() < deadline and not any(it.get_subscription_count() for it in publishers.values()):
        time.sleep(DISCOVERY_POLL_S)
    clock, start, count = ReceiptClock(episode.begin_ns), time.monotonic(), 0
    for message in episode.messages(list(publishers)):
        wait_s = start + clock.seconds(message.topic, message.log_ns) - time.monotonic()
        if wait_s > 0.0:
            time.sleep(wait_s)
        publishers[message.topic].publish(message.data)
        count += 1
    return count


def _frames(recording: Recording) -> Iterator[np.ndarray]:
    """uint8 [H, W, 3] RGB, one for each period of the video; none without a camera."""
    times = np.arange(0.0, recording.length_s, 1.0 / VIDEO_HZ)
    cameras = [topic for topic in recording.settings.cameras if topic in recording.tracks]
    if not cameras:
        return
    captions = _Captions(recording)
    for time_s, *panels in zip(times, *(_panels(recording, topic, times) for topic in cameras), strict=True):
        row = np.hstack(panels)
        yield np.vstack([row, captions.at(float(time_s), row.shape[1])])


def _panels(recording: Recording, topic: str, times: np.ndarray) -> Iterator[np.ndarray]:
    """At each time the newest picture of a camera, marked when it is old."""
    track, episode = recording.tracks[topic], recording.episode
    rule = recording.settings.required.get(topic)
    stale_s = STALE_S if rule is None else rule.gap
    # At first the first one, so that the size is known.
    newest = (np.searchsorted(track.seconds, times, side="right") - 1).clip(0)
    messages = enumerate(episode.messages([track.name]))
    shown, size = -1, None
    panel: np.ndarray = np.zeros(0)
    for time_s, wanted in zip(times, newest, strict=True):
        if wanted != shown:
            shown, message = next(item for item in messages if item[0] == wanted)
            try:
                picture = viewable(decode_picture(episode, track.name, message.data))
            except EpisodeError:
                picture = np.zeros((PICTURE_HEIGHT, PICTURE_HEIGHT, 3), np.uint8)
            size = size or (2 * round(picture.shape[1] * PICTURE_HEIGHT / picture.shape[0] / 2), PICTURE_HEIGHT)
            panel = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        age_s = abs(time_s - track.seconds[wanted])
        yield _marked(panel, f"no picture for {age_s:.1f} s") if age_s > stale_s else panel


def _marked(panel: np.ndarray, words: str) -> np.ndarray:
    marked = panel // 3
    cv2.rectangle(marked, (2, 2), (panel.shape[1] - 3, PICTURE_HEIGHT - 3), RED, 3)
    return _written(marked, words, (16, PICTURE_HEIGHT // 2), 0.8, RED)


class _Captions:
    """The strip below the pictures: what it is, how far it is, hand and speed."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._moments, self._speeds, _ = tool_speeds(recording)
        gripper = recording.tracks.get(recording.settings.gripper)
        self._gripper_seconds: Sequence[float] | np.ndarray = [] if gripper is None else gripper.seconds

    def at(self, time_s: float, width: int) -> np.ndarray:
        recording, labels = self._recording, self._recording.episode.labels
        strip = np.zeros((CAPTION_HEIGHT, width, 3), np.uint8)
        strip[:4, : round(width * time_s / recording.length_s)] = BAR
        _written(strip, f"{recording.episode.name}  {labels.outcome}  {labels.instruction}", (10, 25), 0.55, WHITE)
        facts = [f"{time_s:5.1f} of {recording.length_s:.1f} s"]
        if len(self._gripper_seconds):
            opening = np.interp(time_s, self._gripper_seconds, recording.widths)
            facts.append(f"gripper {opening * 1e3:.0f} mm")
        if len(self._moments):
            facts.append(f"speed {np.interp(time_s, self._moments, self._speeds):.2f} m/s")
        return _written(strip, "   ".join(facts), (10, 49), 0.5, GREY)


def _written(
    image: np.ndarray, text: str, place: tuple[int, int], size: float, colour: tuple[int, int, int]
) -> np.ndarray:
    plain = text.encode("ascii", "replace").decode()  # OpenCV's fonts know no other letters
    return cv2.putText(image, plain, place, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
