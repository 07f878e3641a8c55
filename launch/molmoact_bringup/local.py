"""``molmoact up``: the graph as plain processes, for machines without launch_ros."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory

from molmoact_bringup.domain import LAST_DOMAIN, check_names_are_free, choose_domain
from molmoact_bringup.errors import BringupError, ConfigurationError
from molmoact_bringup.graph import (
    Deployment,
    LaunchArguments,
    NodeSpec,
    RecordingDeployment,
    ReplayDeployment,
    recording,
    replay,
    single_arm,
)
from molmoact_bringup.supervisor import Command, Interrupted, Supervisor, interrupted_by_signals

POLICY = "policy"
SYSTEMS: dict[str, tuple[type[LaunchArguments], Callable[[Any, Path], tuple[NodeSpec, ...]]]] = {
    POLICY: (Deployment, single_arm),
    "recording": (RecordingDeployment, recording),
    "replay": (ReplayDeployment, replay),
}

_COLOURS = (36, 33, 35, 32, 34, 31)  # ANSI foregrounds, one node each


def config_directory() -> Path:
    """The installed ``config/``."""
    return Path(get_package_share_directory("molmoact_bringup")) / "config"


def node_command(node: NodeSpec, environment: Mapping[str, str]) -> Command:
    """The process of one node, with the arguments that ``ros2 run`` and launch_ros would give it.

    Raises:
        ConfigurationError: its package is not installed or has no such executable.
    """
    try:
        program = Path(get_package_prefix(node.package)) / "lib" / node.package / node.executable
    except PackageNotFoundError:
        raise ConfigurationError(f"node {node.full_name}: package '{node.package}' is not installed") from None
    if not program.is_file():
        raise ConfigurationError(
            f"node {node.full_name}: package '{node.package}' has no executable '{node.executable}'"
        )
    argv = [str(program), "--ros-args", "-r", f"__node:={node.name}", "-r", f"__ns:={node.namespace}"]
    for file in node.parameter_files:
        argv += ["--params-file", str(file)]
    for name, value in node.parameters.items():
        argv += ["-p", f"{name}:={json.dumps(value)}"]  # JSON is YAML in which a string stays a string
    for source, target in node.remappings:
        argv += ["-r", f"{source}:={target}"]
    return Command(node.name, tuple(argv), environment, node.finishes)


def dds_environment(config: Path, domain: int, simulated: bool) -> dict[str, str]:
    """Variables every process of a system shares; what the user has set himself stays as it is.

    A simulated robot is kept on this machine: a laptop in a laboratory must not talk to somebody's real arm.
    """
    defaults = {"FASTRTPS_DEFAULT_PROFILES_FILE": str(config / "fastdds.xml"), "ROS_DOMAIN_ID": str(domain)}
    if simulated:
        defaults["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    return {name: value for name, value in defaults.items() if not os.environ.get(name)}


def start_locally(
    nodes: Sequence[NodeSpec], environment: Mapping[str, str], output: Callable[[str, str], None]
) -> Supervisor:
    """A supervisor of `nodes`, not started yet.

    Raises:
        ConfigurationError: a package or an executable is missing; nothing was started.
    """
    return Supervisor([node_command(node, environment) for node in nodes], output)


def coloured_output(names: Iterable[str], terminal: bool) -> Callable[[str, str], None]:
    """A function that prints a line with its node's name before it, in the node's colour on a terminal."""
    names = list(names)
    width = max(len(name) for name in names)
    colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}

    def output(name: str, line: str) -> None:
        prefix = f"[{name}]".ljust(width + 2)
        print(f"\033[{colours[name]}m{prefix}\033[0m {line}" if terminal else f"{prefix} {line}", flush=True)

    return output


def up(arguments: Sequence[str]) -> str:
    """Run a system until its work is done, a node ends or a signal comes; the reason.

    Args:
        arguments: One of SYSTEMS, which may be left out for the policy's, and launch arguments.

    Raises:
        BringupError: it could not be started, or a node ended; the message says which and why.
    """
    named = arguments[0] if arguments and "=" not in arguments[0] else POLICY
    if named not in SYSTEMS:
        raise ConfigurationError(f"system '{named}': expected one of {', '.join(SYSTEMS)}")
    kind, nodes_of = SYSTEMS[named]
    deployment = kind.from_arguments(argument for argument in arguments if argument != named)
    config = config_directory()
    nodes = nodes_of(deployment, config)
    simulated = not deployment.reaches_a_robot
    # A real arm's controllers are in the default domain, and so is a simulated one if it can, for plain clients to see.
    domain = choose_domain(os.environ, range(LAST_DOMAIN + 1) if simulated else (0,))
    environment = dds_environment(config, domain, simulated)
    os.environ.update(environment)
    check_names_are_free(domain, [node.full_name for node in nodes])
    print(f"ROS_DOMAIN_ID={domain}", flush=True)
    system = start_locally(nodes, environment, coloured_output([node.name for node in nodes], sys.stdout.isatty()))
    with interrupted_by_signals():
        try:
            with system:
                system.wait()
            if system.finished is not None:
                return system.finished
        except Interrupted as interruption:
            return f"{interruption}"
    raise BringupError(f"{system.failure}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``molmoact up [policy | recording | replay] name:=value …``; the exit code."""
    try:
        reason = up(sys.argv[1:] if arguments is None else arguments)
    except BringupError as error:
        print(f"molmoact up: {error}", file=sys.stderr)
        return 1
    print(f"stopped ({reason})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
