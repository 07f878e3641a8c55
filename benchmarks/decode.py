"""How soon a reply is there: every decoder on the same recorded pictures, one after another on each.

DATASET is whatever `molmoact evaluate` reads; only directories of recorded episodes can be looked at at any rate. Two
things are measured. Decoders and what they are made of are compared with transformers' own loop (`generate`), looking
once per executed chunk as a policy node does: the same tokens or not, passes of the language model, time. And of the
drafts it is counted how much of them the model agrees with, looking once per chunk and at every --rate.

Every ratio is one of sums over all replies; its interval is where 95 % of it lies when the episodes are drawn again.
Times are those of this machine with whatever else it does; the variants take turns on each picture, so that this is
fair. processor_ms does not count what others do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from matplotlib.figure import Figure
from molmoact_policy.embodiment import ROW, Embodiment
from molmoact_policy.errors import PolicyError, ReplyError
from molmoact_policy.grammar import NO_CHOICE, Choice, Grammar, Spelled
from molmoact_policy.policy import Observation, Policy
from molmoact_policy.prompts import reasoning_prompt
from molmoact_training.errors import DatasetError, TrainingError
from molmoact_training.evaluation.episode_source import EpisodeSettings
from molmoact_training.evaluation.looks import Look
from molmoact_training.evaluation.metrics import Estimate, Sums, estimates
from molmoact_training.evaluation.prediction import Checkpoint
from molmoact_training.evaluation.sources import open_source
from tqdm import tqdm

EXECUTE_ROWS = 4  # config/policy.yaml
PER_CHUNK = "chunk"
PARTS = ("depth", "trace", "action")
SHIPPED = ("strict", "free")
EXPLAINED = 30  # replies that differ, of each decoder


class Watched(Grammar):
    """Keeps what was guessed for the last reply: at the beginning, and in every pass."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.draft: list[Choice] = []
        self.passes: list[Spelled] = []

    def spell(self, state: Any, choices: Any, *arguments: Any) -> Spelled:
        if state == self.start:
            self.draft, self.passes = list(choices), []
        self.passes.append(super().spell(state, choices, *arguments))
        return self.passes[-1]


class WithoutRefinement(Grammar):
    """Guesses behind the first wrong one stay as they are."""

    def refine(self, *_: Any) -> None:
        pass


class ForcedRunsOnly(Grammar):
    """Guesses what there is no choice about, and one token more, so that every pass decides one."""

    def spell(self, *arguments: Any) -> Spelled:
        spelled = super().spell(*arguments)
        decided = next((index for index, number in enumerate(spelled.sets) if number != NO_CHOICE), len(spelled.ids))
        return Spelled(spelled.ids[: decided + 1], spelled.sets[: decided + 1], spelled.segments)


@dataclass(frozen=True)
class Reply:
    ids: list[int]
    passes: int
    wall_ms: float
    processor_ms: float


class Variant:
    """A way to decode.

    grammar: in the place of the shipped one. forgetful: nothing is known of the reply before.
    """

    def __init__(
        self, base: Policy, decoder: str, grammar: Callable[..., Grammar] | None = None, *, forgetful: bool = False
    ) -> None:
        with nullcontext() if grammar is None else patch("molmoact_policy.policy.Grammar", grammar):
            self.policy = _Listening(
                base.model, base.processor, base.statistics, embodiment=base.embodiment, decoder=decoder
            )
        self._forgetful = forgetful

    def reply(self, look: Look) -> Reply:
        if self._forgetful:
            self.policy.forget()
        observation = Observation(look.images, look.instruction)
        started, processor_started = time.perf_counter(), time.process_time()
        try:
            self.policy.act(observation)
        except ReplyError:
            pass  # what is not well-formed took its time, too
        wall, processor = time.perf_counter() - started, time.process_time() - processor_started
        heard = self.policy.heard
        return Reply(heard.ids, heard.passes, 1e3 * wall, 1e3 * processor)


class _Listening(Policy):
    """Keeps the tokens of a reply even when it cannot be read."""

    def _read(self, said: Any, *arguments: Any) -> Any:
        self.heard = said.decoded
        return super()._read(said, *arguments)


