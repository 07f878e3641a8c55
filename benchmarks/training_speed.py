"""How fast `molmoact train` is, and how well its memory is planned, on this machine.

Samples per second and processor of the trainer's whole step, its data included, against the bare network on one batch
that is there already: forward pass, cross-entropy, backward pass, AdamW. Processor time is counted, so that other work
on the machine is not. With --memory instead the growth of the process over three steps against the plan that was made
without weights; malloc has to give back what is freed for that, which is slower.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from molmoact_policy.checkpoint import read_config
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.processor import Processor
from molmoact_training import memory_plan, trained_model
from molmoact_training.batches import Batch
from molmoact_training.mixture import Mixture
from molmoact_training.presets import Preset
from molmoact_training.train import read_preset
from molmoact_training.trainer import Share, Trainer

ROUNDS = 5
GIVES_BACK = "MALLOC_MMAP_THRESHOLD_"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", action="append", default=[], help="[NAME=]PATH, as of molmoact train")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of the nano preset")
    options = parser.parse_args()
    if options.memory and GIVES_BACK not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {GIVES_BACK: "65536"})
    preset = read_preset("nano", options.changes).with_data(options.data)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as run:
        measure = measure_memory if options.memory else measure_speed
        result = measure(preset, options.checkpoint, Path(run))
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1))


def measure_speed(preset: Preset, checkpoint: Path, run: Path) -> dict[str, Any]:
    trainer, batch = prepared(preset, checkpoint, run)
    size = preset.micro_batch
    step_s = fastest(lambda: trainer.step(3, [batch])) / size
    data_s = fastest(lambda: trainer.mixture.batch(1, 0, size)) / size
    bare_s = fastest(bare_step(checkpoint, preset, batch)) / size
    return {
        "samples_per_s": 1 / (step_s + data_s),
        "bare_samples_per_s": 1 / bare_s,
        "ratio": bare_s / (step_s + data_s),
        "step_ms": 1e3 * step_s,
        "data_ms": 1e3 * data_s,
        "bare_ms": 1e3 * bare_s,
    }


def measure_memory(preset: Preset, checkpoint: Path, run: Path) -> dict[str, Any]:
    config = read_config(checkpoint)
    with PeakMemory() as grown:
        trainer, batch = prepared(preset, checkpoint, run)
        for step in range(3):
            trainer.step(step, [batch])
    shapes = memory_plan.Shapes.of(batch)
    plan = memory_plan.plan(config, preset, shapes, device="cpu", processes=1, sharded=False)
    planned = plan.peak - plan.overhead
    return {"planned_bytes": planned, "measured_bytes": grown.bytes, "ratio": planned / grown.bytes}


def prepared(preset: Preset, checkpoint: Path, run: Path) -> tuple[Trainer, Batch]:
    """A trainer whose steps have one micro-batch, and that micro-batch."""
    processor = Processor.from_pretrained(checkpoint)
    mixture = Mixture(preset, processor)
    model = trained_model.load(checkpoint, read_config(checkpoint), preset)
    trainer = Trainer(preset, model, processor, mixture, run, Accelerator(cpu=True))
    trainer.share = Share(0, 1, preset.micro_batch)
    return trainer, mixture.batch(0, 0, preset.micro_batch)


def bare_step(checkpoint: Path, preset: Preset, batch: Batch) -> Callable[[], None]:
    """A step of the network as it comes, with the least that teaches it something."""
    model = MolmoActForActionReasoning.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation=preset.attention
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    counted = batch.weights > 0

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=preset.precision == "bf16"):
            outputs = model(input_ids=batch.input_ids, images=batch.images, pooled_patches_idx=batch.pooled_patches_idx)
            loss = F.cross_entropy(outputs.logits[counted].float(), batch.targets[counted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def fastest(work: Callable[[], Any]) -> float:
    """Processor seconds of the fastest of some rounds, after one to warm up."""
    times = []
    for _ in range(ROUNDS + 1):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times[1:])


class PeakMemory:
    """How far this process's memory rises above where it was on entering."""

    def __enter__(self) -> PeakMemory:
        self._process = psutil.Process()
        self._before = self._highest = self._process.memory_info().rss
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    @property
    def bytes(self) -> int:
        return self._highest - self._before

    def _watch(self) -> None:
        while not self._done.wait(0.002):
            self._highest = max(self._highest, self._process.memory_info().rss)


if __name__ == "__main__":
    main()
