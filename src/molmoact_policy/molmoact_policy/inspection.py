"""``molmoact checkpoint inspect``: what a checkpoint is and what is wrong with it, without reading its weights."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from molmoact_policy import checkpoint
from molmoact_policy.actions import ActionStatistics
from molmoact_policy.checkpoint import FLOAT_DTYPES, StoredTensor
from molmoact_policy.config import MolmoActConfig
from molmoact_policy.depth import DepthVQVAE
from molmoact_policy.embodiment import EMBODIMENT_FILE, ROW, Embodiment
from molmoact_policy.errors import PolicyError
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.policy import DEPTH_DIRECTORY, check_fit, read_statistics
from molmoact_policy.predict import shipped_conventions
from molmoact_policy.processor import Processor

FAMILIES = {"qwen2": "D", "olmo2": "O"}
GIGA = 1e9


@dataclass(frozen=True)
class Summary:
    """Lines of a report, by heading, and complaints; a checkpoint without complaints can be used."""

    facts: dict[str, str]
    problems: list[str]


def main(arguments: Sequence[str]) -> int:
    """The subcommand; the exit code. 1: there is no checkpoint, or it cannot be used."""
    parser = argparse.ArgumentParser(prog="molmoact checkpoint")
    inspect = parser.add_subparsers(required=True).add_parser("inspect", help=__doc__)
    inspect.add_argument("directory", help="'nano', a directory, or a hub repository in the local cache")
    options = parser.parse_args(arguments)
    try:
        summary = summarise(checkpoint.locate(options.directory))
    except PolicyError as error:
        print(f"molmoact checkpoint: {error}", file=sys.stderr)
        return 1
    for heading, text in summary.facts.items():
        print(f"{heading:11s} {text}")
    for problem in summary.problems:
        print(f"problem: {problem}", file=sys.stderr)
    return int(bool(summary.problems))


def summarise(directory: Path) -> Summary:
    """From the small files and the headers of the large ones. Raises CheckpointError without a config.json."""
    inspected = _Inspected(directory, checkpoint.read_config(directory))
    facts: dict[str, str] = {"checkpoint": str(directory)}
    problems: list[str] = []
    for heading, describe in DESCRIPTIONS.items():
        try:
            facts[heading] = describe(inspected)
        except PolicyError as error:
            if str(error) not in problems:
                problems.append(str(error))
    return Summary(facts, problems)


@dataclass
class _Inspected:
    directory: Path
    config: MolmoActConfig

    @cached_property
    def model(self) -> MolmoActForActionReasoning:
        """On the meta device. Raises CheckpointError for settings that do not go together."""
        return MolmoActForActionReasoning.without_weights(self.directory, self.config)


def _model(inspected: _Inspected) -> str:
    config = inspected.model.config
    vit, llm = config.vit_config, config.llm_config
    return (
        f"family {FAMILIES[llm.family]}: ViT of {vit.hidden_size} at {vit.image_default_input_size[0]} px, read after "
        f"layers {config.adapter_config.vit_layers} of {vit.num_hidden_layers}; {llm.family} of {llm.hidden_size}, "
        f"{llm.num_hidden_layers} layers, {llm.vocab_size}+{llm.additional_vocab_size} tokens, context "
        f"{llm.max_position_embeddings}"
    )


def _parameters(inspected: _Inspected) -> str:
    model = inspected.model
    backbone = model.vision_backbone
    vision = _count(backbone.image_vit)
    parts = {
        "vision": vision,
        "connector": _count(backbone) - vision,
        "language": _count(model.language_model) + _count(model.lm_head),
    }
    listed = ", ".join(f"{name} {count / 1e6:,.1f} M" for name, count in parts.items())
    return f"{sum(parts.values()) / 1e6:,.1f} M: {listed}"


def _weights(inspected: _Inspected) -> str:
    directory = inspected.directory
    stored = checkpoint.scan(directory)
    dtype = checkpoint.common_dtype(directory, stored)
    shapes = {key: tensor.shape for key, tensor in stored.items()}
    checkpoint.check_shapes(f"checkpoint {directory}", shapes, checkpoint.official_shapes(inspected.model))
    return f"{len(stored)} tensors of {_name(dtype)} in {_files(stored)}"


def _files(stored: dict[str, StoredTensor]) -> str:
    names = sorted({tensor.file for tensor in stored.values()})
    size = sum(tensor.size for tensor in stored.values()) / GIGA
    return f"{len(names)} file{'s' if len(names) > 1 else ''}, {size:.3g} GB"


def _memory(inspected: _Inspected) -> str:
    """Of weights, and of the keys and values of one full context."""
    llm = inspected.config.llm_config
    parameters = _count(inspected.model)
    cached = 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim * llm.max_position_embeddings
    return "; ".join(
        f"{_name(dtype)} {parameters * dtype.itemsize / GIGA:.3g} GB + {cached * dtype.itemsize / GIGA:.2g} GB of cache"
        for dtype in FLOAT_DTYPES.values()
    )


def _processor(inspected: _Inspected) -> str:
    processor = Processor.from_pretrained(inspected.directory)
    check_fit(inspected.directory, inspected.config, processor)
    images = processor.image_processor
    return (
        f"{len(processor.tokenizer)} tokens; pictures as {images.style}, at most {images.max_crops} crops of "
        f"{images.crop_size} px ({images.max_multi_image_crops} for each of several)"
    )


def _statistics(inspected: _Inspected) -> str:
    directory, config = inspected.directory, inspected.config
    every = [read_statistics(directory, config, key) for key in config.norm_stats or [None]]
    return "; ".join(_key(directory, statistics) for statistics in every)


def _key(directory: Path, statistics: ActionStatistics) -> str:
    key, dimensions = statistics.key, statistics.dimensions
    arms = dimensions // ROW
    return f"{key}: {dimensions} dimensions ({arms} arm{'s' if arms != 1 else ''}), {_conventions(directory, key)}"


def _conventions(directory: Path, key: str) -> str:
    own, shipped = directory / EMBODIMENT_FILE, shipped_conventions()
    path = own if own.is_file() else shipped
    embodiment = Embodiment.find(path, key) if path is not None else None
    if embodiment is None:
        return "no embodiment says what they are"
    confirmed = "confirmed" if embodiment.confirmed else "ASSUMED, to be confirmed by the operator"
    rows = "any number of" if embodiment.rows is None else embodiment.rows
    return f"{rows} rows {embodiment.step_period:.3g} s apart in the {embodiment.frame} frame ({confirmed})"


def _depth(inspected: _Inspected) -> str:
    directory = inspected.directory
    if not (directory / DEPTH_DIRECTORY).is_dir():
        return "no decoder: depth maps need --depth-vqvae"
    codes = DepthVQVAE.from_pretrained(directory / DEPTH_DIRECTORY).config.num_tokens
    return f"decoder for {codes} codes"


DESCRIPTIONS = {
    "model": _model,
    "parameters": _parameters,
    "weights": _weights,
    "memory": _memory,
    "inputs": _processor,
    "actions": _statistics,
    "depth": _depth,
}


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
