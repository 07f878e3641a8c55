"""Decoding in few passes says what decoding one token after another says, whatever is guessed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from molmoact_policy.actions import format_actions
from molmoact_policy.checkpoint import EMBEDDED, locate
from molmoact_policy.decoding import Decoder
from molmoact_policy.drafts import Drafts
from molmoact_policy.errors import Interrupted
from molmoact_policy.grammar import Choice, Grammar, State
from molmoact_policy.images import ImageProcessor
from molmoact_policy.incremental import IncrementalModel
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.perception import Perception, Prefix
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import format_depth, format_trace, reasoning_reply, steering_reply

from .random_models import FAMILIES, random_model

HIDDEN = 24
# Two logits closer than this may be rounded to either order, in passes of other sizes.
CLEAR = 1e-4


@cache
def processor() -> Processor:
    return Processor.from_pretrained(locate(EMBEDDED))


@cache
def grammar(steered: bool, rows: int | None = 2) -> Grammar:
    return Grammar(processor(), 7, rows=rows, steered=steered)


@cache
def model(family: str, seed: int, side: int = 4) -> MolmoActForActionReasoning:
    """With heads that share keys and values."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 12}
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 1152}
    return random_model(
        image_patch_id=processor().image_patch_id,
        seed=seed,
        side=side,
        vit_layers=2,
        additional_vocab_size=6,
        **sizes,
        **heads,
        **FAMILIES[family],
    )


def prefix_of(given_model: MolmoActForActionReasoning, ids: list[int]) -> Prefix:
    return Prefix(given_model.get_input_embeddings()(torch.tensor(ids)).detach(), list(ids))


def one_by_one(
    given_model: MolmoActForActionReasoning,
    ids: list[int],
    limit: int,
    automaton: Grammar | None = None,
    places: Mapping[int, Choice] = MappingProxyType({}),
) -> tuple[list[int], float]:
    """transformers' own loop, restricted to a grammar and to choices at some of its places if there are any, and how
    near the nearest second choice came."""
    allowed = None
    if automaton is not None:

        def allowed(_: int, sequence: torch.Tensor) -> list[int]:
            state = automaton.start
            for token in sequence[len(ids) :].tolist():
                state = automaton.step(state, token)
            if state.place in places:
                return [automaton.tries[state.place].tokens[places[state.place]][depth_of(automaton, state)]]
            return automaton.legal(state)

    output = given_model.generate(
        torch.tensor([ids]),
        max_new_tokens=limit,
        do_sample=False,
        eos_token_id=processor().eos_id,
        pad_token_id=processor().eos_id,
        prefix_allowed_tokens_fn=allowed,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(output.scores)[:, 0].topk(2).values
    return output.sequences[0, len(ids) :].tolist(), float((best[:, 0] - best[:, 1]).min())


def depth_of(automaton: Grammar, state: State) -> int:
    """How many tokens of the place are there."""
    return len(automaton.tries[state.place].prefix[state.node])


def any_draft(rng: random.Random, automaton: Grammar) -> list[Choice]:
    return [rng.choice(list(trie.tokens)) for trie in automaton.tries]


def draft_of(automaton: Grammar, ids: list[int]) -> list[Choice]:
    """The draft that guesses a whole reply."""
    choices = [next(iter(trie.tokens)) for trie in automaton.tries]
    for place, choice in automaton.read(ids) or ():
        choices[place] = choice
    return choices


@st.composite
def requests(draw: st.DrawFn) -> tuple[MolmoActForActionReasoning, list[int], Grammar, random.Random, int]:
    """A model, a prompt, a grammar, chance, and a window."""
    rng = draw(st.randoms(use_true_random=False))
    made = model(draw(st.sampled_from(list(FAMILIES))), draw(st.integers(0, 9)))
    ids = draw(st.lists(st.integers(1, 1151), min_size=1, max_size=12))
    return made, ids, grammar(draw(st.booleans())), rng, draw(st.integers(1, 80))


PROPERTY = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.filter_too_much])


@given(requests())
@PROPERTY
@torch.inference_mode()
def test_free_decoding_is_plain_greedy_whatever_the_draft(request: tuple) -> None:
    made, ids, automaton, rng, window = request
    expected, gap = one_by_one(made, ids, 60)
    assume(gap > CLEAR)
    decoder = Decoder(made, processor().eos_id, strict=False, window=window)
    found = decoder.decode(prefix_of(made, ids), automaton, any_draft(rng, automaton), 60)
    assert found.ids == expected
    assert found.passes <= len(expected)


