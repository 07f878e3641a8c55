"""What a run will need, before anything of it starts: parameters, memory by what it is for, disk, time of a step.

The model is built without its weights, and one micro-batch passes through it in tensors that have shapes and no
content. What autograd keeps of that pass, and its floating point operations, are counted, not guessed.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from molmoact_training import trained_model
from molmoact_training.batches import Batch
from molmoact_training.errors import TrainingError
from molmoact_training.optimizer import group_of
from molmoact_training.presets import Preset

GIB = 2**30
FP32, BF16 = 4, 2
# Of every logit: bf16, a copy of the answers', fp32, two fp32 gradients that are added up, the bf16 gradient.
LOGIT_BYTES = 3 * BF16 + 3 * FP32
# Allocator, libraries and kernels' scratch space.
OVERHEAD_BYTES = {"cuda": 2 * GIB, "cpu": GIB}
# What a training step reaches of what large matrix products alone do.
EFFICIENCY = 0.4
# Dense bf16 FLOP/s and bytes, from the makers' data sheets.
DEVICES = {
    "A100": (312e12, 80 * GIB),
    "H100": (989e12, 80 * GIB),
    "H200": (989e12, 141 * GIB),
    "RTX 4090": (165e12, 24 * GIB),
    "RTX 5090": (210e12, 32 * GIB),
}


@dataclass(frozen=True)
class Shapes:
    """A micro-batch by its sizes: samples; tokens, crops and pooled tokens of the longest; answer tokens in all."""

    samples: int
    tokens: int
    answers: int
    crops: int
    pooled: int

    @classmethod
    def of(cls, batch: Batch) -> Shapes:
        """The sizes of a real one."""
        crops = 0 if batch.images is None else batch.images.shape[1]
        pooled = 0 if batch.pooled_patches_idx is None else batch.pooled_patches_idx.shape[1]
        answers = int((batch.weights > 0).sum())
        return cls(len(batch), batch.input_ids.shape[1], answers, crops, pooled)


@dataclass(frozen=True)
class Plan:
    """parameters: total and trained, by group. Bytes of each process on its device, FLOPs of a step of all.

    useful_flops: without those of what is computed again to save memory.
    """

    parameters: dict[str, tuple[int, int]]
    weights: int
    gradients: int
    optimizer: int
    average: int
    activations: int
    logits: int
    overhead: int
    checkpoint: int  # on disk, each
    flops: float
    useful_flops: float

    @property
    def peak(self) -> int:
        """At the end of the forward pass, or when all gradients are there."""
        kept = self.weights + self.optimizer + self.average + self.overhead
        return kept + max(self.activations + self.logits, self.gradients)

    def report(self, seconds: float, memory: int, device: str) -> str:
        """As a table for people."""
        lines = [f"{'parameters':14}{'total':>12}{'trained':>12}"]
        sums = tuple(sum(column) for column in zip(*self.parameters.values(), strict=True))
        for name, (total, trained) in {**self.parameters, "all": sums}.items():
            lines.append(f"  {name:12}{total / 1e6:10.1f} M{trained / 1e6:10.1f} M")
        lines.append("memory of each process")
        for name in ("weights", "optimizer", "average", "gradients", "activations", "logits", "overhead", "peak"):
            lines.append(f"  {name:12}{getattr(self, name) / GIB:10.2f} GiB")
        fits = "fits" if self.peak <= memory else "does NOT fit"
        lines.append(f"  {fits} {device}: {memory / GIB:.1f} GiB")
        lines.append(f"checkpoint    {self.checkpoint / GIB:10.2f} GiB on disk, each")
        lines.append(f"step          {self.flops / 1e12:10.3f} TFLOP, about {seconds:.2f} s")
        return "\n".join(lines)


def plan(config: MolmoActConfig, preset: Preset, shapes: Shapes, *, device: str, processes: int, sharded: bool) -> Plan:
    """What each of the processes needs for a preset whose largest micro-batches have these shapes.

    device: "cuda" or "cpu", for what comes beside the tensors.
    """
    model = _without_weights(config, preset)
    parameters: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        total, trained = parameters.get(group_of(name), (0, 0))
        size = parameter.numel()
        parameters[group_of(name)] = total + size, trained + size * parameter.requires_grad
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    trained = FP32 * sum(own for _, own in parameters.values())
    average = trained if preset.ema is not None else 0
    activations, forward = _pass(model, preset, shapes)
    block = 0
    if preset.gradient_checkpointing:  # one block at a time is computed again, and kept until its gradient is there
        plain = dataclasses.replace(preset, gradient_checkpointing=False)
        block = _pass(_without_weights(config, plain), plain, shapes)[0] // config.llm_config.num_hidden_layers
    passes = 2 if preset.lora is not None else 3  # of frozen weights there are no gradients to compute
    forward *= preset.batch / preset.micro_batch
    share = processes if sharded else 1
    accumulated = trained if preset.batch > processes * preset.micro_batch else 0
    return Plan(
        parameters=parameters,
        weights=weights // share + (2 * weights // config.llm_config.num_hidden_layers if share > 1 else 0),
        gradients=trained // share,
        optimizer=2 * trained // share,
        average=average // share,
        activations=activations + block + accumulated // share,
        logits=shapes.answers * config.llm_config.vocab_size * LOGIT_BYTES,
        overhead=OVERHEAD_BYTES[device],
        checkpoint=3 * trained + average,
        flops=forward * (passes + preset.gradient_checkpointing),
        useful_flops=forward * passes,
    )


def largest(batches: Iterable[Batch]) -> Shapes:
    """Sizes that none of the micro-batches exceeds."""
    shapes = [dataclasses.astuple(Shapes.of(batch)) for batch in batches]
    return Shapes(*map(max, zip(*shapes, strict=True)))


def check(run: Path, needed: Plan, preset: Preset, *, device: torch.device, processes: int) -> None:
    """Raises TrainingError when the memory or the disk of this machine is too small, with both numbers.

    processes: those of this machine.
    """
    memory = available_memory(device)
    if device.type == "cpu":
        memory //= processes
    if needed.peak > memory:
        raise TrainingError(
            f"{device.type}: a process needs {needed.peak / GIB:.1f} GiB, it has {memory / GIB:.1f} GiB: a smaller "
            "micro_batch, gradient_checkpointing or --shard need less"
        )
    steps = preset.checkpoints
    kept = steps.keep + 1 + (preset.steps // steps.keep_every if steps.keep_every else 0)
    free = shutil.disk_usage(run).free
    if needed.checkpoint * kept > free:
        raise TrainingError(
            f"{run}: {kept} checkpoints of {needed.checkpoint / GIB:.1f} GiB each, {free / GIB:.1f} GiB of disk free"
        )


def available_memory(device: torch.device) -> int:
    """Free bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def known_device(name: str) -> tuple[float, int] | None:
    """FLOP/s and bytes of a device by a name that holds one of DEVICES."""
    return next((figures for known, figures in DEVICES.items() if known.lower() in name.lower()), None)


