"""Pictures out of recorded messages, raw or compressed, by the code that the live nodes read theirs with."""

from __future__ import annotations

import zlib

import cv2
import numpy as np
from molmoact_ros.errors import ImageError
from molmoact_ros.images import compressed_to_array, image_to_array

from teleop_recorder.episode import Episode
from teleop_recorder.errors import EpisodeError

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"
PICTURE_TYPES = (IMAGE_TYPE, COMPRESSED_TYPE)
COMPRESSED_SUFFIX = "/compressed"

# Before the frame in a serialized message that begins with a header: 4 bytes about the encoding, then the stamp.
_STAMP_END = 12


def recorded_name(episode: Episode, topic: str) -> str | None:
    """The topic, or its compressed sibling, whichever the bag holds; None without either."""
    return next((name for name in (topic, topic + COMPRESSED_SUFFIX) if name in episode.topics), None)


def decode_picture(episode: Episode, topic: str, data: bytes) -> np.ndarray:
    """A message of an image topic as [H, W, 3] RGB uint8, or [H, W] of the picture's own depth with one channel.

    Raises EpisodeError naming the topic for an encoding that is not supported, and for damaged data.
    """
    message = episode.decode(topic, data)
    try:
        if episode.topics[topic].type == COMPRESSED_TYPE:
            return compressed_to_array(message, topic)
        return image_to_array(message, topic)
    except ImageError as error:
        raise EpisodeError(f"episode {episode.name}: {error}") from error


def fingerprint(data: bytes) -> int:
    """Of a serialized image message, whatever its stamp: equal pixels give equal numbers. Nothing is decoded."""
    return zlib.crc32(memoryview(data)[_STAMP_END:])


def viewable(picture: np.ndarray) -> np.ndarray:
    """Any picture as [H, W, 3] RGB uint8: one channel becomes grey; other than 8 bits are stretched to their range."""
    if picture.dtype != np.uint8:
        values = np.nan_to_num(picture.astype(np.float32), posinf=0.0, neginf=0.0)
        picture = cv2.normalize(values, None, 0, 255, cv2.NORM_MINMAX, cv2.CV_8U)  # type: ignore[call-overload]
    return cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB) if picture.ndim == 2 else picture
