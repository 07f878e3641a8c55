from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.frames import SECOND
from molmoact_policy.task import Refused, Tasks, checked_trace


@pytest.fixture
def announced() -> list[str]:
    return []


@pytest.fixture
def tasks(announced) -> Tasks:
    tasks = Tasks(announced.append)
    tasks.open()
    return tasks


@pytest.mark.parametrize(
    ("instruction", "complaint"),
    [
        ("", "instruction is empty, expected 1..500 characters"),
        (" \n\t ", "instruction is empty"),
        ("x" * 10_000, r"instruction has 10000 characters, expected 1..500"),
        ("x" * 501, r"instruction has 501 characters"),
    ],
)
def test_instruction_that_is_none_is_refused_and_the_task_stays(tasks, announced, instruction, complaint):
    standing = tasks.set("pick up the red cube", 0)
    for claim in (tasks.set, tasks.run):
        with pytest.raises(Refused, match=complaint):
            claim(instruction, 1)
    assert tasks.current is standing
    assert announced == ["", "pick up the red cube"]


def test_instruction_of_500_characters_is_taken(tasks):
    assert len(tasks.set("x" * 500, 0).instruction) == 500


@pytest.mark.parametrize(
    ("x", "y", "complaint"),
    [
        ([1], [1], r"trace has 1 point, expected 2..5"),
        (range(6), range(6), r"trace has 6 points, expected 2..5"),
        ([0, 256], [0, 0], r"trace point 1 is \(256, 0\), expected coordinates 0..255"),
        ([0, 0], [-1, 0], r"trace point 0 is \(0, -1\)"),
        ([0, 1, 2], [0, 1], r"trace has 3 x and 2 y coordinates"),
    ],
)
def test_trace_that_is_none_is_refused_and_the_old_one_stays(tasks, x, y, complaint):
    tasks.steer([1, 2], [3, 4])
    with pytest.raises(Refused, match=complaint):
        tasks.steer(x, y)
    assert tasks.trace == ((1, 3), (2, 4))


def test_trace_of_no_points_ends_steering(tasks):
    tasks.steer([1, 2], [3, 4])
    assert tasks.steer([], []) is None
    assert tasks.trace is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), min_size=2, max_size=5))
def test_every_trace_of_two_to_five_points_in_range_is_taken_as_it_is(points):
    assert checked_trace([x for x, _ in points], [y for _, y in points]) == tuple(points)


def test_claims_are_refused_with_the_reason_while_the_node_is_not_active(tasks):
    tasks.close("deactivated")
    for claim in (lambda: tasks.set("pick", 0), lambda: tasks.run("pick", 0), lambda: tasks.steer([0, 1], [0, 1])):
        with pytest.raises(Refused, match="the policy node is not active: deactivated"):
            claim()


def test_only_one_run_at_a_time_and_the_busy_one_is_named(tasks):
    running = tasks.run("pick up the red cube", 0)
    for claim in (tasks.set, tasks.run):
        with pytest.raises(Refused, match="busy with run_task 'pick up the red cube': cancel it first"):
            claim("put it back", 1)
    assert tasks.current is running


def test_task_that_was_set_gives_way_to_another_and_knows_why(tasks, announced):
    first = tasks.set("pick", 0)
    second = tasks.set("place", 0)
    run = tasks.run("push", 0)
    assert (first.reason, second.reason) == ("replaced by set_task", "replaced by run_task")
    assert tasks.current is run
    assert announced == ["", "pick", "place", "push"]


def test_cancel_of_a_finished_task_leaves_the_one_that_followed_alone(tasks):
    finished = tasks.run("pick", 0)
    assert tasks.end(finished, True, "done")
    following = tasks.run("place", 0)
    assert not tasks.end(finished, True, "cancelled")
    assert finished.reason == "done"
    assert tasks.current is following
    assert not following.ended.is_set()


def test_time_that_is_used_up_is_a_success_and_says_so(tasks, announced):
    task = tasks.run("pick", 5 * SECOND, timeout=2 * SECOND)
    tasks.expire(7 * SECOND - 1)
    assert tasks.current is task
    tasks.expire(7 * SECOND)
    assert (task.success, task.reason) == (True, "the time of 2 s was used up")
    assert tasks.current is None
    assert announced[-1] == ""


def test_task_without_a_timeout_runs_until_it_is_ended(tasks):
    task = tasks.run("pick", 0, timeout=0)
    tasks.expire(10**6 * SECOND)
    assert tasks.current is task
    with pytest.raises(Refused, match=r"timeout is -1 s"):
        Tasks(lambda _: None).run("pick", 0, timeout=-SECOND)


def test_task_from_a_clock_that_was_set_back_ends(tasks):
    task = tasks.run("pick", 100 * SECOND, timeout=10 * SECOND)
    tasks.expire(0)
    assert not task.success
    assert "the clock jumped back" in task.reason


def test_deactivation_ends_the_task_with_its_reason_and_forgets_the_trace(tasks, announced):
    task = tasks.run("pick", 0)
    tasks.steer([0, 1], [0, 1])
    tasks.close("interrupted by the operator")
    assert (task.success, task.reason) == (False, "interrupted by the operator")
    assert tasks.trace is None
    assert announced[-1] == ""
