"""The policy node over real DDS. Only the model is a fake."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from molmoact_msgs.action import RunTask
from molmoact_msgs.msg import ActionChunk, Reasoning
from molmoact_msgs.srv import SetTask, SetTrace
from molmoact_policy.embodiment import Embodiment
from molmoact_policy.errors import CheckpointError, Interrupted, ReplyError
from molmoact_policy.node import PolicyNode
from molmoact_policy.policy import Prediction
from molmoact_ros.actions import ActionClient
from molmoact_ros.images import array_to_compressed, array_to_image, image_to_array
from molmoact_ros.node import spin
from molmoact_ros.qos import LATCHED
from molmoact_ros.stamps import duration_from_seconds, from_nanoseconds, to_nanoseconds
from rclpy.context import Context
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import String

NUMBERS = itertools.count()
WAIT_S = 60.0
POLL_S = 0.01
FRAME_PERIOD_S = 0.05
ROWS = 8
EMBODIMENT = {
    "frame": "base",
    "rotation": "rotation_vector",
    "translation_scale": 0.5,
    "rotation_scale": 2.0,
    "gripper_open": "low",
    "step_period": 0.1,
    "rows": None,
    "cameras": ("front", "wrist"),
    "confirmed": True,
}


def wait_for(condition, what: str):
    """The first truthy value of `condition()`."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(POLL_S)
    pytest.fail(f"waited {WAIT_S} s for {what}")


class FakePolicy:
    """The far side of the Policy interface: replies at once, or when the test lets it."""

    def __init__(self, arms: int = 1, **embodiment) -> None:
        self.statistics = SimpleNamespace(key="nano", dimensions=7 * arms)
        self.embodiment = Embodiment(**EMBODIMENT | embodiment)
        self.observations = []
        self.thinking = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.error: Exception | None = None
        self.stops_when_told = False

    def forget(self) -> None:
        pass

    def act(self, observation, should_stop) -> Prediction:
        self.observations.append(observation)
        self.thinking.set()
        while not self.go.wait(0.001):
            if self.stops_when_told and should_stop():
                raise Interrupted("stopped after 3 passes")
        if self.error is not None:
            raise self.error
        return Prediction(
            depth_codes=list(range(100)),
            trace=[(0, 0), (128, 64), (255, 255)],
            actions=np.tile(np.arange(1.0, self.statistics.dimensions + 1) / 10, (ROWS, 1)),
            text="the reply",
            token_ids=[],
            latency=0.25,
            forward_passes=42,
        )

    def decode_depth(self, codes):
        return np.arange(64, dtype=np.uint8).reshape(8, 8)


