from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from molmoact_bringup.errors import BringupError
from molmoact_bringup.video import DEPTH_TOPIC, FRONT_TOPIC, write_video
from molmoact_msgs.msg import BridgeStatus, Reasoning, SceneStatus, TracePoint
from molmoact_ros.images import array_to_compressed
from std_msgs.msg import String

FRAMES = 12


def picture(index: int) -> tuple[str, int, Any]:
    return FRONT_TOPIC, index * 10**8, array_to_compressed(np.full((240, 320, 3), 40, np.uint8), "jpeg")


def frames_of(path) -> list[np.ndarray]:
    video = cv2.VideoCapture(str(path))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    video.release()
    return frames


@pytest.fixture
def recording() -> list[tuple[str, int, Any]]:
    """Twelve dark pictures; from the sixth on a trace from the top left to the bottom right corner and a depth map."""
    middle = FRAMES // 2 * 10**8 - 1
    trace = Reasoning(trace=[TracePoint(x=0, y=0), TracePoint(x=255, y=255)])
    depth = array_to_compressed(np.linspace(0, 255, 100, dtype=np.uint8).reshape(10, 10), "jpeg")
    said = [
        ("/task", 1, String(data="pick up the red cube – größer")),
        ("/bridge_status", 2, BridgeStatus(mode=BridgeStatus.POLICY, reason="executing chunk 3")),
        ("/franka_sim/scene_status", 3, SceneStatus(seed=7, success=True)),
        ("/reasoning", middle, trace),
        (DEPTH_TOPIC, middle, depth),
    ]
    return [*said, *(picture(index) for index in range(FRAMES))]


def test_video_shows_the_trace_and_the_depth_map_from_when_they_were_known(tmp_path, write_bag, recording):
    assert write_video(write_bag(recording), tmp_path / "front.mp4", 10.0) == FRAMES
    frames = frames_of(tmp_path / "front.mp4")
    assert len(frames) == FRAMES
    centre_before, centre_after = (frame[230:250, 310:330].max() for frame in (frames[0], frames[-1]))
    assert centre_before < 100 < centre_after
    depth_before, depth_after = (frame[300:400, 700:1100].astype(float).std() for frame in (frames[0], frames[-1]))
    assert depth_before < 5.0 < depth_after


def test_recording_without_pictures_gives_no_video(tmp_path, write_bag):
    bag = write_bag([("/task", 1, String(data="pick"))])
    assert write_video(bag, tmp_path / "front.mp4", 10.0) == 0
    assert not (tmp_path / "front.mp4").exists()


def test_video_that_cannot_be_written_is_named(tmp_path, write_bag, recording):
    bag = write_bag(recording)
    with pytest.raises(BringupError, match=r"missing/front\.mp4: OpenCV cannot write it"):
        write_video(bag, tmp_path / "missing" / "front.mp4", 10.0)
