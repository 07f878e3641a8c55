"""Two arms in one scene: the same interfaces, once per prefix."""

import time

import pytest
from franka_msgs.action import Move
from geometry_msgs.msg import PoseStamped
from molmoact_ros.stamps import to_seconds
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage


def test_a_second_arm_is_one_more_prefix(client, start_simulator):
    start_simulator(
        arms=["left", "right"],
        arm_prefixes=["left/", "right/"],
        cameras=["front", "left_wrist", "right_wrist"],
        camera_widths=[320] * 3,
        camera_heights=[240] * 3,
        camera_rates=[10.0] * 3,
        camera_depth=[False] * 3,
        camera_compressed=[False] * 3,
    )
    client.watch(TFMessage, "/tf")
    for side in ("left", "right"):
        client.watch(PoseStamped, f"{side}/current_pose")
        client.watch(Image, f"camera/{side}_wrist/color/image_raw")
        header = client.newest(f"{side}/current_pose").header
        assert header.frame_id == f"{side}_fr3_link0"
        assert to_seconds(header.stamp) == pytest.approx(time.time(), abs=60.0)  # the wall clock, unless told otherwise
        frame = client.newest(f"camera/{side}_wrist/color/image_raw").header.frame_id
        assert frame == f"camera_{side}_wrist_color_optical_frame"
        parents = {t.child_frame_id: t.header.frame_id for t in client.newest("/tf").transforms}
        assert parents[frame] == f"{side}_fr3_hand"
        result, _ = client.act(Move, f"{side}/franka_gripper/move", Move.Goal(width=0.05, speed=0.1))
        assert result.success, result.error
