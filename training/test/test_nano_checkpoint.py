from pathlib import Path

import numpy as np
import pytest
import yaml
from molmoact_policy.actions import SYMBOLS, ActionStatistics
from molmoact_policy.processor import Processor
from molmoact_policy.reply import parse_actions, parse_depths, parse_traces
from molmoact_policy.tokenizer import DEPTH_TOKENS
from molmoact_training.nano_checkpoint import VOCABULARY_SIZE, build_tokenizer, create
from molmoact_training.samples import ACTION, DEPTH, TEXT, TRACE, ReplyWriter

CONFIG = yaml.safe_load((Path(__file__).parents[2] / "config/training/nano.yaml").read_text())
STATISTICS = ActionStatistics.from_norm_stats(
    {"nano": {"action": {"q01": [-0.02] * 6 + [0.0], "q99": [0.03] * 6 + [1.0], "mask": [True] * 6 + [False]}}}
)
RNG = np.random.default_rng(0)
ACTIONS = RNG.uniform([-0.02] * 6 + [0.0], [0.03] * 6 + [1.0], (8, 7)).astype(np.float32)
TRACE_POINTS = np.array([[0, 255], [10, 20], [100, 9], [255, 0], [7, 128]], np.uint8)
CODES = RNG.integers(0, 128, 100)


@pytest.fixture(scope="module")
def processor(tmp_path_factory) -> Processor:
    directory = tmp_path_factory.mktemp("nano")
    create(CONFIG["model"], directory)
    return Processor.from_pretrained(directory)


@pytest.fixture(scope="module")
def writer(processor) -> ReplyWriter:
    return ReplyWriter(processor, STATISTICS, CONFIG["training"]["weights"], cameras=2)


def test_every_action_bin_and_depth_code_is_one_token():
    tokenizer = build_tokenizer(images=2)
    for token in [*SYMBOLS, *DEPTH_TOKENS]:
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1, token


def test_image_tokens_follow_the_vocabulary_so_that_the_head_cannot_write_them():
    tokenizer = build_tokenizer(images=2)
    assert tokenizer.convert_tokens_to_ids("<im_start>") == VOCABULARY_SIZE
    assert tokenizer.convert_tokens_to_ids("<DEPTH_127>") < VOCABULARY_SIZE


@pytest.mark.parametrize("text", ["", "pick up the red cube", "Ärger — 立方体 \n\t <im_start", "[[1, 2], [3"])
def test_any_text_survives_the_tokenizer(text):
    tokenizer = build_tokenizer(images=2)
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_reply_tokens_say_what_was_demonstrated(writer, processor):
    text = processor.decode(writer.reply_ids(CODES, TRACE_POINTS, ACTIONS, steered=False))
    half_a_bin = 0.05 / 255 / 2 * 1.01
    parsed = np.array(parse_actions(text, STATISTICS))
    assert np.abs(parsed[:, :6] - ACTIONS[:, :6]).max() <= half_a_bin
    assert np.abs(parsed[:, 6] - ACTIONS[:, 6]).max() <= 1 / 255
    assert parse_traces(text) == [TRACE_POINTS.tolist()]
    assert parse_depths(text) == ["<DEPTH_START>" + "".join(f"<DEPTH_{code}>" for code in CODES) + "<DEPTH_END>"]


def test_kinds_count_every_part_of_a_reply_once(writer):
    reply = writer.reply_ids(CODES, TRACE_POINTS, ACTIONS, steered=False)
    weights, kinds = writer.weights_and_kinds(reply)
    assert [int((kinds == kind).sum()) for kind in (DEPTH, TRACE, ACTION)] == [100, 10, 56]
    first_row = np.flatnonzero(kinds == ACTION)[:7]
    assert np.all(weights[first_row] == CONFIG["training"]["weights"]["first_row"])
    assert np.all(weights[kinds == TEXT] == np.float32(CONFIG["training"]["weights"]["text"]))


def test_only_the_reply_is_learned(writer):
    sample = {
        "instruction": "pick up the red cube",
        "steered": True,
        "depth_codes": CODES,
        "trace": TRACE_POINTS,
        "actions": ACTIONS,
    }
    ids, weights, kinds = writer.sequence(sample)
    reply = writer.reply_ids(CODES, TRACE_POINTS, ACTIONS, steered=True)
    assert len(weights) == len(kinds) == len(ids) - 1
    assert np.count_nonzero(weights) == len(reply)
    assert np.array_equal(ids[-len(reply) :], reply)
