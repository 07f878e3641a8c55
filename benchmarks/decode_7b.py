"""How long a reply of MolmoAct-7B-D takes on a GPU, with random weights in the released shape and the released tokens.

Two pictures of 320x240, a reply as long as the released ones. What a random model says is no guide to how good drafts
are, so passes are given: a reply in N passes, each of which keeps as much of it as the others; and drafts of which a
known share of values is wrong, decoded by the decoder itself. The floors are those of decode_cost.py on the same sizes
with the bandwidth and speed measured here. --layers and --hidden make the model small enough to try this on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from decode_cost import PASSES, Machine, Prediction, released_request
from molmoact_policy.config import MolmoActConfig
from molmoact_policy.decoding import WINDOW, Decoder
from molmoact_policy.grammar import Choice, Grammar
from molmoact_policy.incremental import SIZES, IncrementalModel
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.perception import Perception, Prefix
from molmoact_policy.quantization import QUANTIZATIONS, quantize
from released_shape import pictures, prompt, released_config, released_grammar, released_processor, reply
from torch import Tensor

WRONG_SHARES = (0.0, 0.02, 0.1, 0.3, 1.0)  # of the values in a draft
T = TypeVar("T")


def sized_config(layers: int | None, hidden: int | None) -> MolmoActConfig:
    """The released one, or one of the same form with fewer layers or a smaller width of everything."""
    content = released_config().to_dict()
    vit, adapter, llm = content["vit_config"], content["adapter_config"], content["llm_config"]
    if layers is not None:
        llm["num_hidden_layers"] = layers
    if hidden is not None:
        for part in (vit, adapter, llm):
            part.update(hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=2, num_key_value_heads=1)
            part["head_dim"] = hidden // 2
        adapter["text_hidden_size"] = hidden
    return MolmoActConfig.from_dict(content)


def random_model(config: MolmoActConfig, device: str) -> MolmoActForActionReasoning:
    """bfloat16, without ever being somewhere else than on the device."""
    with torch.device("meta"):
        model = MolmoActForActionReasoning(config)
    model.to(torch.bfloat16).to_empty(device=device)
    model._rebuild_rotary_embedding(device)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02, generator=generator)
        else:
            parameter.fill_(1.0)
    return model.eval()


class Clock:
    """Median times of work on a device, all of it done."""

    def __init__(self, device: str, repetitions: int) -> None:
        self._on_gpu, self._repetitions = torch.device(device).type == "cuda", repetitions

    def time(self, work: Callable[[], T]) -> tuple[float, T]:
        """Seconds, and the last result. Once before, uncounted: graphs are recorded then."""
        result, times = work(), []
        for _ in range(self._repetitions):
            self._wait()
            started = time.perf_counter()
            result = work()
            self._wait()
            times.append(time.perf_counter() - started)
        return statistics.median(times), result

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()


def measured_machine(clock: Clock, device: str, width: int) -> Machine:
    """Bandwidth of multiplying a row with 16 matrices that no cache holds, speed of multiplying 4096 rows."""
    matrices = [torch.randn(4 * width, width, device=device, dtype=torch.bfloat16) for _ in range(16)]
    row, rows = (torch.randn(count, width, device=device, dtype=torch.bfloat16) for count in (1, 4096))
    reading, _ = clock.time(lambda: [F.linear(row, matrix) for matrix in matrices])
    multiplying, _ = clock.time(lambda: [F.linear(rows, matrix) for matrix in matrices])
    elements = sum(matrix.numel() for matrix in matrices)
    return Machine(bandwidth=2 * elements / reading, speed=2 * elements * len(rows) / multiplying)


class Bench:
    def __init__(self, model: MolmoActForActionReasoning, clock: Clock) -> None:
        self._model, self._clock = model, clock
        self._processor, self._grammar = released_processor(), released_grammar()
        self._pictures, self._shown = pictures(0), prompt()
        self.prefix = self._see()
        head = model.lm_head.weight
        self._legal = head[torch.tensor(self._grammar.ids, device=head.device)]
        self.length = len(reply(0))

    def _see(self) -> Prefix:
        return Perception(self._model, self._processor).prefix(self._pictures, self._shown)

    def pictures_seconds(self) -> float:
        return self._clock.time(self._see)[0]

    def prefill_seconds(self) -> float:
        incremental = IncrementalModel(self._model)

        def work() -> None:
            incremental.length = 0
            incremental.append(self.prefix.embeddings)

        return self._clock.time(work)[0]

    def pass_seconds(self, sizes: tuple[int, ...] | None) -> dict[int, float]:
        """Positions -> seconds, after the prompt. sizes: as IncrementalModel takes them."""
        incremental = IncrementalModel(self._model, sizes=sizes)
        incremental.append(self.prefix.embeddings)
        start = incremental.length

        def one_pass(embeddings: Tensor) -> None:
            incremental.length = start
            incremental.append(embeddings)

        rows = self.prefix.embeddings
        return {size: self._clock.time(lambda size=size: one_pass(rows[:size]))[0] for size in SIZES["cuda"]}

    def reply_in(self, passes: int) -> float:
        """Seconds of the language model and of scoring, for a reply in that many passes, the prompt's included."""
        incremental = IncrementalModel(self._model)
        guesses = self._model.get_input_embeddings()(torch.tensor(reply(0), device=self._model.device))
        ends = [round(number * self.length / passes) for number in range(passes + 1)]

        def work() -> None:
            incremental.length = 0
            for number, done in enumerate(ends[:-1]):
                carried = guesses[done : done + WINDOW["cuda"]]
                rows = carried if number else torch.cat([self.prefix.embeddings, carried])
                hidden = incremental.append(rows)[-len(carried) :]
                F.linear(hidden, self._legal).argmax(-1).tolist()
                incremental.length = len(self.prefix.embeddings) + ends[number + 1]

        return self._clock.time(work)[0]

    def generate(self) -> dict[str, Any]:
        """transformers' own loop, over as many tokens."""
        inputs = self._processor(self._pictures, self._shown)
        moved = {name: tensor.to(self._model.device) for name, tensor in inputs.items()}
        options = {"max_new_tokens": self.length, "min_new_tokens": self.length, "do_sample": False}
        seconds, _ = self._clock.time(
            lambda: self._model.generate(
                **moved, **options, eos_token_id=self._processor.eos_id, pad_token_id=self._processor.pad_id
            )
        )
        return {"passes": self.length, "seconds": seconds}

    def decode(self, decoder: Decoder, draft: list[Choice], tokens: int) -> dict[str, Any]:
        """By the decoder itself, the prompt computed anew every time."""

        def work() -> Any:
            decoder.decode(Prefix(self.prefix.embeddings[:2], [None, None]), self._grammar, draft, 1)  # forget it
            return decoder.decode(self.prefix, self._grammar, draft, tokens)

        seconds, decoded = self._clock.time(work)
        return {"passes": decoded.passes, "seconds": seconds, "ids": decoded.ids}

    def variants(self) -> dict[str, dict[str, Any]]:
        eos, grammar = self._processor.eos_id, self._grammar
        any_draft = [next(iter(trie.tokens)) for trie in grammar.tries]
        one_by_one = Decoder(self._model, eos, strict=False, window=1)
        forced = Decoder(self._model, eos, window=1)
        fast = Decoder(self._model, eos, window=WINDOW["cuda"])
        said = self.decode(fast, any_draft, 4 * self.length)["ids"]
        found = {
            "generate": self.generate(),
            "token by token": self.decode(one_by_one, any_draft, self.length),
            "forced runs skipped": self.decode(forced, any_draft, 4 * self.length),
        }
        for share in WRONG_SHARES:
            draft = partly_wrong(grammar, said, share)
            found[f"{share:.0%} of the draft wrong"] = self.decode(fast, draft, 4 * self.length)
        for name, entry in found.items():
            ids = entry.pop("ids", None)
            if name not in ("generate", "token by token"):  # which are not held to the grammar
                entry |= {"tokens": len(ids), "same_tokens": ids == said}
        return found


