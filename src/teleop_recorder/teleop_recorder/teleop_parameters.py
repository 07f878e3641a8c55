"""The parameters that all teleop nodes share."""

from __future__ import annotations

from dataclasses import dataclass

from molmoact_ros.parameters import parameter

from teleop_recorder.teleop import Speed


@dataclass(frozen=True)
class TeleopParameters:
    # At 20 Hz two commands may be lost before the bridge takes it for silence; 1 m/s is then its largest single step.
    rate: float = parameter(50.0, "commands per second while the switch is held", minimum=20.0, maximum=200.0)
    arm: str = parameter("fr3", "name of the arm, as in the bridge's parameter arms")
    arm_prefix: str = parameter("", "prefix of the arm's topics and frames: '', or 'left/' in a pair")
    base_frame: str = parameter("fr3_link0", "base frame, without the arm's prefix")
    tcp_frame: str = parameter("fr3_hand_tcp", "frame of the tool centre point, without the arm's prefix")
    frame: str = parameter("base", "frame the device's axes are in", choices=("base", "tool"))
    linear_speed: float = parameter(0.1, "at full deflection, m/s", minimum=0.0, maximum=1.0)
    angular_speed: float = parameter(0.5, "at full deflection, rad/s", minimum=0.0, maximum=3.0)
    take_arm: bool = parameter(
        True, "ask the bridge for TELEOP when the switch is pressed while the arm holds; false: set_mode does"
    )

    @property
    def speed(self) -> Speed:
        return Speed(self.linear_speed, self.angular_speed)
