from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.errors import ObservationError
from molmoact_policy.frames import SECOND, FrameBuffer

MS = SECOND // 1000


def buffer_with(front=(), wrist=(), sync_tolerance=0.05, max_image_age=0.5) -> FrameBuffer:
    """Frames stamped in ms; the message is the stamp."""
    buffer = FrameBuffer(("front", "wrist"), sync_tolerance, max_image_age)
    for camera, stamps in (("front", front), ("wrist", wrist)):
        for stamp in stamps:
            buffer.add(camera, stamp * MS, stamp)
    return buffer


def newest(buffer: FrameBuffer, now: int, not_before: int = 0):
    frames = buffer.newest(now * MS, not_before * MS)
    return None if frames is None else tuple(frame.message for frame in frames)


def test_newest_frames_come_in_the_order_of_the_cameras():
    assert newest(buffer_with(front=[0, 33, 66], wrist=[1, 34, 67]), 70) == (66, 67)


def test_frame_beside_the_newest_of_the_camera_that_is_behind_is_taken():
    assert newest(buffer_with(front=[0, 33, 66, 100, 133], wrist=[60], sync_tolerance=0.01), 140) == (66, 60)


def test_camera_without_an_image_is_named():
    with pytest.raises(ObservationError, match=r"^wrist camera: no image yet"):
        newest(buffer_with(front=[0]), 10)


def test_camera_that_stopped_is_named_with_the_age_of_its_image():
    with pytest.raises(ObservationError, match=r"^front camera: newest image is 0.600 s old, at most 0.5 s allowed"):
        newest(buffer_with(front=[0], wrist=[590]), 600)


def test_cameras_out_of_sync_are_named_with_their_distance():
    with pytest.raises(ObservationError, match=r"^front camera: image taken 0.100 s before the wrist camera's"):
        newest(buffer_with(front=[0], wrist=[100]), 110)


def test_image_from_the_future_is_refused():
    with pytest.raises(ObservationError, match=r"^front camera: newest image is stamped 1.000 s in the future"):
        newest(buffer_with(front=[1100], wrist=[1100]), 100)


def test_tolerance_of_zero_is_a_limit_that_equal_stamps_keep():
    assert newest(buffer_with(front=[5], wrist=[5], sync_tolerance=0.0), 5) == (5, 5)
    with pytest.raises(ObservationError, match="front camera"):
        newest(buffer_with(front=[5], wrist=[6], sync_tolerance=0.0), 6)


def test_frames_from_before_the_moment_asked_for_are_waited_for_not_complained_about():
    buffer = buffer_with(front=[0, 33], wrist=[0, 33])
    assert newest(buffer, 40, not_before=34) is None
    buffer.add("front", 66 * MS, 66)
    assert newest(buffer, 70, not_before=34) is None
    buffer.add("wrist", 66 * MS, 66)
    assert newest(buffer, 70, not_before=34) == (66, 66)


def test_frames_from_before_a_clock_jump_are_forgotten():
    buffer = buffer_with(front=[5000], wrist=[5000])
    buffer.add("front", 0, "new")
    buffer.add("wrist", 0, "new")
    assert newest(buffer, 10) == ("new", "new")


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 500), min_size=1, max_size=20).map(sorted),
    st.lists(st.integers(0, 500), min_size=1, max_size=20).map(sorted),
    st.integers(0, 500),
)
def test_whatever_is_returned_keeps_every_limit(front, wrist, not_before):
    buffer = buffer_with(front, wrist, sync_tolerance=0.02, max_image_age=0.2)
    try:
        frames = newest(buffer, 500, not_before)
    except ObservationError:
        return
    if frames is not None:
        assert max(frames) - min(frames) <= 20
        assert min(frames) >= max(not_before, 500 - 200 - 20)


def beside(buffer: FrameBuffer, moment: int):
    return tuple(frame.message for frame in buffer.beside(moment * MS))


def test_frames_beside_a_moment_may_have_been_taken_after_it():
    buffer = buffer_with(front=[0, 33, 66], wrist=[10, 43, 76])
    assert beside(buffer, 40) == (33, 43)
    assert beside(buffer, 60) == (66, 76)


def test_camera_without_a_frame_beside_the_moment_is_named_with_its_distance():
    buffer = buffer_with(front=[0, 33, 66], wrist=[10, 300], max_image_age=0.1)
    with pytest.raises(ObservationError, match=r"^wrist camera: closest image is 0.110 s away, at most 0.1 s allowed"):
        beside(buffer, 120)
    with pytest.raises(ObservationError, match=r"^wrist camera: no image yet"):
        beside(buffer_with(front=[0]), 0)


def test_frames_beside_a_moment_keep_the_tolerance_between_cameras():
    buffer = buffer_with(front=[0], wrist=[80])
    with pytest.raises(ObservationError, match=r"^front camera: image taken 0.080 s before the wrist camera's"):
        beside(buffer, 40)
