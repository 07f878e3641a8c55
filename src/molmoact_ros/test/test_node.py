"""The lifecycle base, in processes where the end of the process matters and in this one where the transitions do."""

from __future__ import annotations

import itertools
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import rclpy
from molmoact_ros.errors import ConfigurationError
from rclpy.context import Context
from rclpy.event_handler import EventHandler
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import String

TIMEOUT_S = 60
EXAMPLE = Path(__file__).with_name("example_node.py")
ExampleNode = runpy.run_path(str(EXAMPLE))["ExampleNode"]
NUMBERS = itertools.count()
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class Process:
    """The example node as a process whose output is read line by line."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, str(EXAMPLE), "--ros-args", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True)
        self.lines: list[str] = []

    def wait_for(self, text: str) -> None:
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if text in line:
                return
        pytest.fail(f"ended without {text!r}:\n" + "\n".join(self.lines))

    def end(self) -> int:
        self.lines += self.process.communicate(timeout=TIMEOUT_S)[0].splitlines()
        return self.process.returncode


@pytest.fixture
def start():
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(*arguments))
        return started[-1]

    yield start
    for process in started:
        process.process.kill()
        process.process.wait()
        process.process.stdout.close()


@pytest.fixture
def make_node():
    context = Context()
    rclpy.init(context=context)
    nodes = []

    def make_node(**overrides):
        parameters = [Parameter(name, value=value) for name, value in overrides.items()]
        # The participant of an earlier test may linger for a moment, and its node with it.
        name = ["--ros-args", "-r", f"__node:=example_{next(NUMBERS)}"]
        nodes.append(ExampleNode(context=context, parameter_overrides=parameters, cli_args=name))
        return nodes[-1]

    yield make_node
    for node in nodes:
        if not node.finalized:
            node.trigger_shutdown()
        node.destroy_node()
    rclpy.shutdown(context=context)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_node_stops_with_the_reason_tears_down_and_exits_with_zero(start, number):
    node = start()
    node.wait_for("start")
    node.process.send_signal(number)
    assert node.end() == 0
    assert [line.split("]: ")[1] for line in node.lines[-2:]] == ["stop: interrupted by the operator", "tear down"]


def test_interrupt_that_is_repeated_until_the_end_changes_nothing(start):
    node = start()
    node.wait_for("start")
    while node.process.poll() is None:
        node.process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    assert node.end() == 0
    assert sum("tear down" in line for line in node.lines) == 1


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("fail:=configure", "configure failed: told to fail at configure"),
        ("fail:=crash", "configure failed: RuntimeError: told to fail at crash"),
        ("fail:=activate", "activate failed: told to fail at activate"),
        ("fail:=callback", "a callback failed: RuntimeError: told to fail at callback"),
        ("fail:=worker", "worker: RuntimeError: told to fail at worker"),
        ("rate:=101.0", "parameter 'rate': 101.0 is outside 0.0 .. 100.0 (how often it ticks, Hz)"),
        ("raet:=1.0", "parameter 'raet' is unknown: did you mean 'rate'?"),
    ],
)
def test_node_that_fails_exits_with_one_and_its_reason_as_the_last_line(start, argument, reason):
    node = start("-p", argument)
    assert node.end() == 1
    assert node.lines[-1].endswith(f"]: {reason}")


def test_configuration_error_has_no_traceback_but_any_other_error_has(start):
    plain, crashed = start("-p", "fail:=configure"), start("-p", "fail:=crash", "-r", "__node:=other")
    assert plain.end() == crashed.end() == 1
    assert "Traceback" not in "\n".join(plain.lines)
    assert "Traceback" in "\n".join(crashed.lines)


def test_second_node_of_the_same_name_is_refused_by_name(make_node, start):
    name = make_node().get_name()
    second = start("-r", f"__node:={name}")
    assert second.end() == 1
    assert f"another node named '/{name}' is running in ROS domain" in second.lines[-1]


def test_failed_configure_is_torn_down_and_can_be_tried_again(make_node):
    node = make_node(fail="configure", autostart=False)
    before = len(list(node.timers))
    assert node.trigger_configure() == FAILURE
    assert node.events == ["set up", "tear down"]
    assert len(list(node.timers)) == before
    node.set_parameters([Parameter("fail", value="")])
    assert node.trigger_configure() == SUCCESS


def test_what_set_up_created_is_gone_after_cleanup_and_back_after_configure(make_node):
    node = make_node()
    before = len(list(node.timers))
    for _ in range(2):
        assert node.trigger_configure() == SUCCESS
        assert len(list(node.timers)) > before
        assert node.trigger_cleanup() == SUCCESS
        assert len(list(node.timers)) == before


def test_node_that_cannot_stop_is_torn_down_all_the_same(make_node):
    node = make_node(fail="stop")
    node.trigger_configure()
    node.trigger_activate()
    assert node.trigger_shutdown() == SUCCESS
    assert node.events[-2:] == ["stop: shut down", "tear down"]
    assert node.finalized


def test_failed_activation_stops_what_had_started_and_leaves_the_node_configured(make_node):
    node = make_node(fail="activate")
    node.trigger_configure()
    assert node.trigger_activate() == FAILURE
    assert node.events[-2:] == ["start", "stop: activation failed"]
    assert not node.active
    assert node.trigger_cleanup() == SUCCESS


def test_first_reason_to_end_is_the_one_that_is_repeated(make_node):
    node = make_node()
    node.trigger_configure()
    node.trigger_activate()
    node.fail("no robot state for 0.12 s")
    node.end("interrupted by the operator")
    node.trigger_deactivate()
    assert node.events[-1] == "stop: no robot state for 0.12 s"


def test_executor_waits_for_no_middleware_event_of_a_topic(make_node):
    node = make_node()
    node.create_subscription(String, "instruction", print, 1)
    node.create_publisher(String, "instruction", 1)
    assert not [waitable for waitable in node.waitables if isinstance(waitable, EventHandler)]


def test_parameters_cannot_change_while_the_node_is_configured(make_node):
    node = make_node()
    node.trigger_configure()
    (result,) = node.set_parameters([Parameter("rate", value=5.0)])
    assert not result.successful
    assert result.reason == "parameter 'rate' can only be changed while the node is unconfigured"
    node.trigger_cleanup()
    assert node.set_parameters([Parameter("rate", value=5.0)])[0].successful
    node.trigger_configure()
    assert node.p.rate == 5.0


def test_parameters_arrive_as_the_dataclass_declares_them(make_node):
    node = make_node(arms=["one"], use_sim_time=True)
    node.trigger_configure()
    assert node.p.arms == ("one",)
    assert node.p.weights == ()
    assert node.p.timeout is None
    assert (node.p.rate, node.p.count, node.p.fail) == (10.0, 1, "")


def test_limit_of_zero_is_a_limit_and_a_value(make_node):
    node = make_node(rate=0.0, timeout=0.0)
    node.trigger_configure()
    assert (node.p.rate, node.p.timeout) == (0.0, 0.0)
    with pytest.raises(ConfigurationError, match=r"parameter 'timeout': -0.1 is outside 0.0 .. inf"):
        make_node(timeout=-0.1)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ({"rate": 2}, r"parameter 'rate': 2 is an integer, expected a number with a decimal point"),
        ({"rate": "fast"}, r"parameter 'rate': 'fast' is text, expected a number with a decimal point"),
        ({"rate": float("nan")}, r"parameter 'rate': nan is not a number"),
        ({"count": 1.5}, r"parameter 'count': 1.5 is a number with a decimal point, expected an integer"),
        ({"arms": "left"}, r"parameter 'arms': 'left' is text, expected a list of text"),
        ({"weights": [0.5, -1.0]}, r"parameter 'weights': -1.0 is outside 0.0 .. inf"),
        ({"fail": "never"}, r"parameter 'fail': 'never' is not one of "),
        ({"autostart": 1}, r"parameter 'autostart': expected true or false"),
        ({"something_else": 1}, r"parameter 'something_else' is unknown \(known: arms, count, fail"),
    ],
)
def test_wrong_parameter_is_refused_by_name(make_node, overrides, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        make_node(**overrides)


def test_parameters_describe_themselves(make_node):
    descriptor = make_node().describe_parameter("rate")
    assert descriptor.description == "how often it ticks, Hz"
    assert (descriptor.floating_point_range[0].from_value, descriptor.floating_point_range[0].to_value) == (0.0, 100.0)
