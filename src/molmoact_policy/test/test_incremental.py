"""Passes filled up to a fixed size and played back are the same as those computed as they come.

What a CUDA graph does is done here on the CPU: every operation of one pass is written down with the memory it read and
wrote, and later done again on that memory, whatever Python has made of its numbers since.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from molmoact_policy import incremental
from molmoact_policy.incremental import IncrementalModel
from molmoact_policy.model import MolmoActForActionReasoning
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .random_models import FAMILIES, random_model

HIDDEN = 24
SIZES = (1, 4, 16)


def model(family: str, heads: int = 4, kv_heads: int = 2) -> MolmoActForActionReasoning:
    attention = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 12}
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 20, "num_hidden_layers": 2, "vocab_size": 32}
    return random_model(image_patch_id=33, additional_vocab_size=6, **sizes, **attention, **FAMILIES[family])


class Tape(TorchDispatchMode):
    """Writes down every operation with its arguments and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            before = result if isinstance(result, (tuple, list)) else (result,)
            for old, new in zip(before, again if isinstance(again, (tuple, list)) else (again,), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def taped(compute: Callable[[], Tensor], _device: torch.device) -> Callable[[], Tensor]:
    with Tape() as tape:
        result = compute()

    def again() -> Tensor:
        tape.play()
        return result

    return again


def repeated(compute: Callable[[], Tensor], _device: torch.device) -> Callable[[], Tensor]:
    return compute


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("heads", [(2, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize("record", [repeated, taped])
@torch.inference_mode()
def test_passes_filled_up_to_fixed_sizes_say_what_passes_of_their_own_size_say(
    family: str, heads: tuple[int, int], record: incremental.Record
) -> None:
    """Shorter than a size, of that size, longer than any; each after a wrong guess at the same place."""
    made = model(family, *heads)
    generator = torch.Generator().manual_seed(1)
    plain, filled = IncrementalModel(made, sizes=()), IncrementalModel(made, sizes=SIZES, record=record)
    for length in (21, 1, 3, 4, 1, 9, 16, 2, 17, 5):
        start = plain.length
        filled.append(torch.randn(7, HIDDEN, generator=generator))
        filled.length = start
        embeddings = torch.randn(length, HIDDEN, generator=generator)
        torch.testing.assert_close(filled.append(embeddings), plain.append(embeddings), rtol=1e-4, atol=1e-4)
        assert filled.length == plain.length


@torch.inference_mode()
def test_a_pass_is_recorded_once_per_size_and_again_when_the_cache_has_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(incremental.CAPACITY_STEP, "cpu", 32)
    recorded = []

    def counted(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
        recorded.append(device.type)
        return taped(compute, device)

    made = model("qwen2")
    plain, filled = IncrementalModel(made, sizes=()), IncrementalModel(made, sizes=(4,), record=counted)
    for number, expected in enumerate([1] * 8 + [2] * 8):  # eight passes of up to 4 fill 32 positions
        embeddings = torch.randn(4, HIDDEN, generator=torch.Generator().manual_seed(number))
        torch.testing.assert_close(filled.append(embeddings), plain.append(embeddings), rtol=1e-4, atol=1e-4)
        assert len(recorded) == expected


@torch.inference_mode()
def test_what_a_pass_said_outlives_the_next_one() -> None:
    filled = IncrementalModel(model("olmo2"), sizes=SIZES, record=taped)
    said = filled.append(torch.ones(3, HIDDEN))
    before = said.clone()
    filled.append(torch.zeros(3, HIDDEN))
    assert torch.equal(said, before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", list(FAMILIES))
@torch.inference_mode()
def test_graphs_on_a_gpu_say_what_passes_launched_kernel_by_kernel_say(family: str) -> None:
    made = model(family).to("cuda")
    generator = torch.Generator("cuda").manual_seed(1)
    plain, filled = IncrementalModel(made, sizes=()), IncrementalModel(made)
    for length in (300, 1, 3, 16, 1, 250, 40, 2):
        embeddings = torch.randn(length, HIDDEN, generator=generator, device="cuda")
        torch.testing.assert_close(filled.append(embeddings), plain.append(embeddings), rtol=1e-3, atol=1e-3)
