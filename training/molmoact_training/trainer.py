"""The training loop, the same for one process and for many, built on accelerate and torch's own FSDP2.

Every process takes its share of each step's samples and passes it through the model in micro-batches. Gradients are of
the sum of all token losses over the sum of all token weights of the step, over all processes (paper, appendix E), so
that neither the number of processes nor that of micro-batches changes what is learned.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from molmoact_policy.depth import DepthVQVAE
from molmoact_policy.model import MolmoActForActionReasoning
from molmoact_policy.processor import Processor
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset
from torch.utils.tensorboard import SummaryWriter

from molmoact_training import run_state
from molmoact_training.batches import Batch
from molmoact_training.errors import PresetError, TrainingError
from molmoact_training.memory_plan import known_device
from molmoact_training.mixture import Mixture
from molmoact_training.objective import LossSums, Objective
from molmoact_training.optimizer import build_optimizer, clip_gradients, grouped, set_learning_rates, share_of_peak
from molmoact_training.predictions import Shown, held_out_frames, predict
from molmoact_training.presets import Preset

LOG_FILE = "log.jsonl"
LOG_EVERY = 10  # steps that are averaged to a line of the log
CULPRITS_SHOWN = 5

Figures = dict[str, float]


class Diverged(TrainingError):
    """A loss or gradient that is not finite."""


@dataclass(frozen=True)
class Share:
    """Which samples of a step a process works on, and in what portions."""

    process: int
    portions: int
    size: int

    @classmethod
    def of(cls, preset: Preset, process: int, processes: int) -> Share:
        """Raises PresetError when the batch cannot be shared evenly."""
        if preset.batch % (processes * preset.micro_batch):
            raise PresetError(
                f"preset {preset.name}: batch {preset.batch} is not a multiple of {processes} processes times "
                f"micro_batch {preset.micro_batch}"
            )
        return cls(process, preset.batch // processes // preset.micro_batch, preset.micro_batch)

    def first(self, portion: int) -> int:
        """Index in the step of the first sample of a portion."""
        return (self.process * self.portions + portion) * self.size


class Portions(Dataset[Batch]):
    """Micro-batch n of a process, counted over all steps: what the workers of a DataLoader make."""

    def __init__(self, mixture: Mixture, share: Share) -> None:
        self.mixture = mixture
        self.share = share

    def __getitem__(self, number: int) -> Batch:
        step, portion = divmod(number, self.share.portions)
        return self.mixture.batch(step, self.share.first(portion), self.share.size)


class Trainer:
    """One run of a preset in one of its processes. Every process makes one and calls `train`."""

    def __init__(
        self,
        preset: Preset,
        model: MolmoActForActionReasoning,
        processor: Processor,
        mixture: Mixture,
        run: Path,
        accelerator: Accelerator,
        *,
        workers: int = 0,
        sharded: bool = False,
        vqvae: DepthVQVAE | None = None,
        flops: float | None = None,
    ) -> None:
        """model: as `trained_model.prepare` leaves it. workers: processes that make batches, 0: this one. sharded:
        spread weights, gradients and optimizer over the processes. vqvae: to show predicted depth with. flops: of a
        step over all processes, for the share of a known GPU's that is used (MFU).
        """
        self.preset = preset
        self.mixture = mixture
        self.run = run
        self.accelerator = accelerator
        self.workers = workers
        self.processor = processor.with_action_encoding(preset.action_encoding)
        self.vqvae = vqvae
        cuda = accelerator.device.type == "cuda"
        known = known_device(torch.cuda.get_device_name(accelerator.device)) if cuda else None
        self.mfu_per_step_rate = flops / known[0] / accelerator.num_processes if flops and known else None
        self.shown = held_out_frames(mixture, preset.validation.decoded)
        self.share = Share.of(preset, accelerator.process_index, accelerator.num_processes)
        self.sharded = sharded and accelerator.num_processes > 1
        self.model = shard(model.to(accelerator.device)) if self.sharded else model
        self.wrapped: nn.Module = self.model if self.sharded else accelerator.prepare_model(model)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.groups = grouped(self.trained.items())
        self.optimizer = build_optimizer(self.groups, preset.optimizer)
        self.objective = Objective(self.wrapped, preset, processor)
        self.plain_objective = Objective(self.model, preset, processor)
        self.average = {name: p.detach().clone() for name, p in self.trained.items()} if preset.ema else {}
        self.log = RunLog(run) if accelerator.is_main_process else None

    def train(self) -> None:
        """From the newest checkpoint of the run, or from the start, to the last step.

        Raises Diverged when a loss or gradient is not finite, with the samples at fault saved in the run.
        """
        first = self._resume()
        portions = self._portions(first)
        progress = Progress(self)
        for step in range(first, self.preset.steps):
            batches = [next(portions) for _ in range(self.share.portions)]
            progress.add(self.step(step, batches))
            done = step + 1
            last, saved = done == self.preset.steps, done % self.preset.checkpoints.every == 0
            if done % LOG_EVERY == 0 or saved or last:
                progress.write(done)
            if done % self.preset.validation.every == 0 or last:
                self.validate(done)
            if saved or last:
                self.save(done)
            progress.skip()
        if self.log is not None:
            self.log.close()

    def step(self, step: int, batches: Sequence[Batch]) -> dict[str, tuple[float, float]]:
        """Learn from a step's micro-batches; figures as sums and counts over all processes."""
        weight = self._sum(torch.stack([batch.weights.sum() for batch in batches]).sum())
        rates = set_learning_rates(self.optimizer, share_of_peak(step, self.preset.steps, self.preset.optimizer))
        self.optimizer.zero_grad()
        figures: list[LossSums] = []
        for portion, batch in enumerate(batches):
            # The same random numbers for a sample, whichever process it is in.
            torch.manual_seed(hash((self.preset.seed, step, self.share.first(portion))) % 2**63)
            last = portion == len(batches) - 1
            # Spread gradients are exchanged every time: kept whole until the last they would not fit.
            with contextlib.nullcontext() if last or self.sharded else self.accelerator.no_sync(self.wrapped):
                with self._precision():
                    sums = self.objective(batch.to(self.accelerator.device))
                # The average over processes, which follows, divides by their number.
                self.accelerator.backward(sums.loss * (self.accelerator.num_processes / weight))
            figures.append(LossSums(sums.loss.detach(), sums.weight, sums.report))
        norms = clip_gradients(self.groups, self.preset.optimizer.gradient_clip)
        totals = self._totals(figures)
        self._check_finite(step, batches, totals, norms)
        self.optimizer.step()
        self._update_average(step)
        totals |= {f"gradient_norm/{name}": (norm.item(), 1.0) for name, norm in norms.items()}
        return totals | {f"learning_rate/{name}": (rate, 1.0) for name, rate in rates.items()}

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Figures over held-out episodes, of the averaged weights where there are any."""
        self.model.eval()
        figures = []
        with self.averaged_weights():
            for number, batch in enumerate(self.mixture.validation()):
                if self._takes(number):
                    with self._precision():
                        figures.append(self.plain_objective(batch.to(self.accelerator.device)))
            totals = self._totals(figures) if self.preset.validation.samples else {}
            self._show_predictions(step)
        self.model.train()
        if self.log is not None and totals:
            self.log.write(step, {f"validation/{name}": value for name, value in _means(totals).items()})

    def _show_predictions(self, step: int) -> None:
        own = []
        for number, (dataset, frame) in enumerate(self.shown):
            if self._takes(number):
                with self._precision():
                    own.append((number, predict(self.model, self.processor, dataset, frame, self.vqvae)))
        self._use({})
        shown = dict(gather_object(own))
        if self.log is not None:
            for number in sorted(shown):
                self.log.show(step, f"held-out/{number}", shown[number])

    def _takes(self, number: int) -> bool:
        """Whether this process does a piece of work that can be shared out; where weights are spread all have to."""
        return self.sharded or number % self.accelerator.num_processes == self.accelerator.process_index

    def save(self, step: int) -> None:
        """A checkpoint of the run; every process calls it."""
        if self.accelerator.is_main_process:
            run_state.begin(self.run, step)
        self.accelerator.wait_for_everyone()
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        if process == 0 or self.sharded:
            run_state.write_part(self.run, step, process, self._state())
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            keep = self.preset.checkpoints
            run_state.finish(self.run, step, processes if self.sharded else 1, keep.keep, keep.keep_every)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The model with its averaged weights, if it has any."""
        current = {name: self.trained[name].detach().clone() for name in self.average}
        self._use(self.average)
        try:
            yield
        finally:
            self._use(current)

    @torch.no_grad()
    def _use(self, weights: dict[str, Tensor]) -> None:
        for name, tensor in weights.items():
            self.trained[name].copy_(tensor)
        if isinstance(self.model, FSDPModule):  # or a pass would see those it has put together before
            self.model.reshard()

    def _state(self) -> dict[str, Tensor]:
        names = {parameter: name for name, parameter in self.trained.items()}
        optimizer = run_state.optimizer_tensors(self.optimizer, names)
        parts = {"model": self.trained, "average": self.average, "optimizer": optimizer}
        return {f"{part}.{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def _resume(self) -> int:
        kept = run_state.steps_kept(self.run)
        step = kept[-1] if kept else 0
        if kept:
            stored = run_state.StoredState(run_state.checkpoint_of(self.run, step))
            stored.copy_into("model.", self.trained)
            stored.copy_into("average.", self.average)
            names = {parameter: name for name, parameter in self.trained.items()}
            run_state.restore_optimizer(self.optimizer, names, stored)
        if self.log is not None:
            self.log.open(step)
        return step

    def _portions(self, first_step: int) -> Iterator[Batch]:
        """The micro-batches of this process from a step on."""
        count = self.share.portions
        numbers = range(first_step * count, self.preset.steps * count)
        dataset = Portions(self.mixture, self.share)
        return iter(DataLoader(dataset, batch_size=None, sampler=numbers, num_workers=self.workers))

    def _precision(self) -> torch.autocast:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.preset.precision == "bf16")

    def _sum(self, values: Tensor) -> Tensor:
        """Over all processes, on the device."""
        values = values.to(self.accelerator.device)
        return self.accelerator.reduce(values)

    def _totals(self, figures: Sequence[LossSums]) -> dict[str, tuple[float, float]]:
        """Sums and counts of the loss and all figures over micro-batches and processes."""
        pairs = [pair for sums in figures for pair in {"loss": (sums.loss, sums.weight), **sums.report}.items()]
        values = torch.stack([value.detach().float() for _, pair in pairs for value in pair]).tolist() if pairs else []
        own = [(name, *values[2 * i : 2 * i + 2]) for i, (name, _) in enumerate(pairs)]
        totals: dict[str, tuple[float, float]] = {}
        for name, value, count in gather_object(own):
            before, counted = totals.get(name, (0.0, 0.0))
            totals[name] = (before + value, counted + count)
        return totals

    def _update_average(self, step: int) -> None:
        if self.preset.ema is None:
            return
        # Young averages forget sooner, or they would keep what the weights were at the start.
        decay = min(self.preset.ema, (1 + step) / (10 + step))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), [p.detach() for p in self.trained.values()], None)

    def _check_finite(
        self, step: int, batches: Sequence[Batch], totals: dict[str, tuple[float, float]], norms: dict[str, Tensor]
    ) -> None:
        infinite = [name for name, norm in norms.items() if not torch.isfinite(norm)]
        loss = totals["loss"][0]
        if torch.isfinite(torch.tensor(loss)) and not infinite:
            return
        where = self.run / f"failed-step-{step:08d}"
        where.mkdir(exist_ok=True)
        samples = self._samples_at_fault(batches)
        stem = f"process-{self.share.process:05d}"
        for portion, batch in enumerate(batches):
            save_file(batch.tensors(), where / f"{stem}-portion-{portion}.safetensors")
        names = [batch.names for batch in batches]
        report = {"step": step, "samples": names, "at_fault": samples, "gradients_not_finite": infinite}
        (where / f"{stem}.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
        found = gather_object(samples)
        what = f"loss is {loss / totals['loss'][1]}" if found else f"gradients of {', '.join(infinite)} are not finite"
        raise Diverged(
            f"step {step}: {what}"
            + (f"; samples without a finite loss: {', '.join(found[:CULPRITS_SHOWN])}" if found else "")
            + f"; the batch is in {where}, the weights are as before this step"
        )

    @torch.no_grad()
    def _samples_at_fault(self, batches: Sequence[Batch]) -> list[str]:
        """Names of the samples that have no finite loss by themselves."""
        names = []
        for batch in batches:
            for row in range(len(batch)):
                sample = batch.rows(row, row + 1).to(self.accelerator.device)
                with self._precision():
                    if not torch.isfinite(self.plain_objective(sample).loss):
                        names += sample.names
        return names


class Progress:
    """Means of the figures since the last line of the log, and how fast it went without saving and validating."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.totals: dict[str, tuple[float, float]] = {}
        self.steps = 0
        self.seconds = 0.0
        self.started = time.perf_counter()

    def add(self, totals: dict[str, tuple[float, float]]) -> None:
        """A step's figures."""
        for name, (value, count) in totals.items():
            before, counted = self.totals.get(name, (0.0, 0.0))
            self.totals[name] = (before + value, counted + count)
        self.steps += 1
        self.seconds += time.perf_counter() - self.started
        self.started = time.perf_counter()

    def skip(self) -> None:
        """What came since the last step does not count."""
        self.started = time.perf_counter()

    def write(self, step: int) -> None:
        """A line of the log."""
        if self.trainer.log is not None:
            rate = self.steps / self.seconds
            figures = _means(self.totals) | {"samples_per_s": rate * self.trainer.preset.batch}
            if self.trainer.mfu_per_step_rate is not None:
                figures["mfu"] = rate * self.trainer.mfu_per_step_rate
            self.trainer.log.write(step, figures)
        self.totals, self.steps, self.seconds = {}, 0, 0.0


class RunLog:
    """Figures as lines of JSON and for TensorBoard; written by the first process alone."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.writer: SummaryWriter | None = None

    def open(self, step: int) -> None:
        """Forget what was written after the checkpoint that the run goes on from."""
        path = self.run / LOG_FILE
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        path.write_text("".join(kept), encoding="utf-8")
        self.writer = SummaryWriter(str(self.run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, figures: Figures) -> None:
        """One line; also on the terminal."""
        assert self.writer is not None
        line = json.dumps({"step": step} | {name: float(f"{value:.8g}") for name, value in figures.items()})
        print(line, flush=True)
        with (self.run / LOG_FILE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def show(self, step: int, name: str, shown: Shown) -> None:
        """A picture and a text, for TensorBoard only."""
        assert self.writer is not None
        self.writer.add_image(name, shown.picture, step, dataformats="HWC")
        self.writer.add_text(name, shown.text, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def shard(model: MolmoActForActionReasoning) -> MolmoActForActionReasoning:
    """Spread every block's weights over the processes (FSDP2); the rest of the model is one more portion."""
    for block in (*model.vision_backbone.image_vit.transformer["resblocks"], *model.language_model.layers):
        fully_shard(block)
    return fully_shard(model)


def _means(totals: dict[str, tuple[float, float]]) -> Figures:
    return {name: value / count for name, (value, count) in totals.items() if count}
