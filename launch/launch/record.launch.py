"""One arm with two cameras, a recorder, and what teleoperates.

ros2 launch molmoact_bringup record.launch.py robot:=fr3 device:=spacemouse front_serial:=… wrist_serial:=…
"""

from launch import LaunchDescription
from molmoact_bringup.graph import RecordingDeployment, recording
from molmoact_bringup.launch_description import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description(RecordingDeployment, recording)
