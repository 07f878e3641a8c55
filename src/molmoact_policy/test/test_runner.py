"""The schedule of observations and what of a reply is sent. The model, the clock and the graph are fakes."""

from __future__ import annotations

import numpy as np
import pytest
from molmoact_policy.errors import Interrupted, ObservationError, ReplyError
from molmoact_policy.frames import SECOND, FrameBuffer
from molmoact_policy.policy import Prediction
from molmoact_policy.runner import Runner, Settings
from molmoact_policy.task import Tasks

MS = SECOND // 1000
ROWS = 8


def prediction(actions=None) -> Prediction:
    return Prediction(
        depth_codes=[0] * 100,
        trace=[(1, 2), (3, 4)],
        actions=np.arange(ROWS * 7.0).reshape(ROWS, 7) if actions is None else actions,
        text="reply",
        token_ids=[],
        latency=0.1,
        forward_passes=10,
    )


class Rig:
    """A runner whose clock, cameras and model are set by the test, in ms."""

    def __init__(self, **settings) -> None:
        self.now = self.forgotten = 0
        self.think = lambda observation: prediction()
        self.observations, self.chunks, self.replies, self.reasons, self.given_up_tasks = [], [], [], [], []
        self.frames = FrameBuffer(("front",), sync_tolerance=0.05, max_image_age=0.5)
        self.tasks = Tasks(lambda _: None)
        self.tasks.open()
        defaults = {
            "synchronous": True,
            "action_prefix": False,
            "execute_rows": 4,
            "step_period": 100 * MS,
            "settle_time": 200 * MS,
            "observation_timeout": 2000 * MS,
            "max_bad_replies": 3,
        }
        self.runner = Runner(
            self,
            lambda frames: [frame.message for frame in frames],
            self.frames,
            self.tasks,
            Settings(**defaults | settings),
            lambda: self.now * MS,
            output=self,
        )

    def act(self, observation, should_stop):
        self.observations.append(observation)
        self.should_stop = should_stop
        return self.think(observation)

    def forget(self):
        self.forgotten += 1

    def chunk(self, chunk):
        self.chunks.append(chunk)

    def reply(self, seen, reply, sequence, error):
        self.replies.append((sequence, error))

    def unusable(self, reason):
        self.reasons.append(reason)

    def given_up(self, task):
        self.given_up_tasks.append(task)

    def see(self, at: int) -> bool:
        """An image stamped now, and one step of the worker."""
        self.now = at
        self.frames.add("front", at * MS, np.full((2, 2, 3), at % 256, np.uint8))
        return self.runner.step()


def test_without_a_task_the_policy_does_not_think():
    rig = Rig()
    assert not rig.see(0)
    assert rig.observations == []


def test_images_from_before_the_task_are_not_shown_to_it():
    rig = Rig()
    rig.see(0)
    rig.tasks.set("pick", 10 * MS)
    rig.now = 20
    assert not rig.runner.step()
    assert rig.see(30)
    assert rig.observations[0].instruction == "pick"


def test_synchronous_policy_looks_again_when_the_rows_have_run_and_the_arm_has_settled():
    rig = Rig(synchronous=True)
    rig.tasks.set("pick", 0)

    def think(observation):
        rig.now = 50  # start of the chunk is when it is published, not when the image was taken
        return prediction()

    rig.think = think
    assert rig.see(0)
    assert (rig.chunks[0].observation_stamp, rig.chunks[0].start) == (0, 50 * MS)
    due = 50 + 4 * 100 + 200
    assert not rig.see(due - 1)
    rig.think = lambda observation: prediction()
    assert rig.see(due)
    assert [chunk.sequence for chunk in rig.chunks] == [1, 2]


def test_asynchronous_policy_starts_at_the_observation_and_thinks_again_with_the_next_image():
    rig = Rig(synchronous=False)
    rig.tasks.set("pick", 0)

    def think(observation):
        rig.now += 50
        return prediction()

    rig.think = think
    assert rig.see(10)
    assert not rig.runner.step()  # the same image is not thought about twice
    assert rig.see(60)
    assert [(chunk.observation_stamp, chunk.start) for chunk in rig.chunks] == [(10 * MS, 10 * MS), (60 * MS, 60 * MS)]