@given(requests())
@PROPERTY
@torch.inference_mode()
def test_strict_decoding_is_greedy_among_what_the_grammar_allows_whatever_the_draft(request: tuple) -> None:
    made, ids, automaton, rng, window = request
    expected, gap = one_by_one(made, ids, 1000, automaton)
    assume(gap > CLEAR)
    decoder = Decoder(made, processor().eos_id, window=window)
    found = decoder.decode(prefix_of(made, ids), automaton, any_draft(rng, automaton), 1000)
    assert found.ids == expected
    assert automaton.read(found.ids) is not None


@pytest.mark.parametrize("steered", [False, True])
@torch.inference_mode()
def test_a_model_that_stays_in_the_grammar_is_followed_freely_with_every_draft(steered: bool) -> None:
    """The embedded checkpoint on noise, with the right draft, one cut short, wrong ones and none to speak of."""
    trained = MolmoActForActionReasoning.from_pretrained(locate(EMBEDDED), dtype=torch.float32)
    automaton = grammar(steered, rows=8)
    depth, trace, action = (
        format_depth(range(100)),
        format_trace([(1, 2), (3, 4)]),
        format_actions(np.ones((8, 7), int)),
    )
    text = steering_reply(action) if steered else reasoning_reply(depth, trace, action)
    shown = [processor().bos_id, *processor().encode_prompt("The task is pick up the red cube."), 5, 6, 7]
    shown += processor().encode_reply(text)[:-1][: 3 if steered else 0]
    expected, gap = one_by_one(trained, shown, 120)
    assert gap > CLEAR / 10
    right = draft_of(automaton, expected)
    for draft in (right, [Choice(0, 0)] * len(right), any_draft(random.Random(0), automaton)):
        for window in (1, 7, 64, 400):
            decoder = Decoder(trained, processor().eos_id, strict=False, window=window)
            assert decoder.decode(prefix_of(trained, shown), automaton, draft, 120).ids == expected


@given(requests(), st.floats(0, 1))
@PROPERTY
@torch.inference_mode()
def test_what_is_given_is_said_and_the_model_goes_on_from_it(request: tuple, share: float) -> None:
    """As in the slow loop, in which at a given place only the token that is given is allowed."""
    made, ids, automaton, rng, window = request
    wanted = any_draft(rng, automaton)
    said = automaton.spell(automaton.start, wanted, 10_000)
    places = {place: choice for place, choice, *_ in said.segments if rng.random() < share}
    decoder = Decoder(made, processor().eos_id, window=window)
    found = decoder.decode(prefix_of(made, ids), automaton, any_draft(rng, automaton), 1000, given=places)
    read = dict(automaton.read(found.ids) or ())
    assert all(read[place] == choice for place, choice in places.items() if place in read)
    expected, gap = one_by_one(made, ids, 1000, automaton, places)
    assume(gap > CLEAR)
    assert found.ids == expected


@torch.inference_mode()
def test_the_right_draft_needs_as_many_passes_as_windows_hold_it() -> None:
    made, automaton, ids = model("qwen2", 0), grammar(False), [3, 4, 5]
    decoder = Decoder(made, processor().eos_id, window=50)
    slow = decoder.decode(prefix_of(made, ids), automaton, [Choice(0, 0)] * len(automaton.places), 1000)
    fast = decoder.decode(prefix_of(made, ids), automaton, draft_of(automaton, slow.ids), 1000)
    assert fast.ids == slow.ids
    # What is forced at the beginning of a window does not count.
    assert fast.passes <= -(-len(slow.ids) // 50) < slow.passes


@given(st.integers(1, 200), st.booleans())
@settings(deadline=None, max_examples=30)
@torch.inference_mode()
def test_a_reply_may_be_cut_at_any_length(limit: int, strict: bool) -> None:
    made, automaton, ids = model("olmo2", 1), grammar(False), [3, 4, 5]
    decoder = Decoder(made, processor().eos_id, strict=strict)
    draft = any_draft(random.Random(limit), automaton)
    whole = decoder.decode(prefix_of(made, ids), automaton, draft, 300).ids
    assert decoder.decode(prefix_of(made, ids), automaton, draft, limit).ids == whole[:limit]


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=2, max_size=5))
@settings(deadline=None, max_examples=30)
@torch.inference_mode()
def test_what_is_kept_of_the_prompt_before_changes_nothing(prompts: list[list[int]]) -> None:
    made, automaton = model("qwen2", 2), grammar(True)
    draft = [Choice(0, 0)] * len(automaton.places)
    lasting = Decoder(made, processor().eos_id)
    for ids in prompts:
        fresh = Decoder(made, processor().eos_id)
        given_prefix = prefix_of(made, ids)
        assert (
            lasting.decode(given_prefix, automaton, draft, 99).ids
            == fresh.decode(given_prefix, automaton, draft, 99).ids
        )


