"""The teleop nodes: each reads one device for one arm, and publishes commands while the dead-man switch is held.

Each publishes oftener than the bridge's 100 ms of silence while held, once when let go, and nothing else.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from molmoact_msgs.msg import BridgeStatus, TeleopCommand
from molmoact_msgs.srv import SetMode
from molmoact_ros.node import ConfigurationError, ManagedNode, run
from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import NANOSECONDS, from_nanoseconds
from sensor_msgs.msg import JointState

from teleop_recorder.teleop import Command, DeviceLost, TeleopDevice, Teleoperator, TeleopError
from teleop_recorder.teleop_gamepad import Gamepad, GamepadParameters
from teleop_recorder.teleop_keyboard import KeyboardDevice, KeyboardParameters
from teleop_recorder.teleop_leader import Leader, LeaderParameters
from teleop_recorder.teleop_parameters import TeleopParameters
from teleop_recorder.teleop_spacemouse import SpaceMouseDevice, SpaceMouseParameters

# What a late tick makes up for; a computer that was suspended must not jump when it wakes up.
MAX_STEP_PERIODS = 2.0
OPEN_WIDTH_M = 0.08  # of the Franka hand
LOG_PERIOD_S = 2.0


@dataclass(frozen=True)
class Device:
    """A kind of device: its node's parameters, and how it is opened (TeleopError if it cannot be)."""

    parameters: type[TeleopParameters]
    open: Callable[[ManagedNode, Any], TeleopDevice]


DEVICES = {
    "keyboard": Device(KeyboardParameters, KeyboardDevice),
    "gamepad": Device(GamepadParameters, Gamepad),
    "spacemouse": Device(SpaceMouseParameters, SpaceMouseDevice),
    "leader": Device(LeaderParameters, Leader),
}


class TeleopNode(ManagedNode):
    """Commands are published while the node is active; one thread reads the device and publishes."""

    p: TeleopParameters

    def __init__(self, device: str, **kwargs: Any) -> None:
        self._kind = DEVICES[device]
        super().__init__(f"teleop_{device}", self._kind.parameters, **kwargs)
        self._open: list[TeleopDevice] = []  # none or one

    # Lifecycle

    def set_up(self) -> None:
        frame_prefix = self.p.arm_prefix.replace("/", "_")
        self._frame = frame_prefix + (self.p.base_frame if self.p.frame == "base" else self.p.tcp_frame)
        self._status: BridgeStatus | None = None
        self._opening: float | None = None
        # Reliable for whoever records; the bridge takes it as it comes.
        self._commands = self.create_publisher(TeleopCommand, "teleop_command", qos_profile("reliable", depth=10))
        self._statuses = PolledSubscription(self, BridgeStatus, "bridge_status", qos_profile("reliable", depth=10))
        fingers = f"{self.p.arm_prefix}franka_gripper/joint_states"
        self._fingers = PolledSubscription(self, JointState, fingers, qos_profile("best_effort"))
        self._set_mode = self.create_client(SetMode, "set_mode")
        try:
            self._device = self._kind.open(self, self.p)
            self._open = [self._device]
        except TeleopError as error:
            raise ConfigurationError(str(error)) from error

    def start(self) -> None:
        self._teleoperator = Teleoperator()
        self._last_ns: int | None = None
        self._to_take = False  # the arm, for the press under way
        self._loop = self.spawn("teleop", self._keep_time)

    def stop(self, reason: str) -> None:
        self._loop.stop()
        self._send(self._teleoperator.release())

    def tear_down(self) -> None:
        while self._open:
            self._open.pop().close()

    # The loop

    def _keep_time(self, stop: threading.Event) -> None:
        period = 1.0 / self.p.rate
        due_s = time.monotonic()
        while not stop.is_set():
            self._listen()
            try:
                self._tick(self.get_clock().now().nanoseconds)
            except DeviceLost as lost:
                self._send(self._teleoperator.release())
                return self.fail(str(lost))
            due_s = max(due_s + period, time.monotonic())
            stop.wait(due_s - time.monotonic())

    def _listen(self) -> None:
        """What bridge and hand have said since."""
        for status in self._statuses.take():
            if status.arm == self.p.arm:
                self._status = status
        for message in self._fingers.take():
            self._opening = sum(message.position) / OPEN_WIDTH_M

    def _tick(self, now_ns: int) -> None:
        last_ns, self._last_ns = self._last_ns, now_ns
        if last_ns is None or now_ns <= last_ns:  # the first one, or simulated time has not moved on
            return
        elapsed_s = min((now_ns - last_ns) / NANOSECONDS, MAX_STEP_PERIODS / self.p.rate)
        held_before = self._teleoperator.held
        if not held_before and not self._is_mine():
            self._teleoperator.forget_gripper()
        try:
            reading = self._device.read(now_ns / NANOSECONDS, elapsed_s)
        except TeleopError as error:
            self._warn(str(error))
            reading = None
        self._send(self._teleoperator.command(reading, self._opening))
        self._to_take = self._teleoperator.held and (self._to_take or not held_before)
        if self._to_take:
            self._to_take = not self._take_arm()

    def _send(self, command: Command | None) -> None:
        if command is None:
            return
        message = TeleopCommand(arm=self.p.arm, enabled=command.enabled)
        message.header.stamp = from_nanoseconds(self._last_ns)
        message.header.frame_id = self._frame
        delta = message.delta
        delta.translation.x, delta.translation.y, delta.translation.z = command.translation.tolist()
        delta.rotation.x, delta.rotation.y, delta.rotation.z = command.rotation.tolist()
        delta.gripper = float(command.gripper)
        self._commands.publish(message)

    # The bridge's mode

    def _is_mine(self) -> bool:
        return self._status is not None and self._status.mode == BridgeStatus.TELEOP

    def _take_arm(self) -> bool:
        """Ask for an arm that holds, once for each press: a watchdog that stops it meanwhile has the last word.

        It is taken from nobody who moves it. False when there is nobody to ask yet.
        """
        status = self._status
        if self._is_mine():
            return True
        if status is None or not self._set_mode.service_is_ready():
            self._warn(f"arm '{self.p.arm}': no bridge_status or set_mode: is the bridge running?")
            return False
        if status.mode != BridgeStatus.HOLD or not self.p.take_arm:
            self._warn(f"arm '{self.p.arm}' is not in TELEOP mode ({status.reason}): set_mode changes it")
            return True
        request = SetMode.Request(arm=self.p.arm, mode=BridgeStatus.TELEOP)
        self._set_mode.call_async(request).add_done_callback(self._on_mode_set)
        return True

    def _on_mode_set(self, future: Any) -> None:
        answer = future.result()
        if answer is not None and not answer.success:
            self._warn(f"the bridge does not hand over the arm: {answer.message}")

    def _warn(self, text: str) -> None:
        self.get_logger().warning(text, throttle_duration_sec=LOG_PERIOD_S)


def run_device(device: str, arguments: list[str] | None = None) -> int:
    """Run the node of one of DEVICES until it ends; the exit code of the process."""
    if device == "keyboard":
        # A terminal that is closed would end the process before it lets go of the arm; reading it says so as well.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return run(partial(TeleopNode, device), arguments)


def keyboard_main() -> None:
    sys.exit(run_device("keyboard"))


def gamepad_main() -> None:
    sys.exit(run_device("gamepad"))


def spacemouse_main() -> None:
    sys.exit(run_device("spacemouse"))


def leader_main() -> None:
    sys.exit(run_device("leader"))
