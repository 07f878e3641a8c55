"""A model of a few thousand parameters and a dataset of a few frames, to train in seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from molmoact_policy.embodiment import EMBODIMENT_FILE
from molmoact_training import nano_checkpoint
from molmoact_training.annotated_dataset import Frame, finish_dataset, write_shard

MODEL = {
    "crop": 40,
    "patch": 10,
    "vision": {"hidden": 16, "layers": 2, "heads": 2, "mlp": 32, "taps": [-1, -2]},
    "language": {"hidden": 32, "layers": 2, "heads": 2, "kv_heads": 1, "mlp": 48},
    "connector_mlp": 24,
}
# Changes of the nano preset.
CHANGES = {
    "steps": 6,
    "batch": 4,
    "micro_batch": 2,
    "precision": "fp32",
    "optimizer.warmup_steps": 2,
    "validation.episodes": 0.4,
    "validation.every": 3,
    "validation.samples": 4,
    "validation.decoded": 0,
    "checkpoints.every": 2,
    "checkpoints.keep": 2,
}


def write_checkpoint(directory: Path) -> Path:
    """An untrained checkpoint."""
    nano_checkpoint.create(MODEL, directory)
    return directory


def write_dataset(directory: Path, embodiment: Path, *, episodes: int = 5) -> Path:
    """Random pictures, actions and annotations."""
    rng = np.random.default_rng(0)
    frames = [
        Frame(
            episode=episode,
            frame=frame,
            instruction=("pick up the red cube", "push the blue block to the left")[episode % 2],
            images=[rng.integers(0, 256, (30, 40, 3), np.uint8) for _ in range(2)],
            actions=rng.normal(0, 0.02, (8, 7)).astype(np.float32),
            depth_codes=rng.integers(0, 128, 100).astype(np.uint8),
            traces=[rng.integers(0, 256, (5, 2)).astype(np.uint8)],
        )
        for episode in range(episodes)
        for frame in range(3)
    ]
    write_shard(directory, 0, frames)
    finish_dataset(directory, "nano", embodiment / EMBODIMENT_FILE, {"arms": 1})
    return directory


def arguments(checkpoint: Path, data: Path, run: Path, **changes: Any) -> list[str]:
    """Of `molmoact train`; a name's dots are written as two underscores."""
    settings = CHANGES | {name.replace("__", "."): value for name, value in changes.items()}
    texts = [f"{name}={json.dumps(value)}" for name, value in settings.items()]
    return ["nano", *texts, "--checkpoint", str(checkpoint), "--data", str(data), "--out", str(run)]


def start(*command: str) -> subprocess.Popen[str]:
    """A Python module as a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for it to end well; what it printed."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def log_lines(run: Path) -> list[dict[str, float]]:
    """The run's figures without those that depend on how fast the machine is."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "samples_per_s"} for line in lines]
