"""Which nodes make a system. The launch files and :mod:`molmoact_bringup.local` both start what is said here, and
only here.

Only what differs between two deployments of the same system is an argument (which robot, which checkpoint, which
cameras); every other setting is in the parameter files of ``config/``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TypeVar

import yaml

from molmoact_bringup.errors import ConfigurationError

EMBEDDED_CHECKPOINT = "nano"
REPLAY_NAMESPACE = "/replay"
NO_DEVICE = "none"
DEPTH_TOPIC = "camera/front/aligned_depth_to_color/image_raw"  # as it comes: a PNG of it takes the recorder 10 ms
TELEOP_DEVICES = (NO_DEVICE, "gamepad", "spacemouse", "leader")

ParameterValue = bool | int | float | str | list[str]
A = TypeVar("A", bound="LaunchArguments")


@dataclass(frozen=True)
class NodeSpec:
    """One process with one node, in the terms of ``ros2 run``."""

    package: str
    executable: str
    name: str
    namespace: str = "/"
    parameter_files: tuple[Path, ...] = ()  # later files win
    parameters: Mapping[str, ParameterValue] = field(default_factory=dict)  # win over every file
    remappings: tuple[tuple[str, str], ...] = ()
    lifecycle: bool = True
    finishes: bool = False  # its work has an end, and when it ends well, so does the system

    @property
    def full_name(self) -> str:
        """Name in the ROS graph, with its namespace."""
        return f"{self.namespace.rstrip('/')}/{self.name}"


def _argument(default: str, description: str, choices: tuple[str, ...] = ()):
    return field(default=default, metadata={"description": description, "choices": choices})


@dataclass(frozen=True)
class LaunchArguments:
    """The launch arguments of a system. All are text, as a command line gives them.

    Raises:
        ConfigurationError: a value is not one of its choices.
    """

    @property
    def reaches_a_robot(self) -> bool:
        """Whether what it says may move a real one."""
        return False

    def __post_init__(self) -> None:
        for argument in fields(self):
            choices = argument.metadata["choices"]
            value = getattr(self, argument.name)
            if choices and value not in choices:
                raise ConfigurationError(f"argument '{argument.name}': {value!r} is not one of {', '.join(choices)}")

    @classmethod
    def from_arguments(cls: type[A], arguments: Iterable[str]) -> A:
        """From ``name:=value`` strings.

        Raises:
            ConfigurationError: an argument has another form, an unknown name or a value that is not allowed.
        """
        known = [argument.name for argument in fields(cls)]
        values: dict[str, str] = {}
        for text in arguments:
            name, separator, value = text.partition(":=")
            if not separator:
                raise ConfigurationError(f"argument {text!r}: expected name:=value, with a name of {', '.join(known)}")
            if name not in known:
                raise ConfigurationError(f"argument '{name}': unknown, expected one of {', '.join(known)}")
            values[name] = value
        return cls(**values)


@dataclass(frozen=True)
class RobotArguments(LaunchArguments):
    """Which robot.

    Raises:
        ConfigurationError: a value is not one of its choices, or the real robot has no camera serial numbers.
    """

    robot: str = _argument("sim", "which robot: simulated, or a Franka Research 3", ("sim", "fr3"))
    front_serial: str = _argument("", "serial number of the front camera (robot:=fr3)")
    wrist_serial: str = _argument("", "serial number of the wrist camera (robot:=fr3)")
    use_sim_time: str = _argument("false", "robot:=sim only: run on the simulator's clock", ("false", "true"))

    @property
    def reaches_a_robot(self) -> bool:
        return self.robot != "sim"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.robot == "fr3":
            for name in ("front_serial", "wrist_serial"):
                if not getattr(self, name):
                    raise ConfigurationError(
                        f"argument '{name}': needed for robot:=fr3 (rs-enumerate-devices lists them)"
                    )
            if self.use_sim_time == "true":
                raise ConfigurationError("argument 'use_sim_time': a real robot runs on the wall clock")


@dataclass(frozen=True)
class Deployment(RobotArguments):
    """The launch arguments of a system in which a policy acts."""

    checkpoint: str = _argument(EMBEDDED_CHECKPOINT, "'nano', a directory, or a hub repository in the local cache")
    instruction: str = _argument("", "what to do, in words; empty: wait for set_task or run_task")


@dataclass(frozen=True)
class RecordingDeployment(RobotArguments):
    """The launch arguments of a system in which demonstrations are recorded."""

    device: str = _argument(
        NO_DEVICE,
        "what teleoperates; none: it is started apart, as a keyboard has to be",
        TELEOP_DEVICES,
    )
    episodes: str = _argument("episodes", "directory of the recorded episodes")
    depth: str = _argument("false", "record the front camera's depth, too: for depth tokens", ("false", "true"))


@dataclass(frozen=True)
class ReplayDeployment(LaunchArguments):
    """The launch arguments of a system in which a policy is shown what was recorded.

    Raises:
        ConfigurationError: there is no recording, `every` is no count, or the results are there already.
    """

    bag: str = _argument("", "an episode, or a directory of episodes")
    checkpoint: str = _argument(EMBEDDED_CHECKPOINT, "'nano', a directory, or a hub repository in the local cache")
    out: str = _argument("evaluation", "directory of the results, to be created")
    every: str = _argument("1", "look at every n-th moment only")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bag or not Path(self.bag).expanduser().is_dir():
            raise ConfigurationError(f"argument 'bag': {self.bag!r} is no directory, expected an episode or several")
        if not self.every.isdecimal() or int(self.every) < 1:
            raise ConfigurationError(f"argument 'every': {self.every!r} is not a whole number of at least 1")


def single_arm(deployment: Deployment, config: Path) -> tuple[NodeSpec, ...]:
    """The nodes of one arm with a front and a wrist camera, and its policy.

    Args:
        deployment: The launch arguments.
        config: Folder with the parameter files, ``share/molmoact_bringup/config`` once installed.

    Raises:
        ConfigurationError: a parameter file is missing.
    """
    robot = _parameter_file(config, f"robots/{deployment.robot}.yaml")
    policy = NodeSpec(
        package="molmoact_policy",
        executable="policy",
        name="policy",
        parameter_files=(_parameter_file(config, "policy.yaml"), robot),
        parameters={
            "checkpoint": _absolute_if_directory(deployment.checkpoint),
            "instruction": deployment.instruction,
            "embodiments": str(_parameter_file(config, "embodiments.yaml")),
        },
    )
    return *_robot(deployment, config), _on_its_clock(policy, deployment)


def recording(deployment: RecordingDeployment, config: Path) -> tuple[NodeSpec, ...]:
    """The nodes of one arm with two cameras, a recorder and, unless it is started apart, what teleoperates.

    Raises:
        ConfigurationError: a parameter file is missing.
    """
    settings = _parameter_file(config, "recorder.yaml")
    parameters: dict[str, ParameterValue] = {"directory": str(Path(deployment.episodes).expanduser().resolve())}
    if deployment.depth == "true":
        parameters["topics"] = [*_recorded_topics(settings), DEPTH_TOPIC]
    recorder = NodeSpec(
        package="teleop_recorder",
        executable="recorder",
        name="recorder",
        parameter_files=(settings,),
        parameters=parameters,
    )
    nodes = *_robot(deployment, config), _on_its_clock(recorder, deployment)
    if deployment.device == NO_DEVICE:
        return nodes
    teleop = NodeSpec(
        package="teleop_recorder",
        executable=f"teleop_{deployment.device}",
        name=f"teleop_{deployment.device}",
        parameter_files=(_parameter_file(config, "teleop.yaml"),),
    )
    return *nodes, _on_its_clock(teleop, deployment)


def _recorded_topics(settings: Path) -> list[str]:
    return list(yaml.safe_load(settings.read_text(encoding="utf-8"))["recorder"]["ros__parameters"]["topics"])


def replay(deployment: ReplayDeployment, config: Path) -> tuple[NodeSpec, ...]:
    """A policy, and what shows it a recording and evaluates its replies.

    Both are in a namespace of their own and on a clock of their own: a robot in the same domain never hears of it.

    Raises:
        ConfigurationError: a parameter file is missing.
    """
    settings = _parameter_file(config, "replay.yaml")
    common: dict[str, ParameterValue] = {
        "checkpoint": _absolute_if_directory(deployment.checkpoint),
        "embodiments": str(_parameter_file(config, "embodiments.yaml")),
    }
    policy = NodeSpec(
        package="molmoact_policy",
        executable="policy",
        name="policy",
        namespace=REPLAY_NAMESPACE,
        parameter_files=(settings,),
        parameters={**common, "use_sim_time": True},
        remappings=(("/clock", f"{REPLAY_NAMESPACE}/clock"), ("/diagnostics", f"{REPLAY_NAMESPACE}/diagnostics")),
    )
    recording = {
        "bag": str(Path(deployment.bag).expanduser().resolve()),
        "out": str(Path(deployment.out).expanduser().resolve()),
        "every": int(deployment.every),
    }
    evaluation = NodeSpec(
        package="molmoact_training",
        executable="replay",
        name="replay",
        namespace=REPLAY_NAMESPACE,
        parameter_files=(settings,),
        parameters={**common, **recording},
        finishes=True,
    )
    return policy, evaluation


def _robot(deployment: RobotArguments, config: Path) -> tuple[NodeSpec, ...]:
    """The robot's side of a system: cameras and safety layer, and the simulator where that is the robot.

    The real arm's own driver and Cartesian controller (``robot:=fr3``) belong to the laboratory: they run already,
    from its own launch file, and offer the topics that the bridge's parameters name.
    """
    robot = _parameter_file(config, f"robots/{deployment.robot}.yaml")
    bridge = NodeSpec(
        package="franka_bridge",
        executable="franka_bridge",
        name="franka_bridge",
        parameter_files=(_parameter_file(config, "bridge.yaml"), robot),
    )
    if deployment.robot == "fr3":
        cameras = _parameter_file(config, "cameras.yaml")
        return (
            _realsense("front", deployment.front_serial, cameras),
            _realsense("wrist", deployment.wrist_serial, cameras),
            bridge,
        )
    simulator = NodeSpec(
        package="franka_sim",
        executable="franka_sim",
        name="franka_sim",
        parameter_files=(_parameter_file(config, "sim.yaml"), robot),
        parameters={"scene": str(_parameter_file(config, "scenes/tabletop.yaml"))},
    )
    if deployment.use_sim_time == "true":
        simulator = _with_parameters(simulator, publish_clock=True)
        # Simulated time waits for whoever is late: nothing has to run before it.
        bridge = _with_parameters(bridge, realtime_priority=0)
    return simulator, _on_its_clock(bridge, deployment)


def _on_its_clock(node: NodeSpec, deployment: RobotArguments) -> NodeSpec:
    return _with_parameters(node, use_sim_time=True) if deployment.use_sim_time == "true" else node


def _realsense(camera: str, serial: str, parameters: Path) -> NodeSpec:
    """Topics ``/camera/<camera>/color/image_raw`` …, the names franka_sim uses as well."""
    return NodeSpec(
        package="realsense2_camera",
        executable="realsense2_camera_node",
        name=camera,
        namespace="/camera",
        parameter_files=(parameters,),
        parameters={"serial_no": serial, "camera_name": camera},
        lifecycle=False,
    )


def _with_parameters(node: NodeSpec, **parameters: ParameterValue) -> NodeSpec:
    return replace(node, parameters={**node.parameters, **parameters})


def _absolute_if_directory(checkpoint: str) -> str:
    """Nodes may run in another working directory than the one the argument was typed in.

    'nano' is the embedded checkpoint wherever it is typed; './nano' is a directory.
    """
    path = Path(checkpoint).expanduser()
    return str(path.resolve()) if checkpoint != EMBEDDED_CHECKPOINT and path.is_dir() else checkpoint


def _parameter_file(config: Path, name: str) -> Path:
    path = config / name
    if not path.is_file():
        raise ConfigurationError(f"parameter file {path}: not found")
    return path
