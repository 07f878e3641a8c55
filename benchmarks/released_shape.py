"""What MolmoAct-7B-D is asked and answers, without its weights: its sizes, its tokenizer, replies like its own."""

from __future__ import annotations

import importlib.util
import json
import random
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
from molmoact_policy.actions import format_actions
from molmoact_policy.grammar import NO_CHOICE, Grammar
from molmoact_policy.images import ImageProcessor
from molmoact_policy.model import MolmoActConfig
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import format_depth, format_trace, reasoning_prompt, reasoning_reply
from numpy.typing import NDArray

POLICY_TESTS = Path(__file__).parents[1] / "src" / "molmoact_policy" / "test"
ROWS, DIMENSIONS, CAMERAS = 8, 7, 2
SIZE = (240, 320)  # of a picture
INSTRUCTION = "pick up the red cube and put it into the bowl"


def released_config() -> MolmoActConfig:
    sizes = json.loads((POLICY_TESTS / "data" / "state_dict_7b_d.json").read_text())
    return MolmoActConfig.from_dict(sizes["_config"])


def policy_test(name: str) -> ModuleType:
    """A module beside the policy's tests."""
    spec = importlib.util.spec_from_file_location(name, POLICY_TESTS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def released_processor() -> Processor:
    """With the vocabulary that the tests take from dashscope (requirements-assets.txt)."""
    return Processor(ImageProcessor(), policy_test("qwen").released_tokenizer())


@cache
def released_grammar() -> Grammar:
    return Grammar(released_processor(), DIMENSIONS, rows=ROWS, steered=False)


def prompt() -> str:
    return reasoning_prompt(INSTRUCTION, CAMERAS, 1)


def pictures(seed: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(CAMERAS)]


def reply(seed: int) -> list[int]:
    """Tokens of a reply with a trace of five points, every value drawn evenly."""
    rng = random.Random(seed)
    depth = format_depth([rng.randrange(128) for _ in range(100)])
    trace = format_trace([(rng.randrange(256), rng.randrange(256)) for _ in range(5)])
    chunk = np.array([[rng.randrange(256) for _ in range(DIMENSIONS)] for _ in range(ROWS)])
    return released_processor().encode_reply(reasoning_reply(depth, trace, format_actions(chunk)))


def decisions(ids: list[int]) -> int:
    """How many of a reply's tokens the grammar leaves open."""
    grammar = released_grammar()
    state, found = grammar.start, 0
    for token in ids:
        found += grammar.set_of(state) != NO_CHOICE
        following = grammar.step(state, token)
        assert following is not None
        state = following
    return found
