"""Greedy decoding in few passes: the same tokens as one by one, several times sooner (docs/explanation/decoding.md).

A pass of the language model reads all its weights, whether it is given one token or a hundred. So every pass is given
a guess of what comes next, and says for each guessed token what the model would have written there. What agrees, and
the first token that does not, is the reply; everything behind that is guessed anew, by what the pass has just said
(Jacobi iteration). A wrong guess costs a pass, never a token.

In exact arithmetic the result is that of token by token. In floating point a position computed among others may be
rounded differently, so that of two tokens whose logits are nearly equal the other may win.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from molmoact_policy.errors import Interrupted
from molmoact_policy.grammar import NO_CHOICE, Choice, Grammar, Spelled, State
from molmoact_policy.incremental import IncrementalModel
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.perception import Prefix

# Guessed tokens in one pass. A GPU computes these while it reads the weights; a CPU has to work for each, and nano's
# replies are soonest there with 16 to 32.
WINDOW = {"cuda": 256, "cpu": 24}


@dataclass(frozen=True)
class Decoded:
    """ids: of the reply, EOS included unless it was cut off; passes: of the language model, the prompt's included."""

    ids: list[int]
    passes: int


class Decoder:
    """Decodes replies of one grammar. Not thread-safe.

    strict: only what the grammar allows is ever written: of the allowed tokens the one the model likes best, and
    where only one is allowed that one, unasked. Otherwise (free) plain greedy decoding, for which the grammar only
    guesses.
    """

    def __init__(
        self, model: MolmoActForActionReasoning, eos_id: int, *, strict: bool = True, window: int | None = None
    ) -> None:
        self._model = model
        self._eos_id = eos_id
        self._strict = strict
        self._window = window or WINDOW.get(model.device.type, WINDOW["cuda"])
        self._incremental = IncrementalModel(model)
        self._cached: list[Any] = []  # signature of the prefix whose keys and values are there
        self._scorers: dict[int, _LegalScorer] = {}

    def decode(
        self,
        prefix: Prefix,
        grammar: Grammar,
        draft: list[Choice],
        max_tokens: int,
        should_stop: Callable[[], bool] | None = None,
        given: Mapping[int, Choice] | None = None,
    ) -> Decoded:
        """The reply to a prefix.

        draft: a guess at every place of the grammar, whatever it may be worth. max_tokens: where the reply is cut off.
        should_stop: asked before every pass. Raises Interrupted when it says so. given: what the reply says at these
        places, whatever the model thinks of it; only of a strict decoder.
        """
        given = given or {}
        choices = [given.get(place, choice) for place, choice in enumerate(draft)]
        pending = self._reuse(prefix)
        ids: list[int] = []
        state: State | None = grammar.start
        unspelled = [self._eos_id]  # the guess for a reply that has left the grammar
        passes = 0
        while True:
            if should_stop is not None and should_stop():
                raise Interrupted(f"stopped after {passes} passes")
            guess = Spelled(unspelled[: self._window], [], [])
            if state is not None:
                guess = grammar.spell(state, choices, self._window, given)
            guess = guess.cut(max_tokens - len(ids))
            if self._strict and state is not None and all(number == NO_CHOICE for number in guess.sets):
                return Decoded(ids + guess.ids, passes)  # all that is left is forced
            hidden = self._run(pending, guess.ids[:-1])
            passes += 1
            self._cached = prefix.signature
            predicted = self._predict(grammar, hidden, guess)
            agreed = _agreed(guess.ids, predicted)
            new = predicted[: agreed + 1]
            ids += new
            if self._eos_id in new or len(ids) >= max_tokens:
                return Decoded(_cut(ids, self._eos_id, max_tokens), passes)
            if state is not None:
                grammar.refine(choices, guess, predicted)
                state = _follow(grammar, state, new)
            unspelled = predicted[agreed + 1 :] or [self._eos_id]
            # The last token's own keys and values are not there yet, and those of wrong guesses are written over.
            self._incremental.length = len(prefix.signature) + len(ids) - 1
            pending = self._embed(ids[-1:])

    def _reuse(self, prefix: Prefix) -> Tensor:
        """What of the prefix is still to be run, at least its last position: the rest is cached from the last time."""
        kept = 0
        for now, before in zip(prefix.signature[:-1], self._cached, strict=False):
            if now != before:
                break
            kept += 1
        self._cached = []
        self._incremental.length = kept
        return prefix.embeddings[kept:]

    def _run(self, pending: Tensor, guessed: list[int]) -> Tensor:
        """Hidden states [1 + guessed, hidden] at the last pending position and at the guessed tokens."""
        rows = torch.cat([pending, self._embed(guessed)]) if guessed else pending
        return self._incremental.append(rows)[len(pending) - 1 :]

    def _embed(self, ids: list[int]) -> Tensor:
        return self._model.get_input_embeddings()(torch.tensor(ids, device=self._model.device))

    def _predict(self, grammar: Grammar, hidden: Tensor, guess: Spelled) -> list[int]:
        """What the model writes in the place of each guessed token."""
        if not self._strict:
            return self._model.lm_head(hidden).argmax(-1).tolist()
        if id(grammar) not in self._scorers:
            self._scorers[id(grammar)] = _LegalScorer(grammar, self._model.lm_head.weight)
        return self._scorers[id(grammar)].predict(hidden, guess)


class _LegalScorer:
    """The rows of the head for tokens that are ever to be chosen from, and which of them may be, by legal set."""

    def __init__(self, grammar: Grammar, head: Tensor) -> None:
        self._grammar = grammar  # keeps it alive, and with it its id
        self._ids = grammar.ids
        self._rows = head[torch.tensor(self._ids, device=head.device)]  # [legal ids, hidden]
        position = {number: index for index, number in enumerate(self._ids)}
        allowed = torch.zeros(len(grammar.legal_sets), len(self._ids), dtype=torch.bool)
        for index, ids in enumerate(grammar.legal_sets):
            allowed[index, [position[number] for number in ids]] = True
        self._forbidden = ~allowed.to(head.device)

    def predict(self, hidden: Tensor, guess: Spelled) -> list[int]:
        predicted = list(guess.ids)  # where there is no choice, the guess is what the grammar says
        open_places = [index for index, number in enumerate(guess.sets) if number != NO_CHOICE]
        if not open_places:
            return predicted
        logits = F.linear(hidden[torch.tensor(open_places, device=hidden.device)], self._rows)
        # Never below what is not allowed, even if the weights have overflowed.
        logits = logits.clamp(min=torch.finfo(logits.dtype).min)
        sets = torch.tensor([guess.sets[index] for index in open_places], device=hidden.device)
        best = logits.masked_fill(self._forbidden[sets], float("-inf")).argmax(-1).tolist()
        for index, number in zip(open_places, best, strict=True):
            predicted[index] = self._ids[number]
        return predicted


def _agreed(guessed: list[int], predicted: list[int]) -> int:
    """How many tokens at the beginning are the same."""
    for index, (guess, prediction) in enumerate(zip(guessed, predicted, strict=True)):
        if guess != prediction:
            return index
    return len(guessed)


def _follow(grammar: Grammar, state: State, ids: list[int]) -> State | None:
    following: State | None = state
    for number in ids:
        if following is None:
            return None
        following = grammar.step(following, number)
    return following


def _cut(ids: list[int], eos_id: int, max_tokens: int) -> list[int]:
    """Up to the first EOS, or to the limit if there is none before."""
    end = ids.index(eos_id) + 1 if eos_id in ids else len(ids)
    return ids[: min(end, max_tokens)]
