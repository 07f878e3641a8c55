"""The keyboard as a teleop device, with keys for the recorder's episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from molmoact_msgs.srv import StartEpisode, StopEpisode
from molmoact_ros.node import ManagedNode
from molmoact_ros.parameters import parameter
from std_srvs.srv import Trigger

from teleop_recorder.keyboard import KeyBindings, Keyboard, Terminal
from teleop_recorder.teleop import Reading
from teleop_recorder.teleop_parameters import TeleopParameters

REASON = "decided at the keyboard"


@dataclass(frozen=True)
class KeyboardParameters(TeleopParameters):
    key_hold: float = parameter(
        0.1, "s that the switch counts as held after a key press or repeat", minimum=0.05, maximum=0.5
    )
    move_keys: str = parameter("wsadrf", "keys for +x -x +y -y +z -z")
    turn_keys: str = parameter("ljikqe", "keys for +roll -roll +pitch -pitch +yaw -yaw")
    gripper_key: str = parameter("g", "key that opens and closes the gripper")
    start_key: str = parameter("b", "key that starts an episode")
    success_key: str = parameter("o", "key that ends the episode as a success")
    failure_key: str = parameter("x", "key that ends it as a failure")
    discard_key: str = parameter("z", "key that ends it to be discarded")
    undo_key: str = parameter("u", "key that discards the last finished episode")
    task: str = parameter("", "task of the episodes started here")
    instruction: str = parameter("", "instruction of the episodes started here")


class KeyboardDevice:
    """Reads standard input, which has to be a terminal (TeleopError)."""

    def __init__(self, node: ManagedNode, p: KeyboardParameters) -> None:
        bindings = KeyBindings(
            p.move_keys,
            p.turn_keys,
            p.gripper_key,
            p.start_key,
            p.success_key,
            p.failure_key,
            p.discard_key,
            p.undo_key,
        )
        self._log = node.get_logger()
        self._keyboard = Keyboard(bindings, p.key_hold)
        self._speed = p.speed
        self._episodes = _episode_keys(node, p)
        self._terminal = Terminal()
        self._begun = False
        print(bindings.help(p.linear_speed, p.angular_speed, p.frame), flush=True)

    def read(self, now_s: float, elapsed_s: float) -> Reading:
        keys = self._terminal.read()
        if not self._begun:  # what was typed before moves nothing
            self._begun = True
            return Reading(held=False)
        for key in keys:
            episode = self._keyboard.press(key, now_s)
            if episode is not None:
                self._ask(episode)
        translation, rotation = self._speed.step(self._keyboard.deflection(now_s), elapsed_s)
        return Reading(self._keyboard.held(now_s), translation, rotation, self._keyboard.take_gripper_press())

    def close(self) -> None:
        self._terminal.close()

    def _ask(self, key: str) -> None:
        client, request = self._episodes[key]
        if not client.service_is_ready():
            self._log.warning(f"{client.srv_name}: no recorder offers it")
            return
        client.call_async(request).add_done_callback(self._answered(key))

    def _answered(self, key: str) -> Callable[[Any], None]:
        def log(future: Any) -> None:
            answer = future.result()
            if answer is not None and answer.success:
                self._log.info(f"{key}: {answer.message}")
            elif answer is not None:
                self._log.warning(f"{key}: {answer.message}")

        return log


def _episode_keys(node: ManagedNode, p: KeyboardParameters) -> dict[str, tuple[Any, Any]]:
    """The service and the request of each episode key."""
    start = node.create_client(StartEpisode, "start_episode")
    stop = node.create_client(StopEpisode, "stop_episode")
    undo = node.create_client(Trigger, "undo_episode")
    stops = {
        name: (stop, StopEpisode.Request(outcome=name, reason=REASON)) for name in ("success", "failure", "discard")
    }
    return {
        "start": (start, StartEpisode.Request(task=p.task, instruction=p.instruction)),
        **stops,
        "undo": (undo, Trigger.Request()),
    }
