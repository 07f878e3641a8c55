"""A policy is shown what was recorded, and its replies are evaluated. No robot takes part.

ros2 launch molmoact_bringup replay.launch.py bag:=episodes checkpoint:=… out:=…
"""

from launch import LaunchDescription
from molmoact_bringup.graph import ReplayDeployment, replay
from molmoact_bringup.launch_description import launch_description


def generate_launch_description() -> LaunchDescription:
    return launch_description(ReplayDeployment, replay)
