from __future__ import annotations

import array
import sys

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_ros import images
from molmoact_ros.errors import ImageError
from molmoact_ros.images import array_to_compressed, array_to_image, compressed_to_array, image_to_array
from sensor_msgs.msg import CompressedImage, Image

RNG = np.random.default_rng(0)
SHAPES = {
    "rgb8": (np.uint8, (3,)),
    "bgr8": (np.uint8, (3,)),
    "mono8": (np.uint8, ()),
    "16UC1": (np.uint16, ()),
    "32FC1": (np.float32, ()),
}


def picture_of(encoding: str, height: int = 5, width: int = 7) -> np.ndarray:
    dtype, channels = SHAPES[encoding]
    return RNG.integers(0, 256, (height, width, *channels)).astype(dtype)


@settings(deadline=None)
@given(st.sampled_from(sorted(SHAPES)), st.integers(1, 40), st.integers(1, 40))
def test_what_goes_into_a_message_comes_out_of_it(encoding, height, width):
    picture = picture_of(encoding, height, width)
    message = array_to_image(picture, encoding, Time(sec=3), "camera")
    assert (message.height, message.width, message.encoding) == (height, width, encoding)
    assert (message.header.stamp.sec, message.header.frame_id) == (3, "camera")
    expected = picture[..., ::-1] if encoding == "bgr8" else picture
    np.testing.assert_array_equal(image_to_array(message), expected)


@pytest.mark.parametrize("encoding", sorted(set(SHAPES) - {"bgr8"}))
def test_reading_an_image_shares_the_memory_of_the_message(encoding):
    message = array_to_image(picture_of(encoding), encoding)
    assert np.shares_memory(image_to_array(message), np.frombuffer(message.data, np.uint8))


def test_message_data_is_an_array_of_bytes_which_rclpy_takes_without_a_look_at_each():
    message = array_to_image(picture_of("rgb8"), "rgb8")
    assert isinstance(message.data, array.array)
    assert message.data.typecode == "B"


@pytest.mark.parametrize("encoding", ["rgb8", "16UC1"])
def test_padding_at_the_end_of_rows_is_no_part_of_the_picture(encoding):
    picture = picture_of(encoding)
    message = array_to_image(picture, encoding)
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    message.data = array.array("B", np.pad(rows, ((0, 0), (0, 6)), constant_values=255).tobytes())
    message.step += 6
    read = image_to_array(message)
    np.testing.assert_array_equal(read, picture)
    assert np.shares_memory(read, np.frombuffer(message.data, np.uint8))


def test_depth_of_the_other_byte_order_is_converted():
    picture = picture_of("16UC1") * 257 + 1
    message = array_to_image(picture, "16UC1")
    message.is_bigendian = int(sys.byteorder != "big")
    message.data = array.array("B", picture.byteswap().tobytes())
    read = image_to_array(message)
    assert read.dtype.isnative
    np.testing.assert_array_equal(read, picture)


def test_array_with_strides_is_written_as_it_looks():
    picture = picture_of("rgb8", 8, 8)
    message = array_to_image(picture[::2, ::-1], "rgb8")
    np.testing.assert_array_equal(image_to_array(message), picture[::2, ::-1])


def damaged(**changes) -> Image:
    message = array_to_image(picture_of("rgb8"), "rgb8")
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (
            damaged(encoding="yuv422"),
            r"front camera: encoding 'yuv422' not supported \(rgb8, bgr8, mono8, 16UC1, 32FC1\)",
        ),
        (damaged(height=0), r"front camera: image of 7x0 pixels is empty"),
        (damaged(width=0), r"front camera: image of 0x5 pixels is empty"),
        (damaged(data=array.array("B", bytes(104))), r"front camera: image is truncated: 104 bytes, expected 105"),
        (damaged(data=array.array("B")), r"front camera: image is truncated: 0 bytes"),
        (damaged(step=20), r"front camera: step 20 is shorter than a row of 7 pixels of rgb8 \(21 bytes\)"),
        (damaged(step=0), r"front camera: step 0 is shorter"),
    ],
)
def test_damaged_image_is_refused_by_the_name_of_its_camera(message, complaint, monkeypatch):
    monkeypatch.setattr(images, "CvBridge", None)
    with pytest.raises(ImageError, match=complaint):
        image_to_array(message, "front camera")


def test_array_that_is_no_image_of_the_encoding_is_refused():
    with pytest.raises(ImageError, match=r"float64\[5, 7\] is no 32FC1 image"):
        array_to_image(np.zeros((5, 7)), "32FC1")
    with pytest.raises(ImageError, match=r"uint8\[5, 7\] is no rgb8 image"):
        array_to_image(np.zeros((5, 7), np.uint8), "rgb8")
    with pytest.raises(ImageError, match=r"encoding 'yuv422' not supported"):
        array_to_image(np.zeros((5, 7), np.uint8), "yuv422")


@pytest.mark.parametrize("encoding", ["rgb8", "mono8", "16UC1"])
def test_png_keeps_every_pixel(encoding):
    picture = picture_of(encoding)
    np.testing.assert_array_equal(compressed_to_array(array_to_compressed(picture, "png")), picture)


def test_jpeg_keeps_the_order_of_the_channels():
    red = np.zeros((16, 16, 3), np.uint8)
    red[..., 0] = 250
    message = array_to_compressed(red, "jpeg")
    message.format = "rgb8; jpeg compressed bgr8"  # as image_transport writes it
    assert np.abs(compressed_to_array(message).astype(int) - red).max() < 10


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (CompressedImage(format="webp"), r"wrist camera: compressed format 'webp' not supported \(jpeg, png\)"),
        (CompressedImage(format="jpeg"), r"wrist camera: 0 bytes of 'jpeg' cannot be decoded"),
        (CompressedImage(format="png", data=b"nonsense"), r"wrist camera: 8 bytes of 'png' cannot be decoded"),
    ],
)
def test_compressed_image_that_is_none_is_refused_by_the_name_of_its_camera(message, complaint):
    with pytest.raises(ImageError, match=complaint):
        compressed_to_array(message, "wrist camera")
