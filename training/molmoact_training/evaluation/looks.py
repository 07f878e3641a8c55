"""What every source of recorded data gives: looks at frames, and episodes as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from molmoact_policy.embodiment import Embodiment
from molmoact_policy.reply import DEPTH_TOKENS
from numpy.typing import NDArray

from molmoact_training.errors import DatasetError
from molmoact_training.evaluation.metrics import Recording

# Rows of a chunk in the paper's post-training, for a checkpoint that does not say how many it writes.
PAPER_ROWS = 8


@dataclass(frozen=True)
class Look:
    """One frame: what the policy is shown, and what was recorded from there on.

    images: uint8 RGB [H, W, 3] per camera; recorded: [rows, 7 · A] in SI units, only rows that were recorded; codes
    uint8 [100] of this frame and of the one before, trace uint8 [P, 2] of the first arm: None where not annotated;
    stamp: ns of the moment, 0 where the data do not say it.
    """

    episode: str
    frame: int
    instruction: str
    images: list[NDArray[np.uint8]]
    recorded: NDArray[np.float64]
    codes: NDArray[np.uint8] | None = None
    previous_codes: NDArray[np.uint8] | None = None
    trace: NDArray[np.uint8] | None = None
    stamp: int = 0


class Source(Protocol):
    """Where looks come from. Whatever is wrong with it raises DatasetError, naming the episode and frame."""

    kind: str
    embodiment: Embodiment  # of the recorded actions
    dimensions: int
    left_out: dict[str, int]  # what is not evaluated, and why

    def names(self) -> list[str]:
        """The episodes, in a fixed order."""
        ...

    def recording(self, name: str) -> Recording: ...

    def looks(self, name: str, frames: Sequence[int]) -> Iterator[Look]:
        """At these frames of an episode, which are ascending."""
        ...


def checked(look: Look, cameras: int) -> Look:
    """The same. Raises DatasetError when something is wrong with it that would only show in the results."""
    where = f"episode {look.episode}, frame {look.frame}"
    if not look.instruction.strip():
        raise DatasetError(f"{where}: the instruction is empty")
    if len(look.images) != cameras:
        raise DatasetError(f"{where}: {len(look.images)} pictures, expected {cameras}, one per camera")
    if not np.isfinite(look.recorded).all():
        raise DatasetError(f"{where}: recorded actions are not finite")
    for codes in (look.codes, look.previous_codes):
        if codes is not None and len(codes) != DEPTH_TOKENS:
            raise DatasetError(f"{where}: {len(codes)} depth codes, expected {DEPTH_TOKENS}")
    return look
