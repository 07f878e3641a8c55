"""Reasoning that is kept while the pictures hardly change."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact_policy.grammar import Choice, Grammar

CELLS = 10  # across and down a picture, as depth codes are


class KeptReasoning:
    """Depth and trace as they were last thought of, for as long as all that is shown looks as it did then.

    threshold: the largest change of any of a picture's 10 x 10 cells up to which it looks the same, as a difference of
    mean brightness of any colour, in 0..255.
    """

    def __init__(self, grammar: Grammar, threshold: float) -> None:
        self._grammar = grammar
        self._threshold = threshold
        self._prompt = ""
        self._cells: list[NDArray[np.float32]] = []
        self._choices: dict[int, Choice] = {}

    def recall(self, images: Sequence[NDArray[np.uint8]], prompt: str) -> dict[int, Choice]:
        """What was said at the places of depth and trace; nothing when it has to be thought anew.

        images: uint8 RGB [H, W, 3] each.
        """
        same = prompt == self._prompt and len(images) == len(self._cells)
        if same and change(self._cells, [_cells(image) for image in images]) <= self._threshold:
            return self._choices
        return {}

    def keep(self, images: Sequence[NDArray[np.uint8]], prompt: str, said: Sequence[tuple[int, Choice]]) -> None:
        """Takes in a reply that was thought out whole (see Grammar.read)."""
        self._prompt = prompt
        self._cells = [_cells(image) for image in images]
        self._choices = {place: choice for place, choice in said if self._grammar.places[place].part != "action"}


def change(before: Sequence[NDArray[np.float32]], now: Sequence[NDArray[np.float32]]) -> float:
    """The largest change of any cell."""
    return max(float(np.abs(a - b).max()) for a, b in zip(before, now, strict=True))


def _cells(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float32 [10, 10, 3], the mean of each cell."""
    return np.asarray(cv2.resize(image.astype(np.float32), (CELLS, CELLS), interpolation=cv2.INTER_AREA), np.float32)
