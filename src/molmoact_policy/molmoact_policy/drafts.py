"""What a reply will probably say, before the model says it: the one before, moved on by what has been done since.

A draft decides nothing but how soon the reply is there; see decoding.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from molmoact_policy.grammar import VALUES, Choice, Grammar


class Drafts:
    """A guess for every place of a reply, from the replies so far.

    Before the first one every value is the middle of its range, and of the ways on the first is taken. Afterwards a
    place is guessed to hold what it held in the reply before; the action rows are moved up by as many rows as they were
    found to have moved up between the last two replies, because that is how much of a chunk is executed before the next
    look.
    """

    def __init__(self, grammar: Grammar) -> None:
        self._last = [Choice(len(VALUES[place.part]) // 2, 0) for place in grammar.places]
        rows: dict[tuple[int, int, int], list[int]] = {}
        for number, place in enumerate(grammar.places):
            if place.part == "action":
                rows.setdefault((place.wording, place.block, place.column), []).append(number)
        self._columns = list(rows.values())  # for each column of a chunk, the place of every row
        self._shift = 0

    def choices(self) -> list[Choice]:
        """What is guessed at each of the grammar's places."""
        guessed = list(self._last)
        for column in self._columns:
            values = [self._last[place].value for place in column]
            moved = values[self._shift :] + values[-1:] * self._shift
            for place, value in zip(column, moved, strict=False):
                guessed[place] = Choice(value, self._last[place].exit)
        return guessed

    def learn(self, said: Sequence[tuple[int, Choice]]) -> None:
        """Takes in a whole reply: what it chose at each of its places (see Grammar.read)."""
        now = dict(said)
        before = [[self._last[place].value for place in column if place in now] for column in self._columns]
        after = [[now[place].value for place in column if place in now] for column in self._columns]
        rows = max(map(len, after), default=0)
        self._shift = min(range(rows + 1), key=lambda shift: -_agreement(before, after, shift), default=0)
        for place, choice in now.items():
            self._last[place] = choice


def _agreement(before: list[list[int]], after: list[list[int]], shift: int) -> int:
    """How many values of a chunk are those of another, moved up by some rows; its last row goes on."""
    return sum(
        earlier == later
        for old, new in zip(before, after, strict=True)
        for earlier, later in zip(old[shift:] + old[-1:] * shift, new, strict=False)
    )
