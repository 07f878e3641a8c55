"""The Franka Hand: one command at a time, in widths, slow to start, and blind to streams.

A command waits out `latency`, moves at its speed, and ends when the fingers stand still. A grasp then presses with its
force; a move holds where it is. Commanding again replaces the command and starts over, as the real hand does.
"""

from __future__ import annotations

from dataclasses import dataclass

from franka_sim.scene import GripperConfig

STANDSTILL_M_S = 0.005  # fingers slower than this, as width per second, stand
ARRIVED_M = 0.002


@dataclass(frozen=True)
class GripperState:
    """`width` m between the fingertips; `command` counts accepted commands; `force` N is what a grasp presses with."""

    width: float
    command: int
    moving: bool
    reached: bool
    target_width: float
    force: float


class Gripper:
    """Turns commands into a width set point and a force limit, one `step` per millisecond."""

    def __init__(self, config: GripperConfig):
        self._config = config
        self.reset(config.maximum_width)

    def reset(self, width: float) -> None:
        """Stand still at `width` with no command pending."""
        self._width = self._set_point = self._target = self._goal = width
        self._speed = 0.0
        self._force = self._config.move_force
        self._grasping = self._moving = False
        self._waited = self._still = 0.0
        self._next: tuple[float, float] | None = None
        self._command = 0

    def command(self, width: float, speed: float, force: float | None) -> int:
        """Start a move (force None) or a grasp; width in m is limited to the stroke. Returns the command's number."""
        config = self._config
        self._target = min(max(width, 0.0), config.maximum_width)
        self._speed = min(max(speed, 0.001), config.maximum_speed)
        self._grasping = force is not None
        self._force = config.move_force if force is None else min(max(force, 1.0), config.maximum_force)
        self._set_point = self._width
        # A grasp goes on until it meets something, inside or outside; the width it names only decides its success.
        stop = 0.0 if self._target < self._width + ARRIVED_M else config.maximum_width
        self._goal = stop if self._grasping else self._target
        self._moving, self._waited, self._still, self._next = True, 0.0, 0.0, None
        self._command += 1
        return self._command

    def home(self) -> int:
        """Close fully, then open fully: how the hand finds its stroke. Returns the command's number."""
        number = self.command(0.0, self._config.maximum_speed, None)
        self._next = (self._config.maximum_width, self._config.maximum_speed)
        return number

    def stop(self) -> None:
        """End the running command; the fingers stay where they are."""
        if self._moving:
            self._target = self._goal = self._set_point = self._width
            self._grasping = self._moving = False
            self._next = None

    def step(self, width: float, speed: float, elapsed: float) -> tuple[float, float]:
        """Measured width m and its rate m/s, time step s -> (width set point m, force limit N per finger)."""
        self._width = width
        if self._moving:
            self._advance(speed, elapsed)
        return self._set_point, self._force

    def _advance(self, speed: float, elapsed: float) -> None:
        self._waited += elapsed
        if self._waited < self._config.latency:
            return
        step = self._speed * elapsed
        self._set_point += min(max(self._goal - self._set_point, -step), step)
        arrived = abs(self._set_point - self._goal) < 1e-9 or abs(self._set_point - self._width) > ARRIVED_M
        self._still = self._still + elapsed if arrived and abs(speed) < STANDSTILL_M_S else 0.0
        if self._still >= self._config.settle_time:
            self._finish()

    def _finish(self) -> None:
        if self._next is not None:
            width, speed = self._next
            self._target, self._goal, self._speed, self._next, self._still = width, width, speed, None, 0.0
            return
        self._moving = False
        if not self._grasping:
            self._set_point = self._width

    def state(self) -> GripperState:
        """Snapshot of the command and of the measured width."""
        return GripperState(
            width=self._width,
            command=self._command,
            moving=self._moving,
            reached=abs(self._width - self._target) < ARRIVED_M,
            target_width=self._target,
            force=self._force,
        )
