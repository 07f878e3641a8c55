"""The gripper by edges: a hand that takes over a second for a command cannot follow a stream of openings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from franka_bridge.errors import LimitError


class GripperCommand(Enum):
    OPEN = "open"
    CLOSE = "close"


@dataclass(frozen=True)
class GripperThresholds:
    """Openings (0 closed .. 1 open) below which the hand closes and above which it opens; between, nothing changes."""

    close_below: float
    open_above: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.close_below < self.open_above <= 1.0:
            raise LimitError(
                f"gripper_close_below: {self.close_below} and gripper_open_above: {self.open_above}, "
                "expected 0 <= close_below < open_above <= 1"
            )


class Gripper:
    """One command at a time, only when the wish crossed a threshold, and after a command the newest wish only."""

    def __init__(self, thresholds: GripperThresholds) -> None:
        self._thresholds = thresholds
        self._wanted: GripperCommand | None = None
        self._commanded: GripperCommand | None = None
        self._busy = False

    def want(self, opening: float) -> None:
        """What the executed row or teleop command asks for."""
        if opening < self._thresholds.close_below:
            self._wanted = GripperCommand.CLOSE
        elif opening > self._thresholds.open_above:
            self._wanted = GripperCommand.OPEN

    @property
    def pending(self) -> GripperCommand | None:
        """The command to send now, if there is one."""
        return None if self._busy or self._wanted is self._commanded else self._wanted

    def take(self) -> GripperCommand | None:
        """The pending command, as sent from now on. `done` has to follow."""
        command = self.pending
        if command is not None:
            self._busy = True
            self._commanded = command
        return command

    def done(self) -> None:
        """The hand has finished, whether it succeeded or not: a grasp that missed is for the policy to see."""
        self._busy = False

    def leave_as_is(self) -> None:
        """Send nothing that was wished before."""
        self._wanted = self._commanded

    def forget(self) -> None:
        """The hand may have been moved by others: the next wish is sent, whatever it is."""
        self._wanted = None
        self._commanded = None
