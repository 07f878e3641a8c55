"""What a run keeps on disk, so that it can be killed at any moment and goes on as if nothing had happened.

    RUN/settings.json                     what the run is; another one does not go on in its place
    RUN/checkpoints/step-00000150/        there only when whole
        state.json                        step, and how many processes hold a part of the tensors
        part-00000.safetensors            "model.", "average." and "optimizer." tensors of process 0, ...
    RUN/log.jsonl, RUN/tensorboard/       figures, up to the checkpoint that a run goes on from

Tensors that are spread over processes (FSDP2) are kept as each process has them: rows, in the order of the processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from molmoact_training.errors import TrainingError

SETTINGS_FILE = "settings.json"
STATE_FILE = "state.json"
LOCK_FILE = "lock"
CHECKPOINTS = "checkpoints"
PARTIAL = ".partial"
STEP = re.compile(r"step-(\d{8})")


@contextmanager
def locked(run: Path, *, hold: bool) -> Iterator[None]:
    """Hold a run's directory against other trainings; released with this process, however it ends.

    hold: whether this is the process of the run that does so. Raises TrainingError when another training holds it.
    """
    if not hold:
        yield
        return
    with (run / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise TrainingError(f"run {run}: another training works in it") from error
        yield


def check_settings(run: Path, settings: dict[str, Any]) -> None:
    """Write settings.json, or compare with the one that is there. Raises TrainingError naming every difference."""
    path = run / SETTINGS_FILE
    if not path.exists():
        _write(path, settings)
        return
    before, now = _flat(read_settings(run)), _flat(settings)
    absent = object()
    differences = [
        f"{name} was {before.get(name)!r}, now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, absent) != now.get(name, absent)
    ]
    if differences:
        raise TrainingError(f"run {run} was started otherwise: {'; '.join(differences)}")


def read_settings(run: Path) -> dict[str, Any]:
    """settings.json of a run. Raises TrainingError when there is none or it is not readable."""
    try:
        settings = json.loads((run / SETTINGS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"run {run}: {SETTINGS_FILE} not readable: {error}") from error
    if not isinstance(settings, dict):
        raise TrainingError(f"run {run}: {SETTINGS_FILE} holds no object")
    return settings


def steps_kept(run: Path) -> list[int]:
    """Steps of the checkpoints that are whole, oldest first."""
    names = [STEP.fullmatch(path.name) for path in (run / CHECKPOINTS).glob("step-*")]
    return sorted(int(match[1]) for match in names if match)


def checkpoint_of(run: Path, step: int) -> Path:
    return run / CHECKPOINTS / f"step-{step:08d}"


def begin(run: Path, step: int) -> Path:
    """An empty directory to write the parts of a checkpoint into; for one process to call."""
    partial = checkpoint_of(run, step).with_suffix(PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def write_part(run: Path, step: int, process: int, tensors: Mapping[str, Tensor]) -> None:
    """What a process has: its rows of spread tensors and, in process 0, all others."""
    own = {
        name: (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach().cpu().contiguous()
        for name, tensor in tensors.items()
        if process == 0 or isinstance(tensor, DTensor)
    }
    path = checkpoint_of(run, step).with_suffix(PARTIAL) / _part(process)
    save_file(own, path)
    _sync(path)


def finish(run: Path, step: int, processes: int, keep: int, keep_every: int | None) -> None:
    """Give the checkpoint its name, then delete older ones: the newest `keep` and every `keep_every`-th step stay."""
    directory = checkpoint_of(run, step)
    partial = directory.with_suffix(PARTIAL)
    _write(partial / STATE_FILE, {"step": step, "processes": processes})
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(partial, directory)
    _sync(directory.parent)
    for old in steps_kept(run)[:-keep]:
        if keep_every is None or old % keep_every:
            shutil.rmtree(checkpoint_of(run, old))


class StoredState:
    """The tensors of a checkpoint by name, read one at a time."""

    def __init__(self, directory: Path) -> None:
        """Raises TrainingError when a part is missing or not complete."""
        try:
            state = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
            self.step = int(state["step"])
            self._parts = [
                safe_open(directory / _part(process), framework="pt") for process in range(state["processes"])
            ]
        except Exception as error:  # safetensors raises its own, by kind of damage
            raise TrainingError(f"{directory}: not a complete checkpoint of a run: {error}") from error
        self._names = [set(part.keys()) for part in self._parts]

    def names(self, prefix: str) -> list[str]:
        """Names that begin with the prefix, without it."""
        return sorted({name.removeprefix(prefix) for names in self._names for name in names if name.startswith(prefix)})

    def whole(self, name: str) -> Tensor:
        """A tensor, put together again where it was spread."""
        pieces = [part.get_tensor(name) for part, names in zip(self._parts, self._names, strict=True) if name in names]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @torch.no_grad()
    def copy_into(self, prefix: str, tensors: Mapping[str, Tensor]) -> None:
        """Every tensor from what is stored under its name; spread ones take their rows."""
        for name, tensor in tensors.items():
            stored = self.whole(prefix + name)
            if isinstance(tensor, DTensor):
                stored = distribute_tensor(stored.to(tensor.device), tensor.device_mesh, tensor.placements)
            tensor.copy_(stored)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Any, str]) -> dict[str, Tensor]:
    """The optimizer's state by name of parameter and of value."""
    return {
        f"{names[parameter]}.{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, names: Mapping[Any, str], stored: StoredState) -> None:
    """Give every parameter that had been updated its moments and its count of updates."""
    known = set(stored.names("optimizer."))
    for parameter, name in names.items():
        if f"{name}.step" not in known:
            continue
        state: dict[str, Tensor] = {
            "step": torch.zeros((), device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
        stored.copy_into(f"optimizer.{name}.", state)
        optimizer.state[parameter] = state


def _part(process: int) -> str:
    return f"part-{process:05d}.safetensors"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list):
        value = {str(index): inner for index, inner in enumerate(value)}
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        name: leaf
        for key, inner in value.items()
        for name, leaf in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(PARTIAL)
    partial.write_text(json.dumps(content, indent=1), encoding="utf-8")
    _sync(partial)
    os.replace(partial, path)


def _sync(path: Path) -> None:
    """Wait until it is on the disk: a name must not outlive what it names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
