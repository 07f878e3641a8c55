"""Reading and writing the official checkpoint layout: config.json and safetensors, single or sharded, official keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from molmoact_policy.config import MolmoActConfig
from molmoact_policy.errors import CheckpointError

if TYPE_CHECKING:
    from molmoact_policy.language import Rows
    from molmoact_policy.model import MolmoActForActionReasoning

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

FLOAT_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
NAMES_SHOWN = 5

# The training code's keys ("transformer.*", nothing below self_attn or mlp) -> the released ones.
TRAINING_KEYS = (
    (re.compile(r"^(transformer|vision_backbone)\."), r"model.\1."),
    (re.compile(r"^model\.transformer\.ff_out\."), "lm_head."),
    (re.compile(r"(blocks\.\d+)\.(att_proj|attn_out|q_norm|k_norm)\."), r"\1.self_attn.\2."),
    (re.compile(r"(blocks\.\d+)\.(ff_proj|ff_out)\."), r"\1.mlp.\2."),
)


def locate(name: str | Path) -> Path:
    """The directory of a checkpoint: `name` itself, or a hub repository's newest snapshot in the local cache.

    Never downloads. Raises CheckpointError when there is neither.
    """
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"checkpoint {str(name)!r}: no such directory, and not in the local hub cache") from error


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """The JSON object in a checkpoint's file. Raises CheckpointError naming the file."""
    path = directory / name
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {directory}: {name} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected an object")
    return content


def read_config(directory: Path) -> MolmoActConfig:
    """config.json as MolmoActConfig. Raises CheckpointError when it is missing or another architecture's."""
    content = read_json(directory, CONFIG)
    architectures = content.get("architectures") or ["MolmoActForActionReasoning"]
    if content.get("model_type") != MolmoActConfig.model_type or "MolmoActForActionReasoning" not in architectures:
        raise CheckpointError(
            f"{directory / CONFIG}: model_type {content.get('model_type')!r}, architectures {architectures}; expected "
            "'molmoact', ['MolmoActForActionReasoning']"
        )
    try:
        return MolmoActConfig.from_dict(content)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / CONFIG}: {error}") from error


class StoredTensors:
    """The tensors of a checkpoint, checked by name, shape and dtype against a model before any is read."""

    def __init__(self, directory: Path, model: MolmoActForActionReasoning) -> None:
        self._files = _weight_files(directory)
        self._stored: dict[str, tuple[Path, str]] = {}  # official key -> (file, key in that file)
        dtypes: dict[str, str] = {}
        shapes: dict[str, list[int]] = {}
        for file in self._files:
            with _open(file) as tensors:
                for key in tensors.keys():  # noqa: SIM118, this is no dictionary
                    official = official_key(key)
                    self._stored[official] = (file, key)
                    view = tensors.get_slice(key)
                    shapes[official], dtypes[official] = view.get_shape(), view.get_dtype()
        check_shapes(f"checkpoint {directory}", shapes, official_shapes(model))
        self.dtype = _common_dtype(directory, dtypes)

    def copy_into(self, model: MolmoActForActionReasoning) -> None:
        """Every tensor into its parameter, converted and moved on the way; one tensor is in memory at a time."""
        parameters = dict(model.named_parameters())
        layout = model.official_layout()
        with torch.no_grad():
            for file in self._files:
                with _open(file) as tensors:
                    for official, (holder, key) in self._stored.items():
                        if holder == file:
                            _scatter(tensors.get_tensor(key), layout[official], parameters)


def official_key(key: str) -> str:
    """The released name of a key that may be the training code's."""
    if key.startswith(("model.", "lm_head.")):
        return key
    for pattern, replacement in TRAINING_KEYS:
        key = pattern.sub(replacement, key)
    return key


def official_shapes(model: MolmoActForActionReasoning) -> dict[str, list[int]]:
    """Key -> shape of everything `write_tensors` would write; works on the meta device."""
    parameters = dict(model.named_parameters())
    shapes = {}
    for key, parts in model.official_layout().items():
        first = parameters[parts[0].parameter]
        shapes[key] = [sum(len(_rows(parameters, part)) for part in parts), *first.shape[1:]]
    return shapes