def partly_wrong(grammar: Grammar, ids: list[int], share: float) -> list[Choice]:
    """The draft of these tokens, with that share of its values replaced by others."""
    rng = random.Random(0)
    draft = [next(iter(trie.tokens)) for trie in grammar.tries]
    for place, choice in grammar.read(ids) or ():
        others = [other for other in grammar.tries[place].tokens if other.value != choice.value]
        draft[place] = rng.choice(others) if others and rng.random() < share else choice
    return draft


def measure(options: argparse.Namespace) -> dict[str, Any]:
    config = sized_config(options.layers, options.hidden)
    model = random_model(config, options.device)
    quantize(model, options.quantization)
    clock = Clock(options.device, options.repetitions)
    bench = Bench(model, clock)
    machine = measured_machine(clock, options.device, config.llm_config.hidden_size)
    request = released_request()
    weights = "bfloat16" if options.quantization == "none" else options.quantization
    return {
        "device": torch.cuda.get_device_name(options.device) if "cuda" in options.device else options.device,
        "torch": torch.__version__,
        "layers": config.llm_config.num_hidden_layers,
        "hidden": config.llm_config.hidden_size,
        "quantization": options.quantization,
        "measured_bandwidth": machine.bandwidth,
        "measured_speed": machine.speed,
        "floor": Prediction(config, request, machine, weights).table(),
        "pictures_ms": 1e3 * bench.pictures_seconds(),
        "prefill_ms": 1e3 * bench.prefill_seconds(),
        "pass_ms": {str(size): 1e3 * seconds for size, seconds in bench.pass_seconds(None).items()},
        "pass_without_graphs_ms": {str(size): 1e3 * seconds for size, seconds in bench.pass_seconds(()).items()},
        "reply_s": {f"{passes} passes": bench.reply_in(passes) for passes in PASSES},
        "decoders": bench.variants(),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if "cuda" in options.device else None,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(__file__).parent / "results" / "decode_7b.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quantization", default=QUANTIZATIONS[0], choices=QUANTIZATIONS)
    parser.add_argument("--layers", type=int, help="of the language model, instead of 28")
    parser.add_argument("--hidden", type=int, help="width of everything, instead of 3584 and 1152; a multiple of 4")
    parser.add_argument("--repetitions", type=int, default=5, help="the median counts")
    options = parser.parse_args()
    if "cuda" in options.device and not torch.cuda.is_available():
        print(
            "decode_7b: torch sees no CUDA device; to try the program without: --device cpu --layers 1 --hidden 32",
            file=sys.stderr,
        )
        return 1
    with torch.inference_mode():
        found = measure(options)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
