"""Image messages to arrays and back, without a copy beyond the one the message or a channel swap needs."""

from __future__ import annotations

import array
import sys

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CompressedImage, Image

from molmoact_ros.errors import ImageError

# encoding -> (type of one element, channels)
_ENCODINGS: dict[str, tuple[np.dtype, int]] = {
    "rgb8": (np.dtype(np.uint8), 3),
    "bgr8": (np.dtype(np.uint8), 3),
    "mono8": (np.dtype(np.uint8), 1),
    "16UC1": (np.dtype(np.uint16), 1),
    "32FC1": (np.dtype(np.float32), 1),
}
_COMPRESSED = {"jpeg": ".jpg", "png": ".png"}

try:  # On a robot workstation cv_bridge knows the encodings beyond the hot path.
    from cv_bridge import CvBridge
except ImportError:
    CvBridge = None


def image_to_array(message: Image, source: str = "image") -> np.ndarray:
    """The picture as [H, W, 3] RGB (rgb8, bgr8) or [H, W] (mono8, 16UC1, 32FC1); a view of the message's memory for
    all but bgr8 and foreign byte order.

    `source` names the camera in errors. Raises ImageError for an unsupported encoding, an empty picture, a row
    step shorter than a row, or less data than the size asks for.
    """
    if message.height == 0 or message.width == 0:
        raise ImageError(f"{source}: image of {message.width}x{message.height} pixels is empty")
    if message.encoding not in _ENCODINGS:
        return _with_cv_bridge(message, source)
    dtype, channels = _ENCODINGS[message.encoding]
    if message.is_bigendian != (sys.byteorder == "big"):
        dtype = dtype.newbyteorder()
    row_bytes = message.width * channels * dtype.itemsize
    if message.step < row_bytes:
        raise ImageError(
            f"{source}: step {message.step} is shorter than a row of {message.width} pixels of {message.encoding} "
            f"({row_bytes} bytes)"
        )
    if len(message.data) < message.step * message.height:
        raise ImageError(
            f"{source}: image is truncated: {len(message.data)} bytes, expected {message.step * message.height} "
            f"({message.height} rows of {message.step})"
        )
    # Strides instead of a reshape, so that padded rows are no copy either.
    picture = np.ndarray(
        shape=(message.height, message.width, channels),
        dtype=dtype,
        buffer=message.data,
        strides=(message.step, channels * dtype.itemsize, dtype.itemsize),
    )
    if message.encoding == "bgr8":
        return np.ascontiguousarray(picture[..., ::-1])
    if channels == 1:
        picture = picture[..., 0]
    return picture if dtype.isnative else picture.astype(dtype.newbyteorder("="))


def array_to_image(picture: np.ndarray, encoding: str, stamp: Time | None = None, frame_id: str = "") -> Image:
    """A message from [H, W, 3] (rgb8, bgr8: channels in the order of the encoding) or [H, W].

    Raises ImageError when shape or element type do not belong to the encoding.
    """
    if encoding not in _ENCODINGS:
        raise ImageError(f"encoding '{encoding}' not supported ({', '.join(_ENCODINGS)})")
    dtype, channels = _ENCODINGS[encoding]
    shape = picture.shape if channels > 1 else (*picture.shape, 1)
    if len(shape) != 3 or shape[2] != channels or picture.dtype != dtype:
        raise ImageError(
            f"array {picture.dtype}{list(picture.shape)} is no {encoding} image ({dtype}, {channels} channels)"
        )
    message = Image(height=shape[0], width=shape[1], encoding=encoding, step=shape[1] * channels * dtype.itemsize)
    _stamp(message, stamp, frame_id)
    message.is_bigendian = int(sys.byteorder == "big")
    # rclpy checks every element of anything but an array.array('B'): 85 ms instead of 0.1 ms for 640x480 rgb8.
    data = array.array("B")
    data.frombytes(memoryview(np.ascontiguousarray(picture)).cast("B"))
    message.data = data
    return message


def compressed_to_array(message: CompressedImage, source: str = "image") -> np.ndarray:
    """A JPEG or PNG as [H, W, 3] RGB uint8, or [H, W] in the picture's own depth when it has one channel.

    Raises ImageError naming `source` when the format is neither or the data cannot be decoded.
    """
    if not any(name in message.format.lower() for name in ("jpeg", "jpg", "png")):
        raise ImageError(f"{source}: compressed format '{message.format}' not supported (jpeg, png)")
    data = np.frombuffer(message.data, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
    if picture is None:
        raise ImageError(f"{source}: {data.size} bytes of '{message.format}' cannot be decoded")
    if picture.ndim == 2:
        return picture
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGB if picture.shape[2] == 4 else cv2.COLOR_BGR2RGB)


def array_to_compressed(
    picture: np.ndarray, encoding: str = "jpeg", quality: int = 90, stamp: Time | None = None, frame_id: str = ""
) -> CompressedImage:
    """[H, W, 3] RGB or [H, W] as "jpeg" (`quality` 1..100) or "png". Raises ImageError for another encoding."""
    if encoding not in _COMPRESSED:
        raise ImageError(f"compressed encoding '{encoding}' not supported ({', '.join(_COMPRESSED)})")
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    flags = [cv2.IMWRITE_JPEG_QUALITY, quality] if encoding == "jpeg" else []
    done, data = cv2.imencode(_COMPRESSED[encoding], picture, flags)
    if not done:
        raise ImageError(f"array {picture.dtype}{list(picture.shape)} cannot be written as {encoding}")
    message = CompressedImage(format=encoding, data=array.array("B", data.tobytes()))
    _stamp(message, stamp, frame_id)
    return message


def _with_cv_bridge(message: Image, source: str) -> np.ndarray:
    supported = ", ".join(_ENCODINGS)
    if CvBridge is None:
        raise ImageError(f"{source}: encoding '{message.encoding}' not supported ({supported})")
    try:
        return CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8")
    except Exception as error:  # cv_bridge raises its own, OpenCV's and TypeError for one and the same thing
        raise ImageError(f"{source}: encoding '{message.encoding}' not supported ({supported}): {error}") from error


def _stamp(message: Image | CompressedImage, stamp: Time | None, frame_id: str) -> None:
    if stamp is not None:
        message.header.stamp = stamp
    message.header.frame_id = frame_id
