"""The release's tokenizer, built on the real vocabulary, against recorded ids."""

import json
import lzma
from pathlib import Path

import pytest
from molmoact_policy.actions import SYMBOLS, format_actions
from molmoact_policy.prompts import format_depth, format_trace, reasoning_reply
from molmoact_policy.symbols import VOCABULARY_FILE, is_ordinary_token
from molmoact_policy.tokenizer import ADDED_IMAGE_TOKENS, DEPTH_TOKENS, add_released_tokens
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from .qwen import ORDINARY, SPECIAL, qwen_tokenizer, ranks, released_tokenizer, spell

DATA = Path(__file__).parent / "data"
ENCODINGS = json.loads((DATA / "text_encodings.json").read_text())
RECORDED = json.loads((DATA / "processor_cases.json").read_text())
TEXTS = {
    **{
        name: (ENCODINGS[name]["text"], ENCODINGS[name]["ids"])
        for name in ("depth", "trace", "chunk_8x7", "single_1x7")
    },
    **{text: (text, ids) for text, ids in ENCODINGS["misc"].items()},
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return released_tokenizer()


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


@pytest.mark.parametrize("name", TEXTS)
def test_text_has_the_recorded_ids(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    text, ids = TEXTS[name]
    assert encode(tokenizer, text) == ids
    assert tokenizer.decode(ids) == text


def test_every_action_symbol_has_the_recorded_ids_and_comes_back(tokenizer: PreTrainedTokenizerFast) -> None:
    recorded = ENCODINGS["action_symbol_text_ids"]
    assert {str(number): encode(tokenizer, symbol) for number, symbol in enumerate(SYMBOLS)} == recorded
    assert [tokenizer.decode(ids) for ids in recorded.values()] == list(SYMBOLS)


def test_added_tokens_of_family_d_have_the_released_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    vocabulary = tokenizer.get_vocab()
    assert {token: vocabulary[token] for token in RECORDED["special_ids_7b_d"]} == RECORDED["special_ids_7b_d"]
    assert len(tokenizer) == RECORDED["len_tokenizer"]
    assert sum(token.startswith("|<EXTRA_TOKENS_") for token in vocabulary) == RECORDED["n_extra_pad_tokens"]
    assert [vocabulary[token] for token in DEPTH_TOKENS] == list(range(151665, 151795))
    assert [vocabulary[token] for token in ADDED_IMAGE_TOKENS] == list(range(152064, 152070))


def test_added_tokens_of_family_o_have_the_released_ids() -> None:
    """OLMo-2 has 100,278 tokens; which they are does not matter to what follows them."""
    words = {f"word{number}": number for number in range(100_278)}
    stand_in = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "word0")))
    add_released_tokens(stand_in, vocab_size=100_864)
    vocabulary = stand_in.get_vocab()
    assert [vocabulary[token] for token in DEPTH_TOKENS] == list(range(100_278, 100_408))
    assert vocabulary["|<EXTRA_TOKENS_0>|"] == 100_408 and vocabulary["|<EXTRA_TOKENS_455>|"] == 100_863
    assert [vocabulary[token] for token in ADDED_IMAGE_TOKENS] == list(range(100_864, 100_870))
    assert len(stand_in) == 100_870


def test_a_vocabulary_without_room_for_depth_is_refused_unchanged() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"word": 0}, "word")))
    with pytest.raises(ValueError, match="vocab_size is 130, expected at least 1 tokens of the tokenizer and 130"):
        add_released_tokens(tokenizer, vocab_size=130)
    assert len(tokenizer) == 1
    add_released_tokens(tokenizer, vocab_size=131)
    assert tokenizer.convert_tokens_to_ids("<im_start>") == 131


def test_a_reply_survives_decoding_without_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    actions = format_actions([range(start, start + 32) for start in range(0, 256, 32)])
    reply = reasoning_reply(format_depth(range(128)), format_trace([(0, 255), (17, 4)]), actions)
    ids = [*encode(tokenizer, reply), tokenizer.eos_token_id, *encode(tokenizer, "|<EXTRA_TOKENS_3>|<im_patch>")]
    assert tokenizer.decode(ids, skip_special_tokens=True) == reply


def test_the_packaged_vocabulary_is_qwens() -> None:
    lines = lzma.decompress(VOCABULARY_FILE.read_bytes()).decode().split("\n")
    assert lines == [*(spell(token) for token in ranks()), ""]
    assert list(ranks().values()) == list(range(151_643))


def test_symbols_are_the_last_ordinary_tokens_backwards() -> None:
    assert [spell(token) for token in reversed(ranks())][:256] == list(SYMBOLS)


def test_every_ordinary_token_is_known_and_no_added_one() -> None:
    assert all(is_ordinary_token(spell(token)) for token in ranks())
    assert not any(is_ordinary_token(token) for token in (*SPECIAL, *ORDINARY, *DEPTH_TOKENS, "", " ", "\n", "☃☃"))


def test_qwens_own_tokens_follow_the_ordinary_ones() -> None:
    added = qwen_tokenizer().added_tokens_decoder
    assert [str(token) for token in added.values()] == [*SPECIAL, *ORDINARY]
    assert list(added) == list(range(151_643, 151_665))
    assert [token.special for token in added.values()] == [True] * len(SPECIAL) + [False] * len(ORDINARY)
