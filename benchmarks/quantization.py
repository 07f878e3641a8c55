"""What quantised weights change in what a checkpoint says: bfloat16, int8 and int4 against its float32.

Two comparisons on the same pictures. Token for token, each after the float32 model's own reply up to there, so that
one difference does not count for all that follow; and whole replies, decoded strictly, place by place. On a CPU, int4
is rounded as the GPU's kernel needs it only nearly (a whole zero point per group instead of a broken one), and
computes in float32. Needs torchao (docs/explanation/decoding_cost.md).
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from molmoact_policy.checkpoint import locate
from molmoact_policy.embodiment import ROW
from molmoact_policy.grammar import Grammar
from molmoact_policy.perception import Perception
from molmoact_policy.policy import Observation, Policy, Prediction
from molmoact_policy.prompts import reasoning_prompt
from molmoact_policy.quantization import GROUP
from molmoact_training.annotated_dataset import AnnotatedDataset
from torch import Tensor

VARIANTS = ("bfloat16", "int8", "int4")


def variant(checkpoint: str, name: str) -> Policy:
    if name != "int4":
        dtype = "float32" if name == "int8" else name
        return Policy.from_pretrained(
            locate(checkpoint), dtype=dtype, quantization="int8" if name == "int8" else "none"
        )
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_

    policy = Policy.from_pretrained(locate(checkpoint), dtype="float32")
    grid = IntxWeightOnlyConfig(torch.int4, PerGroup(GROUP), MappingType.ASYMMETRIC)
    quantize_(policy.model.language_model, grid)
    return policy


def frames(directory: Path, count: int) -> list[Observation]:
    """Evenly from the whole data set, without those that only steering may show."""
    dataset = AnnotatedDataset(directory)
    rows = np.flatnonzero(~np.array(dataset.column("steered")))
    chosen = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    return [Observation(dataset[int(row)].images, dataset[int(row)].instruction) for row in chosen]


@torch.inference_mode()
def continuations(policy: Policy, observation: Observation, reply: list[int]) -> Tensor:
    """[reply] what the model would write in the place of each token of a reply that it is given up to there."""
    shown = [policy.embodiment.picture(image) for image in observation.images]
    arms = policy.statistics.dimensions // ROW
    prefix = Perception(policy.model, policy.processor).prefix(
        shown, reasoning_prompt(observation.instruction, len(shown), arms)
    )
    said = policy.model.get_input_embeddings()(torch.tensor(reply[:-1], device=policy.model.device))
    embeddings = torch.cat([prefix.embeddings, said]).unsqueeze(0)
    hidden = policy.model.language_model(inputs_embeds=embeddings).last_hidden_state[0, len(prefix.embeddings) - 1 :]
    return policy.model.lm_head(hidden).argmax(-1)


class Agreement:
    """Counts over all pictures how much of what one policy says another says, too."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._counts: Counter[str] = Counter()

    def add_tokens(self, expected: Tensor, found: Tensor) -> None:
        self._counts["tokens"] += len(expected)
        self._counts["same_tokens"] += int((expected == found).sum())

    def add_replies(self, expected: Prediction, found: Prediction) -> None:
        self._counts["replies"] += 1
        self._counts["same_replies"] += expected.token_ids == found.token_ids
        before, after = (dict(self._grammar.read(each.token_ids) or ()) for each in (expected, found))
        for place in before.keys() & after.keys():
            part = self._grammar.places[place].part
            distance = abs(before[place].value - after[place].value)
            self._counts[part] += 1
            self._counts[f"same_{part}"] += distance == 0
            self._counts[f"near_{part}"] += distance <= 1

    def shares(self) -> dict[str, float]:
        count = self._counts
        parts = {"depth codes": "depth", "trace coordinates": "trace", "action bins": "action"}
        return {
            "tokens": count["same_tokens"] / count["tokens"],
            "replies": count["same_replies"] / count["replies"],
            **{name: count[f"same_{part}"] / count[part] for name, part in parts.items()},
            "action bins within 1": count["near_action"] / count["action"],
            "trace coordinates within 1": count["near_trace"] / count["trace"],
        }


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path, help="annotated, of the checkpoint's cameras")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--json", type=Path, default=here / "results" / "quantization.json")
    options = parser.parse_args()
    observations = frames(options.dataset, options.frames)
    exact = Policy.from_pretrained(locate(options.checkpoint), dtype="float32")
    rows = exact.embodiment.rows
    grammar = Grammar(exact.processor, exact.statistics.dimensions, rows=rows, steered=False)
    said = [exact.act(observation) for observation in observations]
    expected = [
        continuations(exact, observation, each.token_ids) for observation, each in zip(observations, said, strict=True)
    ]
    found: dict[str, Any] = {"checkpoint": options.checkpoint, "frames": len(observations)}
    for name in VARIANTS:
        policy, agreement = variant(options.checkpoint, name), Agreement(grammar)
        for observation, each, tokens in zip(observations, said, expected, strict=True):
            agreement.add_tokens(tokens, continuations(policy, observation, each.token_ids))
            agreement.add_replies(each, policy.act(observation))
        found[name] = {key: round(value, 4) for key, value in agreement.shares().items()}
        print(name, found[name], flush=True)
    options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