def variants_of(base: Policy) -> dict[str, Variant]:
    """The first is what the others are compared with."""
    return {
        "generate": Variant(base, "generate"),
        "strict": Variant(base, "strict"),
        "free": Variant(base, "free"),
        "strict, without the reply before": Variant(base, "strict", forgetful=True),
        "strict, without refinement": Variant(base, "strict", WithoutRefinement),
        "strict, forced runs only": Variant(base, "strict", ForcedRunsOnly),
    }


@dataclass(frozen=True)
class Replies:
    """Of every variant to one look. In the grammar: what `generate` said is a reply."""

    episode: str
    in_grammar: bool
    of: Mapping[str, Reply]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, metavar="DATASET")
    parser.add_argument("--checkpoint", default="nano")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    parser.add_argument("--rate", nargs="*", type=float, default=[15.0, 20.0], metavar="HZ", help="[15 20]")
    parser.add_argument("--looks", type=int, metavar="N", help="at most so many at each episode [all]")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="[as torch takes]")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="PNG, SVG or PDF")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    try:
        result = measure(options)
    except (TrainingError, PolicyError) as error:
        print(f"decode: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    if options.plot is not None:
        plot(result).savefig(options.plot, bbox_inches="tight")
    return 0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    base = Checkpoint(options.checkpoint, dtype=options.dtype).load()
    if base.embodiment is None:
        raise TrainingError(f"checkpoint {options.checkpoint}: nothing says what its actions and cameras are")
    paces = {PER_CHUNK: None} | {f"{rate:g} Hz": rate for rate in options.rate}
    data = {
        pace: list(open_episodes(options.datasets, base.embodiment, rate, options.looks))
        for pace, rate in paces.items()
    }
    grammar = Watched(base.processor, base.statistics.dimensions, rows=base.embodiment.rows, steered=False)
    variants = variants_of(base)
    replies, differing = compare(variants, data[PER_CHUNK], grammar)
    entries = {name: entry(replies, name) for name in variants}
    for name, looks in differing.items():
        entries[name]["differences"] = explain(base, name, looks, options)
    best = max(SHIPPED, key=lambda name: (entries[name]["identical_tokens"], entries[name]["time_ratio"]))
    return {
        "checkpoint": options.checkpoint,
        "machine": machine(base),
        "episodes": len(data[PER_CHUNK]),
        "looks_per_episode": options.looks or "all",
        "replies": len(replies),
        "generate_outside_grammar": sum(not each.in_grammar for each in replies),
        "best": {"variant": best} | entries[best],
        "variants": entries,
        "acceptance": {pace: acceptance(base, grammar, episodes, pace) for pace, episodes in data.items()},
    }


@dataclass(frozen=True)
class Looks:
    """An episode, whose pictures are read each time it is gone through."""

    episode: str
    source: Any
    frames: list[int]

    def __iter__(self) -> Iterator[Look]:
        return self.source.looks(self.episode, self.frames)


def open_episodes(
    paths: Iterable[Path], embodiment: Embodiment, rate: float | None, limit: int | None
) -> Iterator[Looks]:
    """Each episode in order, looked at so many times a second; None: once per executed chunk. Raises DatasetError for
    data that have no pictures at this rate."""
    own = 1 / embodiment.step_period
    for path in paths:
        settings = EpisodeSettings(replace(embodiment, step_period=1 / (rate or own)), embodiment.cameras)
        source = open_source(path, settings)
        there, wanted = 1 / source.embodiment.step_period, rate or own / EXECUTE_ROWS
        every = round(there / wanted)
        if not np.isclose(there, wanted * every, rtol=0.01):
            raise DatasetError(f"{path}: has {there:g} pictures a second, cannot be looked at {wanted:g} times")
        for name in source.names():
            yield Looks(name, source, source.recording(name).frames[::every][:limit].tolist())


def compare(
    variants: Mapping[str, Variant], episodes: Sequence[Looks], grammar: Grammar
) -> tuple[list[Replies], dict[str, list[Look]]]:
    """The replies of all variants, and the looks at which a shipped one says something else than a `generate` that
    stays in the grammar."""
    names = list(variants)
    warm_up(variants, episodes)
    found: list[Replies] = []
    differing: dict[str, list[Look]] = {}
    for looks in tqdm(episodes, desc="comparing", unit="episode", disable=None):
        for variant in variants.values():
            variant.policy.forget()
        for look in looks:
            turn = len(found) % len(names)
            said = {name: variants[name].reply(look) for name in [*names[turn:], *names[:turn]]}
            reference = said["generate"].ids
            in_grammar = grammar.read(reference) is not None
            found.append(Replies(look.episode, in_grammar, said))
            for name in SHIPPED:
                if said[name].ids != reference and (in_grammar or name == "free"):
                    differing.setdefault(name, []).append(look)
                    del differing[name][EXPLAINED:]
    return found, differing


def warm_up(variants: Mapping[str, Variant], episodes: Sequence[Looks]) -> None:
    """What a library prepares at its first use is not timed."""
    look = next(iter(episodes[0]))
    for variant in variants.values():
        variant.reply(look)


def entry(replies: Sequence[Replies], name: str) -> dict[str, Any]:
    """What is said of one variant. Times in ms."""
    by_episode: dict[str, Sums] = {}
    for each in replies:
        mine, reference = each.of[name], each.of["generate"]
        sums = by_episode.setdefault(each.episode, Sums())
        sums.add("time_ratio", reference.wall_ms, mine.wall_ms)
        sums.add("processor_ratio", reference.processor_ms, mine.processor_ms)
        sums.add("pass_ratio", reference.passes, mine.passes)
        sums.add("ms_per_chunk", mine.wall_ms, 1)
        sums.add("processor_ms", mine.processor_ms, 1)
        sums.add("passes", mine.passes, 1)
    same = [each.of[name].ids == each.of["generate"].ids for each in replies]
    inside = [equal for equal, each in zip(same, replies, strict=True) if each.in_grammar]
    wall = [each.of[name].wall_ms for each in replies]
    return {
        "identical_tokens": all(same),
        "identical_replies": sum(same) / len(same),
        "identical_replies_in_grammar": sum(inside) / len(inside) if inside else None,
        **with_intervals(estimates(list(by_episode.values()), seed=0)),
        "ms_per_chunk_median": float(np.median(wall)),
        "ms_per_chunk_p95": float(np.percentile(wall, 95)),
    }


def with_intervals(found: Mapping[str, Estimate]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, estimate in found.items():
        values[name] = estimate.value
        values[f"{name}_interval"] = [estimate.low, estimate.high]
    return values


def explain(base: Policy, name: str, looks: Sequence[Look], options: argparse.Namespace) -> dict[str, Any]:
    """Why a decoder says something else: how near to each other the model's logits of the first two tokens that differ
    are, and whether anything differs with finer numbers. One step is what two numbers of this size differ by at least.
    """
    pair = [Variant(base, decoder) for decoder in ("generate", name)]
    gaps = []
    for look in looks:
        reference, other = (variant.reply(look).ids for variant in pair)
        if reference != other:
            gaps.append(gap(base, look, reference, other))
    found = {
        "replies": len(looks),
        "largest_gap": max((apart for apart, _ in gaps), default=None),
        "largest_gap_in_steps": max((apart / step for apart, step in gaps), default=None),
    }
    if base.model.dtype == torch.float32:
        return found
    finer = Checkpoint(options.checkpoint, dtype="float32").load()
    pair = [Variant(finer, decoder) for decoder in ("generate", name)]
    same = sum(pair[0].reply(look).ids == pair[1].reply(look).ids for look in looks)
    return found | {"identical_in_float32": same}


@torch.inference_mode()
def gap(base: Policy, look: Look, reference: Sequence[int], other: Sequence[int]) -> tuple[float, float]:
    """How far apart the model's logits of the first two tokens that differ are, and the step between two numbers of
    that size in its dtype."""
    same = next(index for index, (a, b) in enumerate(zip(reference, other, strict=False)) if a != b)
    images = [base.embodiment.picture(image) for image in look.images] if base.embodiment else look.images
    prompt = reasoning_prompt(look.instruction, len(images), base.statistics.dimensions // ROW)
    inputs = base.processor(images, prompt)
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([list(reference[:same])], dtype=torch.long)], 1)
    inputs.pop("attention_mask", None)
    logits = base.model(**{key: tensor.to(base.model.device) for key, tensor in inputs.items()}).logits[0, -1].float()
    first, second = logits[reference[same]].item(), logits[other[same]].item()
    return abs(first - second), float(torch.finfo(base.model.dtype).eps) * max(abs(first), abs(second))


def acceptance(base: Policy, grammar: Watched, episodes: Sequence[Looks], pace: str) -> dict[str, Any]:
    """How good the strict decoder's drafts are, for all replies but the first of every episode, by part of the reply.

    drafted: share of values that the draft had right. first_pass: that were right and accepted by the first pass that
    held them, for which all before them in that pass has to be right, too. copied: that the reply before has in the
    same place.
    """
    variant = Variant(base, "strict", lambda *_, steered, **__: grammar)
    by_episode = []
    for looks in tqdm(episodes, desc=pace, unit="episode", disable=None):
        variant.policy.forget()
        sums, before = Sums(), None
        for look in looks:
            reply = variant.reply(look)
            said = grammar.read(reply.ids)
            if said is not None and before is not None:
                sums.add("passes", reply.passes, 1)
                sums.add("ms_per_chunk", reply.wall_ms, 1)
                count_agreement(sums, grammar, said, dict(before))
            before = said
        by_episode.append(sums)
    replies = sum(int(sums.values["passes"][1]) for sums in by_episode if sums.values)
    return {"replies": replies} | with_intervals(estimates(by_episode, seed=0))


def count_agreement(
    sums: Sums, grammar: Watched, said: Sequence[tuple[int, Choice]], before: Mapping[int, Choice]
) -> None:
    """Adds one reply to the sums of an episode."""
    first = accepted_at_once([place for place, _ in said], grammar)
    for place, choice in said:
        part = grammar.places[place].part
        if part not in PARTS:
            continue
        sums.add(f"{part}_drafted", grammar.draft[place].value == choice.value, 1)
        sums.add(f"{part}_first_pass", first.get(place) == choice, 1)
        sums.add(f"{part}_copied", place in before and before[place].value == choice.value, 1)


def accepted_at_once(places: Sequence[int], grammar: Watched) -> dict[int, Choice]:
    """What was guessed at each of a reply's places by the first pass that held it whole, if the pass after it begins
    behind that place."""
    order = {place: number for number, place in enumerate(places)}
    begins = [order[spelled.segments[0][0]] for spelled in grammar.passes] + [len(places)]
    seen: dict[int, Choice | None] = {}
    for spelled, done in zip(grammar.passes, begins[1:], strict=True):
        for place, choice, skipped, start in spelled.segments:
            end = start + len(grammar.tries[place].tokens[choice]) - skipped
            if place in order and end <= len(spelled.ids):
                seen.setdefault(place, choice if order[place] < done else None)
    return {place: choice for place, choice in seen.items() if choice is not None}


def machine(base: Policy) -> dict[str, Any]:
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu.group(1) if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "device": torch.cuda.get_device_name() if base.model.device.type == "cuda" else base.model.device.type,
        "dtype": str(base.model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
    }


def plot(result: Mapping[str, Any]) -> Figure:
    """Passes and time by variant, with intervals, and how much of a draft is right."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    passes, times, drafts = figure.subplots(1, 3)
    variants = result["variants"]
    for axes, value, title in ((passes, "passes", "passes per reply"), (times, "ms_per_chunk", "ms per chunk")):
        middle = np.array([entry[value] for entry in variants.values()])
        ends = np.array([entry[f"{value}_interval"] for entry in variants.values()], float)  # NaN: one episode only
        axes.barh(list(variants), middle, xerr=np.abs(ends.T - middle), color="tab:blue", ecolor="0.3")
        axes.bar_label(axes.containers[-1], fmt="%.0f", padding=3)
        axes.margins(x=0.15)
        axes.set_title(title)
        axes.invert_yaxis()
    times.set_yticklabels([])
    groups = [(pace, part) for pace in result["acceptance"] for part in PARTS]
    for offset, (kind, colour) in enumerate((("copied", "0.7"), ("drafted", "tab:blue"), ("first_pass", "tab:green"))):
        heights = [result["acceptance"][pace].get(f"{part}_{kind}") or 0.0 for pace, part in groups]
        drafts.bar(np.arange(len(groups)) + 0.27 * (offset - 1), heights, 0.27, color=colour, label=kind)
    drafts.set_xticks(range(len(groups)), [f"{part}\n{pace}" for pace, part in groups], fontsize=7)
    drafts.set_title("share of values that are right")
    drafts.legend(ncols=3, loc="upper left", fontsize=8)
    drafts.set_ylim(0, 1.15)
    return figure


if __name__ == "__main__":
    sys.exit(main())
