"""Replies of a checkpoint to looks at a source, in one process or several."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from molmoact_policy.actions import ActionStatistics, encode_bins
from molmoact_policy.checkpoint import read_config
from molmoact_policy.depth import DepthVQVAE
from molmoact_policy.embodiment import EMBODIMENT_FILE, Embodiment
from molmoact_policy.errors import ObservationError, ReplyError
from molmoact_policy.policy import DEPTH_DIRECTORY, Observation, Policy, Prediction, read_statistics
from molmoact_policy.predict import shipped_conventions
from molmoact_policy.reply import HIGHEST_BIN
from numpy.typing import NDArray
from tqdm import tqdm

from molmoact_training.errors import DatasetError, TrainingError
from molmoact_training.evaluation.looks import Look, Source
from molmoact_training.evaluation.metrics import Answer
from molmoact_training.evaluation.units import from_si, to_si


class Actor(Protocol):
    """What is evaluated: a Policy, or whatever answers like one."""

    statistics: ActionStatistics
    embodiment: Embodiment | None

    depth_vqvae: DepthVQVAE | None

    def act(self, observation: Observation) -> Prediction: ...

    def forget(self) -> None: ...


@dataclass(frozen=True)
class Conventions:
    """How a checkpoint writes actions."""

    statistics: ActionStatistics
    embodiment: Embodiment

    def bins(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Rows [N, 7 · A] in SI units as the checkpoint writes them; its two highest bins mean the same value."""
        normalised = self.statistics.normalise(from_si(self.embodiment, rows))
        return np.minimum(encode_bins(normalised), HIGHEST_BIN)


@dataclass(frozen=True)
class Checkpoint:
    """Which policy is loaded, and how: the arguments of Policy.from_pretrained."""

    directory: str
    unnorm_key: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    depth_vqvae: Path | None = None
    embodiments: Path | None = None

    def load(self) -> Policy:
        """Raises PolicyError (CheckpointError, EmbodimentError) naming what is wrong with the checkpoint."""
        policy = Policy.from_pretrained(
            self.directory,
            self.unnorm_key,
            self.device,
            self.dtype,
            depth_vqvae=self.depth_vqvae,
            embodiments=self.embodiments,
        )
        table = shipped_conventions()
        if policy.embodiment is None and table is not None:
            policy.embodiment = Embodiment.find(table, policy.statistics.key)
        return policy


def read_conventions(
    directory: Path, unnorm_key: str | None, embodiments: Path | None
) -> tuple[Conventions, DepthVQVAE | None]:
    """Those of a checkpoint and what decodes its depth codes, without its weights. Raises PolicyError."""
    statistics = read_statistics(directory, read_config(directory), unnorm_key)
    own = directory / EMBODIMENT_FILE
    path = own if own.is_file() or embodiments is None else embodiments
    vqvae = directory / DEPTH_DIRECTORY
    decoder = DepthVQVAE.from_pretrained(vqvae) if vqvae.is_dir() else None
    return Conventions(statistics, Embodiment.from_file(path, statistics.key)), decoder


def conventions_of(actor: Actor, name: str) -> Conventions:
    """Raises TrainingError when nothing says what the checkpoint's actions mean."""
    if actor.embodiment is None:
        raise TrainingError(
            f"checkpoint {name}: nothing says what actions of '{actor.statistics.key}' mean: pass --embodiments"
        )
    return Conventions(actor.statistics, actor.embodiment)


def check_match(conventions: Conventions, source: Source, name: str) -> None:
    """Raises DatasetError unless the checkpoint `name` and the source are about the same robot and cameras."""
    recorded, own = source.embodiment, conventions.embodiment
    if source.dimensions != conventions.statistics.dimensions:
        raise DatasetError(
            f"the {source.kind} has actions of {source.dimensions} dimensions, checkpoint {name} has "
            f"{conventions.statistics.dimensions}"
        )
    for field in ("cameras", "frame", "step_period"):
        theirs, ours = getattr(recorded, field), getattr(own, field)
        same = np.isclose(theirs, ours, rtol=1e-3) if field == "step_period" else theirs == ours
        if not same:
            raise DatasetError(f"the {source.kind} has {field} {_words(theirs)}, checkpoint {name} has {_words(ours)}")


