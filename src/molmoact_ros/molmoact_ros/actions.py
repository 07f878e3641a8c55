"""An action client that any thread may use."""

from __future__ import annotations

import threading
from typing import Any

import rclpy.action
from rclpy.task import Future


class ActionClient(rclpy.action.ActionClient):
    """rclpy's, whose answers are not lost when the executor is faster than the thread that asks.

    Jazzy's client notes what it waits for after it has sent the request. An executor in another thread that takes the
    answer in between calls it unexpected and drops it, and whoever asked waits for ever. (Its service client has a lock
    for this.)
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._asking = threading.Lock()
        super().__init__(*arguments, **options)

    def send_goal_async(self, *arguments: Any, **options: Any) -> Future:
        """See rclpy.action.ActionClient."""
        with self._asking:
            return super().send_goal_async(*arguments, **options)

    def _cancel_goal_async(self, goal_handle: Any) -> Future:
        with self._asking:
            return super()._cancel_goal_async(goal_handle)

    def _get_result_async(self, goal_handle: Any) -> Future:
        with self._asking:
            return super()._get_result_async(goal_handle)

    async def execute(self, taken_data: Any) -> None:
        """See rclpy.action.ActionClient; what was taken may answer what another thread is about to have asked."""
        with self._asking:
            pass
        await super().execute(taken_data)