class Bench:
    """A policy node, cameras that send frames until told otherwise, and everything the node says."""

    def __init__(self, policy: FakePolicy, directory, **parameters) -> None:
        self.policy = policy
        self.context = Context()
        rclpy.init(context=self.context)
        defaults = {"checkpoint": str(directory), "settle_time": 0.0, "execute_rows": 2, "max_image_age": 2.0}
        overrides = [Parameter(name, value=value) for name, value in (defaults | parameters).items()]
        # The participant of an earlier test may linger for a moment, and its node with it.
        name = ["--ros-args", "-r", f"policy:__node:=policy_{next(NUMBERS)}"]
        self.node = PolicyNode(
            load=lambda *_: policy, context=self.context, parameter_overrides=overrides, cli_args=name
        )
        self.user = Node("user", context=self.context)
        self.executor = MultiThreadedExecutor(num_threads=4, context=self.context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.user)
        self.thread = threading.Thread(target=spin, args=(self.executor, self.node), daemon=True)
        self.thread.start()
        self.heard = {
            name: self._listen(kind, name, qos)
            for name, kind, qos in (
                ("action_chunk", ActionChunk, 10),
                ("reasoning", Reasoning, 10),
                ("trace_image", Image, 1),
                ("depth_image", Image, 1),
                ("task", String, LATCHED),
                ("/diagnostics", DiagnosticArray, 10),
            )
        }
        self.silent: set[str] = set()
        self.make_image = self.raw_image
        self.cameras = {}

    def _listen(self, kind, name, qos) -> list:
        messages = []
        self.user.create_subscription(kind, name, messages.append, qos)
        return messages

    def activate(self) -> None:
        assert self.node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        assert self.node.trigger_activate() == TransitionCallbackReturn.SUCCESS

    def film(self, cameras=("front", "wrist"), kind=Image, suffix="") -> None:
        self.cameras = {
            camera: self.user.create_publisher(kind, f"camera/{camera}/color/image_raw{suffix}", 10)
            for camera in cameras
        }
        self.user.create_timer(FRAME_PERIOD_S, self._send_frames)
        wait_for(lambda: all(each.get_subscription_count() for each in self.cameras.values()), "the node to listen")

    def _send_frames(self) -> None:
        stamp = self.user.get_clock().now().to_msg()
        for camera, publisher in self.cameras.items():
            if camera not in self.silent:
                publisher.publish(self.make_image(camera, stamp))

    def raw_image(self, camera: str, stamp) -> Image:
        return array_to_image(np.full((6, 8, 3), len(camera), np.uint8), "rgb8", stamp, f"{camera}_optical")

    def call(self, kind, name: str, **request):
        client = self.user.create_client(kind, name)
        wait_for(client.service_is_ready, f"service {name}")
        future = client.call_async(kind.Request(**request))
        return wait_for(future.result, f"answer of {name}")

    def set_task(self, instruction: str):
        return self.call(SetTask, "set_task", instruction=instruction)

    def run_task(self, instruction: str, timeout_s: float = 0.0):
        client = ActionClient(self.user, RunTask, "run_task")
        wait_for(client.server_is_ready, "run_task")
        goal = RunTask.Goal(instruction=instruction, timeout=duration_from_seconds(timeout_s))
        return wait_for(client.send_goal_async(goal).result, "the goal to be taken")

    def result_of(self, handle) -> RunTask.Result:
        return wait_for(handle.get_result_async().result, "the end of run_task").result

    def wait_for(self, name: str, condition=lambda message: True):
        messages = self.heard[name]
        return wait_for(lambda: next((each for each in messages if condition(each)), None), name)

    def close(self) -> None:
        self.policy.go.set()
        if not self.node.finalized:
            self.node.trigger_shutdown()
        self.executor.shutdown()
        self.thread.join()
        for node in (self.node, self.user):
            node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def bench(tmp_path):
    benches = []

    def make(policy: FakePolicy | None = None, **parameters) -> Bench:
        benches.append(Bench(policy or FakePolicy(), tmp_path, **parameters))
        return benches[-1]

    yield make
    for each in benches:
        each.close()


def test_chunk_is_in_metres_and_radians_of_the_base_frame_and_names_its_task(bench):
    rig = bench()
    rig.activate()
    rig.film()
    assert rig.set_task("pick up the red cube").success
    chunk = rig.wait_for("action_chunk")
    assert (chunk.sequence, chunk.instruction) == (1, "pick up the red cube")
    assert (chunk.header.frame_id, chunk.step_period.nanosec) == ("fr3_link0", 100_000_000)
    assert to_nanoseconds(chunk.start) >= to_nanoseconds(chunk.observation_stamp)
    (arm,) = chunk.arms
    assert (arm.arm, len(arm.steps)) == ("fr3", 2)
    step = arm.steps[0]
    np.testing.assert_allclose([step.translation.x, step.translation.y, step.translation.z], [0.05, 0.1, 0.15])
    np.testing.assert_allclose([step.rotation.x, step.rotation.y, step.rotation.z], [0.8, 1.0, 1.2])
    assert step.gripper == pytest.approx(1 - 0.7)


def test_reasoning_and_its_pictures_carry_the_stamp_of_the_observation(bench):
    rig = bench()
    rig.activate()
    rig.film()
    rig.set_task("pick")
    chunk = rig.wait_for("action_chunk")
    reasoning = rig.wait_for("reasoning", lambda each: each.sequence == chunk.sequence)
    assert reasoning.header.stamp == chunk.observation_stamp
    assert reasoning.header.frame_id == "front_optical"
    assert (reasoning.depth_rows, reasoning.depth_columns) == (10, 10)
    assert list(reasoning.depth_codes) == list(range(100))
    assert [(point.x, point.y) for point in reasoning.trace] == [(0, 0), (128, 64), (255, 255)]
    assert (reasoning.reply, reasoning.error, reasoning.steered) == ("the reply", "", False)
    assert (reasoning.latency.nanosec, reasoning.forward_passes) == (250_000_000, 42)
    trace = image_to_array(rig.wait_for("trace_image"))
    assert trace.shape == (6, 8, 3)
    assert (trace != len("front")).any()
    depth = rig.wait_for("depth_image")
    assert (depth.encoding, depth.height, depth.width) == ("mono8", 8, 8)


