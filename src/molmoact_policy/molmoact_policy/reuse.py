"""Reasoning that is kept while the pictures hardly change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from molmoact_policy.grammar import Choice, Grammar

CELLS = 10  # across and down a picture, as depth codes are


@dataclass(frozen=True)
class Shown:
    """A request, as coarse as it is compared: the prompt and of each picture the mean of its cells [10, 10, 3]."""

    prompt: str
    cells: list[NDArray[np.float32]]

    @classmethod
    def of(cls, images: Sequence[NDArray[np.uint8]], prompt: str) -> Shown:
        """images: uint8 RGB [H, W, 3] each."""
        size = (CELLS, CELLS)
        means = [cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA) for image in images]
        return cls(prompt, [np.asarray(mean, np.float32) for mean in means])

    def change(self, other: Shown) -> float:
        """The largest difference of any cell; infinite when not the same is asked about as many pictures."""
        if self.prompt != other.prompt or len(self.cells) != len(other.cells):
            return np.inf
        return max(float(np.abs(a - b).max()) for a, b in zip(self.cells, other.cells, strict=True))


class KeptReasoning:
    """Depth and trace as they were last thought of, for as long as all that is shown looks as it did then.

    threshold: the largest change of any of a picture's 10 x 10 cells up to which it looks the same, as a difference of
    mean brightness of any colour, in 0..255.
    """

    def __init__(self, grammar: Grammar, threshold: float) -> None:
        self._grammar = grammar
        self._threshold = threshold
        self._shown: Shown | None = None
        self._choices: dict[int, Choice] = {}

    def recall(self, shown: Shown) -> dict[int, Choice]:
        """What was said at the places of depth and trace; nothing when it has to be thought anew."""
        if self._shown is None or shown.change(self._shown) > self._threshold:
            return {}
        return self._choices

    def keep(self, shown: Shown, said: Sequence[tuple[int, Choice]]) -> None:
        """Takes in a reply that was thought out whole (see Grammar.read)."""
        self._shown = shown
        self._choices = {place: choice for place, choice in said if self._grammar.places[place].part != "action"}
