"""Runs in lerobot's own environment: reads a dataset as its users do, and prints what it saw as JSON."""

import json
import sys

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def backend() -> str:
    """torchcodec needs the FFmpeg of the system; without it lerobot reads through PyAV."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return "pyav"
    return "torchcodec"


def number_of(image: torch.Tensor, bits: int = 8) -> int:
    """The number in a picture of episodes.py, from float [3, H, W]."""
    row = image[:, image.shape[1] // 12].mean(0)
    centres = [int((bit + 0.5) * image.shape[2] / bits) for bit in range(bits)]
    return sum(1 << bit for bit, x in enumerate(centres) if row[x] > 0.5)


def main(root: str) -> None:
    dataset = LeRobotDataset("local/exported", root=root, video_backend=backend())
    frames = [dataset[index] for index in range(len(dataset))]
    chunks = LeRobotDataset(
        "local/exported",
        root=root,
        video_backend=backend(),
        delta_timestamps={"action": [row / dataset.fps for row in range(8)]},
    )
    (batch, *_) = torch.utils.data.DataLoader(chunks, batch_size=4)
    seen = {
        "episodes": dataset.num_episodes,
        "numbers": {
            name: [number_of(frame[f"observation.images.{name}"]) for frame in frames] for name in ("front", "wrist")
        },
        "states": [frame["observation.state"].tolist() for frame in frames],
        "actions": [frame["action"].tolist() for frame in frames],
        "tasks": [frame["task"] for frame in frames],
        "chunk": list(batch["action"].shape),
        "backend": backend(),
    }
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
