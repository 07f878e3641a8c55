"""From shards of samples to batches: what the model reads, what it should write and how much each token counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from molmoact_policy.actions import SYMBOLS, ActionStatistics, encode_bins, format_actions
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import (
    format_depth,
    format_trace,
    reasoning_prompt,
    reasoning_reply,
    steering_prompt,
    steering_reply,
)

TEXT, DEPTH, TRACE, ACTION = range(4)  # kinds of reply tokens
KIND_NAMES = ("text", "depth", "trace", "action")
FIELDS = ("pixels", "depth", "actions", "trace", "instruction", "steered", "seed")


@dataclass(frozen=True)
class Batch:
    """Right-padded token sequences. `L` tokens, of which the last ones are the reply."""

    input_ids: torch.Tensor  # int64 [B, L]
    targets: torch.Tensor  # int64 [B, L], token that follows each position
    weights: torch.Tensor  # float32 [B, L], 0 where the next token is not part of the reply
    kinds: torch.Tensor  # int64 [B, L], kind of the target
    pixels: torch.Tensor  # uint8 [B, cameras, patches, values]


class SampleShards:
    """Shards written by `molmoact_training.demonstrations`, memory-mapped: sample i of all of them."""

    def __init__(self, directory: Path):
        self.shards = sorted(path for path in directory.glob("shard_*") if (path / "actions.npy").exists())
        if not self.shards:
            raise FileNotFoundError(f"{directory}: no shards of samples (expected shard_*/actions.npy)")
        self.arrays = {
            name: [np.load(shard / f"{name}.npy", mmap_mode="r") for shard in self.shards] for name in FIELDS
        }
        sizes = [len(array) for array in self.arrays["actions"]]
        self.index = [(shard, row) for shard, size in enumerate(sizes) for row in range(size)]

    def __len__(self) -> int:
        return len(self.index)

    def get(self, name: str, sample: int) -> np.ndarray:
        shard, row = self.index[sample]
        return self.arrays[name][shard][row]

    def all(self, name: str) -> np.ndarray:
        """One field of every sample, in memory."""
        return np.concatenate(self.arrays[name])


class ReplyWriter:
    """Writes the prompt and reply of a sample as token ids, with the kind and weight of every reply token."""

    def __init__(self, processor: Processor, statistics: ActionStatistics, weights: dict[str, float], cameras: int):
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.statistics = statistics
        self.weights = weights
        self.cameras = cameras
        vocabulary = self.tokenizer.get_vocab()
        self.symbol_ids = np.array([vocabulary[symbol] for symbol in SYMBOLS])
        self.number_ids = np.array([vocabulary[str(number)] for number in range(256)])
        self.depth_ids = np.array([vocabulary[f"<DEPTH_{code}>"] for code in range(128)])
        self.kind_of_id = np.full(max(vocabulary.values()) + 1, TEXT)
        self.kind_of_id[self.symbol_ids] = ACTION
        self.kind_of_id[self.number_ids] = TRACE
        self.kind_of_id[self.depth_ids] = DEPTH
        self.prompts: dict[tuple[str, bool], np.ndarray] = {}

    def prompt_ids(self, instruction: str, steered: bool) -> np.ndarray:
        """Ids of images and prompt; the same for every sample of an instruction."""
        key = (instruction, steered)
        if key not in self.prompts:
            prompt = (steering_prompt if steered else reasoning_prompt)(instruction, self.cameras)
            blank = np.zeros((8, 8, 3), np.uint8)
            self.prompts[key] = self.processor([[blank] * self.cameras], prompt)["input_ids"][0].numpy()
        return self.prompts[key]

    def reply_ids(self, depth_codes: np.ndarray, trace: np.ndarray, actions: np.ndarray, steered: bool) -> np.ndarray:
        """`depth_codes` [100], `trace` [n, 2] in 0..255, `actions` [rows, D] in SI units -> ids, ending with EOS."""
        action = format_actions(encode_bins(self.statistics.normalise(actions)))
        text = steering_reply(action)
        if not steered:
            text = reasoning_reply(format_depth(depth_codes.tolist()), format_trace(trace.tolist()), action)
        return np.array(self.processor.encode_reply(text))

    def weights_and_kinds(self, reply: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Loss weight and kind of every token of a reply; the first row of actions is what moves the arm next."""
        kinds = self.kind_of_id[reply]
        weights = np.array([self.weights[name] for name in KIND_NAMES])[kinds]
        first_row = np.flatnonzero(kinds == ACTION)[: self.statistics.dimensions]
        weights[first_row] *= self.weights["first_row"]
        return weights.astype(np.float32), kinds

    def sequence(self, sample: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Token ids [L + 1] of prompt and reply, and weight and kind [L] of what follows each of the first L."""
        steered = bool(sample["steered"])
        prompt = self.prompt_ids(str(sample["instruction"]), steered)
        reply = self.reply_ids(sample["depth_codes"], sample["trace"], sample["actions"], steered)
        reply_weights, reply_kinds = self.weights_and_kinds(reply)
        unread = len(prompt) - 1
        weights = np.concatenate([np.zeros(unread, np.float32), reply_weights])
        kinds = np.concatenate([np.full(unread, TEXT), reply_kinds])
        return np.concatenate([prompt, reply]), weights, kinds


def collate(sequences: list[tuple[np.ndarray, np.ndarray, np.ndarray]], pixels: np.ndarray, padding: int) -> Batch:
    """Pads on the right: with causal attention nothing that counts can see it."""
    length = max(len(ids) for ids, _, _ in sequences)
    tokens = np.full((len(sequences), length), padding, np.int64)
    weights = np.zeros((len(sequences), length - 1), np.float32)
    kinds = np.zeros((len(sequences), length - 1), np.int64)
    for row, (ids, weight, kind) in enumerate(sequences):
        tokens[row, : len(ids)] = ids
        weights[row, : len(weight)] = weight
        kinds[row, : len(kind)] = kind
    tokens_tensor = torch.from_numpy(tokens)
    return Batch(
        input_ids=tokens_tensor[:, :-1],
        targets=tokens_tensor[:, 1:],
        weights=torch.from_numpy(weights),
        kinds=torch.from_numpy(kinds),
        pixels=torch.from_numpy(pixels),
    )
