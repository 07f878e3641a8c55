"""The released lerobot, in an environment of its own, reads what we export, and trains on it.

Installing it takes minutes and gigabytes; LEROBOT_PYTHON names an interpreter that has it already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from .episodes import make_episode, number_of
from .test_export import exported, frames, rows

LEROBOT = "lerobot==0.4.4"
READER = Path(__file__).with_name("lerobot_reader.py")
# Small enough for a few steps on a CPU, and without weights from the internet.
POLICY = {
    "type": "act",
    "device": "cpu",
    "push_to_hub": "false",
    "pretrained_backbone_weights": "null",
    "chunk_size": 8,
    "n_action_steps": 8,
    "dim_model": 64,
    "n_heads": 2,
    "dim_feedforward": 128,
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lerobot_python(tmp_path_factory) -> Path:
    if "LEROBOT_PYTHON" in os.environ:
        return Path(os.environ["LEROBOT_PYTHON"])
    home = tmp_path_factory.mktemp("lerobot")
    venv.create(home, with_pip=True)
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", "--quiet", LEROBOT], check=True)
    return home / "bin" / "python"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("episodes")
    make_episode(root / "a", seconds=2.0, size=(320, 240))
    make_episode(root / "b", seconds=1.5, size=(320, 240), instruction="push the green cube")
    return exported(root, tmp_path_factory.mktemp("out") / "dataset")


def environment() -> dict[str, str]:
    """Not that of this workspace, and nothing from the internet."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def seen(lerobot_python, dataset) -> dict:
    result = subprocess.run(
        [lerobot_python, READER, dataset], env=environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(result.stdout.splitlines()[-1])


def test_released_lerobot_reads_every_row_and_picture(seen, dataset):
    table = rows(dataset)
    assert seen["episodes"] == 2
    np.testing.assert_allclose(seen["states"], table["observation.state"])
    np.testing.assert_allclose(seen["actions"], table["action"])
    for camera in ("front", "wrist"):
        assert seen["numbers"][camera] == [number_of(frame) for frame in frames(dataset, camera)]
    tasks = ["pick up the red cube", "push the green cube"]
    assert seen["tasks"] == [tasks[number] for number in table["task_index"]]
    assert seen["chunk"] == [4, 8, 7]


def test_released_lerobot_trains_on_it(lerobot_python, seen, dataset, tmp_path):
    command = [
        lerobot_python,
        "-m",
        "lerobot.scripts.lerobot_train",
        "--dataset.repo_id=local/exported",
        f"--dataset.root={dataset}",
        f"--dataset.video_backend={seen['backend']}",
        *(f"--policy.{name}={value}" for name, value in POLICY.items()),
        "--steps=3",
        "--batch_size=2",
        "--num_workers=0",
        "--wandb.enable=false",
        f"--output_dir={tmp_path / 'run'}",
    ]
    subprocess.run(command, env=environment(), check=True, stdout=sys.stderr)
    assert list((tmp_path / "run" / "checkpoints").rglob("model.safetensors"))
