"""The parameters of the simulator node."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact_ros.errors import ConfigurationError
from molmoact_ros.parameters import parameter

from franka_sim.camera_publisher import CameraSettings


@dataclass(frozen=True)
class SimulatorParameters:
    scene: str | None = parameter(None, "scene file (YAML)")
    task: str = parameter("pick", "task laid out at start-up, as in the service franka_sim/reset")
    seed: int = parameter(0, "seed of the scene at start-up", minimum=0)
    arms: tuple[str, ...] = parameter(("fr3",), "names of the arms, for messages to the operator")
    arm_prefixes: tuple[str, ...] = parameter(
        ("",), "prefix of each arm's topics and frames: '' alone, 'left/' in a pair"
    )
    real_time_factor: float = parameter(1.0, "simulated seconds per second", minimum=0.01, maximum=100.0)
    publish_clock: bool = parameter(
        False, "publish /clock and stamp in simulated time; others then run with use_sim_time"
    )
    clock_rate: float = parameter(200.0, "rate of /clock, Hz of simulated time", minimum=1.0, maximum=1000.0)
    state_rate: float = parameter(
        100.0, "rate of pose, twist and robot state, Hz (1000 on the robot)", minimum=1.0, maximum=1000.0
    )
    joint_state_rate: float = parameter(30.0, "rate of joint_states and /tf, Hz", minimum=1.0, maximum=1000.0)
    gripper_state_rate: float = parameter(15.0, "rate of the fingers' joint states, Hz", minimum=1.0, maximum=1000.0)
    cameras: tuple[str, ...] = parameter(
        ("front", "wrist"), "cameras of the scene to publish; those below in this order"
    )
    camera_widths: tuple[int, ...] = parameter((640, 640), "px", minimum=1, maximum=1280)
    camera_heights: tuple[int, ...] = parameter((480, 480), "px", minimum=1, maximum=720)
    camera_rates: tuple[float, ...] = parameter((30.0, 30.0), "frames per second", minimum=0.1, maximum=90.0)
    camera_depth: tuple[bool, ...] = parameter((True, True), "whether aligned depth is offered")
    camera_compressed: tuple[bool, ...] = parameter((False, False), "whether colour is offered as JPEG too")

    def camera_settings(self) -> list[CameraSettings]:
        """One entry per camera. Raises ConfigurationError when a list has another length than `cameras`."""
        fields = ("camera_widths", "camera_heights", "camera_rates", "camera_depth", "camera_compressed")
        for name in fields:
            require_length(name, getattr(self, name), "cameras", self.cameras)
        columns = (self.cameras, *(getattr(self, name) for name in fields))
        return [CameraSettings(*values) for values in zip(*columns, strict=True)]


def require_length(name: str, values: tuple, of: str, expected: tuple) -> None:
    if len(values) != len(expected):
        raise ConfigurationError(f"parameter '{name}': {len(values)} entries, expected {len(expected)} as in '{of}'")