@pytest.mark.parametrize(("execute_rows", "sent"), [(0, ROWS), (4, 4), (20, ROWS)])
def test_only_the_rows_to_execute_are_sent(execute_rows, sent):
    rig = Rig(execute_rows=execute_rows)
    rig.tasks.set("pick", 0)
    rig.see(0)
    np.testing.assert_array_equal(rig.chunks[0].actions, prediction().actions[:sent])


def test_newest_image_wins_over_those_that_came_while_the_policy_was_thinking():
    rig = Rig(synchronous=False)
    rig.tasks.set("pick", 0)
    for at in (0, 30, 60, 90):
        rig.frames.add("front", at * MS, np.full((2, 2, 3), at, np.uint8))
    rig.now = 100
    rig.runner.step()
    assert rig.observations[0].images[0][0, 0, 0] == 90


@pytest.mark.parametrize("change", ["set", "end", "close", "steer"])
def test_chunk_of_a_task_that_changed_meanwhile_is_never_sent(change):
    rig = Rig()
    task = rig.tasks.set("pick", 0)

    def think(observation):
        if change == "set":
            rig.tasks.set("place", 1 * MS)
        elif change == "end":
            rig.tasks.end(task, True, "cancelled")
        elif change == "steer":
            rig.tasks.steer([1, 2], [3, 4])
        else:
            rig.tasks.close("deactivated")
        return prediction()

    rig.think = think
    rig.see(5)
    assert rig.chunks == []
    assert rig.replies == [(0, "the task or the trace changed while the policy was thinking")]
    assert rig.runner.counters.discarded == 1


@pytest.mark.parametrize("change", ["set", "steer"])
def test_inference_for_a_task_or_trace_that_changed_is_told_to_stop_and_the_next_begins(change):
    rig = Rig()
    rig.tasks.set("pick", 0)

    def think(observation):
        assert not rig.should_stop()
        if change == "set":
            rig.tasks.set("place", 1 * MS)
        else:
            rig.tasks.steer([1, 2], [3, 4])
        assert rig.should_stop()
        raise Interrupted("stopped after 3 passes")

    rig.think = think
    rig.see(5)
    assert (rig.chunks, rig.replies, rig.runner.counters.discarded) == ([], [], 1)
    rig.think = lambda observation: prediction()
    assert rig.see(20)
    assert len(rig.chunks) == 1
    assert rig.observations[1].instruction == ("place" if change == "set" else "pick")


def test_every_task_is_thought_about_anew():
    rig = Rig()
    rig.tasks.set("pick", 0)
    rig.see(0)
    before = rig.forgotten
    rig.see(1000)
    assert rig.forgotten == before
    rig.tasks.set("pick", 1010 * MS)
    rig.see(1020)
    assert rig.forgotten == before + 1


def test_a_reply_is_given_the_rows_that_run_until_it_is_there():
    """The rows of the chunk before that are due between the observation and the end of thinking as long as before."""
    rig = Rig(synchronous=False, action_prefix=True, execute_rows=0)
    rig.tasks.set("pick", 0)

    def think(observation):
        rig.now += 250
        return prediction()

    rig.think = think
    rig.see(0)
    assert rig.observations[0].executing is None
    rig.see(310)  # 3.1 rows on; 2.5 rows pass until the reply
    np.testing.assert_array_equal(rig.observations[1].executing, prediction().actions[3:6])
    rig.see(310 + 740)  # of the chunk of 310 ms, 7.4 rows on
    np.testing.assert_array_equal(rig.observations[2].executing, prediction().actions[7:8])
    rig.see(5000)
    assert len(rig.observations[3].executing) == 0  # all have run
    rig.tasks.set("place", 5260 * MS)
    rig.see(5300)
    assert rig.observations[4].executing is None


def test_after_the_clock_was_set_back_no_row_of_the_time_before_is_given():
    rig = Rig(synchronous=False, action_prefix=True, execute_rows=0)
    rig.tasks.set("pick", 0)
    rig.see(1000)
    rig.see(1100)
    assert rig.observations[1].executing is not None
    before = rig.forgotten
    rig.see(0)  # a simulation that was reset
    rig.see(10)
    assert rig.observations[2].executing is None
    assert rig.forgotten == before + 1


