"""Replay as a ROS node: shows recorded moments to a running policy node and evaluates what it says about them.

It keeps the policy's clock. A moment lasts until the policy has answered, so how fast it is does not matter, and two
replays of one recording show the same pictures.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from molmoact_msgs.msg import ActionChunk, ArmActions, Reasoning
from molmoact_msgs.srv import SetTask
from molmoact_policy.checkpoint import EMBEDDED, locate
from molmoact_policy.embodiment import Embodiment
from molmoact_policy.errors import PolicyError
from molmoact_policy.frames import SECOND
from molmoact_ros.images import array_to_image
from molmoact_ros.node import ConfigurationError, ManagedNode, run
from molmoact_ros.parameters import parameter
from molmoact_ros.qos import qos_profile
from molmoact_ros.stamps import duration_to_seconds, from_nanoseconds, to_nanoseconds
from numpy.typing import NDArray
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image

from molmoact_training.errors import TrainingError
from molmoact_training.evaluation.command import check_out, write_results
from molmoact_training.evaluation.comparison import compare
from molmoact_training.evaluation.episode_source import COMMAND, MEASURED, EpisodeSettings, EpisodeSource
from molmoact_training.evaluation.looks import Look
from molmoact_training.evaluation.metrics import Answer
from molmoact_training.evaluation.prediction import check_looks, check_match, read_conventions
from molmoact_training.evaluation.replay import Heard, Replies, answer_of

POLL_S = 0.05
BETWEEN_EPISODES = SECOND  # ns
NOT_YET = "the policy node is not active"


@dataclass(frozen=True)
class ReplayParameters:
    """Parameters of the replay node; config/replay.yaml sets them."""

    bag: str = parameter("", "an episode, or a directory of episodes")
    out: str = parameter("evaluation", "directory of the results, to be created")
    every: int = parameter(1, "look at every n-th moment only", minimum=1, maximum=100000)
    checkpoint: str = parameter(EMBEDDED, "that of the policy node: its statistics and conventions")
    unnorm_key: str | None = parameter(None, "entry of the checkpoint's statistics; not set: its only one")
    embodiments: str | None = parameter(None, "file with the conventions of every unnorm_key")
    camera_topics: tuple[str, ...] = parameter(
        ("camera/front/color/image_raw", "camera/wrist/color/image_raw"), "where the policy node looks"
    )
    cameras: tuple[str, ...] = parameter((), "in the recording, NAME or NAME=TOPIC; empty: those of the checkpoint")
    arms: tuple[str, ...] = parameter(("",), "prefixes of the recorded topics of each arm")
    gripper: str = parameter(
        MEASURED, "what counts as recorded: the opening, or what teleoperation asked for", choices=(MEASURED, COMMAND)
    )
    tolerance: float = parameter(0.05, "largest distance of a message from its moment, s", minimum=0.0, maximum=10.0)
    sync_tolerance: float = parameter(
        0.05, "largest distance between the pictures of a moment, s", minimum=0.0, maximum=10.0
    )
    start_timeout: float = parameter(600.0, "time for the policy node to be ready, s", minimum=1.0, maximum=36000.0)
    reply_timeout: float = parameter(120.0, "time for one reply, s", minimum=1.0, maximum=36000.0)
    seed: int = parameter(0, "of the intervals", minimum=0, maximum=2**31)


class ReplayNode(ManagedNode):
    """Parameters: ReplayParameters; all names are relative.

    Publishes `clock` and `camera_topics`, asks `set_task`, and subscribes to `action_chunk` and `reasoning`. Ends when
    the recording does, with results.json, predictions.jsonl and report.html in `out`.
    """

    p: ReplayParameters

    def __init__(self, **kwargs) -> None:
        super().__init__("replay", ReplayParameters, **kwargs)

    def set_up(self) -> None:
        try:
            self._read()
        except (TrainingError, PolicyError) as error:
            raise ConfigurationError(str(error)) from error
        self._replies = Replies()
        self._now, self._shift = 0, 0  # ns, on the clock that is shown; from the recording's to that
        self._clock_publisher = self.create_publisher(Clock, "clock", qos_profile("reliable"))
        self._picture_publishers = [
            self.create_publisher(Image, topic, qos_profile("reliable")) for topic in self.p.camera_topics
        ]
        self._subscriptions_here = [
            self.create_subscription(ActionChunk, "action_chunk", self._on_chunk, qos_profile("reliable", 10)),
            self.create_subscription(Reasoning, "reasoning", self._on_reasoning, qos_profile("reliable", 10)),
        ]
        self._set_task = self.create_client(SetTask, "set_task")

    def start(self) -> None:
        self.spawn("replay", self._replay)

    def _read(self) -> None:
        """The recording, looked at as a whole before the first moment is shown."""
        check_out(Path(self.p.out))
        embodiments = None if self.p.embodiments is None else Path(self.p.embodiments)
        self._conventions, self._vqvae = read_conventions(locate(self.p.checkpoint), self.p.unnorm_key, embodiments)
        settings = self._settings(self._conventions.embodiment)
        if len(settings.cameras) != len(self.p.camera_topics):
            raise TrainingError(
                f"parameter 'camera_topics': {len(self.p.camera_topics)} topics for the cameras "
                f"{', '.join(settings.cameras)}"
            )
        self._source = EpisodeSource(Path(self.p.bag), settings)
        check_match(self._conventions, self._source, self.p.checkpoint)
        self._recordings = {name: self._source.recording(name) for name in self._source.names()}
        self._work = {name: it.frames[:: self.p.every].tolist() for name, it in self._recordings.items()}
        check_looks(lambda: self._source, self._work, jobs=1)

    def _settings(self, embodiment: Embodiment) -> EpisodeSettings:
        return EpisodeSettings(
            embodiment=embodiment,
            cameras=self.p.cameras or embodiment.cameras,
            arms=self.p.arms,
            gripper=self.p.gripper,
            tolerance=self.p.tolerance,
            sync_tolerance=self.p.sync_tolerance,
        )

    # The worker

    def _replay(self, stop: threading.Event) -> None:
        self._wait(self._connected, self.p.start_timeout, "the policy node", stop)
        answers: dict[str, list[Answer]] = {}
        for name, frames in self._work.items():
            answers[name] = self._replay_episode(name, frames, stop)
            if stop.is_set():
                return
            self.get_logger().info(f"episode {name}: {len(frames)} moments")
        self._finish(answers)

    def _replay_episode(self, name: str, frames: list[int], stop: threading.Event) -> list[Answer]:
        """Fewer answers than frames when the node shall end."""
        answers: list[Answer] = []
        for look in self._source.looks(name, frames):
            if not answers:
                # Time never goes back: what was recorded before the episode before comes after it.
                self._shift = self._now + BETWEEN_EPISODES - look.stamp
                self._give_task(look, stop)
            answer = None if stop.is_set() else self._show(look, stop)
            if answer is None:
                break
            answers.append(answer)
        return answers

    def _show(self, look: Look, stop: threading.Event) -> Answer | None:
        """The answer to one moment; None when the node shall end."""
        self._now = look.stamp + self._shift
        stamp = from_nanoseconds(self._now)
        self._clock_publisher.publish(Clock(clock=stamp))
        for publisher, image in zip(self._picture_publishers, look.images, strict=True):
            publisher.publish(array_to_image(image, "rgb8", stamp, "replay"))
        reply = self._replies.take(self._now, self.p.reply_timeout, stop)
        if reply is not None:
            return answer_of(look, self._conventions, *reply)
        if not stop.is_set():
            raise TrainingError(
                f"episode {look.episode}, frame {look.frame}: no reply within {self.p.reply_timeout:g} s: see what the "
                "policy node says, and parameter 'reply_timeout'"
            )
        return None

    def _give_task(self, look: Look, stop: threading.Event) -> None:
        def accepted() -> bool:
            answer = self._set_task.call_async(SetTask.Request(instruction=look.instruction))
            self._wait(answer.done, self.p.start_timeout, "an answer of set_task", stop)
            if stop.is_set():
                return False
            if not answer.result().success and NOT_YET not in answer.result().message:
                raise TrainingError(f"episode {look.episode}: the policy refuses the task: {answer.result().message}")
            return answer.result().success

        self._wait(accepted, self.p.start_timeout, "the policy node to take the task", stop)

    def _connected(self) -> bool:
        return (
            self._set_task.service_is_ready()
            and all(publisher.get_subscription_count() for publisher in self._picture_publishers)
            and all(self.count_publishers(it.topic_name) for it in self._subscriptions_here)
        )

    def _finish(self, answers: dict[str, list[Answer]]) -> None:
        data = {
            "kind": f"replay of {self._source.kind}",
            "path": self.p.bag,
            "episodes": len(answers),
            "frames": sum(map(len, answers.values())),
            "every": self.p.every,
            "left_out": dict(self._source.left_out),
        }
        comparison = compare(
            [self.p.checkpoint],
            [(self._conventions, self._vqvae)],
            [answers],
            self._recordings,
            self._source.looks,
            data,
            self.p.seed,
        )
        write_results(comparison, Path(self.p.out))
        self.end("the recording is at its end")

    def _wait(self, condition: Callable[[], bool], timeout_s: float, what: str, stop: threading.Event) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise TrainingError(f"waited {timeout_s:g} s for {what}")
            if stop.wait(POLL_S):
                return

    # Callbacks

    def _on_chunk(self, message: ActionChunk) -> None:
        self._replies.add_chunk(message.sequence, np.concatenate([rows_of(arm) for arm in message.arms], axis=1))

    def _on_reasoning(self, message: Reasoning) -> None:
        heard = Heard(
            sequence=message.sequence,
            codes=list(message.depth_codes),
            trace=[(point.x, point.y) for point in message.trace],
            text=message.reply,
            error=message.error,
            latency=duration_to_seconds(message.latency),
            passes=message.forward_passes,
        )
        self._replies.add_reasoning(to_nanoseconds(message.header.stamp), heard)


def rows_of(arm: ArmActions) -> NDArray[np.float64]:
    """Steps of one arm as rows [N, 7] in SI units."""
    steps = [
        (
            *(step.translation.x, step.translation.y, step.translation.z),
            *(step.rotation.x, step.rotation.y, step.rotation.z),
            step.gripper,
        )
        for step in arm.steps
    ]
    return np.array(steps, np.float64).reshape(-1, 7)


def main() -> None:
    sys.exit(run(ReplayNode))


if __name__ == "__main__":
    main()
