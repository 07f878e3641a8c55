"""How much memory it takes to load a checkpoint of the released size in bfloat16.

Writes random weights in the official layout of 7B-D (or 7B-O), one file or shards, and loads them in a process of its
own. Needs as much room on the disk as the weights take (16 GB) and 24 GiB of memory. Writes
benchmarks/results/load_memory.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from molmoact_policy.checkpoint import official_shapes
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from safetensors.torch import save_file

HERE = Path(__file__).parent
SIZES = HERE.parent / "src" / "molmoact_policy" / "test" / "data"
GIB = 1 << 30

LOADING = """
import json, re, sys, time
from pathlib import Path
from molmoact_policy.model import MolmoActForActionReasoning

started = time.perf_counter()
model = MolmoActForActionReasoning.from_pretrained(sys.argv[1])
print(json.dumps({
    "seconds": time.perf_counter() - started,
    "peak_bytes": 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text()).group(1)),
    "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
    "dtype": str(model.dtype),
}))
"""


def write_random_weights(family: str, directory: Path, shards: int) -> None:
    """The official keys and shapes with seeded normal numbers, one shard in memory at a time."""
    config = MolmoActConfig.from_dict(json.loads((SIZES / f"state_dict_7b_{family}.json").read_text())["_config"])
    config.architectures = ["MolmoActForActionReasoning"]
    config.save_pretrained(directory)
    with torch.device("meta"):
        shapes = official_shapes(MolmoActForActionReasoning(config))
    generator = torch.Generator().manual_seed(0)
    keys = list(shapes)
    weight_map = {}
    for index in range(shards):
        name = f"model-{index + 1:05d}-of-{shards:05d}.safetensors"
        part = keys[index::shards]
        save_file(
            {
                key: torch.empty(shapes[key], dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
                for key in part
            },
            directory / name,
        )
        weight_map |= dict.fromkeys(part, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def measure(directory: Path) -> dict[str, Any]:
    """Peak memory of a process that loads the checkpoint, in GiB and as a multiple of the weights."""
    command = [sys.executable, "-c", LOADING, str(directory)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {
        "weights_gib": round(found["weight_bytes"] / GIB, 2),
        "peak_gib": round(found["peak_bytes"] / GIB, 2),
        "peak_per_weights": round(found["peak_bytes"] / found["weight_bytes"], 3),
        "dtype": found["dtype"],
        "seconds": round(found["seconds"], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--family", default="d", choices=("d", "o"))
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "load_memory.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        write_random_weights(options.family, Path(directory), options.shards)
        found = {"checkpoint": f"7B-{options.family.upper()}", "shards": options.shards} | measure(Path(directory))
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