def test_new_task_does_not_wait_for_the_chunk_of_the_old_one_to_run_out():
    rig = Rig()
    rig.tasks.set("pick", 0)
    rig.see(0)
    rig.tasks.set("place", 10 * MS)
    assert rig.see(20)
    assert [chunk.instruction for chunk in rig.chunks] == ["pick", "place"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_reply_with_a_number_that_is_not_finite_gives_no_chunk(value):
    rig = Rig()
    rig.tasks.set("pick", 0)
    actions = np.zeros((ROWS, 7))
    actions[3, 5] = value
    rig.think = lambda observation: prediction(actions)
    rig.see(0)
    assert rig.chunks == []
    assert rig.replies == [(0, "actions are not finite")]


def test_reply_without_actions_gives_no_chunk():
    rig = Rig()
    rig.tasks.set("pick", 0)
    rig.think = lambda observation: prediction(np.zeros((0, 7)))
    rig.see(0)
    assert rig.chunks == []
    assert rig.replies == [(0, "reply has no actions")]


def test_task_ends_after_so_many_bad_replies_in_a_row_with_the_last_reason():
    rig = Rig(synchronous=False, max_bad_replies=3)
    task = rig.tasks.run("pick", 0)
    answers = iter([False, False, True, False, False, False])

    def think(observation):
        if next(answers):
            return prediction()
        raise ReplyError("actions: 3 rows, expected 8")

    rig.think = think
    for at in range(5):
        rig.see(at)
        assert not task.ended.is_set()
    rig.see(5)
    assert (task.success, task.reason) == (
        False,
        "3 replies in a row gave no chunk; the last: actions: 3 rows, expected 8",
    )
    assert rig.given_up_tasks == [task]
    assert (rig.runner.counters.bad_replies, rig.runner.counters.chunks) == (5, 1)


def test_run_ends_when_there_was_nothing_to_look_at_for_too_long_and_names_the_camera():
    rig = Rig()
    task = rig.tasks.run("pick", 0)
    rig.see(0)
    for rig.now in (1000, 2000, 2999):
        rig.runner.step()
        assert not task.ended.is_set()
    rig.now = 3000
    rig.runner.step()
    assert not task.success
    assert "front camera: newest image is 3.000 s old" in task.reason
    assert rig.runner.counters.observations_refused == 1


def test_task_that_was_set_outlives_a_camera_that_starts_late():
    rig = Rig()
    task = rig.tasks.set("pick", 0)
    for rig.now in (0, 5_000, 60_000):
        rig.runner.step()
    assert rig.reasons[-1] == "front camera: no image yet"
    assert rig.see(60_001)
    assert task.chunks == 1
    assert rig.runner.counters.unusable == ""


def test_picture_that_cannot_be_decoded_gives_no_chunk_and_is_not_tried_again():
    rig = Rig()
    rig.tasks.set("pick", 0)

    def decode(frames):
        raise ObservationError("front camera: encoding 'yuv422' not supported")

    rig.runner._decode = decode
    assert not rig.see(0)
    assert not rig.runner.step()
    assert rig.reasons == ["front camera: encoding 'yuv422' not supported"]


def test_run_ends_when_no_picture_can_be_decoded_for_too_long():
    rig = Rig()
    task = rig.tasks.run("pick", 0)

    def decode(frames):
        raise ObservationError("front camera: encoding 'yuv422' not supported")

    rig.runner._decode = decode
    for at in range(0, 2100, 100):
        rig.see(at)
        rig.runner.step()
    assert task.reason == "nothing to look at for 2.0 s: front camera: encoding 'yuv422' not supported"


def test_trace_of_the_operator_reaches_the_policy():
    rig = Rig()
    rig.tasks.steer([10, 20], [30, 40])
    rig.tasks.set("pick", 0)
    rig.see(0)
    assert rig.observations[0].trace == ((10, 30), (20, 40))


def test_clock_that_was_set_back_does_not_keep_the_policy_waiting_for_the_old_time():
    rig = Rig()
    rig.tasks.set("pick", 0)
    rig.see(100_000)
    assert len(rig.chunks) == 1
    rig.see(10)
    assert rig.see(20)
    assert len(rig.chunks) == 2
