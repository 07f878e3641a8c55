import threading
from typing import Any

import pytest
import rclpy
from action_msgs.msg import GoalStatus
from molmoact_msgs.action import RunTask
from molmoact_ros.actions import ActionClient
from rclpy.action import ActionServer
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor

PATIENCE_S = 20.0


class LateReturn:
    """A client's handle whose requests return only when the answer has been taken by another thread."""

    def __init__(self, client: Any) -> None:
        self._handle, self._take = client._client_handle, client.take_data
        self._taken = threading.Event()
        client._client_handle, client.take_data = self, self._noticed

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._handle, name)
        return self._late(method) if name.startswith("send_") else method

    def _noticed(self) -> Any:
        data = self._take()
        self._taken.set()
        return data

    def _late(self, send: Any) -> Any:
        def sent(request: Any) -> int:
            self._taken.clear()
            number = send(request)
            assert self._taken.wait(PATIENCE_S)
            return number

        return sent


@pytest.fixture
def node():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("asking", context=context)
    executor = MultiThreadedExecutor(num_threads=4, context=context)
    executor.add_node(node)

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            return

    thread = threading.Thread(target=spin)
    thread.start()
    yield node
    rclpy.shutdown(context=context)
    thread.join()
    node.destroy_node()


def finished(future: Any) -> Any:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(PATIENCE_S), "the answer was lost"
    return future.result()


def test_answers_that_come_before_the_request_has_returned_are_not_lost(node) -> None:
    def succeed(goal: Any) -> RunTask.Result:
        goal.succeed()
        return RunTask.Result()

    server = ActionServer(node, RunTask, "run_task", succeed)
    client = ActionClient(node, RunTask, "run_task")
    assert client.wait_for_server(PATIENCE_S)
    LateReturn(client)
    handle = finished(client.send_goal_async(RunTask.Goal(instruction="pick up the red cube")))
    assert handle.accepted
    assert finished(handle.get_result_async()).status == GoalStatus.STATUS_SUCCEEDED
    assert finished(handle.cancel_goal_async()).goals_canceling == []
    server.destroy()
