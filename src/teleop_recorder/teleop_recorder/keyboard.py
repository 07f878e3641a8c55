"""A terminal's keys as a dead-man switch.

A terminal tells that a key went down, then, after a delay (mostly 0.25 to 0.66 s), repeats of it (mostly 25 to 33 per
second) as long as it is down; it never tells that a key went up. So every key press moves the arm for `key_hold`
seconds only: one tap is one small step, a key held is a step, a pause, and then motion for as long as repeats come. The
arm never moves longer than `key_hold` after the key was let go.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import tty
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from teleop_recorder.teleop import AXES, DeviceLost, TeleopError, Vector

ESCAPE = "\x1b"
# Longer than any terminal's delay before the first repeat: a toggle that comes again within this time is a repeat.
TOGGLE_REST_S = 0.8
READ_SIZE = 1024


@dataclass(frozen=True)
class KeyBindings:
    """Which key does what. Raises TeleopError for a key that is missing or does two things."""

    move: str  # +x -x +y -y +z -z
    turn: str  # +roll -roll +pitch -pitch +yaw -yaw
    gripper: str
    start: str  # of an episode; the following end it
    success: str
    failure: str
    discard: str
    undo: str

    def __post_init__(self) -> None:
        for name in ("move", "turn"):
            if len(getattr(self, name)) != len(AXES):
                raise TeleopError(f"{name}_keys: {getattr(self, name)!r}, expected {len(AXES)} characters")
        for name in ("gripper", *EPISODE_KEYS):
            if len(getattr(self, name)) != 1:
                raise TeleopError(f"{name}_key: {getattr(self, name)!r}, expected one character")
        keys = self.move + self.turn + self.gripper + "".join(getattr(self, name) for name in EPISODE_KEYS)
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise TeleopError(f"the keys {' '.join(twice)} are bound to more than one thing")

    def axis(self, key: str) -> tuple[int, float] | None:
        """(index in AXES, sign) of a key; None for one that does not move the arm."""
        index = (self.move + self.turn).find(key)
        return None if index < 0 else (index // 2, 1.0 if index % 2 == 0 else -1.0)

    def episode(self, key: str) -> str | None:
        """Which of EPISODE_KEYS a key is."""
        return next((name for name in EPISODE_KEYS if getattr(self, name) == key), None)

    def help(self, linear_speed: float, angular_speed: float, frame: str) -> str:
        """What to print for the person at the keyboard."""
        move, turn = self.move, self.turn
        return "\n".join(
            (
                f"Hold a key to move, let go to stop ({linear_speed:g} m/s, {angular_speed:g} rad/s, {frame} frame):",
                f"  {move[0]}/{move[1]}  forward/back (x)    {turn[0]}/{turn[1]}  roll",
                f"  {move[2]}/{move[3]}  left/right (y)      {turn[2]}/{turn[3]}  pitch",
                f"  {move[4]}/{move[5]}  up/down (z)         {turn[4]}/{turn[5]}  yaw",
                f"  {self.gripper}    open/close the gripper           any other key: stop at once",
                f"  {self.start}    start an episode    {self.success}/{self.failure}/{self.discard}  "
                f"end it: success/failure/discard    {self.undo}  undo the last",
                "  Ctrl-C  leave",
            )
        )


EPISODE_KEYS = ("start", "success", "failure", "discard", "undo")


class Keyboard:
    """What the keys pressed so far amount to. Times are seconds of a clock that is never set back."""

    def __init__(self, bindings: KeyBindings, key_hold_s: float) -> None:
        self._bindings = bindings
        self._key_hold_s = key_hold_s
        self._until = np.zeros(len(AXES))  # when each axis comes to rest
        self._signs = np.zeros(len(AXES))
        self._gripper_until = -np.inf
        self._last_pressed: dict[str, float] = {}
        self._gripper_pressed = False

    def press(self, key: str, now_s: float) -> str | None:
        """A key press or a repeat of one; the episode key it is, if it is one and no repeat. Unbound keys stop."""
        bound = self._bindings.axis(key)
        if bound is not None:
            axis, sign = bound
            self._signs[axis] = sign
            self._until[axis] = now_s + self._key_hold_s
            return None
        fresh = now_s - self._last_pressed.get(key, -np.inf) > TOGGLE_REST_S
        self._last_pressed[key] = now_s
        if key == self._bindings.gripper:
            self._gripper_until = now_s + self._key_hold_s
            self._gripper_pressed = self._gripper_pressed or fresh
            return None
        self._until[:] = self._gripper_until = -np.inf
        return self._bindings.episode(key) if fresh else None

    def held(self, now_s: float) -> bool:
        """A key that moves the arm or the gripper was pressed within `key_hold_s`."""
        return bool((self._until > now_s).any()) or self._gripper_until > now_s

    def deflection(self, now_s: float) -> Vector:
        """[6] of -1, 0 or 1, for AXES."""
        return np.where(self._until > now_s, self._signs, 0.0)

    def take_gripper_press(self) -> bool:
        """Whether the gripper key was pressed since the last call."""
        pressed, self._gripper_pressed = self._gripper_pressed, False
        return pressed


def keys_in(text: str) -> list[str]:
    """The keys in what a terminal sent; of an escape sequence (an arrow, say) only the escape, bound to nothing."""
    plain, escape, _ = text.partition(ESCAPE)
    return [*plain, *([ESCAPE] if escape else [])]


class Terminal:
    """Key presses of a terminal as they come, not echoed. It is put back as it was by `close`."""

    def __init__(self, stream: TextIO = sys.stdin) -> None:
        """Raises TeleopError if `stream` is no terminal."""
        if not stream.isatty():
            raise TeleopError(
                "standard input is not a terminal: start the keyboard node in a terminal of its own, "
                "not from a launch file"
            )
        self._descriptor = stream.fileno()
        self._settings = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)

    def read(self) -> list[str]:
        """The keys that have come since the last call. Raises DeviceLost when the terminal was closed."""
        if not select.select([self._descriptor], [], [], 0.0)[0]:
            return []
        try:
            data = os.read(self._descriptor, READ_SIZE)
        except OSError as error:
            raise DeviceLost(f"the terminal was closed: {error.strerror}") from error
        if not data:
            raise DeviceLost("the terminal was closed")
        return keys_in(data.decode(errors="replace"))

    def close(self) -> None:
        try:
            termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._settings)
        except termios.error:
            pass  # it is gone
