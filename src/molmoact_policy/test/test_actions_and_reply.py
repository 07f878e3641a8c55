"""Actions, and what is read out of a reply: officially, and strictly."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy import symbols
from molmoact_policy.actions import (
    SYMBOLS,
    ActionStatistics,
    decode_bins,
    encode_bins,
    format_actions,
    released_preprocessing,
    statistics_of,
)
from molmoact_policy.errors import CheckpointError, ReplyError
from molmoact_policy.prompts import (
    finetune_reasoning_reply,
    format_depth,
    format_trace,
    reasoning_reply,
    reply_template,
    steering_reply,
)
from molmoact_policy.reply import parse_actions, parse_depths, parse_reply, parse_traces

DATA = Path(__file__).parent / "data"
PARSE = json.loads((DATA / "parse_cases.json").read_text())
ENCODE = json.loads((DATA / "encode_cases.json").read_text())

UNIT = ActionStatistics.from_norm_stats({"unit": {"action": {"q01": [-1.0] * 6 + [0.0], "q99": [1.0] * 7}}})
CHUNK = np.arange(56).reshape(8, 7) * 4
DEPTH = format_depth(range(100))
TRACE = format_trace([(0, 255), (12, 3)])
REPLY = reasoning_reply(DEPTH, TRACE, format_actions(CHUNK))


def test_symbols_and_values_equal_the_official_table() -> None:
    rows = json.loads((DATA / "bin_table.json").read_text())["rows"]
    assert [row["symbol"] for row in rows] == list(SYMBOLS)
    assert [row["decoded_normalized"] for row in rows] == decode_bins(range(256)).tolist()


def test_encoding_equals_the_official_one() -> None:
    assert encode_bins(ENCODE["edge_values"]).tolist() == ENCODE["edge_bins"]
    statistics = ActionStatistics.from_norm_stats({"recorded": ENCODE["stats"]})
    normalised = released_preprocessing(ENCODE["actions"], statistics)
    np.testing.assert_allclose(normalised, ENCODE["normalized"], rtol=0, atol=1e-7)
    bins = encode_bins(normalised)
    assert [format_actions(row) for row in bins] == ENCODE["tokenized_action"]
    episode = [bins[min(i, 19)] for i in range(28)]
    chunks = [format_actions(episode[i : i + 8]) for i in range(20)]
    assert chunks == ENCODE["chunks_for_first_20_as_one_episode"]


def test_statistics_equal_the_official_ones() -> None:
    computed = statistics_of(ENCODE["actions"])
    for name, values in ENCODE["stats"]["action"].items():
        np.testing.assert_allclose(computed[name], values, rtol=1e-6)


@given(st.lists(st.floats(-2, 2), min_size=7, max_size=7))
@settings(deadline=None)
def test_normalising_is_undone_by_unnormalising_inside_the_range(row: list[float]) -> None:
    statistics = ActionStatistics.from_norm_stats({"recorded": ENCODE["stats"]})
    inside = np.clip(row, statistics.q01, statistics.q99)
    np.testing.assert_allclose(statistics.unnormalise(statistics.normalise(inside)), inside, atol=1e-6)


@pytest.mark.parametrize(
    "case", [case for case in PARSE["cases"] if case["fn"] == "parse_action"], ids=lambda c: c["name"]
)
def test_actions_are_parsed_as_officially(case: dict) -> None:
    if case["error"] is not None:
        with pytest.raises(ValueError, match="unnorm_key"):
            ActionStatistics.from_norm_stats(PARSE["norm_stats"], case["unnorm_key"])
        return
    statistics = ActionStatistics.from_norm_stats(PARSE["norm_stats"], case["unnorm_key"])
    parsed = parse_actions(case["text"], statistics)
    np.testing.assert_allclose(parsed, np.reshape(case["result"], (-1, statistics.dimensions)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("part", "number"),
    [
        ("Hello", 254),
        ("ĠHello", 254),  # the spelling of a token with a leading space
        ("!", 254),  # rank 0
        (SYMBOLS[255], 254),
        ("notatoken", 0),
        ("<|endoftext|>", 0),
        ("<DEPTH_0>", 0),
        ("", 0),
    ],
)
def test_what_is_no_symbol_is_read_as_the_released_parser_does(part: str, number: int) -> None:
    parsed = parse_actions(f"[{part}, {', '.join(SYMBOLS[:6])}]", UNIT)
    np.testing.assert_array_equal(parsed, [UNIT.unnormalise(decode_bins([number, *range(6)]))])


def test_the_vocabulary_is_not_read_for_symbols() -> None:
    symbols._ordinary_tokens.cache_clear()
    parse_actions(format_actions(CHUNK), UNIT)
    assert symbols._ordinary_tokens.cache_info().misses == 0


@pytest.mark.parametrize(
    "case", [case for case in PARSE["cases"] if case["fn"] == "parse_trace"], ids=lambda c: c["name"]
)
def test_traces_are_parsed_as_officially(case: dict) -> None:
    assert parse_traces(case["text"]) == case["result"]


@pytest.mark.parametrize(
    "case", [case for case in PARSE["cases"] if case["fn"] == "parse_depth"], ids=lambda c: c["name"]
)
def test_depths_are_parsed_as_officially(case: dict) -> None:
    assert parse_depths(case["text"]) == case["result"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask": [True] * 6}, "mask has 6 values, expected 7"),
        ({"q99": [1.0] * 8}, "q99 has 8 values, expected 7"),
        ({"q01": [float("nan")] * 7}, "not finite"),
        ({"q01": 3.0}, "q01|len"),
    ],
)
def test_statistics_that_do_not_fit_are_named(change: dict, message: str) -> None:
    action = {"q01": [-1.0] * 7, "q99": [1.0] * 7} | change
    with pytest.raises(CheckpointError, match=message):
        ActionStatistics.from_norm_stats({"arm": {"action": action}})


def test_the_gripper_is_never_scaled() -> None:
    statistics = ActionStatistics.from_norm_stats({"arm": {"action": {"q01": [-9.0] * 14, "q99": [9.0] * 14}}})
    values = statistics.unnormalise(np.full(14, 0.5))
    assert values[13] == 0.5 and (values[:13] == 4.5).all()


def test_a_complete_reply_is_read() -> None:
    for text in (REPLY, " " + REPLY, finetune_reasoning_reply(DEPTH, TRACE, format_actions(CHUNK))):
        reply = parse_reply(text, UNIT, rows=8)
        assert reply.depth_codes == list(range(100))
        assert reply.trace == [(0, 255), (12, 3)]
        np.testing.assert_allclose(reply.actions, UNIT.unnormalise(decode_bins(CHUNK)))


def test_a_steered_reply_holds_actions_only() -> None:
    reply = parse_reply(steering_reply(format_actions(CHUNK[0])), UNIT, steered=True)
    assert reply.depth_codes is None and reply.trace is None and reply.actions.shape == (1, 7)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "depth: 0 .*trace: none found; action: none found"),
        (REPLY.replace(SYMBOLS[4], "☃", 1), "row 0 holds '☃', which is not an action symbol"),
        (REPLY.replace(SYMBOLS[4], "Hello", 1), "row 0 holds 'Hello'"),
        (REPLY.replace(SYMBOLS[4] + ", ", "", 1), "row 0 has 6 values, expected 7"),
        (REPLY[:-2], "not closed"),
        (REPLY[:-40], "not closed"),
        (REPLY + " [more]", "unexpected text after it"),
        (REPLY.replace(format_actions(CHUNK), format_actions(CHUNK[:7])), "7 rows, expected 8"),
        (REPLY.replace("<DEPTH_99>", ""), "99 codes, expected 100"),
        (REPLY.replace("<DEPTH_99>", "<DEPTH_128>"), "code 128 outside 0..127"),
        (REPLY.replace("<DEPTH_99>", "junk"), "0 well-formed depth strings"),
        (REPLY.replace("<DEPTH_END>", ""), "0 well-formed depth strings"),
        (REPLY.replace("[12, 3]", "[256, 3]"), r"point \[256, 3\] outside 0..255"),
        (REPLY.replace("[12, 3]", "[1.5, 3]"), r"point \[1.5, 3\]"),
        (REPLY.replace("[12, 3]", "[12]"), "trace: none found"),
        (REPLY.replace("[12, 3]", ", ".join(["[1, 2]"] * 5)), "6 points, expected 1 to 5"),
    ],
)
def test_a_reply_that_must_not_move_the_arm_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(ReplyError, match=reason) as caught:
        parse_reply(text, UNIT, rows=8)
    assert caught.value.text == text


def test_a_refused_reply_still_shows_its_reasoning() -> None:
    with pytest.raises(ReplyError) as caught:
        parse_reply(REPLY[:-2], UNIT)
    assert caught.value.depth_codes == list(range(100))
    assert caught.value.trace == [(0, 255), (12, 3)]


@given(cut=st.integers(0, len(REPLY) - 2))
@settings(deadline=None)
def test_no_cut_off_reply_is_accepted(cut: int) -> None:
    with pytest.raises(ReplyError):
        parse_reply(REPLY[:cut], UNIT, rows=8)


@given(text=st.text(alphabet="[], .0123456789<>DEPTHSTARN_" + SYMBOLS[0], max_size=80))
@settings(deadline=None)
def test_junk_is_refused_never_misread(text: str) -> None:
    parse_traces(text)
    parse_depths(text)
    assert parse_actions(text, UNIT).shape[1] == 7
    with pytest.raises(ReplyError):
        parse_reply(text, UNIT)


@pytest.mark.parametrize("wording", ["released", "finetune"])
def test_a_reply_of_two_arms_has_the_traces_of_both(wording: str) -> None:
    two_arms = ActionStatistics.from_norm_stats({"k": {"action": {"q01": [-1] * 14, "q99": [1] * 14}}})
    chunk = np.arange(28).reshape(2, 14)
    left, right = [(0, 255), (12, 3)], [(7, 8)]
    fields = {"left_trace": format_trace(left), "right_trace": format_trace(right)}
    template = reply_template(arms=2, wording=wording)
    text = template.format(depth=DEPTH, action=format_actions(chunk), **fields)
    reply = parse_reply(text, two_arms, rows=2)
    assert reply.traces == [left, right] and reply.trace == left
    assert reply.actions.shape == (2, 14)
    with pytest.raises(ReplyError, match="trace: 1 found, expected one for each of 2 arms"):
        parse_reply(reasoning_reply(DEPTH, TRACE, format_actions(chunk)), two_arms)
