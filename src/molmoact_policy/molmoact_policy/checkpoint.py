"""Reading and writing the official checkpoint layout: config.json and safetensors, single or sharded, official keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ament_index_python.packages import get_package_share_directory
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, IncompleteSnapshotError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from molmoact_policy.config import MolmoActConfig
from molmoact_policy.errors import CheckpointError

if TYPE_CHECKING:
    from molmoact_policy.language import Rows
    from molmoact_policy.model import MolmoActForActionReasoning

EMBEDDED = "nano"
CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"

FLOAT_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
PICKLES = ("pytorch_model*.bin", "model*.pt", "*.ckpt", "*.distcp")
NAMES_SHOWN = 5
# How much of a file is read through one mapping: pages of a mapping count as memory until it is closed.
MAPPED_BYTES = 1 << 30

# The training code's keys ("transformer.*", nothing below self_attn or mlp) -> the released ones.
TRAINING_KEYS = (
    (re.compile(r"^(transformer|vision_backbone)\."), r"model.\1."),
    (re.compile(r"^model\.transformer\.ff_out\."), "lm_head."),
    (re.compile(r"(blocks\.\d+)\.(att_proj|attn_out|q_norm|k_norm)\."), r"\1.self_attn.\2."),
    (re.compile(r"(blocks\.\d+)\.(ff_proj|ff_out)\."), r"\1.mlp.\2."),
)


def locate(name: str | Path) -> Path:
    """Where a checkpoint is: the embedded "nano", a directory, or a hub repository's snapshot in the local cache.

    Never downloads. Raises CheckpointError when there is neither.
    """
    if str(name) == EMBEDDED:
        return Path(get_package_share_directory("molmoact_policy")) / "checkpoints" / EMBEDDED
    directory = Path(name).expanduser()
    if directory.is_dir():
        return directory
    try:
        return Path(snapshot_download(str(name), local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError) as error:
        raise CheckpointError(f"checkpoint {str(name)!r}: {_whereabouts(name, error)}") from error


def _whereabouts(name: str | Path, error: Exception) -> str:
    if isinstance(error, HFValidationError):
        return "no such directory, nor the name of a hub repository"
    if isinstance(error, IncompleteSnapshotError):
        return f"only a part of it is in the local hub cache; try: hf download {name}"
    return f"no such directory, and not in the local hub cache; try: hf download {name}"


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


def read_generation_config(directory: Path) -> GenerationConfig | None:
    """generation_config.json, if there is one. Raises CheckpointError when it is not readable."""
    if not (directory / GENERATION_CONFIG).is_file():
        return None
    content = read_json(directory, GENERATION_CONFIG)
    try:
        return GenerationConfig.from_dict(content)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{directory / GENERATION_CONFIG}: {error}") from error


def float_dtype(name: torch.dtype | str) -> torch.dtype:
    """ "float32", "bfloat16" or "float16" as torch's. Raises ValueError for any other."""
    known = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}
    if name in known.values():
        return name
    if name not in known:
        raise ValueError(f"dtype is {name!r} ({', '.join(known)})")
    return known[name]


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is and what its file's header says about it."""

    file: Path
    key: str  # in that file
    shape: list[int]
    dtype: str  # safetensors' name

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * FLOAT_DTYPES[self.dtype].itemsize


def scan(directory: Path) -> dict[str, StoredTensor]:
    """What a checkpoint holds by official key, from the headers of its weight files; no tensor is read.

    Raises CheckpointError naming a file that is missing or not complete, or a tensor that is there twice.
    """
    stored: dict[str, StoredTensor] = {}
    for file in _weight_files(directory):
        with _open(file) as tensors:
            for key in tensors.keys():  # noqa: SIM118, this is no dictionary
                official = official_key(key)
                if official in stored:
                    other = stored[official]
                    raise CheckpointError(
                        f"checkpoint {directory}: {official} is there twice: {other.key} in {other.file.name}, "
                        f"{key} in {file.name}"
                    )
                view = tensors.get_slice(key)
                stored[official] = StoredTensor(file, key, view.get_shape(), view.get_dtype())
    return stored


class StoredTensors:
    """The tensors of a checkpoint, checked by name, shape and dtype against a model before any is read."""

    def __init__(self, directory: Path, model: MolmoActForActionReasoning) -> None:
        self._stored = scan(directory)
        shapes = {key: tensor.shape for key, tensor in self._stored.items()}
        check_shapes(f"checkpoint {directory}", shapes, official_shapes(model))
        self.dtype = common_dtype(directory, self._stored)

    def copy_into(self, model: MolmoActForActionReasoning) -> None:
        """Every tensor into its parameter, converted and moved on the way; one tensor is in memory at a time."""
        parameters = dict(model.named_parameters())
        layout = model.official_layout()
        with torch.no_grad():
            for file in sorted({tensor.file for tensor in self._stored.values()}):
                sizes = {key: tensor.size for key, tensor in self._stored.items() if tensor.file == file}
                for keys in _shards(sizes, MAPPED_BYTES):
                    with _open(file) as tensors:
                        for official in keys:
                            tensor = tensors.get_tensor(self._stored[official].key)
                            _scatter(tensor, layout[official], parameters)


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
        raise CheckpointError(f"checkpoint {directory}: {WEIGHTS} is missing ({_instead(directory)})")
    weight_map = read_json(directory, WEIGHTS_INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_file_name(name) for name in weight_map.values()):
        raise CheckpointError(f"{directory / WEIGHTS_INDEX}: weight_map is not a mapping from tensors to file names")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (directory / name).is_file()]
    if missing or not names:
        raise CheckpointError(f"checkpoint {directory}: {WEIGHTS_INDEX} names missing files: {_some(missing)}")
    return [directory / name for name in names]


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _instead(directory: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        return f"it has {_some(pickles)}: a pickle can run code and is not loaded; convert it to safetensors"
    return f"and there is no {WEIGHTS_INDEX}"


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


def common_dtype(directory: Path, stored: Mapping[str, StoredTensor]) -> torch.dtype:
    """The one dtype of all tensors. Raises CheckpointError when they are mixed or of no floating dtype."""
    by_dtype: dict[str, list[str]] = {}
    for key, tensor in stored.items():
        by_dtype.setdefault(tensor.dtype, []).append(key)
    if len(by_dtype) != 1 or not set(by_dtype) <= set(FLOAT_DTYPES):
        found = "; ".join(f"{dtype}: {_some(keys)}" for dtype, keys in by_dtype.items()) or "no tensor"
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
