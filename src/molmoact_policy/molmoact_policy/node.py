"""The policy as a ROS node: camera topics in, chunks, reasoning and pictures of it out. It never talks to a robot."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from molmoact_msgs.action import RunTask
from molmoact_msgs.msg import ActionChunk, Reasoning
from molmoact_msgs.srv import SetTask, SetTrace
from molmoact_ros.diagnostics import OK, WARN, DiagnosticsPublisher, LatencyMeter, RateMeter, Status
from molmoact_ros.images import ImageError, array_to_image, compressed_to_array, image_to_array
from molmoact_ros.node import ConfigurationError, ManagedNode, run
from molmoact_ros.parameters import parameter
from molmoact_ros.polling import PolledSubscription
from molmoact_ros.qos import LATCHED, RELIABILITIES, qos_profile
from molmoact_ros.stamps import (
    duration_from_nanoseconds,
    duration_to_nanoseconds,
    from_nanoseconds,
    to_nanoseconds,
)
from numpy.typing import NDArray
from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

from molmoact_policy.checkpoint import EMBEDDED, locate
from molmoact_policy.config import VARIANTS
from molmoact_policy.embodiment import EMBODIMENT_FILE, ROW
from molmoact_policy.errors import EmbodimentError, ObservationError, PolicyError, ReplyError
from molmoact_policy.frames import SECOND, Frame, FrameBuffer
from molmoact_policy.messages import chunk_message, reasoning_message, shown_trace
from molmoact_policy.policy import DECODERS, Policy, Prediction
from molmoact_policy.quantization import QUANTIZATIONS
from molmoact_policy.runner import Chunk, Runner, Seen, Settings
from molmoact_policy.task import Refused, Task, Tasks, checked_instruction
from molmoact_policy.trace import draw_trace

AUTO = "auto"
# A camera at 30 Hz may be half a second behind before one of its frames is lost.
IMAGE_DEPTH = 15
# A look at the cameras takes microseconds; for every image rclpy's executor would take 3 ms of the CPU.
IMAGE_POLL_S = 0.002
# How soon a running goal notices its cancellation or the end of its time, s of real time.
GOAL_POLL_S = 0.05
# A goal ends within two polls of its task; longer means the executor is stuck, and the node stops without it.
GOAL_END_TIMEOUT_S = 1.0
WARNING_PERIOD_S = 5.0


@dataclass(frozen=True)
class PolicyParameters:
    """Parameters of the policy node; config/policy.yaml sets them."""

    checkpoint: str = parameter(
        EMBEDDED, "'nano', a directory in the official layout, or a hub repository in the local cache"
    )
    unnorm_key: str | None = parameter(None, "entry of the checkpoint's statistics; not set: its only one")
    device: str = parameter(AUTO, "torch device: auto, cpu, cuda, cuda:1, ...")
    dtype: str = parameter(
        AUTO, "of the weights; auto: as stored, on a CPU float32", choices=(AUTO, "float32", "bfloat16", "float16")
    )
    quantization: str = parameter(
        QUANTIZATIONS[0],
        "of the language model's weights, by torchao if it is installed; int4: bfloat16 on a GPU only",
        choices=QUANTIZATIONS,
    )
    threads: int = parameter(0, "of torch on a CPU; 0: one for each core", minimum=0, maximum=1024)
    variant: str = parameter(
        AUTO, "which of the released codes to compute as; auto: as config.json says, else hf", choices=(AUTO, *VARIANTS)
    )
    decoder: str = parameter(
        DECODERS[0],
        "strict: only complete, well-formed replies; free: whatever the model says; generate: that, slowly",
        choices=DECODERS,
    )
    reasoning: str = parameter(
        "full",
        "reuse: keep depth and trace while the pictures hardly change; sooner, but not what the model would say",
        choices=("full", "reuse"),
    )
    reuse_threshold: float = parameter(
        8.0,
        "largest change of any of a picture's 10 x 10 cells up to which reasoning is reused, in brightness of 255",
        minimum=0.0,
        maximum=255.0,
    )
    depth_vqvae: str | None = parameter(
        None, "decoder of depth codes: a directory or weight file; not set: the checkpoint's"
    )
    embodiments: str | None = parameter(None, "file with the conventions of every unnorm_key")
    confirm_embodiment: str = parameter(
        "", "unnorm_key whose conventions its makers did not publish and the operator has checked on this robot"
    )
    instruction: str = parameter("", "task from the start, in words; empty: wait for set_task or run_task")

    arms: tuple[str, ...] = parameter(("fr3",), "names of the arms, in the order of the action's dimensions")
    action_frame_id: str = parameter("fr3_link0", "base frame, for embodiments whose actions are in it")
    end_effector_frame_id: str = parameter("fr3_hand_tcp", "end-effector frame, for those whose actions are in that")

    cameras: tuple[str, ...] = parameter(("front", "wrist"), "names, in the order the checkpoint was trained with")
    camera_topics: tuple[str, ...] = parameter(
        ("camera/front/color/image_raw", "camera/wrist/color/image_raw"), "image topic of each of cameras"
    )
    image_transport: str = parameter("raw", "compressed: <topic>/compressed", choices=("raw", "compressed"))
    image_reliability: str = parameter("reliable", "of the subscriptions", choices=RELIABILITIES)
    sync_tolerance: float = parameter(
        0.05, "largest distance between the stamps of one observation, s", minimum=0.0, maximum=10.0
    )
    max_image_age: float = parameter(0.5, "largest age of an image the model is shown, s", minimum=0.0, maximum=60.0)
    observation_timeout: float = parameter(
        5.0, "time without usable images after which run_task ends, s", minimum=0.0, maximum=600.0
    )

    execution: str = parameter(
        "synchronous",
        "look again after a chunk has run, or as soon as possible",
        choices=("synchronous", "asynchronous"),
    )
    execute_rows: int = parameter(0, "rows of a reply that are sent; 0: all", minimum=0, maximum=1000)
    action_prefix: bool = parameter(
        False,
        "asynchronous: a reply begins with the rows due while the policy thinks; for an arm that follows its chunks",
    )
    settle_time: float = parameter(
        0.2, "synchronous: rest between the last row and the next image, s", minimum=0.0, maximum=60.0
    )
    max_bad_replies: int = parameter(3, "replies in a row without a chunk that end a task", minimum=1, maximum=1000)


def load_policy(directory: Path, parameters: PolicyParameters) -> Policy:
    """The checkpoint with its embodiment. Raises CheckpointError or EmbodimentError."""
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    policy = Policy.from_pretrained(
        directory,
        unnorm_key=parameters.unnorm_key,
        device=parameters.device,
        dtype=parameters.dtype,
        quantization=parameters.quantization,
        variant=None if parameters.variant == AUTO else parameters.variant,
        depth_vqvae=parameters.depth_vqvae,
        embodiments=parameters.embodiments,
        decoder=parameters.decoder,
        reuse_threshold=parameters.reuse_threshold if parameters.reasoning == "reuse" else None,
    )
    if policy.embodiment is None:
        raise EmbodimentError(f"{directory} has no {EMBODIMENT_FILE}, and parameter 'embodiments' names no other")
    return policy


class PolicyNode(ManagedNode):
    """Parameters: PolicyParameters; all names are relative.

    Subscribes to `camera_topics`. Publishes `action_chunk` (only while there is a task), `reasoning` for every reply,
    `trace_image` (the trace on the first image), `depth_image` (the decoded depth map, near is bright), `task` (the
    instruction, latched; "" for none) and /diagnostics. Services `set_task`, `set_trace`; action `run_task`.
    """

    p: PolicyParameters

    def __init__(self, load: Callable[[Path, PolicyParameters], Policy] = load_policy, **kwargs: Any) -> None:
        super().__init__("policy", PolicyParameters, **kwargs)
        self._load = load

    # Lifecycle

    def set_up(self) -> None:
        self._check_parameters()
        self._load_checkpoint()
        self._create_publishers()
        self._settings = self._make_settings()
        self._tasks = Tasks(lambda instruction: self._task_publisher.publish(String(data=instruction)))
        self._frames = FrameBuffer(self.p.cameras, self.p.sync_tolerance, self.p.max_image_age)
        self._runner = Runner(
            self._policy, self._decode, self._frames, self._tasks, self._settings, self._now, output=self
        )
        self._subscribe()
        self._serve()
        self._goal_free = threading.Event()
        self._goal_free.set()
        self._diagnostics = DiagnosticsPublisher(self, self._report)
        self.spawn("cameras", self._watch_cameras)
        self.spawn("inference", self._runner.run)

    def start(self) -> None:
        self._tasks.open()
        if self.p.instruction:
            self._tasks.set(self.p.instruction, self._now())

    def stop(self, reason: str) -> None:
        self._tasks.close(reason)
        self._goal_free.wait(GOAL_END_TIMEOUT_S)

    def _check_parameters(self) -> None:
        p = self.p
        self._check_decoder()
        if not p.cameras or len(set(p.cameras)) != len(p.cameras):
            raise ConfigurationError(f"parameter 'cameras': {list(p.cameras)}, expected different names, at least one")
        if len(p.camera_topics) != len(p.cameras):
            raise ConfigurationError(
                f"parameter 'camera_topics': {len(p.camera_topics)} topics for {len(p.cameras)} cameras"
            )
        if not p.arms or len(set(p.arms)) != len(p.arms):
            raise ConfigurationError(f"parameter 'arms': {list(p.arms)}, expected different names, at least one")
        if p.instruction:
            try:
                checked_instruction(p.instruction)
            except Refused as refusal:
                raise ConfigurationError(f"parameter 'instruction': {refusal}") from refusal

    def _check_decoder(self) -> None:
        p = self.p
        if p.reasoning == "reuse" and p.decoder != "strict":
            raise ConfigurationError(f"parameter 'reasoning': reuse needs decoder strict, this is {p.decoder}")
        if p.action_prefix and p.decoder != "strict":
            raise ConfigurationError(f"parameter 'action_prefix': needs decoder strict, this is {p.decoder}")
        if p.action_prefix and p.execution != "asynchronous":
            raise ConfigurationError(
                f"parameter 'action_prefix': needs execution asynchronous, this is {p.execution}: nothing runs while "
                "the policy thinks"
            )

    def _load_checkpoint(self) -> None:
        try:
            self._policy = self._load(locate(self.p.checkpoint), self.p)
        except PolicyError as error:
            raise ConfigurationError(f"parameter 'checkpoint': {error}") from error
        self._embodiment = self._policy.embodiment
        self._check_embodiment(self._policy.statistics.key, self._policy.statistics.dimensions)

    def _check_embodiment(self, key: str, dimensions: int) -> None:
        p, embodiment = self.p, self._embodiment
        if not embodiment.confirmed and p.confirm_embodiment != key:
            raise ConfigurationError(
                f"embodiment '{key}': its frame, rotation, units and gripper are assumed, nobody has confirmed them; "
                f"check its entry in embodiments.yaml and set parameter 'confirm_embodiment' to '{key}'"
            )
        if len(embodiment.cameras) != len(p.cameras):
            raise ConfigurationError(
                f"parameter 'cameras': {', '.join(p.cameras)}; embodiment '{key}' was trained on "
                f"{len(embodiment.cameras)}: {', '.join(embodiment.cameras)}"
            )
        if dimensions != ROW * len(p.arms):
            raise ConfigurationError(
                f"parameter 'arms': {', '.join(p.arms)}; the checkpoint's actions have {dimensions} dimensions, "
                f"which is {dimensions // ROW} arms"
            )

    def _make_settings(self) -> Settings:
        p = self.p
        return Settings(
            synchronous=p.execution == "synchronous",
            action_prefix=p.action_prefix,
            execute_rows=p.execute_rows,
            step_period=round(self._embodiment.step_period * SECOND),
            settle_time=round(p.settle_time * SECOND),
            observation_timeout=round(p.observation_timeout * SECOND),
            max_bad_replies=p.max_bad_replies,
        )

    # Interfaces

    def _create_publishers(self) -> None:
        self._chunk_publisher = self.create_publisher(ActionChunk, "action_chunk", qos_profile("reliable", 10))
        self._reasoning_publisher = self.create_publisher(Reasoning, "reasoning", qos_profile("reliable", 10))
        self._trace_publisher = self.create_publisher(Image, "trace_image", qos_profile("reliable"))
        self._depth_publisher = self.create_publisher(Image, "depth_image", qos_profile("reliable"))
        self._task_publisher = self.create_publisher(String, "task", LATCHED)

    def _subscribe(self) -> None:
        self._image_rates = {camera: RateMeter() for camera in self.p.cameras}
        self._chunk_latency = LatencyMeter()
        self._model_latency = LatencyMeter()
        compressed = self.p.image_transport == "compressed"
        self._to_array = compressed_to_array if compressed else image_to_array
        qos = qos_profile(self.p.image_reliability, IMAGE_DEPTH)
        self._images = {
            camera: PolledSubscription(
                self, CompressedImage if compressed else Image, f"{topic}/compressed" if compressed else topic, qos
            )
            for camera, topic in zip(self.p.cameras, self.p.camera_topics, strict=True)
        }

    def _serve(self) -> None:
        self.create_service(SetTask, "set_task", self._on_set_task)
        self.create_service(SetTrace, "set_trace", self._on_set_trace)
        ActionServer(
            self,
            RunTask,
            "run_task",
            self._on_run_task,
            callback_group=ReentrantCallbackGroup(),  # a goal waits here for its end, another is refused meanwhile
            cancel_callback=lambda _: CancelResponse.ACCEPT,
        )

    # Images

    def _watch_cameras(self, stop: threading.Event) -> None:
        while not stop.wait(IMAGE_POLL_S):
            for camera, images in self._images.items():
                for message in images.take():
                    self._on_image(camera, message)

    def _on_image(self, camera: str, message: Image | CompressedImage) -> None:
        stamp = to_nanoseconds(message.header.stamp)
        self._frames.add(camera, stamp, message)
        self._image_rates[camera].tick(stamp / SECOND)
        self._runner.wake()

    # Callbacks

    def _on_set_task(self, request: SetTask.Request, response: SetTask.Response) -> SetTask.Response:
        def set_task() -> str:
            return f"task: {self._tasks.set(request.instruction, self._now()).instruction}"

        return self._answer(response, set_task)

    def _on_set_trace(self, request: SetTrace.Request, response: SetTrace.Response) -> SetTrace.Response:
        def set_trace() -> str:
            trace = self._tasks.steer(request.x, request.y)
            return "the policy draws its own trace" if trace is None else f"steered along {len(trace)} points"

        return self._answer(response, set_trace)

    def _answer(self, response, request: Callable[[], str]):
        try:
            response.message = request()
            response.success = True
            self.get_logger().info(response.message)
        except Refused as refusal:
            response.message = str(refusal)
            self.get_logger().warning(f"refused: {refusal}")
        self._runner.wake()
        return response

    def _on_run_task(self, goal: ServerGoalHandle) -> RunTask.Result:
        request = goal.request
        try:
            task = self._tasks.run(request.instruction, self._now(), duration_to_nanoseconds(request.timeout))
        except Refused as refusal:
            self.get_logger().warning(f"refused: {refusal}")
            goal.abort()
            return RunTask.Result(success=False, reason=str(refusal))
        self.get_logger().info(f"task: {task.instruction}")
        self._goal_free.clear()
        try:
            self._follow(goal, task)
            result = RunTask.Result(success=task.success, reason=task.reason, chunks=task.chunks)
            self.get_logger().info(f"task ended after {task.chunks} chunks: {task.reason}")
            if goal.is_cancel_requested:
                goal.canceled()
            elif task.success:
                goal.succeed()
            else:
                goal.abort()
            return result
        finally:
            self._goal_free.set()

    def _follow(self, goal: ServerGoalHandle, task: Task) -> None:
        """Wait for the end of the task, with feedback for every chunk."""
        self._runner.wake()
        told = 0
        while not task.ended.wait(GOAL_POLL_S):
            self._tasks.expire(self._now())
            if goal.is_cancel_requested:
                self._tasks.end(task, True, "cancelled")
            if task.sequence != told:
                told = task.sequence
                elapsed = duration_from_nanoseconds(max(0, self._now() - task.claimed))
                goal.publish_feedback(RunTask.Feedback(sequence=told, elapsed=elapsed))

    # What the runner calls, from its thread

    def _decode(self, frames: Sequence[Frame]) -> list[NDArray[np.uint8]]:
        self._image_frame_id = frames[0].message.header.frame_id
        return [self._colour(camera, frame.message) for camera, frame in zip(self.p.cameras, frames, strict=True)]

    def _colour(self, camera: str, message: Image | CompressedImage) -> NDArray[np.uint8]:
        try:
            picture = self._to_array(message, f"{camera} camera")
        except ImageError as error:
            raise ObservationError(str(error)) from error
        if picture.ndim != 3 or picture.dtype != np.uint8:
            raise ObservationError(
                f"{camera} camera: {picture.dtype}{list(picture.shape)} is no colour image (3 channels of uint8)"
            )
        return picture

    def chunk(self, chunk: Chunk) -> None:
        now = self._now()
        frame = self.p.action_frame_id if self._embodiment.frame == "base" else self.p.end_effector_frame_id
        rows = np.split(chunk.actions, len(self.p.arms), axis=1)
        arms = {arm: self._embodiment.to_deltas(part) for arm, part in zip(self.p.arms, rows, strict=True)}
        self._chunk_publisher.publish(chunk_message(chunk, arms, frame, self._settings.step_period, now))
        self._chunk_latency.add((now - chunk.observation_stamp) / SECOND)

    def reply(self, seen: Seen, reply: Prediction | ReplyError, sequence: int, error: str) -> None:
        if error:
            self.get_logger().warning(f"no chunk: {error}", throttle_duration_sec=WARNING_PERIOD_S)
        if isinstance(reply, Prediction):
            self._model_latency.add(reply.latency)
        frame_id = self._image_frame_id
        self._reasoning_publisher.publish(reasoning_message(seen, reply, sequence, error, frame_id))
        self._publish_pictures(seen, reply, frame_id)

    def _publish_pictures(self, seen: Seen, reply: Prediction | ReplyError, frame_id: str) -> None:
        stamp = from_nanoseconds(seen.stamp)
        picture = draw_trace(seen.images[0], shown_trace(seen, reply) or [])
        self._trace_publisher.publish(array_to_image(picture, "rgb8", stamp, frame_id))
        depth = self._policy.decode_depth(reply.depth_codes) if reply.depth_codes else None
        if depth is not None:
            self._depth_publisher.publish(array_to_image(depth, "mono8", stamp, frame_id))

    def unusable(self, reason: str) -> None:
        self.get_logger().warning(reason, throttle_duration_sec=WARNING_PERIOD_S)

    def given_up(self, task: Task) -> None:
        self.get_logger().error(f"gave up '{task.instruction}': {task.reason}")

    # Diagnostics

    def _report(self) -> list[Status]:
        counters = self._runner.counters
        task = self._tasks.current
        values = {
            "task": task.instruction if task else "",
            "steered": self._tasks.trace is not None,
            "chunks": counters.chunks,
            "bad replies": counters.bad_replies,
            "discarded replies": counters.discarded,
            "observations refused": counters.observations_refused,
            **_milliseconds("model latency", self._model_latency),
            **_milliseconds("image to chunk", self._chunk_latency),
        }
        error = counters.last_error
        return [
            Status("policy", WARN if error else OK, f"no chunk: {error}" if error else "ok", values),
            self._report_cameras(),
        ]

    def _report_cameras(self) -> Status:
        now = self._now()
        values: dict[str, Any] = {}
        for camera, age in self._frames.ages(now).items():
            values[f"{camera} rate (Hz)"] = self._image_rates[camera].rate(now / SECOND)
            values[f"{camera} age (s)"] = "no image yet" if age is None else age
            values[f"{camera} images"] = self._image_rates[camera].total
        try:
            self._frames.newest(now)
        except ObservationError as error:
            return Status("cameras", WARN, str(error), values)
        undecodable = self._runner.counters.unusable
        return Status("cameras", WARN if undecodable else OK, undecodable or "ok", values)

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds


def _milliseconds(name: str, meter: LatencyMeter) -> dict[str, float]:
    return {f"{name} {statistic} (ms)": value for statistic, value in meter.milliseconds().items()}


def main() -> None:
    sys.exit(run(PolicyNode))
