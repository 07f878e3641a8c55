"""The graph for `ros2 launch`. Only launch files import this: launch_ros is there wherever they are used."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable, Shutdown
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from molmoact_bringup.graph import LaunchArguments, NodeSpec
from molmoact_bringup.local import config_directory

A = TypeVar("A", bound=LaunchArguments)


def launch_description(arguments: type[A], nodes: Callable[[A, Path], tuple[NodeSpec, ...]]) -> LaunchDescription:
    """A system whose launch arguments are the fields of `arguments`."""

    def nodes_of_the_graph(context: LaunchContext) -> list[Node]:
        values = {name.name: LaunchConfiguration(name.name).perform(context) for name in fields(arguments)}
        return [launch_node(spec) for spec in nodes(arguments(**values), config)]

    config = config_directory()
    declarations = [
        DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.metadata["description"],
            choices=argument.metadata["choices"] or None,
        )
        for argument in fields(arguments)
    ]
    large_images = SetEnvironmentVariable(
        "FASTRTPS_DEFAULT_PROFILES_FILE",
        EnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", default_value=str(config / "fastdds.xml")),
    )
    return LaunchDescription([*declarations, large_images, OpaqueFunction(function=nodes_of_the_graph)])


def launch_node(spec: NodeSpec) -> Node:
    return Node(
        package=spec.package,
        executable=spec.executable,
        name=spec.name,
        namespace=spec.namespace,
        # Without a type, launch_ros would read a serial number of digits as an integer.
        parameters=[
            *(str(file) for file in spec.parameter_files),
            {name: ParameterValue(value, value_type=_type_of(value)) for name, value in spec.parameters.items()},
        ],
        remappings=list(spec.remappings),
        output="both",
        on_exit=end_in_good_order if spec.finishes else end_the_system,
    )


def end_the_system(event: ProcessExited, context: LaunchContext) -> None:
    """A raised error ends every node and is the exit code of `ros2 launch`; the action Shutdown would leave it at 0."""
    if not context.is_shutdown:
        raise RuntimeError(f"{event.process_name} exited with code {event.returncode}")


def end_in_good_order(event: ProcessExited, context: LaunchContext) -> list[Shutdown]:
    """For a node whose work has an end."""
    if event.returncode != 0:
        end_the_system(event, context)
    return [Shutdown(reason=f"{event.process_name} has finished")]


def _type_of(value: object) -> Any:
    # launch compares with this object, which is not equal to list[str].
    return typing.List[str] if isinstance(value, list) else type(value)  # noqa: UP006