def write_tensors(model: MolmoActForActionReasoning, directory: Path, max_shard_bytes: int) -> None:
    """model.safetensors, or shards with their index; fused tensors are put together one shard at a time."""
    parameters = dict(model.named_parameters())
    layout = model.official_layout()
    element = model.lm_head.weight.element_size()
    sizes = {key: element * torch.Size(shape).numel() for key, shape in official_shapes(model).items()}
    shards = _shards(sizes, max_shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    for name, keys in zip(names, shards, strict=True):
        tensors = {key: _gather(layout[key], parameters) for key in keys}
        save_file(tensors, directory / name, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {key: name for name, keys in zip(names, shards, strict=True) for key in keys}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (directory / WEIGHTS_INDEX).write_text(json.dumps(index, indent=2), encoding="utf-8")


def _weight_files(directory: Path) -> list[Path]:
    if (directory / WEIGHTS).is_file():
        return [directory / WEIGHTS]
    if not (directory / WEIGHTS_INDEX).is_file():
        raise CheckpointError(f"checkpoint {directory}: {WEIGHTS} is missing (and there is no {WEIGHTS_INDEX})")
    names = sorted(set(read_json(directory, WEIGHTS_INDEX).get("weight_map", {}).values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"checkpoint {directory}: {WEIGHTS_INDEX} names missing files: {_some(missing)}")
    return [directory / name for name in names]


def _open(file: Path) -> Any:
    try:
        return safe_open(file, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file}: not a complete safetensors file: {error}") from error


def check_shapes(source: str, stored: dict[str, list[int]], expected: dict[str, list[int]]) -> None:
    """Raises CheckpointError naming the first few tensors that are missing, unexpected or mis-shaped in `source`."""
    missing = [key for key in expected if key not in stored]
    unexpected = [key for key in stored if key not in expected]
    misshaped = [
        f"{key} {stored[key]}, expected {expected[key]}"
        for key in expected
        if key in stored and stored[key] != expected[key]
    ]
    problems = [
        f"{len(keys)} {problem}: {_some(keys)}"
        for problem, keys in (("missing", missing), ("unexpected", unexpected), ("mis-shaped", misshaped))
        if keys
    ]
    if problems:
        raise CheckpointError(f"{source}: tensors do not fit the configuration; " + "; ".join(problems))


def _common_dtype(directory: Path, dtypes: dict[str, str]) -> torch.dtype:
    by_dtype: dict[str, list[str]] = {}
    for key, dtype in dtypes.items():
        by_dtype.setdefault(dtype, []).append(key)
    if len(by_dtype) > 1 or not set(by_dtype) <= set(FLOAT_DTYPES):
        found = "; ".join(f"{dtype}: {_some(keys)}" for dtype, keys in by_dtype.items())
        raise CheckpointError(f"checkpoint {directory}: expected one dtype of {sorted(FLOAT_DTYPES)}, found {found}")
    return FLOAT_DTYPES[next(iter(by_dtype))]


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more


def _rows(parameters: dict[str, Tensor], part: Rows) -> Tensor:
    return parameters[part.parameter][part.start : part.stop]


def _scatter(tensor: Tensor, parts: tuple[Rows, ...], parameters: dict[str, Tensor]) -> None:
    targets = [_rows(parameters, part) for part in parts]
    for target, piece in zip(targets, tensor.split([len(target) for target in targets]), strict=True):
        target.copy_(piece)


def _gather(parts: tuple[Rows, ...], parameters: dict[str, Tensor]) -> Tensor:
    pieces = [_rows(parameters, part).detach().cpu() for part in parts]
    return pieces[0].contiguous() if len(pieces) == 1 else torch.cat(pieces)


def _shards(sizes: dict[str, int], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    room = max_bytes
    for key, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = max_bytes
        shards[-1].append(key)
        room -= size
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"
