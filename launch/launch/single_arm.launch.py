"""One arm with two cameras.

ros2 launch molmoact_bringup single_arm.launch.py robot:=fr3 front_serial:=… wrist_serial:=…
"""

from dataclasses import fields
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from molmoact_bringup.graph import Deployment, NodeSpec, single_arm

CONFIG = Path(get_package_share_directory("molmoact_bringup")) / "config"


def generate_launch_description() -> LaunchDescription:
    arguments = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.metadata["description"],
            choices=argument.metadata["choices"] or None,
        )
        for argument in fields(Deployment)
    ]
    large_images = SetEnvironmentVariable(
        "FASTRTPS_DEFAULT_PROFILES_FILE",
        EnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", default_value=str(CONFIG / "fastdds.xml")),
    )
    return LaunchDescription([*arguments, large_images, OpaqueFunction(function=nodes_of_the_graph)])


def nodes_of_the_graph(context: LaunchContext) -> list[Node]:
    arguments = {argument.name: LaunchConfiguration(argument.name).perform(context) for argument in fields(Deployment)}
    return [launch_node(spec) for spec in single_arm(Deployment(**arguments), CONFIG)]


def launch_node(spec: NodeSpec) -> Node:
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        # Without a type, launch_ros would read a serial number of digits as an integer.
        parameters=[
            *(str(file) for file in spec.parameter_files),
            {name: ParameterValue(value, value_type=type(value)) for name, value in spec.parameters.items()},
        ],
        remappings=list(spec.remappings),
        output="both",
        on_exit=end_the_system,
    )


def end_the_system(event: ProcessExited, context: LaunchContext) -> None:
    """A raised error ends every node and is the exit code of `ros2 launch`; the action Shutdown would leave it at 0."""
    if not context.is_shutdown:
        raise RuntimeError(f"{event.process_name} exited with code {event.returncode}")
