"""Replies of a running policy node beside what was recorded: chunk and reasoning of a moment are put together again."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from molmoact_training.evaluation.looks import Look
from molmoact_training.evaluation.metrics import Answer
from molmoact_training.evaluation.prediction import Conventions, unanswered

# How soon the wait for a reply notices that it shall end.
POLL_S = 0.1


@dataclass(frozen=True)
class Heard:
    """What the policy wrote about one moment. sequence: of its chunk, 0 without one; error: why there is none."""

    sequence: int
    codes: Sequence[int]
    trace: Sequence[tuple[int, int]]
    text: str
    error: str
    latency: float  # s
    passes: int


class Replies:
    """Collects reasoning by the stamp of what was looked at, and chunks by their sequence, in whatever order they come.
    Thread-safe.
    """

    def __init__(self) -> None:
        self._news = threading.Condition()
        self._reasoning: dict[int, Heard] = {}
        self._chunks: dict[int, NDArray[np.float64]] = {}

    def add_reasoning(self, stamp: int, heard: Heard) -> None:
        """`stamp`: of the observation, ns."""
        with self._news:
            self._reasoning[stamp] = heard
            self._news.notify_all()

    def add_chunk(self, sequence: int, rows: NDArray[np.float64]) -> None:
        """`rows`: [N, 7 · A] in SI units."""
        with self._news:
            self._chunks[sequence] = rows
            self._news.notify_all()

    def take(
        self, stamp: int, timeout_s: float, stop: threading.Event
    ) -> tuple[Heard, NDArray[np.float64] | None] | None:
        """The reply about the moment and its rows, None for one that gave no chunk; None in all when there is none
        within the time, or `stop` is set.
        """
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not self._complete(stamp):
                if stop.is_set() or time.monotonic() > deadline:
                    return None
                self._news.wait(POLL_S)
            heard = self._reasoning.pop(stamp)
            return heard, self._chunks.pop(heard.sequence, None)

    def _complete(self, stamp: int) -> bool:
        heard = self._reasoning.get(stamp)
        return heard is not None and (heard.sequence == 0 or heard.sequence in self._chunks)


def answer_of(look: Look, conventions: Conventions, heard: Heard, rows: NDArray[np.float64] | None) -> Answer:
    """As `molmoact evaluate` has it of the policy itself."""
    answer = replace(
        unanswered(look, conventions),
        predicted_codes=list(heard.codes) or None,
        predicted_trace=list(heard.trace) or None,
        text=heard.text,
        error=heard.error,
    )
    if rows is None:
        return answer
    return replace(
        answer,
        predicted=rows,
        predicted_bins=conventions.bins(rows),
        latency=heard.latency,
        passes=heard.passes,
    )