def measured_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of one large matrix product in this process."""
    size = 1024 if device.type == "cpu" else 8192
    matrix = torch.randn(size, size, device=device, dtype=dtype)
    times = []
    for _ in range(4):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / min(times)


def _without_weights(config: MolmoActConfig, preset: Preset) -> MolmoActForActionReasoning:
    config = copy.deepcopy(config)
    config._attn_implementation = preset.attention
    before = torch.get_default_dtype()
    torch.set_default_dtype(trained_model.frozen_dtype(preset))
    try:
        model = MolmoActForActionReasoning.without_weights(Path("checkpoint"), config)
    finally:
        torch.set_default_dtype(before)
    return trained_model.prepare(model, preset)


def _pass(model: MolmoActForActionReasoning, preset: Preset, shapes: Shapes) -> tuple[int, float]:
    """Bytes that autograd keeps of one micro-batch, and FLOPs of its forward pass."""
    config = model.config
    vit, llm = config.vit_config, config.llm_config
    crops, pooled = shapes.samples * shapes.crops, shapes.samples * shapes.pooled
    patches = vit.patch_grid[0] * vit.patch_grid[1]
    taps = vit.hidden_size * len(config.adapter_config.vit_layers)
    backbone, kept = model.vision_backbone, _Kept()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=preset.precision == "bf16")
    counter = FlopCounterMode(display=False)
    with FakeTensorMode(), autocast, counter, torch.autograd.graph.saved_tensors_hooks(kept, _same):
        if crops:
            kept.call(backbone.image_vit, torch.zeros(crops, patches, vit.image_patch_size**2 * 3))
            slots = torch.zeros(pooled, 4, taps, requires_grad=True) * 1
            features = kept.call(backbone.image_pooling_2d, slots.mean(1, keepdim=True), slots)
            kept.call(backbone.image_projector, features.squeeze(1))
        embeddings = torch.zeros(shapes.samples, shapes.tokens, llm.hidden_size, requires_grad=True) * 1
        hidden = kept.call(model.language_model, inputs_embeds=embeddings, use_cache=False).last_hidden_state
        kept.call(model.lm_head, hidden.flatten(0, 1)[: shapes.answers])
    return kept.bytes, float(counter.get_total_flops())


class _Kept:
    """Counts every storage that autograd keeps once, parameters aside."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}
        self.parameters: set[int] = set()
        self.tensors: list[Tensor] = []  # so that no storage is given the identity of one that is gone

    def call(self, module: nn.Module, *inputs: Any, **named: Any) -> Any:
        """A module on the meta device, called with tensors that pretend to be on the CPU."""
        state = {
            name: torch.zeros(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers())
        }
        self.parameters |= {tensor.untyped_storage()._cdata for tensor in state.values()}
        self.tensors += state.values()
        return functional_call(module, state, inputs, named)

    def __call__(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.sizes[storage._cdata] = storage.nbytes()
        self.tensors.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        return sum(size for storage, size in self.sizes.items() if storage not in self.parameters)


def _same(tensor: Tensor) -> Tensor:
    return tensor
