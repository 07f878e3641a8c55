"""The benchmark of decoding counts what it says it counts."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from molmoact_policy.checkpoint import EMBEDDED, locate
from molmoact_policy.grammar import Choice, Spelled
from molmoact_policy.processor import Processor

from . import evaluation_data
from .evaluation_data import make_dataset

_spec = importlib.util.spec_from_file_location("decode", Path(__file__).parents[2] / "benchmarks/decode.py")
decode = importlib.util.module_from_spec(_spec)
sys.modules["decode"] = decode  # its dataclasses look their module up
_spec.loader.exec_module(decode)


def reply(ids: list[int], passes: int, ms: float) -> decode.Reply:
    return decode.Reply(ids, passes, ms, ms)


def test_ratios_are_those_of_sums_and_one_different_token_is_told():
    replies = [
        decode.Replies("a", True, {"generate": reply([1, 2], 2, 30.0), "strict": reply([1, 2], 1, 10.0)}),
        decode.Replies("b", False, {"generate": reply([1, 3], 10, 90.0), "strict": reply([1, 2], 2, 30.0)}),
    ]
    found = decode.entry(replies, "strict")
    assert (found["pass_ratio"], found["time_ratio"], found["ms_per_chunk"], found["passes"]) == (4.0, 3.0, 20.0, 1.5)
    assert (found["identical_tokens"], found["identical_replies"], found["identical_replies_in_grammar"]) == (
        False,
        0.5,
        1.0,
    )
    assert found["pass_ratio_interval"] == [2.0, 5.0]
    assert decode.entry(replies, "generate")["identical_tokens"]


def test_a_value_is_accepted_at_once_only_when_the_pass_that_first_held_it_whole_was_right_up_to_there():
    grammar = decode.Watched(Processor.from_pretrained(locate(EMBEDDED)), 7, rows=2, steered=False)
    choices = [next(iter(trie.tokens)) for trie in grammar.tries]
    whole = grammar.spell(grammar.start, choices, 10_000)
    places = [place for place, *_ in whole.segments]
    lengths = [len(grammar.tries[place].tokens[choice]) for place, choice, *_ in whole.segments]

    def guessed(first: int, tokens: int) -> Spelled:
        """From the first-th place on."""
        start = sum(lengths[:first])
        segments = [(place, choice, skipped, at - start) for place, choice, skipped, at in whole.segments[first:]]
        return Spelled(whole.ids[start : start + tokens], whole.sets[start : start + tokens], segments)

    # The first pass holds five places and part of a sixth, of which three are kept; the second holds all others.
    grammar.passes = [guessed(0, sum(lengths[:6]) - 1), guessed(3, 10_000)]
    assert list(decode.accepted_at_once(places, grammar)) == [*places[:3], *places[5:]]
    assert decode.accepted_at_once(places, grammar)[places[0]] == choices[places[0]] == Choice(0, 0)


def test_every_variant_is_measured_on_the_same_looks(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(evaluation_data, "EPISODES", 2)
    data, out, picture = make_dataset(tmp_path / "data"), tmp_path / "decode.json", tmp_path / "decode.svg"
    arguments = [str(data), "--rate", "10", "--looks", "2", "--dtype", "float32", "--threads", "1"]
    assert decode.main([*arguments, "--json", str(out), "--plot", str(picture)]) == 0
    found = json.loads(out.read_text())
    assert picture.stat().st_size > 0
    assert (found["episodes"], found["replies"]) == (2, 4)
    free, forced = found["variants"]["free"], found["variants"]["strict, forced runs only"]
    assert free["identical_tokens"] and free["pass_ratio"] > 1
    assert found["variants"]["strict"]["passes"] < forced["passes"]
    assert found["best"]["variant"] in ("strict", "free")
    for pace in ("chunk", "10 Hz"):
        assert found["acceptance"][pace]["replies"] == 2  # one of each episode has a reply before it
        assert 0 <= found["acceptance"][pace]["depth_first_pass"] <= found["acceptance"][pace]["depth_drafted"] <= 1


def test_data_without_pictures_at_a_rate_are_refused(tmp_path, capsys):
    data = make_dataset(tmp_path / "data")
    assert decode.main([str(data), "--rate", "15"]) == 1
    assert "has 10 pictures a second, cannot be looked at 15 times" in capsys.readouterr().err
