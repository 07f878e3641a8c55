"""What the policy says, as messages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from geometry_msgs.msg import Vector3
from molmoact_msgs.msg import ActionChunk, ArmActions, CartesianDelta, Reasoning, TracePoint
from molmoact_ros.stamps import duration_from_nanoseconds, duration_from_seconds, from_nanoseconds
from numpy.typing import NDArray

from molmoact_policy.depth import most_square
from molmoact_policy.embodiment import Delta
from molmoact_policy.errors import ReplyError
from molmoact_policy.policy import Prediction
from molmoact_policy.runner import Chunk, Seen


def chunk_message(
    chunk: Chunk, arms: dict[str, Sequence[Delta]], frame_id: str, step_period: int, published: int
) -> ActionChunk:
    """`arms`: the rows of every arm, expressed in `frame_id`; `step_period` and `published` in ns."""
    message = ActionChunk(
        sequence=chunk.sequence,
        observation_stamp=from_nanoseconds(chunk.observation_stamp),
        start=from_nanoseconds(chunk.start),
        step_period=duration_from_nanoseconds(step_period),
        arms=[ArmActions(arm=arm, steps=[_delta(*delta) for delta in deltas]) for arm, deltas in arms.items()],
        instruction=chunk.instruction,
    )
    message.header.stamp = from_nanoseconds(published)
    message.header.frame_id = frame_id
    return message


def reasoning_message(
    seen: Seen, reply: Prediction | ReplyError, sequence: int, error: str, frame_id: str
) -> Reasoning:
    """What the model wrote, also when it gave no chunk; `frame_id`: of the first image."""
    message = Reasoning(sequence=sequence, steered=seen.trace is not None, reply=reply.text, error=error)
    message.header.stamp = from_nanoseconds(seen.stamp)
    message.header.frame_id = frame_id
    if reply.depth_codes:
        message.depth_rows, message.depth_columns = most_square(len(reply.depth_codes))
        message.depth_codes = bytes(reply.depth_codes)
    message.trace = [TracePoint(x=int(x), y=int(y)) for x, y in shown_trace(seen, reply) or ()]
    if not isinstance(reply, ReplyError):
        message.latency = duration_from_seconds(reply.latency)
        message.forward_passes = reply.forward_passes
        message.reused = reply.reused
    return message


def shown_trace(seen: Seen, reply: Prediction | ReplyError) -> Sequence[tuple[int, int]] | None:
    """The trace the actions follow: the operator's when there is one, else the model's."""
    return seen.trace if seen.trace is not None else reply.trace


def _delta(translation: NDArray[np.float64], rotation: NDArray[np.float64], gripper: float) -> CartesianDelta:
    return CartesianDelta(translation=_vector(translation), rotation=_vector(rotation), gripper=gripper)


def _vector(values: NDArray[np.float64]) -> Vector3:
    x, y, z = values.tolist()
    return Vector3(x=x, y=y, z=z)
