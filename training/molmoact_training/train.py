"""`molmoact train`: post-trains a checkpoint on annotated datasets as a preset says.

Everything that can be wrong is found before the first step. What is interrupted goes on from its newest checkpoint when
the same command is given again. Several processes, several GPUs or several machines: `--processes`, or
`accelerate launch -m molmoact_training.train ...`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from molmoact_policy.checkpoint import locate, read_config
from molmoact_policy.depth import DepthVQVAE
from molmoact_policy.embodiment import EMBODIMENT_FILE
from molmoact_policy.errors import PolicyError
from molmoact_policy.model import MolmoActConfig
from molmoact_policy.policy import DEPTH_DIRECTORY, check_fit
from molmoact_policy.processor import Processor

from molmoact_training import lora, memory_plan, run_state, trained_model
from molmoact_training.annotated_dataset import STATISTICS_FILE
from molmoact_training.errors import PresetError, TrainingError
from molmoact_training.memory_plan import Plan
from molmoact_training.merging import trained_weights
from molmoact_training.mixture import Mixture
from molmoact_training.presets import Preset, available
from molmoact_training.trainer import Diverged, Share, Trainer

ADAPTER_DIRECTORY = "adapter"
# 1: the run stopped. 2: the request makes no sense.
GOOD, BAD, USAGE = 0, 1, 2
# Processes that read data for each that trains. On a CPU they would take the cores from it.
WORKERS = {"cuda": 8, "cpu": 0}
PLANNED_BATCHES = 4  # micro-batches whose sizes are looked at to plan memory
# Settings that may change while a run goes on: they do not change what is learned.
FREE = ("name", "data", "checkpoints")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code, see GOOD, BAD and USAGE."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    if options.processes < 1:
        parser.error(f"--processes {options.processes}: expected at least 1")
    if options.processes > 1 and "WORLD_SIZE" not in os.environ:
        return _launch(options.processes, arguments)
    try:
        return _train(options)
    except (TrainingError, PolicyError) as error:
        print(f"molmoact train: {error}", file=sys.stderr)
        return BAD if isinstance(error, Diverged) else USAGE
    except KeyboardInterrupt:
        return BAD


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="molmoact train", description=__doc__.partition("\n\n")[0])
    parser.add_argument("preset", metavar="PRESET", help=f"a YAML file, or one of {', '.join(available())}")
    parser.add_argument("changes", nargs="*", metavar="KEY=VALUE", help="of the preset, e.g. optimizer.warmup_steps=50")
    parser.add_argument("--checkpoint", required=True, metavar="DIR", help="to start from, in the official layout")
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="of the run; started again it goes on")
    parser.add_argument(
        "--data", action="append", default=[], metavar="[NAME=]PATH", help="where a dataset of the preset is"
    )
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="of this machine, one thread each on a CPU"
    )
    parser.add_argument("--shard", action="store_true", help="spread weights and optimizer over the processes (FSDP2)")
    parser.add_argument("--depth-vqvae", type=Path, metavar="DIR", help="decodes predicted depth; the checkpoint's")
    parser.add_argument(
        "--workers", type=int, metavar="N", help="processes that read data, for each that trains (GPU: 8, CPU: 0)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print parameters, memory and time of a step; stop")
    parser.add_argument("--device", choices=memory_plan.DEVICES, help="to plan for, with --dry-run; this machine's")
    return parser


def _launch(processes: int, arguments: Sequence[str]) -> int:
    """The same command in several processes, through accelerate's launcher; does not return."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    launcher = ["accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--multi_gpu"]
    os.execv(sys.executable, [sys.executable, "-m", *launcher, "-m", "molmoact_training.train", *arguments])