def test_images_reach_the_policy_in_the_order_of_the_cameras(bench):
    rig = bench(
        cameras=["wrist", "front"], camera_topics=["camera/wrist/color/image_raw", "camera/front/color/image_raw"]
    )
    rig.activate()
    rig.film()
    rig.set_task("pick")
    rig.wait_for("action_chunk")
    assert [image[0, 0, 0] for image in rig.policy.observations[0].images] == [len("wrist"), len("front")]


def test_compressed_images_are_decoded(bench):
    rig = bench(image_transport="compressed")
    rig.make_image = lambda camera, stamp: array_to_compressed(np.full((6, 8, 3), 77, np.uint8), "png", stamp=stamp)
    rig.activate()
    rig.film(kind=CompressedImage, suffix="/compressed")
    rig.set_task("pick")
    rig.wait_for("action_chunk")
    assert (rig.policy.observations[0].images[0] == 77).all()


def test_actions_of_two_arms_go_to_each_arm_by_name(bench):
    rig = bench(FakePolicy(arms=2), arms=["left", "right"])
    rig.activate()
    rig.film()
    rig.set_task("pick")
    chunk = rig.wait_for("action_chunk")
    assert [arm.arm for arm in chunk.arms] == ["left", "right"]
    assert [arm.steps[0].translation.x for arm in chunk.arms] == pytest.approx([0.05, 0.4])


def test_actions_in_the_end_effector_frame_say_so(bench):
    rig = bench(FakePolicy(frame="end_effector"))
    rig.activate()
    rig.film()
    rig.set_task("pick")
    assert rig.wait_for("action_chunk").header.frame_id == "fr3_hand_tcp"


@pytest.mark.parametrize("instruction", ["", "   ", "x" * 10_000])
def test_instruction_that_is_none_is_refused_with_the_reason_and_no_chunk(bench, instruction):
    rig = bench()
    rig.activate()
    rig.film()
    answer = rig.set_task(instruction)
    assert not answer.success
    assert "expected 1..500" in answer.message
    result = rig.result_of(rig.run_task(instruction))
    assert not result.success
    assert "expected 1..500" in result.reason
    assert rig.policy.observations == []


def test_trace_steers_until_it_is_taken_away(bench):
    rig = bench()
    rig.activate()
    rig.film()
    for points in (1, 6):
        answer = rig.call(SetTrace, "set_trace", x=[10] * points, y=[20] * points)
        assert (answer.success, f"trace has {points} point" in answer.message) == (False, True)
    assert not rig.call(SetTrace, "set_trace", x=[0, 256], y=[0, 0]).success
    assert rig.call(SetTrace, "set_trace", x=[10, 30], y=[20, 40]).success
    rig.set_task("pick")
    steered = rig.wait_for("reasoning")
    assert steered.steered
    assert [(point.x, point.y) for point in steered.trace] == [(10, 20), (30, 40)]
    assert rig.policy.observations[0].trace == ((10, 20), (30, 40))
    assert rig.call(SetTrace, "set_trace").success
    rig.wait_for("reasoning", lambda each: not each.steered)


def test_under_simulated_time_stamps_and_timeouts_are_the_simulations(bench):
    rig = bench(use_sim_time=True)
    clock = rig.user.create_publisher(Clock, "/clock", 10)
    elapsed = itertools.count(start=5_000_000_000, step=50_000_000)

    def tick() -> None:
        rig.simulated = from_nanoseconds(next(elapsed))
        clock.publish(Clock(clock=rig.simulated))

    rig.make_image = lambda camera, stamp: rig.raw_image(camera, rig.simulated)
    tick()
    rig.user.create_timer(FRAME_PERIOD_S, tick)
    rig.activate()
    rig.film()
    result = rig.result_of(rig.run_task("pick", timeout_s=2.0))
    assert (result.success, result.reason) == (True, "the time of 2 s was used up")
    for stamp in (rig.heard["action_chunk"][0].start, rig.heard["reasoning"][0].header.stamp):
        assert 5 <= stamp.sec < 1000


