"""`molmoact merge`: from a run to a checkpoint in the official layout, which the policy and the released code load."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from molmoact_policy.checkpoint import FLOAT_DTYPES, StoredTensors, locate, read_config
from molmoact_policy.embodiment import EMBODIMENT_FILE
from molmoact_policy.errors import PolicyError
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.policy import DEPTH_DIRECTORY
from molmoact_policy.processor import Processor
from torch import Tensor

from molmoact_training import run_state
from molmoact_training.annotated_dataset import STATISTICS_FILE
from molmoact_training.errors import TrainingError
from molmoact_training.lora import add_adapters, merge_adapters
from molmoact_training.presets import LoRA
from molmoact_training.trained_model import ADDITIONAL, HEAD, ORDINARY

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOAT_DTYPES.values()}
GOOD, USAGE = 0, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(prog="molmoact merge", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="of `molmoact train`")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the checkpoint; must not be there yet")
    parser.add_argument("--step", type=int, metavar="N", help="of a checkpoint that the run kept; the newest")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights; as in the checkpoint the run started from")
    parser.add_argument("--depth-vqvae", type=Path, metavar="DIR", help="to go along; that of the checkpoint")
    options = parser.parse_args(arguments)
    try:
        merge(options.run, options.out, options.step, DTYPES.get(options.dtype), options.depth_vqvae)
    except (TrainingError, PolicyError) as error:
        print(f"molmoact merge: {error}", file=sys.stderr)
        return USAGE
    return GOOD


def merge(
    run: Path, out: Path, step: int | None = None, dtype: torch.dtype | None = None, vqvae: Path | None = None
) -> None:
    """Write the checkpoint of a run: its averaged weights where it has them, with everything a policy needs.

    Raises TrainingError naming the run, step or directory at fault, CheckpointError for the checkpoint it started from.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise TrainingError(f"{out}: is there already, and no empty directory")
    settings = run_state.read_settings(run)
    base = locate(settings["checkpoint"])
    if vqvae is None and (base / DEPTH_DIRECTORY).is_dir():
        vqvae = base / DEPTH_DIRECTORY
    model = merged_model(run, settings, base, step, dtype)
    model.config.norm_stats = json.loads((run / STATISTICS_FILE).read_text(encoding="utf-8"))
    model.config.action_encoding = settings["preset"]["action_encoding"]
    partial = out.with_name(f"{out.name}.partial")  # an interrupted merge leaves no checkpoint that looks whole
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    Processor.from_pretrained(base).save_pretrained(partial)
    for name in (STATISTICS_FILE, EMBODIMENT_FILE):
        shutil.copy(run / name, partial / name)
    if vqvae is not None:
        shutil.copytree(vqvae, partial / DEPTH_DIRECTORY, ignore=shutil.ignore_patterns("training_state*"))
    partial.replace(out)


def merged_model(
    run: Path, settings: dict, base: Path, step: int | None = None, dtype: torch.dtype | None = None
) -> MolmoActForActionReasoning:
    """The plain model of a run: the checkpoint it started from, what was trained in its place, adapters added up."""
    weights = trained_weights(run, step)
    config = read_config(base)
    if dtype is None:
        dtype = StoredTensors(base, MolmoActForActionReasoning.without_weights(base, config)).dtype
    model = MolmoActForActionReasoning.from_pretrained(base, config=config, dtype=dtype)
    lora = settings["preset"]["lora"]
    if lora is not None:
        add_adapters(model, LoRA(**lora), head=HEAD not in weights)
        # Sums are rounded once, so the adapters keep their precision until they are added up.
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    _copy(weights, model)
    merge_adapters(model)
    return model.eval()


def trained_weights(run: Path, step: int | None = None) -> dict[str, Tensor]:
    """What was trained in a run, by name: averaged where there is an average. step: None, the newest.

    Raises TrainingError when that step is not kept.
    """
    kept = run_state.steps_kept(run)
    if not kept or (step is not None and step not in kept):
        raise TrainingError(f"run {run}: no checkpoint of step {step}; it keeps {kept}")
    stored = run_state.StoredState(run_state.checkpoint_of(run, kept[-1] if step is None else step))
    prefix = "average." if stored.names("average.") else "model."
    return {name: stored.whole(prefix + name) for name in stored.names(prefix)}


@torch.no_grad()
def _copy(weights: dict[str, Tensor], model: MolmoActForActionReasoning) -> None:
    parameters = dict(model.named_parameters())
    ordinary, additional = model.get_input_embeddings().weight.split(
        [model.config.llm_config.vocab_size, model.config.llm_config.additional_vocab_size]
    )
    targets = parameters | {ORDINARY: ordinary, ADDITIONAL: additional}
    for name, tensor in weights.items():
        targets[name].copy_(tensor)


if __name__ == "__main__":
    sys.exit(main())