def answers_of(actor: Actor, conventions: Conventions, looks: Iterable[Look]) -> Iterator[Answer]:
    """Raises DatasetError for a look that the policy refuses to think about."""
    episode = None
    for look in looks:
        if look.episode != episode:
            episode = look.episode
            actor.forget()  # so that the passes a reply takes do not depend on which episode came before
        answer = unanswered(look, conventions)
        try:
            reply = actor.act(Observation(look.images, look.instruction))
        except ObservationError as error:
            raise DatasetError(f"episode {look.episode}, frame {look.frame}: {error}") from error
        except ReplyError as error:
            yield replace(
                answer,
                predicted_codes=error.depth_codes,
                predicted_trace=error.trace,
                text=error.text,
                error=str(error),
            )
        else:
            predicted = to_si(conventions.embodiment, reply.actions)
            yield replace(
                answer,
                predicted=predicted,
                predicted_bins=conventions.bins(predicted),
                predicted_codes=reply.depth_codes or None,
                predicted_trace=reply.trace or None,
                text=reply.text,
                latency=reply.latency,
                passes=reply.forward_passes,
            )


def unanswered(look: Look, conventions: Conventions) -> Answer:
    """What was recorded, without a reply."""
    return Answer(
        look.episode,
        look.frame,
        look.instruction,
        image_size=(look.images[0].shape[1], look.images[0].shape[0]),
        recorded=look.recorded,
        recorded_bins=conventions.bins(look.recorded),
        recorded_codes=_codes(look.codes),
        previous_codes=_codes(look.previous_codes),
        recorded_trace=None if look.trace is None else [(int(x), int(y)) for x, y in look.trace],
    )


Work = Mapping[str, Sequence[int]]  # frames by episode


def predict(
    load: Callable[[], Actor], open_data: Callable[[], Source], work: Work, jobs: int, name: str
) -> dict[str, list[Answer]]:
    """Answers by episode, in the order of `work`. `load` and `open_data` are called in every process."""
    shares = [dict(list(work.items())[job::jobs]) for job in range(jobs)]
    arguments = [(load, open_data, share, name, job, jobs) for job, share in enumerate(shares) if share]
    found: dict[str, list[Answer]] = {}
    for part in in_processes(_share, arguments):
        found |= part
    return {episode: found[episode] for episode in work}


def in_processes(function: Callable, arguments: Sequence[tuple]) -> Iterator:
    """Results in the order of the arguments: here when there is one, else each in a process of its own."""
    if len(arguments) == 1:
        yield function(*arguments[0])
        return
    # spawn: a forked process would inherit the threads' locks of torch.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(arguments), mp_context=context) as pool:
        futures = [pool.submit(function, *one) for one in arguments]
        for future in futures:
            yield future.result()


def _share(
    load: Callable[[], Actor], open_data: Callable[[], Source], work: Work, name: str, job: int, jobs: int
) -> dict[str, list[Answer]]:
    if jobs > 1:
        torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    actor, source = load(), open_data()
    conventions = conventions_of(actor, name)
    total = sum(len(frames) for frames in work.values())
    description = name if jobs == 1 else f"{name} ({job + 1}/{jobs})"
    with tqdm(total=total, unit="frame", desc=description, position=job, disable=None) as progress:
        found = {}
        for episode, frames in work.items():
            answers = []
            for answer in answers_of(actor, conventions, source.looks(episode, frames)):
                answers.append(answer)
                progress.update()
            found[episode] = answers
    return found


def check_looks(open_data: Callable[[], Source], work: Work, jobs: int) -> None:
    """Look at everything once before the first prediction. Raises DatasetError naming what cannot be looked at."""
    shares = [dict(list(work.items())[job::jobs]) for job in range(jobs)]
    for _ in in_processes(_look_at, [(open_data, share) for share in shares if share]):
        pass


def _look_at(open_data: Callable[[], Source], work: Work) -> None:
    source = open_data()
    for episode, frames in work.items():
        for _ in source.looks(episode, frames):
            pass


def _codes(codes: NDArray[np.uint8] | None) -> list[int] | None:
    return None if codes is None else codes.tolist()


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