def test_inactive_node_refuses_tasks_and_says_so(bench):
    rig = bench()
    rig.node.trigger_configure()
    answer = rig.set_task("pick")
    assert (answer.success, answer.message) == (False, "the policy node is not active")
    result = rig.result_of(rig.run_task("pick"))
    assert (result.success, result.reason) == (False, "the policy node is not active")


def test_run_that_used_its_time_up_succeeds_and_counts_its_chunks(bench):
    rig = bench()
    rig.activate()
    rig.film()
    result = rig.result_of(rig.run_task("pick", timeout_s=1.0))
    assert (result.success, result.reason) == (True, "the time of 1 s was used up")
    assert result.chunks >= 1
    assert [message.data for message in rig.heard["task"]] == ["", "pick", ""]


def test_cancelled_run_sends_no_further_chunk_and_another_can_follow(bench):
    rig = bench()
    rig.activate()
    rig.film()
    handle = rig.run_task("pick")
    rig.wait_for("action_chunk")
    refused = rig.result_of(rig.run_task("place"))
    assert refused.reason == "busy with run_task 'pick': cancel it first"
    handle.cancel_goal_async()
    result = rig.result_of(handle)
    assert (result.success, result.reason) == (True, "cancelled")
    rig.run_task("place")
    rig.wait_for("action_chunk", lambda each: each.instruction == "place")
    tasks = [each.instruction for each in rig.heard["action_chunk"]]
    assert tasks == sorted(tasks)  # none of "pick" after the first of "place"


def test_chunk_of_a_task_that_changed_during_inference_is_not_published(bench):
    rig = bench()
    rig.policy.go.clear()
    rig.activate()
    rig.film()
    rig.set_task("pick")
    wait_for(rig.policy.thinking.is_set, "inference")
    rig.set_task("place")
    rig.policy.go.set()
    rig.wait_for("action_chunk", lambda each: each.instruction == "place")
    assert {each.instruction for each in rig.heard["action_chunk"]} == {"place"}
    discarded = rig.wait_for("reasoning")
    assert (discarded.sequence, discarded.error) == (0, "the task or the trace changed while the policy was thinking")


@pytest.mark.parametrize("change", ["task", "trace"])
def test_inference_for_another_task_or_trace_is_not_waited_for(bench, change):
    rig = bench()
    rig.policy.stops_when_told = True
    rig.policy.go.clear()
    rig.activate()
    rig.film()
    rig.set_task("pick")
    wait_for(rig.policy.thinking.is_set, "inference")
    if change == "task":
        rig.set_task("place")
    else:
        rig.call(SetTrace, "set_trace", x=[10, 30], y=[20, 40])
    wait_for(lambda: len(rig.policy.observations) == 2, "the next inference")
    assert rig.policy.observations[1].instruction == ("place" if change == "task" else "pick")
    rig.policy.go.set()
    rig.wait_for("action_chunk")


def test_deactivation_ends_the_run_with_its_reason(bench):
    rig = bench()
    rig.activate()
    rig.film()
    handle = rig.run_task("pick")
    rig.wait_for("action_chunk")
    rig.node.end("interrupted by the operator")
    rig.node.trigger_deactivate()
    result = rig.result_of(handle)
    assert (result.success, result.reason) == (False, "interrupted by the operator")


def test_camera_that_stops_ends_the_run_and_is_named_in_result_and_diagnostics(bench):
    rig = bench(observation_timeout=2.0)
    rig.activate()
    rig.film()
    handle = rig.run_task("pick")
    rig.wait_for("action_chunk")
    rig.silent.add("wrist")
    result = rig.result_of(handle)
    assert not result.success
    assert "wrist camera: newest image is" in result.reason
    rig.wait_for("/diagnostics", lambda array: any("wrist camera" in status.message for status in array.status))