def _train(options: argparse.Namespace) -> int:
    preset = read_preset(options.preset, options.changes).with_data(options.data)
    checkpoint = locate(options.checkpoint)
    config = read_config(checkpoint)
    processor = Processor.from_pretrained(checkpoint)
    check_fit(checkpoint, config, processor)
    mixture = Mixture(preset, processor)
    vqvae = _vqvae(checkpoint, options.depth_vqvae)
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    Share.of(preset, accelerator.process_index, accelerator.num_processes)
    sharded = options.shard or os.environ.get("ACCELERATE_USE_FSDP") == "true"
    needed = plan_of(preset, config, mixture, accelerator, sharded=sharded)
    if options.dry_run:
        if accelerator.is_main_process:
            print(describe(needed, preset, accelerator, options.device))
        return GOOD
    run: Path = options.out
    run.mkdir(parents=True, exist_ok=True)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    memory_plan.check(run, needed, preset, device=accelerator.device, processes=here)
    with run_state.locked(run, hold=accelerator.is_main_process):
        with accelerator.main_process_first():
            run_state.check_settings(run, settings_of(preset, checkpoint, mixture))
        if accelerator.is_main_process:
            write_conventions(run, mixture)
        torch.manual_seed(preset.seed)
        model = trained_model.load(checkpoint, config, preset)
        trainer = Trainer(
            preset,
            model,
            processor,
            mixture,
            run,
            accelerator,
            vqvae=vqvae,
            workers=options.workers if options.workers is not None else WORKERS[accelerator.device.type],
            sharded=sharded,
            flops=needed.useful_flops,
        )
        trainer.train()
        if preset.lora is not None and accelerator.is_main_process:
            lora.save_adapter(model, trained_weights(run), run / ADAPTER_DIRECTORY)
        # DDP must not be the last to hold the process group: it waits with Python's lock for a thread that needs it.
        del trainer
        accelerator.free_memory()
        accelerator.end_training()
    return GOOD


def _vqvae(checkpoint: Path, other: Path | None) -> DepthVQVAE | None:
    """To show predicted depth with: another, or the checkpoint's if it has one."""
    own = checkpoint / DEPTH_DIRECTORY
    path = own if other is None and own.is_dir() else other
    return None if path is None else DepthVQVAE.from_pretrained(path)


def plan_of(
    preset: Preset, config: MolmoActConfig, mixture: Mixture, accelerator: Accelerator, *, sharded: bool
) -> Plan:
    """What every process will need, by the sizes of some of its micro-batches."""
    size = preset.micro_batch
    shapes = memory_plan.largest(mixture.batch(0, number * size, size) for number in range(PLANNED_BATCHES))
    return memory_plan.plan(
        config,
        preset,
        shapes,
        device=accelerator.device.type,
        processes=accelerator.num_processes,
        sharded=sharded,
    )


def describe(needed: Plan, preset: Preset, accelerator: Accelerator, name: str | None) -> str:
    """The plan in words, for a device by name or the one that is here."""
    if name is not None:
        rate, memory = memory_plan.DEVICES[name]
    else:
        name, memory = str(accelerator.device), memory_plan.available_memory(accelerator.device)
        dtype = torch.bfloat16 if preset.precision == "bf16" else torch.float32
        rate = memory_plan.measured_rate(accelerator.device, dtype)
    seconds = needed.flops / (memory_plan.EFFICIENCY * rate * accelerator.num_processes)
    return needed.report(seconds, memory, name)


def read_preset(name: str, changes: Sequence[str]) -> Preset:
    """A preset with KEY=VALUE changes, values written as in YAML. Raises PresetError."""
    values: dict[str, Any] = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise PresetError(f"{change!r}: expected KEY=VALUE, a field of the preset")
        try:
            values[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise PresetError(f"{change!r}: value not readable as YAML: {error}") from error
    return Preset.from_file(name, values)


def settings_of(preset: Preset, checkpoint: Path, mixture: Mixture) -> dict[str, Any]:
    """All that a run's weights depend on, as JSON can hold it."""
    settings = {name: value for name, value in preset.as_dict().items() if name not in FREE}
    data = {source.name: {"train": len(source.train), "held_out": len(source.validation)} for source in mixture.sources}
    return {"checkpoint": str(checkpoint.resolve()), "data": data, "preset": json.loads(json.dumps(settings))}


def write_conventions(run: Path, mixture: Mixture) -> None:
    """What the actions mean, for the checkpoint that comes of it: statistics and embodiments of every dataset."""
    (run / STATISTICS_FILE).write_text(json.dumps(mixture.norm_stats, indent=1), encoding="utf-8")
    embodiments: dict[str, Any] = {}
    for dataset in mixture.datasets.values():
        entries = yaml.safe_load((dataset.directory / EMBODIMENT_FILE).read_text(encoding="utf-8"))
        embodiments |= {key: entry for key, entry in entries.items() if key in dataset.norm_stats}
    (run / EMBODIMENT_FILE).write_text(yaml.safe_dump(embodiments, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
