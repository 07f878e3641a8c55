"""The nano checkpoint: the official layout and classes with a few million parameters and a small tokenizer."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from molmoact_policy.actions import SYMBOLS
from molmoact_policy.images import ImageProcessor
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from molmoact_policy.processor import Processor
from molmoact_policy.prompts import (
    chat,
    pointing_prompt,
    reasoning_prompt,
    reasoning_reply,
    steering_prompt,
    steering_reply,
)
from molmoact_policy.tokenizer import ADDED_IMAGE_TOKENS, add_released_tokens
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from molmoact_training.objective import COORDINATES

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_SIZE = 1152  # rows of the embedding and the head; the image tokens follow it, as in the release
VERBS = ["pick", "put", "push", "close", "open", "move", "place"]
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "white", "black"]
THINGS = ["cube", "block", "bowl", "plate", "box", "table"]
INSTRUCTION_WORDS = [*VERBS, *COLOURS, *THINGS, "up", "the", "a", "on", "in", "to", "of", "left", "right"]
HOLE = "\x00"
COPIED_FILES = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "embodiment.yaml")


def text_pieces(images: int) -> list[str]:
    """Fixed text of prompts and replies between their variable parts: one token each."""
    texts = [
        chat(reasoning_prompt(HOLE, images)),
        chat(steering_prompt(HOLE, images)),
        chat(pointing_prompt(HOLE)),
        " " + reasoning_reply(HOLE, HOLE, HOLE),
        " " + steering_reply(HOLE),
    ]
    return [piece for text in texts for piece in text.split(HOLE) if len(piece) > 1]


def build_tokenizer(images: int) -> PreTrainedTokenizerFast:
    """A tokenizer in which an action bin, a trace coordinate and a piece of template are one token each.

    All ordinary pieces score the same, so the segmentation is the one with the fewest tokens; any other text is bytes.
    Ids follow the release's build order.
    """
    characters = [chr(code) for code in range(0x20, 0x7F)]
    words = INSTRUCTION_WORDS + [f" {word}" for word in INSTRUCTION_WORDS]
    numbers = [str(number) for number in range(10, COORDINATES)]
    brackets = [", ", "], [", "[[", "]]"]
    prefixes = [f"Image {index}" for index in range(1, 5)]
    pieces = dict.fromkeys([*characters, *words, *numbers, *brackets, *prefixes, *text_pieces(images), *SYMBOLS])
    vocabulary = [(END_OF_TEXT, 0.0)]
    vocabulary += [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    vocabulary += [(piece, -1.0) for piece in pieces]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        padding_side="left",
    )
    add_released_tokens(tokenizer, VOCABULARY_SIZE)
    return tokenizer


def build_config(model: dict, tokenizer: PreTrainedTokenizerFast) -> MolmoActConfig:
    """`model` is that section of config/training/nano.yaml."""
    crop, patch = model["crop"], model["patch"]
    vision, language = model["vision"], model["language"]
    return MolmoActConfig(
        vit_config={
            "hidden_size": vision["hidden"],
            "intermediate_size": vision["mlp"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["heads"],
            "num_key_value_heads": vision["heads"],
            "head_dim": vision["hidden"] // vision["heads"],
            "image_default_input_size": [crop, crop],
            "image_patch_size": patch,
            "image_num_pos": (crop // patch) ** 2,
        },
        adapter_config={
            "vit_layers": vision["taps"],
            "hidden_size": vision["hidden"],
            "num_attention_heads": vision["heads"],
            "num_key_value_heads": vision["heads"],
            "head_dim": vision["hidden"] // vision["heads"],
            "intermediate_size": model["connector_mlp"],
            "text_hidden_size": language["hidden"],
        },
        llm_config={
            "hidden_size": language["hidden"],
            "intermediate_size": language["mlp"],
            "num_hidden_layers": language["layers"],
            "num_attention_heads": language["heads"],
            "num_key_value_heads": language["kv_heads"],
            "head_dim": language["hidden"] // language["heads"],
            "vocab_size": VOCABULARY_SIZE,
            "additional_vocab_size": len(ADDED_IMAGE_TOKENS),
        },
        image_patch_id=tokenizer.convert_tokens_to_ids("<im_patch>"),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


EMBODIMENT: dict[str, dict[str, Any]] = {
    "nano": {
        "frame": "base",
        "rotation": "rotation_vector",
        "translation_scale": 1.0,
        "rotation_scale": 1.0,
        "gripper_open": "high",
        "step_period": 0.1,
        "rows": 8,
        "image_size": [320, 240],
        "cameras": ["front", "wrist"],
        "confirmed": True,
    }
}


def build_image_processor(model: dict) -> ImageProcessor:
    """One square crop, without the release's tiling of large images; `model` as in `build_config`."""
    return ImageProcessor(
        "siglip2",
        max_crops=1,
        max_multi_image_crops=1,
        overlap_margins=(0, 0),
        base_image_input_size=(model["crop"], model["crop"]),
        image_patch_size=model["patch"],
    )


