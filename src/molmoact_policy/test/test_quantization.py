"""Quantised weights serve every decoder, and what they need is said before anything runs."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from molmoact_policy.checkpoint import EMBEDDED, locate
from molmoact_policy.errors import CheckpointError
from molmoact_policy.incremental import IncrementalModel
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.policy import Observation, Policy
from molmoact_policy.quantization import quantize


@pytest.fixture
def nano() -> MolmoActForActionReasoning:
    return MolmoActForActionReasoning.from_pretrained(locate(EMBEDDED), dtype=torch.float32)


def test_without_torchao_it_is_said_what_to_install(
    nano: MolmoActForActionReasoning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(CheckpointError, match="int8: needs torchao, try: pip install torchao=="):
        quantize(nano, "int8")


def test_a_kind_that_is_none_is_named_with_those_there_are(nano: MolmoActForActionReasoning) -> None:
    with pytest.raises(ValueError, match=r"'int2' \(none, int8, int4\)"):
        quantize(nano, "int2")


def test_int4_is_refused_where_it_cannot_run(nano: MolmoActForActionReasoning) -> None:
    with pytest.raises(CheckpointError, match="torch.float32 on cpu, expected torch.bfloat16 on cuda"):
        quantize(nano, "int4")


def test_a_policy_is_loaded_with_the_quantization_asked_for() -> None:
    pytest.importorskip("torchao")
    black = np.zeros((240, 320, 3), np.uint8)
    policies = [Policy.from_pretrained(EMBEDDED, quantization=kind) for kind in ("none", "int8")]
    exact, quantized = (policy.act(Observation([black, black], "pick up the red cube")) for policy in policies)
    weights = [policy.model.language_model.layers[0].mlp.up_proj.weight for policy in policies]
    assert type(weights[0]) is not type(weights[1])
    assert quantized.actions.shape == exact.actions.shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_int8_weights_say_nearly_the_same_in_both_ways_of_computing(
    nano: MolmoActForActionReasoning, dtype: torch.dtype
) -> None:
    pytest.importorskip("torchao")
    embeddings = nano.to(dtype).get_input_embeddings()(torch.arange(40))
    exact = IncrementalModel(nano).append(embeddings)
    head = nano.lm_head.weight.clone()
    quantize(nano, "int8")
    whole = nano.language_model(inputs_embeds=embeddings.unsqueeze(0)).last_hidden_state[0]
    quantized = IncrementalModel(nano).append(embeddings)
    torch.testing.assert_close(quantized, whole, rtol=0.02, atol=0.02 * float(exact.abs().max()))
    assert 0 < (quantized - exact).norm() / exact.norm() < 0.05
    assert torch.equal(nano.lm_head.weight, head)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_int4_weights_say_about_the_same(nano: MolmoActForActionReasoning) -> None:
    pytest.importorskip("torchao")
    made = nano.to("cuda", torch.bfloat16)
    embeddings = made.get_input_embeddings()(torch.arange(40, device="cuda"))
    exact = IncrementalModel(made).append(embeddings)
    quantize(made, "int4")
    quantized = IncrementalModel(made).append(embeddings)
    assert 0 < (quantized - exact).norm() / exact.norm() < 0.3
