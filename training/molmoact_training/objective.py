"""The loss: cross-entropy of the answers over the whole vocabulary, in sums that any split of a batch adds up to.

With z-loss, token weights and labels that are soft over neighbouring bins where the preset asks for them. Sources: the
release's training code (fp32 softmax, z-loss 1e-4, answer tokens only); the rest is ours, for small models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from molmoact_policy.actions import SYMBOLS
from molmoact_policy.processor import Processor
from torch import Tensor, nn

from molmoact_training.batches import ACTION, KIND_NAMES, TRACE, Batch
from molmoact_training.errors import PresetError
from molmoact_training.presets import Preset

COORDINATES = 256


@dataclass(frozen=True)
class LossSums:
    """loss: sum of weighted token losses; weight: sum of the weights. Both scalars; their ratio is the mean loss.

    report: by name (sum, count) of figures to be averaged the same way: for each kind of token its loss, and the
    distance in bins or the share of wrong tokens.
    """

    loss: Tensor
    weight: Tensor
    report: dict[str, tuple[Tensor, Tensor]]


class Objective:
    """The loss of a model on batches. `model` may be wrapped for several processes: only its forward is called."""

    def __init__(self, model: nn.Module, preset: Preset, processor: Processor) -> None:
        """Raises PresetError when soft labels are asked for and bins are not single tokens of the processor's."""
        self.model = model
        self.settings = preset.loss
        self.bins = _bins(processor.with_action_encoding(preset.action_encoding))
        soft = preset.loss.soft_labels
        if soft is not None and set(self.bins) != {ACTION, TRACE}:
            raise PresetError(
                f"preset {preset.name}: loss.soft_labels: expected a tokenizer in which every bin and every coordinate "
                "is one token"
            )
        self.soft = {} if soft is None else {ACTION: soft_labels(soft.action), TRACE: soft_labels(soft.trace)}

    def __call__(self, batch: Batch) -> LossSums:
        """Sums over the answer tokens of the batch."""
        logits, targets, weights, kinds = self._answers(batch)
        normaliser = logits.logsumexp(-1)
        losses = normaliser - logits.gather(1, targets[:, None]).squeeze(1)
        report = {}
        for kind, name in enumerate(KIND_NAMES):
            chosen = kinds == kind
            if kind in self.bins:
                ids = self.bins[kind].to(targets.device)
                over_bins = logits[chosen][:, ids]
                right = (targets[chosen][:, None] == ids).int().argmax(-1)
                if kind in self.soft:
                    soft = self.soft[kind].to(targets.device)[right]
                    losses = losses.masked_scatter(chosen, normaliser[chosen] - (soft * over_bins).sum(-1))
                wrong = (over_bins.argmax(-1) - right).abs()
            else:
                wrong = (logits[chosen].argmax(-1) != targets[chosen]).float()
            count = chosen.sum()
            report[f"{name}_error_bins" if kind in self.bins else f"{name}_wrong"] = (wrong.sum().detach(), count)
            report[f"{name}_loss"] = (losses[chosen].sum().detach(), count)
        losses = losses + self.settings.z_loss * normaliser.square()
        return LossSums((losses * weights).sum(), weights.sum(), report)

    def _answers(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits [n, vocabulary] in fp32, targets, weights and kinds [n] of the tokens that count."""
        counted = batch.weights > 0
        kept = counted.any(0).nonzero().squeeze(1)  # the head is applied where some sample has an answer
        outputs = self.model(
            input_ids=batch.input_ids,
            attention_mask=self._mask(batch),
            # Of a single message they are the model's own, which its attention need not search for restarts.
            position_ids=None if batch.segment_ids is None else batch.position_ids,
            images=batch.images,
            pooled_patches_idx=batch.pooled_patches_idx,
            image_masks=batch.image_masks,
            logits_to_keep=kept,
            use_cache=False,
        )
        counted = counted[:, kept]
        logits = outputs.logits[counted].float()
        return logits, *(value[:, kept][counted] for value in (batch.targets, batch.weights, batch.kinds))

    def _mask(self, batch: Batch) -> Tensor | None:
        """Additive attention mask [B, 1, L, L] where samples have several messages; None: causal."""
        if batch.segment_ids is None:
            return None
        segments, length = batch.segment_ids, batch.input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
        visible = causal & (segments[:, :, None] <= segments[:, None, :])
        blocked = torch.zeros(visible.shape, device=segments.device)
        return blocked.masked_fill(~visible, torch.finfo(torch.bfloat16).min).unsqueeze(1)


def soft_labels(width: float, bins: int = len(SYMBOLS)) -> Tensor:
    """Row b is a normal distribution over the bins around b, standard deviation `width` bins."""
    positions = torch.arange(bins, dtype=torch.float32)
    return (-0.5 * ((positions[None] - positions[:, None]) / width) ** 2).softmax(-1)


def _bins(processor: Processor) -> dict[int, Tensor]:
    """For the kinds whose values are one token each: ids by value."""
    vocabulary = processor.tokenizer.get_vocab()

    def is_token(text: str) -> bool:
        return processor.tokenizer.encode(text, add_special_tokens=False) == [vocabulary.get(text)]

    numbers = [str(number) for number in range(COORDINATES)]
    bins = {}
    if processor.action_encoding == "token" or all(map(is_token, SYMBOLS)):
        bins[ACTION] = torch.tensor([vocabulary[symbol] for symbol in SYMBOLS])
    if all(map(is_token, numbers)):
        bins[TRACE] = torch.tensor([vocabulary[number] for number in numbers])
    return bins