@torch.no_grad()
def scale_initial_weights(module: torch.nn.Module) -> None:
    """Give every linear layer outputs as large as its inputs.

    The release's standard deviation of 0.02 is made for widths of thousands. At a width of 192 it would start the image
    features at 1e-5, far below the token embeddings, and they would not be learned.
    """
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.weight.normal_(std=layer.in_features**-0.5)


@torch.no_grad()
def place_patches(table: torch.nn.Parameter) -> None:
    """Start a table of patch positions [side * side, hidden] with waves along rows and columns, as large as patches.

    The release's table is learned from zeros by billions of pictures. From 0.02, nano needed 500 steps to point as well
    as it does after 150 from here.
    """
    side, width = math.isqrt(len(table)), table.shape[1] // 4
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side)).float()  # row by row
    angles = place[:, :, None] * torch.pi / (4 * side) * torch.arange(1, width + 1)  # [patches, 2, width]
    waves = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
    table.copy_(waves / waves.std())


@torch.no_grad()
def place_numbers(table: torch.nn.Parameter, rows: Sequence[int]) -> None:
    """Start the rows of a table [vocabulary, hidden] that stand for 0, 1, ... with waves, as large as the other rows.

    Neighbours are alike from the start.
    """
    numbers = torch.arange(len(rows)).float()
    angles = numbers[:, None] * torch.pi / len(rows) * 2 ** torch.linspace(0, 6, table.shape[1] // 2)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    table[list(rows)] = waves * (table.std() / waves.std())


def create(model: dict, directory: Path, seed: int = 0) -> None:
    """Write an untrained checkpoint to `directory`; `model` is that section of config/training/nano.yaml."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer(images=len(EMBODIMENT["nano"]["cameras"]))
    Processor(build_image_processor(model), tokenizer).save_pretrained(directory)
    torch.manual_seed(seed)
    network = MolmoActForActionReasoning(build_config(model, tokenizer))
    scale_initial_weights(network.vision_backbone)
    place_patches(network.vision_backbone.image_vit.positional_embedding)
    embedding, vocabulary = network.language_model.embed_tokens.weight, tokenizer.get_vocab()
    for numbers in (map(str, range(COORDINATES)), SYMBOLS):
        rows = [vocabulary[number] for number in numbers]
        place_numbers(embedding, rows)
        place_numbers(network.lm_head.weight, rows)
    network.save_pretrained(directory)
    (directory / "embodiment.yaml").write_text(yaml.safe_dump(EMBODIMENT, sort_keys=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="config/training/nano.yaml")
    parser.add_argument("--out", type=Path, required=True, help="the untrained checkpoint")
    arguments = parser.parse_args()
    create(yaml.safe_load(arguments.config.read_text())["model"], arguments.out)


if __name__ == "__main__":
    main()
