"""The mixture: which sample comes next, and what is done to it at random.

Sample i of step s is a function of (seed, s, i) and nothing else. So any number of processes see together what one
would see, and a run that goes on needs no state of its data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from molmoact_policy.embodiment import ROW
from molmoact_policy.errors import CheckpointError, EmbodimentError
from molmoact_policy.processor import Processor
from numpy.typing import NDArray

from molmoact_training.annotated_dataset import ALLOW_CONSTANT, AnnotatedDataset, Frame
from molmoact_training.augmentation import augment
from molmoact_training.batches import Batch, Sample, collate
from molmoact_training.errors import DatasetError, PresetError
from molmoact_training.presets import Group, Kinds, Preset
from molmoact_training.question_answers import QuestionAnswers
from molmoact_training.sequences import Question, SequenceWriter, first_image_points, pictures_of

VALIDATION_STEP = -1 % 2**63  # draws that no training step makes


TRIED = 8  # draws of a frame that most likely are of every kind it can be


@dataclass(frozen=True)
class Source:
    """What is drawn from as one: frames that can become samples of `kinds`, or groups of question-answer pairs."""

    name: str
    dataset: AnnotatedDataset | QuestionAnswers
    kinds: Kinds | None
    train: NDArray[np.int64]
    validation: NDArray[np.int64]


class Mixture:
    """Draws training and validation batches as a preset says. Safe to share by fork."""

    def __init__(self, preset: Preset, processor: Processor) -> None:
        """Opens and checks every dataset of the preset.

        Raises PresetError when a dataset's place is not known, and DatasetError naming the dataset and what is wrong
        with it: not readable, actions or instructions that cannot be learned, nothing annotated that the preset asks
        for, statistics that differ under the same key.
        """
        self.preset = preset
        self.writer = SequenceWriter(preset, processor)
        missing = [name for name in preset.dataset_names if name not in preset.data]
        if missing:
            raise PresetError(f"preset {preset.name}: no place given for the data {', '.join(missing)}")
        self._opened: dict[str, AnnotatedDataset | QuestionAnswers] = {}
        self.sources: list[Source] = []
        rates: list[float] = []
        for group in preset.mixture:
            members = [self._source(name, group) for name in (*group.frames, *group.questions)]
            roots = np.sqrt([len(source.train) for source in members])
            rates += list(group.rate * roots / roots.sum())
            self.sources += members
        self.rates = np.array(rates) / np.sum(rates)

    @property
    def datasets(self) -> dict[str, AnnotatedDataset]:
        """The annotated datasets by name."""
        return {name: data for name, data in self._opened.items() if isinstance(data, AnnotatedDataset)}

    @property
    def norm_stats(self) -> dict[str, Any]:
        """Action statistics of every dataset, by their keys, as the checkpoint's configuration holds them."""
        return {key: entry for data in self.datasets.values() for key, entry in data.norm_stats.items()}

    def batch(self, step: int, first: int, count: int) -> Batch:
        """Samples first .. first + count - 1 of a training step."""
        return self._collate([self.sample(step, index) for index in range(first, first + count)])

    def sample(self, step: int, index: int) -> Sample:
        """One sample of a training step, augmented."""
        rng = np.random.default_rng([self.preset.seed, step, index])
        source = self.sources[rng.choice(len(self.rates), p=self.rates)]
        return self._draw(source, int(source.train[rng.integers(len(source.train))]), rng, train=True)

    def validation(self) -> Iterator[Batch]:
        """The same batches every time, of episodes that are never trained on and not augmented."""
        with_validation = [i for i, source in enumerate(self.sources) if len(source.validation)]
        if not with_validation:
            return
        rates = self.rates[with_validation] / self.rates[with_validation].sum()
        size = self.preset.micro_batch
        for start in range(0, self.preset.validation.samples, size):
            samples = []
            for index in range(start, min(start + size, self.preset.validation.samples)):
                rng = np.random.default_rng([self.preset.seed, VALIDATION_STEP, index])
                source = self.sources[with_validation[rng.choice(len(rates), p=rates)]]
                row = int(source.validation[rng.integers(len(source.validation))])
                samples.append(self._draw(source, row, rng, train=False))
            yield self._collate(samples)

    def _collate(self, samples: Sequence[Sample]) -> Batch:
        return collate(samples, self.writer.processor.pad_id)

    def _draw(self, source: Source, row: int, rng: np.random.Generator, *, train: bool) -> Sample:
        if isinstance(source.dataset, QuestionAnswers):
            return self._ask(source, source.dataset, row, rng, train=train)
        assert source.kinds is not None
        frame = source.dataset[row]
        kind = _choose_kind(frame, source.kinds, rng)
        name = f"{source.name}: episode {frame.episode}, frame {frame.frame} ({kind})"
        pictures = pictures_of(frame, kind)
        if train:
            pictures = self._augmented(pictures, rng)
        messages = self.writer.messages(frame, kind, source.dataset.statistics)
        sample = self.writer.sample(name, pictures, messages)
        if train and self.preset.history_dropout is not None:
            sample = self.writer.hide_history(sample, self.preset.history_dropout, rng)
        return sample

    def _ask(
        self, source: Source, questions: QuestionAnswers, group: int, rng: np.random.Generator, *, train: bool
    ) -> Sample:
        """The pairs about the same pictures in random order, as many as the sequence length takes."""
        pairs = rng.permutation(questions.groups[group]).tolist()
        pictures = questions[pairs[0]].images
        if train:
            pictures = self._augmented(pictures, rng)
        texts = [questions.text(pair) for pair in pairs]
        messages = [
            self.writer.message(Question(question, "{answer}", {"answer": answer})) for question, answer in texts
        ]
        return self.writer.sample(f"{source.name}: pair {pairs[0]}", pictures, messages[:1], extra=messages[1:])

    def _augmented(self, pictures: list[NDArray[np.uint8]], rng: np.random.Generator) -> list[NDArray[np.uint8]]:
        if self.preset.augmentation is None:
            return pictures
        return [augment(picture, self.preset.augmentation, rng) for picture in pictures]

    def _source(self, name: str, group: Group) -> Source:
        dataset = self._open(name, questions=name in group.questions)
        if isinstance(dataset, QuestionAnswers):
            return Source(name, dataset, None, np.arange(len(dataset.groups)), np.arange(0))
        assert group.kinds is not None
        usable = _usable(dataset, group.kinds)
        if not usable.any():
            kinds = ", ".join(kind for kind, share in vars(group.kinds).items() if share)
            raise DatasetError(f"{name}: {dataset.directory}: no frame is annotated for {kinds}")
        for_validation = held_out(dataset, self.preset)
        train, validation = np.flatnonzero(usable & ~for_validation), np.flatnonzero(usable & for_validation)
        if not len(train):
            raise DatasetError(f"{name}: {dataset.directory}: every episode is held out for validation")
        source = Source(name, dataset, group.kinds, train, validation)
        self._try(source, dataset)
        return source

    def _try(self, source: Source, dataset: AnnotatedDataset) -> None:
        """Make samples of the frame with the longest instruction: what is too long shall not wait to be drawn."""
        lengths = np.array([len(text) for text in dataset.column("instruction")])
        row = int(source.train[lengths[source.train].argmax()])
        for attempt in range(TRIED):
            self._draw(source, row, np.random.default_rng(attempt), train=False)

    def _open(self, name: str, *, questions: bool) -> AnnotatedDataset | QuestionAnswers:
        if name not in self._opened:
            path = self.preset.data[name]
            opened = QuestionAnswers(path) if questions else _checked(name, path)
            if isinstance(opened, AnnotatedDataset):
                self._check_key(name, opened)
            self._opened[name] = opened
        return self._opened[name]

    def _check_key(self, name: str, dataset: AnnotatedDataset) -> None:
        """The checkpoint holds one entry for each key, so datasets that share one must share its statistics."""
        key = dataset.statistics.key
        if self.norm_stats.get(key, dataset.norm_stats[key])["action"] != dataset.norm_stats[key]["action"]:
            raise DatasetError(
                f"{name}: {dataset.directory}: statistics of {key!r} differ from those of another dataset in the "
                "mixture; annotate it under another key"
            )


