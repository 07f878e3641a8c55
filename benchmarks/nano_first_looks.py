"""Where a checkpoint's first trace of a scene goes: to the cube that is asked for, to the other one, how near.

The cheapest look at what a checkpoint has learned, seconds instead of the hours of `nano_success.py`: scenes of picking
with two cubes, each asked for both of them; the trace of the first reply is compared with where the cubes are in the
front picture. `--bare` asks for the trace only: all that a checkpoint can say before pre-training.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from molmoact_policy.errors import ReplyError
from molmoact_policy.prompts import trace_prompt
from molmoact_policy.reply import parse_traces
from molmoact_training.posed_demonstrations import trace_of
from nano_success import PAIRS, Arena, wilson

BARE_TOKENS = 128  # the words around a trace and five points
FAR = 361.0  # 1/255 of the picture, its diagonal: how near a reply without a trace comes to anything


@dataclass(frozen=True)
class FirstLook:
    """Distances in 1/255 of the picture from the trace's nearest point to the cubes."""

    task: str
    seed: int
    to_asked: float
    to_other: float

    @property
    def right(self) -> bool:
        return self.to_asked < self.to_other


def bare_trace(arena: Arena, words: str) -> list[list[int | float]]:
    model, processor = arena.policy.model, arena.policy.processor
    prompt = processor([arena.cameras[0].colour(arena.sim.copy_data()).copy()], trace_prompt(words, 1))
    ids = model.generate(**prompt, max_new_tokens=BARE_TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return next(iter(parse_traces(processor.decode(ids.tolist()))), [])


def reasoned_trace(arena: Arena, words: str) -> list[tuple[int, int]]:
    try:
        return arena.reply(words, None).trace
    except ReplyError:
        return []


def first_look(arena: Arena, cube: str, other: str, seed: int, *, bare: bool) -> FirstLook:
    task = f"pick:{cube}:{other}"
    words = arena.sim.reset(task, seed)
    arena.policy.forget()
    trace = np.array((bare_trace if bare else reasoned_trace)(arena, words), float).reshape(-1, 2)
    camera, data = arena.cameras[0], arena.sim.copy_data()
    places = np.array([arena.sim.object_poses()[f"{colour}_cube"][0] for colour in (cube, other)])
    to_asked, to_other = (
        np.linalg.norm(trace - point, axis=1).min(initial=FAR) for point in trace_of(places, camera, data)
    )
    return FirstLook(task, seed, round(float(to_asked), 1), round(float(to_other), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--scenes", type=int, default=36, help="each is asked for both of its cubes")
    parser.add_argument("--seed", type=int, default=500000, help="of the first scene")
    parser.add_argument("--bare", action="store_true", help="ask for the trace only")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arena = Arena(arguments.checkpoint, None)
    looks = []
    for index in range(arguments.scenes):
        cube, other = PAIRS[index % len(PAIRS)]
        looks += [
            first_look(arena, *pair, arguments.seed + index, bare=arguments.bare)
            for pair in ((cube, other), (other, cube))
        ]
    right = sum(look.right for look in looks)
    report = {
        "checkpoint": Path(arguments.checkpoint).name,
        "first_seed": arguments.seed,
        "looks": len(looks),
        "right": right,
        "right_wilson_95": wilson(right, len(looks)),
        "median_to_asked": statistics.median(look.to_asked for look in looks),
        "median_to_nearer": statistics.median(min(look.to_asked, look.to_other) for look in looks),
        "each": [asdict(look) for look in looks],
    }
    print(json.dumps({key: value for key, value in report.items() if key != "each"}))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
