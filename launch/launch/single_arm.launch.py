"""One arm with two cameras, and its policy.

ros2 launch molmoact_bringup single_arm.launch.py robot:=fr3 front_serial:=… wrist_serial:=…
"""

from launch import LaunchDescription
from molmoact_bringup.graph import Deployment, single_arm
from molmoact_bringup.launch_description import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description(Deployment, single_arm)