def _checked(name: str, path: Path) -> AnnotatedDataset:
    try:
        dataset = AnnotatedDataset(path)
    except (CheckpointError, EmbodimentError) as error:
        raise DatasetError(f"{name}: {path}: {error}") from error
    statistics = dataset.statistics
    if statistics.dimensions % ROW:
        raise DatasetError(f"{name}: {path}: actions of {statistics.dimensions} values, expected {ROW} per arm")
    if not np.isfinite(dataset.all_actions()).all():
        raise DatasetError(f"{name}: {path}: actions hold values that are not finite")
    constant = np.flatnonzero(statistics.mask & (statistics.q99 <= statistics.q01))
    if len(constant) and not dataset.settings.get(ALLOW_CONSTANT):
        raise DatasetError(
            f"{name}: {path}: action dimensions {constant.tolist()} never change: q01 is q99; if that is meant, "
            "annotate with --allow-constant"
        )
    if not all(text.strip() for text in set(dataset.column("instruction"))):
        raise DatasetError(f"{name}: {path}: some frames have an empty instruction")
    return dataset


def _usable(dataset: AnnotatedDataset, kinds: Kinds) -> NDArray[np.bool_]:
    """Which frames can become a sample of some kind."""
    depth, trace = dataset.annotated("depth_codes"), dataset.annotated("traces")
    steered = np.array(dataset.column("steered"), np.bool_)
    usable = np.zeros(len(dataset), np.bool_)
    if kinds.reasoning:
        usable |= depth & trace & ~steered
    if kinds.steering:
        usable |= trace
    if kinds.following:
        usable |= depth & trace & steered
    if kinds.depth:
        usable |= depth
    if kinds.trace:
        usable |= trace & ~steered
    if kinds.pointing:
        usable |= dataset.pointed()
    return usable


def _choose_kind(frame: Frame, kinds: Kinds, rng: np.random.Generator) -> str:
    """A kind the frame can be, by the preset's shares; a trace of one point is not drawn, so it cannot steer."""
    depth, trace = frame.depth_codes is not None, bool(frame.traces)
    drawn = trace and any(len(points) > 1 for points in frame.traces or ())
    possible = {
        "reasoning": kinds.reasoning * (depth and trace and not frame.steered),
        "steering": kinds.steering * drawn,
        "depth": kinds.depth * depth,
        "trace": kinds.trace * (trace and not frame.steered),
        "pointing": kinds.pointing * bool(first_image_points(frame)),
        "following": kinds.following * (depth and trace and frame.steered),
    }
    shares = np.array(list(possible.values()))
    if not shares.any():
        return "steering"
    return str(rng.choice(list(possible), p=shares / shares.sum()))


def held_out(dataset: AnnotatedDataset, preset: Preset) -> NDArray[np.bool_]:
    """[frames], those of the episodes for validation; whether an episode is one does not depend on the others."""
    episodes, inverse = np.unique(dataset.column("episode"), return_inverse=True)
    share = preset.validation.episodes
    chosen = np.array([np.random.default_rng([preset.seed, int(episode)]).random() < share for episode in episodes])
    if share and len(episodes) > 1 and not chosen.any():
        chosen[-1] = True
    return chosen[inverse]
