"""What a pass of the language model costs, counted from a configuration; checked on this CPU, predicted for GPUs.

A pass reads every weight of the blocks once and multiplies it once per position: it takes as long as the slower of the
two. The check takes memory bandwidth, multiplication speed and the time of an empty layer from measurements of their
own, and compares passes of the embedded checkpoint and of a larger random model with what follows from them. The
predictions take the published figures of a GPU: they are floors, and nothing here has run on one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from molmoact_policy.checkpoint import EMBEDDED, locate, read_config
from molmoact_policy.config import LanguageConfig, MolmoActConfig
from molmoact_policy.decoding import WINDOW
from molmoact_policy.incremental import SIZES, IncrementalModel
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.quantization import GROUP
from released_shape import (
    CAMERAS,
    decisions,
    pictures,
    policy_test,
    prompt,
    released_config,
    released_grammar,
    released_processor,
)
from released_shape import reply as released_reply

CHECKED = (1, 8, 32, 64, 128, 256)  # positions
CHECK_CONTEXT = 300  # positions before them
PASSES = (60, 30, 20, 10)  # of a reply, the prompt's included
SMALL_WINDOW = 64  # where a window for an H200 is too wide: see `balanced_positions`

# Bytes per weight of the blocks, with the scales: a bfloat16 for every row (too few to count), and a bfloat16 scale
# and zero point for every group.
WEIGHT_BYTES = {"bfloat16": 2.0, "int8": 1.0, "int4": 0.5 + 4 / GROUP}
CACHE_BYTES = HEAD_BYTES = 2  # per element

K = TypeVar("K")


@dataclass(frozen=True)
class Machine:
    bandwidth: float  # bytes/s
    speed: float  # FLOP/s, two for a multiplication with its addition
    memory: float = float("inf")  # bytes
    layer: float = 0.0  # s, for a layer in which there is nothing to do


# Published by NVIDIA; dense bfloat16 with 32-bit accumulation, half of what is printed where sparsity is counted in.
# H200 SXM: data sheet of the H200 (4.8 TB/s, 141 GB; 1,979 TFLOPS with sparsity). RTX 4090: Ada architecture
# whitepaper (1,008 GB/s, 24 GB; 165.2 TFLOPS). RTX 5090: RTX Blackwell whitepaper (1,792 GB/s, 32 GB; 209.5 TFLOPS).
GPUS = {
    "H200": Machine(4.8e12, 989.5e12, 141e9),
    "RTX 4090": Machine(1.008e12, 165.2e12, 24e9),
    "RTX 5090": Machine(1.792e12, 209.5e12, 32e9),
}
# Assumed, not measured: what good kernels reach of these.
REACHED = {"bandwidth": 0.85, "speed": 0.6}


@dataclass(frozen=True)
class Cost:
    """Of one pass. Activations are left out: they stay in the caches of a GPU."""

    weight_bytes: float
    cache_bytes: float  # keys and values read
    flops: float

    def seconds(self, machine: Machine, layers: int) -> float:
        moved = (self.weight_bytes + self.cache_bytes) / machine.bandwidth
        return max(moved, self.flops / machine.speed) + layers * machine.layer


def block_weights(llm: LanguageConfig) -> int:
    """In the linear layers of all blocks."""
    queries, shared = llm.num_attention_heads * llm.head_dim, llm.num_key_value_heads * llm.head_dim
    attention = llm.hidden_size * (2 * queries + 2 * shared)
    return llm.num_hidden_layers * (attention + 3 * llm.hidden_size * llm.intermediate_size)


def cache_elements(llm: LanguageConfig) -> int:
    """Keys and values of one position."""
    return 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim


def pass_cost(
    llm: LanguageConfig,
    positions: int,
    context: int,
    *,
    head_rows: int,
    weight_bytes: float = WEIGHT_BYTES["bfloat16"],
    head_bytes: float = HEAD_BYTES,
    cache_bytes: float = CACHE_BYTES,
) -> Cost:
    """context: positions before these. head_rows: of the head that are scored, at every position."""
    seen = context + positions
    weights, head = block_weights(llm), head_rows * llm.hidden_size
    attention = 4 * llm.num_hidden_layers * llm.num_attention_heads * llm.head_dim * seen
    return Cost(
        weight_bytes=weights * weight_bytes + head * head_bytes,
        cache_bytes=cache_elements(llm) * seen * cache_bytes,
        flops=positions * (2 * (weights + head) + attention),
    )


def picture_flops(config: MolmoActConfig, tokens: int) -> float:
    """Of encoding the pictures, each as one crop, and projecting their pooled tokens."""
    vit, adapter = config.vit_config, config.adapter_config
    blocks = max(layer % vit.num_hidden_layers for layer in adapter.vit_layers) + 1
    weights = blocks * (4 * vit.hidden_size**2 + 2 * vit.hidden_size * vit.intermediate_size)
    scores = 4 * blocks * vit.hidden_size * vit.image_num_pos
    projection = adapter.intermediate_size * (2 * adapter.hidden_size + adapter.text_hidden_size)
    return CAMERAS * vit.image_num_pos * (2 * weights + scores) + tokens * 2 * projection


# --- The check on this machine


def fastest_seconds(works: dict[K, Callable[[], Any]], repetitions: int) -> dict[K, float]:
    """Time of this thread, which does all the work, without that in which other programs have its core.

    In turns, and the fastest counts: they also take caches and bandwidth.
    """
    torch.set_num_threads(1)
    fastest = dict.fromkeys(works, float("inf"))
    for _ in range(repetitions):
        for key, work in works.items():
            work()  # finds its memory and its weights again
            started = time.thread_time()
            work()
            fastest[key] = min(fastest[key], time.thread_time() - started)
    return fastest


def language_model(layers: int, hidden: int, intermediate: int, heads: int) -> MolmoActForActionReasoning:
    """Random, with next to no vision."""
    return policy_test("random_models").random_model(
        image_patch_id=33,
        num_hidden_layers=layers,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=hidden // heads,
        vocab_size=32,
        additional_vocab_size=6,
    )


def one_pass(model: MolmoActForActionReasoning, size: int) -> Callable[[], Any]:
    """Does a pass of that many positions, without the head."""
    incremental, hidden = IncrementalModel(model), model.config.llm_config.hidden_size
    incremental.append(torch.randn(CHECK_CONTEXT, hidden))
    embeddings = torch.randn(size, hidden)

    def work() -> None:
        incremental.length = CHECK_CONTEXT
        incremental.append(embeddings)

    return work


def check(name: str, model: MolmoActForActionReasoning, repetitions: int) -> dict[str, Any]:
    """Bandwidth is that of reading as many bytes of weights as the model has in matrices of its width, speed that of
    multiplying those: a small model's weights stay in the caches of a CPU, and small matrices are multiplied less well.
    """
    llm, width, most = model.config.llm_config, model.config.llm_config.hidden_size, max(CHECKED)
    matrices = [torch.randn(width, width) for _ in range(block_weights(llm) // width**2)]
    row, rows = torch.randn(1, width), torch.randn(most, width)
    empty = 8  # layers
    works: dict[str | int, Callable[[], Any]] = {
        "reading": lambda: [F.linear(row, matrix) for matrix in matrices],
        "multiplying": lambda: [F.linear(rows, matrix) for matrix in matrices[:8]],
        "nothing": one_pass(language_model(empty, 16, 16, 1), 1),
        **{size: one_pass(model, size) for size in CHECKED},
    }
    seconds = fastest_seconds(works, repetitions)
    machine = Machine(
        bandwidth=4 * width**2 * len(matrices) / seconds["reading"],
        speed=2 * width**2 * len(matrices[:8]) * most / seconds["multiplying"],
        layer=seconds["nothing"] / empty,
    )
    passes = []
    for size in CHECKED:
        cost = pass_cost(llm, size, CHECK_CONTEXT, head_rows=0, weight_bytes=4, cache_bytes=4)
        predicted = cost.seconds(machine, llm.num_hidden_layers)
        passes.append(
            {
                "positions": size,
                "measured_ms": round(1e3 * seconds[size], 3),
                "predicted_ms": round(1e3 * predicted, 3),
                "measured_over_predicted": round(seconds[size] / predicted, 2),
            }
        )
    return {
        "model": name,
        "block_weights": block_weights(llm),
        "context": CHECK_CONTEXT,
        "bandwidth_gb_s": round(machine.bandwidth / 1e9, 2),
        "multiplication_gflop_s": round(machine.speed / 1e9, 2),
        "empty_layer_us": round(machine.layer * 1e6, 1),
        "passes": passes,
    }


# --- Predictions


@dataclass(frozen=True)
class Request:
    """A reply to be decoded: tokens of the prompt (those of pictures among them) and of the reply, decisions in it."""

    prompt: int
    picture_tokens: int
    reply: int
    decisions: int
    legal_rows: int


def released_request() -> Request:
    processor = released_processor()
    images = [processor.image_processor(image, multi_image=True, once=True) for image in pictures(0)]
    shown = [*processor.image_prefix(images, numbered=True), *processor.encode_prompt(prompt())]
    replies = [released_reply(seed) for seed in range(20)]
    return Request(
        prompt=len(shown),
        picture_tokens=shown.count(processor.image_patch_id) // 2,  # the duplicate is projected once
        reply=round(statistics.mean(map(len, replies))),
        decisions=round(statistics.mean(map(decisions, replies))),
        legal_rows=len(released_grammar().ids),
    )


class Prediction:
    """Times of one model on one machine, nothing of the pictures or the prompt being cached."""

    def __init__(self, config: MolmoActConfig, request: Request, machine: Machine, weights: str) -> None:
        self._llm, self._request, self._machine = config.llm_config, request, machine
        self._weight_bytes = WEIGHT_BYTES[weights]
        self.pictures = picture_flops(config, request.picture_tokens) / machine.speed
        self.prefill = self.one_pass(request.prompt, 0, 0)

    def one_pass(self, positions: int, context: int, head_rows: int) -> float:
        cost = pass_cost(self._llm, positions, context, head_rows=head_rows, weight_bytes=self._weight_bytes)
        return cost.seconds(self._machine, self._llm.num_hidden_layers)

    def balanced_positions(self) -> int:
        """Up to which a pass is as long as for one: from there on it waits for multiplications, not for weights."""
        single = self.one_pass(1, self._request.prompt, self._request.legal_rows)
        positions = 1
        while self.one_pass(positions + 1, self._request.prompt, self._request.legal_rows) < 1.01 * single:
            positions += 1
        return positions

    def token_by_token(self) -> float:
        request = self._request
        contexts = range(request.prompt, request.prompt + request.reply - 1)
        after = sum(self.one_pass(1, context, self._llm.vocab_size) for context in contexts)
        return self.pictures + self.prefill + after

    def in_passes(self, passes: int, window: int) -> float:
        """Each keeps as much of the reply as the others, and carries what is left of it, up to a window and filled up
        to a size that is recorded. The first is that of the prompt.
        """
        request = self._request
        total = self.pictures
        for number in range(passes):
            done = round(number * request.reply / passes)
            carried = min(window, request.reply - done)
            if number == 0:
                total += self.one_pass(request.prompt + carried, 0, request.legal_rows)
            else:
                filled = next(size for size in SIZES["cuda"] if size >= carried)
                total += self.one_pass(filled, request.prompt + done, request.legal_rows)
        return total

    def table(self) -> dict[str, Any]:
        request = self._request
        run = -(-request.reply // request.decisions)  # a decision and what is forced after it
        alone = {size: self.one_pass(size, request.prompt, request.legal_rows) for size in SIZES["cuda"]}
        return {
            "pictures_ms": round(1e3 * self.pictures, 2),
            "prefill_ms": round(1e3 * self.prefill, 2),
            "balanced_positions": self.balanced_positions(),
            "pass_ms": {str(size): round(1e3 * seconds, 2) for size, seconds in alone.items()},
            "chunk_s": {
                "token by token": round(self.token_by_token(), 3),
                "forced runs skipped": round(self.in_passes(request.decisions, run), 3),
                **{f"{passes} passes": round(self.in_passes(passes, WINDOW["cuda"]), 3) for passes in PASSES},
                **{
                    f"{passes} passes of {SMALL_WINDOW}": round(self.in_passes(passes, SMALL_WINDOW), 3)
                    for passes in PASSES
                },
            },
        }


def memory_bytes(config: MolmoActConfig, request: Request, weights: str) -> dict[str, int]:
    """What is held: quantised blocks, everything else in bfloat16, keys and values of prompt and reply."""
    with torch.device("meta"):
        model = MolmoActForActionReasoning(config)
    blocks = block_weights(config.llm_config)
    others = sum(parameter.numel() for parameter in model.parameters()) - blocks
    cache = cache_elements(config.llm_config) * CACHE_BYTES
    return {
        "blocks": round(blocks * WEIGHT_BYTES[weights]),
        "other_weights": 2 * others,
        "cache_per_position": cache,
        "cache": cache * (request.prompt + request.reply),
    }


def predictions(config: MolmoActConfig) -> dict[str, Any]:
    request = released_request()
    memory = {weights: memory_bytes(config, request, weights) for weights in WEIGHT_BYTES}
    found: dict[str, Any] = {"request": asdict(request), "reached": REACHED, "memory_bytes": memory, "machines": {}}
    for name, peak in GPUS.items():
        reached = replace(peak, bandwidth=peak.bandwidth * REACHED["bandwidth"], speed=peak.speed * REACHED["speed"])
        found["machines"][name] = {
            "published": {"bandwidth": peak.bandwidth, "speed": peak.speed, "memory": peak.memory},
            **{
                weights: {
                    "floor": Prediction(config, request, peak, weights).table(),
                    "assumed": Prediction(config, request, reached, weights).table(),
                }
                for weights in WEIGHT_BYTES
            },
        }
    return found


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=here / "results" / "decode_cost.json")
    parser.add_argument("--checkpoint", help="whose configuration is predicted for; default: the released 7B-D's")
    parser.add_argument("--repetitions", type=int, default=15, help="of everything measured; the fastest counts")
    options = parser.parse_args()
    config = read_config(locate(options.checkpoint)) if options.checkpoint else released_config()
    with torch.inference_mode():
        nano = MolmoActForActionReasoning.from_pretrained(locate(EMBEDDED), dtype=torch.float32)
        checks = [
            check("nano", nano, options.repetitions),
            check("8 layers of 1024", language_model(8, 1024, 4096, 8), options.repetitions),
        ]
    found = {
        "check": checks,
        "prediction": predictions(config),
        "machine": {
            "cpus": os.cpu_count(),
            "torch": torch.__version__,
            "load_average": os.getloadavg(),
        },
    }
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"check": checks, "machine": found["machine"]}, indent=1))


if __name__ == "__main__":
    main()