@torch.inference_mode()
def test_a_reply_is_interrupted_within_a_pass_and_the_next_one_is_whole() -> None:
    made, automaton, prefix = model("qwen2", 0), grammar(False), prefix_of(model("qwen2", 0), [3, 4, 5])
    draft = [Choice(0, 0)] * len(automaton.places)
    decoder = Decoder(made, processor().eos_id, window=8)
    whole = decoder.decode(prefix, automaton, draft, 999)
    for allowed in range(4):
        asked = iter([False] * allowed + [True])
        with pytest.raises(Interrupted, match=f"after {allowed} passes"):
            decoder.decode(prefix, automaton, draft, 999, lambda asked=asked: next(asked))
        assert decoder.decode(prefix, automaton, draft, 999).ids == whole.ids


@torch.inference_mode()
def test_weights_that_are_not_numbers_still_give_a_reply_of_the_grammar() -> None:
    broken = MolmoActForActionReasoning(model("qwen2", 0).config).eval()
    broken.lm_head.weight.fill_(float("nan"))
    automaton = grammar(True)
    decoder = Decoder(broken, processor().eos_id)
    found = decoder.decode(prefix_of(broken, [1]), automaton, [Choice(0, 0)] * len(automaton.places), 999)
    assert automaton.read(found.ids) is not None


@given(st.sampled_from(list(FAMILIES)), st.lists(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 40))
@settings(deadline=None, max_examples=30)
@torch.inference_mode()
def test_a_stretch_at_a_time_is_the_language_model_at_once(family: str, stretches: list[int], tried: int) -> None:
    """Also over positions that a wrong guess was at before, and over more than the cache began with."""
    made = model(family, 3)
    embeddings = torch.randn(sum(stretches), HIDDEN, generator=torch.Generator().manual_seed(0))
    expected = made.language_model(inputs_embeds=embeddings.unsqueeze(0)).last_hidden_state[0]
    incremental, found = IncrementalModel(made), []
    for stretch in embeddings.split(stretches):
        kept = incremental.length
        if tried:
            incremental.append(torch.randn(tried * 16, HIDDEN))
            incremental.length = kept
        found.append(incremental.append(stretch))
    torch.testing.assert_close(torch.cat(found), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("sizes", [[(32, 32)], [(32, 40), (40, 32)], [(90, 40), (40, 32), (30, 30)]])
@torch.inference_mode()
def test_pictures_are_seen_as_the_model_sees_them_and_unchanged_ones_only_once(
    side: int, sizes: list[tuple[int, int]]
) -> None:
    """An odd number of patches leaves pooling slots that reach into the picture before."""
    made = model("qwen2", 4, side=side)
    margins, crop = (1, 1), (8 * side, 8 * side)
    images = ImageProcessor(overlap_margins=margins, base_image_input_size=crop, image_patch_size=8)
    shown = Processor(images, processor().tokenizer)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    inputs = shown(pictures, "pick")
    features = made.image_features(inputs["images"], inputs["pooled_patches_idx"])
    expected = made.merge_image_features(inputs["input_ids"], features)[0]
    looked = []
    made.vision_backbone.register_forward_hook(lambda *_: looked.append(True))
    perception = Perception(made, shown)
    prefix = perception.prefix(pictures, "pick")
    torch.testing.assert_close(prefix.embeddings, expected, rtol=1e-4, atol=1e-4)
    assert len(prefix.signature) == len(expected)
    placed = perception.prefix(pictures, "place")
    assert len(looked) == 1
    start = len(
        shown.image_prefix(
            [images(picture, multi_image=len(sizes) > 1) for picture in pictures], numbered=len(sizes) > 1
        )
    )
    assert torch.equal(placed.embeddings[:start], prefix.embeddings[:start])
    pictures[-1] = pictures[-1] + np.uint8(1)
    changed = perception.prefix(pictures, "place")
    assert len(looked) == 2 and changed.signature != placed.signature


def test_a_draft_is_the_reply_before_with_the_rows_moved_up_as_they_did_before() -> None:
    automaton = grammar(False, rows=8)
    drafts = Drafts(automaton)
    chunks = [np.arange(start, start + 56).reshape(8, 7) for start in (0, 14, 28)]
    for chunk in chunks[:2]:
        text = reasoning_reply(format_depth(range(100)), format_trace([(9, 8), (7, 6)]), format_actions(chunk))
        drafts.learn(automaton.read(processor().encode_reply(text)) or [])
    spelled = automaton.spell(automaton.start, drafts.choices(), 10_000)
    moved = np.vstack([chunks[2][:6], chunks[1][-1:], chunks[1][-1:]])
    expected = reasoning_reply(format_depth(range(100)), format_trace([(9, 8), (7, 6)]), format_actions(moved))
    assert processor().decode(spelled.ids) == " " + expected
