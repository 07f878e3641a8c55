"""The automaton of replies: it accepts what the tokenizer makes of any reply training writes, and nothing else."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.actions import BIN_OF, SYMBOLS, ActionStatistics, format_actions
from molmoact_policy.checkpoint import EMBEDDED, locate
from molmoact_policy.errors import CheckpointError
from molmoact_policy.grammar import MAX_ROWS, NO_CHOICE, VALUES, Choice, Grammar
from molmoact_policy.images import ImageProcessor
from molmoact_policy.processor import IMAGE_TOKENS, Processor
from molmoact_policy.prompts import WORDINGS, format_depth, format_trace, reply_template
from molmoact_policy.reply import parse_reply
from molmoact_policy.tokenizer import DEPTH_TOKENS
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from . import qwen

TOKENIZERS = (("nano", "text"), ("qwen", "text"), ("qwen", "token"), ("characters", "text"))  # and encodings of actions
KINDS = [  # dimensions, rows, steered
    (7, 8, False),
    (7, 8, True),
    (7, 1, False),
    (7, None, True),
    (14, None, False),
]


def character_tokenizer(*more: str) -> PreTrainedTokenizerFast:
    """A token for every character, symbol and further piece: here one way on may begin with another."""
    words = ["<eos>", *(chr(code) for code in range(32, 127)), *SYMBOLS, *more]
    tokenizer = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in DEPTH_TOKENS])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ["<eos>", *IMAGE_TOKENS]])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


@cache
def processor(name: str, encoding: str = "text") -> Processor:
    if name == "nano":
        return Processor.from_pretrained(locate(EMBEDDED)).with_action_encoding(encoding)
    made = qwen.released_tokenizer() if name == "qwen" else character_tokenizer()
    return Processor(ImageProcessor(), made, encoding)


@cache
def grammar(name: str, encoding: str, dimensions: int, rows: int | None, steered: bool) -> Grammar:
    return Grammar(processor(name, encoding), dimensions, rows=rows, steered=steered)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Processor, Grammar, str, tuple[int, int | None, bool], random.Random]:
    """A tokenizer, the grammar of a kind of replies, and such a reply."""
    name, encoding = draw(st.sampled_from(TOKENIZERS))
    kind = draw(st.sampled_from(KINDS))
    rng = draw(st.randoms(use_true_random=False))
    return processor(name, encoding), grammar(name, encoding, *kind), reply(rng, *kind), kind, rng


def reply(rng: random.Random, dimensions: int, rows: int | None, steered: bool) -> str:
    def trace() -> str:
        return format_trace([(rng.randrange(256), rng.randrange(256)) for _ in range(rng.randint(1, 5))])

    count = rows or rng.randint(1, MAX_ROWS)
    chunk = np.array([[rng.randrange(256) for _ in range(dimensions)] for _ in range(count)])
    if count == 1 and rng.random() < 0.5:
        chunk = chunk[0]
    return reply_template(steered, arms=dimensions // 7, wording=rng.choice(list(WORDINGS))).format(
        depth=format_depth([rng.randrange(128) for _ in range(100)]),
        trace=trace(),
        left_trace=trace(),
        right_trace=trace(),
        action=format_actions(chunk),
    )


@given(cases())
@settings(deadline=None, max_examples=150)
def test_the_tokens_of_any_reply_are_accepted_as_the_values_it_holds(case: tuple) -> None:
    made, automaton, text, _, _ = case
    said = automaton.read(made.encode_reply(text))
    assert said is not None
    symbols = [choice.value for place, choice in said if automaton.places[place].part == "action"]
    assert symbols == [BIN_OF[part.strip("[]. ")] for part in text[text.rindex(" is ") + 4 :].split(",")]
    codes = [choice.value for place, choice in said if automaton.places[place].part == "depth"]
    assert "".join(f"<DEPTH_{code}>" for code in codes) in text


@given(cases())
@settings(deadline=None, max_examples=100)
def test_any_walk_spells_a_reply_that_parses_and_that_the_tokenizer_would_have_spelled_so(case: tuple) -> None:
    made, automaton, _, (dimensions, rows, steered), rng = case
    state, ids = automaton.start, []
    while state != automaton.end:
        legal = automaton.legal(state)
        assert legal
        number = automaton.set_of(state)
        assert (number == NO_CHOICE) == (len(legal) == 1)
        assert number == NO_CHOICE or list(automaton.legal_sets[number]) == legal
        ids.append(rng.choice(legal))
        following = automaton.step(state, ids[-1])
        assert following is not None
        state = following
    text = made.decode(ids)
    assert made.encode_reply(text.removeprefix(" ")) == ids
    unit = {"q01": [-1.0] * dimensions, "q99": [1.0] * dimensions}
    statistics = ActionStatistics.from_norm_stats({"unit": {"action": unit}})
    parsed = parse_reply(text, statistics, steered=steered, rows=rows)
    assert parsed.actions.shape[1] == dimensions


@given(cases(), st.data())
@settings(deadline=None, max_examples=60)
def test_another_token_anywhere_is_not_accepted_unless_it_makes_another_reply(case: tuple, data: st.DataObject) -> None:
    made, automaton, text, _, _ = case
    ids = made.encode_reply(text)
    ids[data.draw(st.integers(0, len(ids) - 1))] = data.draw(st.sampled_from(automaton.ids))
    if automaton.read(ids) is not None:
        assert made.encode_reply(made.decode(ids).removeprefix(" ")) == ids


@given(cases())
@settings(deadline=None, max_examples=40)
def test_from_a_reply_cut_anywhere_its_own_choices_spell_the_rest(case: tuple) -> None:
    made, automaton, text, _, _ = case
    ids = made.encode_reply(text)
    said = automaton.read(ids)
    assert said is not None
    choices = [Choice(0, 0)] * len(automaton.places)
    for place, choice in said:
        choices[place] = choice
    state = automaton.start
    for length, token in enumerate(ids):
        spelled = automaton.spell(state, choices, len(ids))
        assert spelled.ids == ids[length:]
        assert spelled.sets[0] == automaton.set_of(state)
        following = automaton.step(state, token)
        assert following is not None
        state = following
    assert state == automaton.end


@given(cases(), st.data())
@settings(deadline=None, max_examples=60)
def test_whatever_is_guessed_is_spelled_within_the_grammar(case: tuple, data: st.DataObject) -> None:
    made, automaton, text, _, rng = case
    ids = made.encode_reply(text)
    cut = data.draw(st.integers(0, len(ids) - 1))
    choices = [rng.choice(list(trie.tokens)) for trie in automaton.tries]
    state = automaton.start
    for token in ids[:cut]:
        following = automaton.step(state, token)
        assert following is not None
        state = following
    assert automaton.read([*ids[:cut], *automaton.spell(state, choices, 10_000).ids]) is not None


@given(cases(), st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_given_rows_begin_the_actions_of_whatever_else_is_said(case: tuple, count: int) -> None:
    made, automaton, text, (dimensions, *_), rng = case
    values = np.array([[rng.randrange(256) for _ in range(dimensions)] for _ in range(count)])
    choices = [rng.choice(list(trie.tokens)) for trie in automaton.tries]
    for place, choice in [*(automaton.read(made.encode_reply(text)) or ()), *automaton.first_rows(values).items()]:
        choices[place] = choice
    said = automaton.read(automaton.spell(automaton.start, choices, 10_000).ids)
    assert said is not None
    actions = [choice.value for place, choice in said if automaton.places[place].part == "action"]
    written = min(len(actions), values.size)
    assert actions[:written] == values.ravel()[:written].tolist()


@given(st.randoms(use_true_random=False), st.booleans())
@settings(deadline=None, max_examples=40)
def test_one_refinement_corrects_every_value_that_is_one_token(rng: random.Random, steered: bool) -> None:
    automaton = grammar("nano", "text", 7, 8, steered)
    guessed = automaton.read(processor("nano").encode_reply(reply(rng, 7, 8, steered)))
    assert guessed is not None
    choices = [Choice(0, 0)] * len(automaton.places)
    meant = list(choices)
    for place, choice in guessed:
        choices[place] = meant[place] = choice
        size = len(VALUES[automaton.places[place].part])
        # Values below ten are spelled with a space of their own, so one is only ever mistaken for its like.
        alike = range(10) if choice.value < 10 else range(10, size)
        if size > 1:
            meant[place] = Choice(rng.choice(alike), choice.exit)
    said = automaton.spell(automaton.start, meant, 10_000).ids
    automaton.refine(choices, automaton.spell(automaton.start, choices, 10_000), said)
    assert automaton.spell(automaton.start, choices, 10_000).ids == said


def test_a_tokenizer_that_joins_a_value_with_the_next_is_named() -> None:
    joining = Processor(ImageProcessor(), character_tokenizer(*(f"{number}, {number}" for number in range(10))))
    with pytest.raises(CheckpointError, match="tokenizer: ', ' is joined with what stands before and after it"):
        Grammar(joining, 7, rows=8, steered=False)