def test_image_of_an_unsupported_encoding_gives_no_chunk_and_is_named(bench):
    rig = bench(observation_timeout=2.0)

    def bayer(camera, stamp):
        image = rig.raw_image(camera, stamp)
        image.encoding = "nonsense8"
        return image

    rig.make_image = bayer
    rig.activate()
    rig.film()
    result = rig.result_of(rig.run_task("pick"))
    assert "front camera: encoding 'nonsense8' not supported (rgb8, bgr8, mono8, 16UC1, 32FC1)" in result.reason
    assert rig.policy.observations == []


def test_reply_that_does_not_parse_gives_reasoning_with_the_error_and_ends_the_run(bench):
    rig = bench(max_bad_replies=2)
    rig.policy.error = ReplyError("actions: 3 rows, expected 8", "half a reply", [1, 2, 3, 4], [(5, 6)])
    rig.activate()
    rig.film()
    result = rig.result_of(rig.run_task("pick"))
    assert result.reason == "2 replies in a row gave no chunk; the last: actions: 3 rows, expected 8"
    reasoning = rig.wait_for("reasoning")
    assert (reasoning.sequence, reasoning.error) == (0, "actions: 3 rows, expected 8")
    assert (reasoning.reply, list(reasoning.depth_codes)) == ("half a reply", [1, 2, 3, 4])
    assert rig.heard["action_chunk"] == []


def test_diagnostics_report_rates_ages_and_latencies(bench):
    rig = bench()
    rig.activate()
    rig.film()
    rig.set_task("pick")
    rig.wait_for("action_chunk")

    def values(array) -> dict[str, str]:
        return {pair.key: pair.value for status in array.status for pair in status.values}

    array = rig.wait_for("/diagnostics", lambda each: "image to chunk p99 (ms)" in values(each))
    assert {status.name for status in array.status} == {
        f"{rig.node.get_name()}: {part}" for part in ("policy", "cameras")
    }
    for key in ("front rate (Hz)", "wrist age (s)", "chunks", "bad replies", "model latency median (ms)"):
        assert float(values(array)[key]) >= 0.0


@pytest.mark.parametrize(
    ("policy", "parameters", "complaint"),
    [
        (FakePolicy(), {"checkpoint": "/nowhere"}, "parameter 'checkpoint': checkpoint '/nowhere': no such directory"),
        (FakePolicy(confirmed=False), {}, "set parameter 'confirm_embodiment' to 'nano'"),
        (FakePolicy(cameras=("image",)), {}, "embodiment 'nano' was trained on 1: image"),
        (FakePolicy(arms=2), {}, "parameter 'arms': fr3; the checkpoint's actions have 14 dimensions"),
        (FakePolicy(), {"camera_topics": ["one"]}, "parameter 'camera_topics': 1 topics for 2 cameras"),
        (FakePolicy(), {"cameras": ["front", "front"]}, "parameter 'cameras': ['front', 'front'], expected different"),
        (FakePolicy(), {"reasoning": "reuse", "decoder": "free"}, "parameter 'reasoning': reuse needs decoder strict"),
        (
            FakePolicy(),
            {"action_prefix": True, "execution": "asynchronous", "decoder": "generate"},
            "parameter 'action_prefix': needs decoder strict, this is generate",
        ),
        (FakePolicy(), {"action_prefix": True}, "parameter 'action_prefix': needs execution asynchronous"),
        (FakePolicy(), {"instruction": "x" * 501}, "parameter 'instruction': instruction has 501 characters"),
    ],
)
def test_wrong_configuration_is_refused_by_name(bench, policy, parameters, complaint):
    rig = bench(policy, **parameters)
    assert rig.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert complaint in rig.node.refusal


def test_embodiment_nobody_confirmed_runs_when_the_operator_did(bench):
    rig = bench(FakePolicy(confirmed=False), confirm_embodiment="nano")
    rig.activate()


def test_checkpoint_that_cannot_be_loaded_is_refused_with_its_own_words(bench):
    rig = bench()

    def load(*_):
        raise CheckpointError("tokenizer.json missing")

    rig.node._load = load
    assert rig.node.trigger_configure() == TransitionCallbackReturn.FAILURE
    assert "tokenizer.json missing" in rig.node.refusal


def test_instruction_parameter_is_the_task_from_the_start(bench):
    rig = bench(instruction="pick up the red cube")
    rig.activate()
    rig.film()
    assert rig.wait_for("action_chunk").instruction == "pick up the red cube"
