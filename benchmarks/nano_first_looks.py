"""Where a checkpoint's first trace of a scene goes: to the cube that is asked for, to the other one, how near.

The cheapest look at what a checkpoint has learned, seconds instead of the hours of `nano_success.py`: scenes of picking
with two cubes, each asked for both of them; the trace of the first reply is compared with where the cubes are in the
front picture.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from molmoact_training.posed_demonstrations import trace_of
from nano_success import PAIRS, Arena, wilson


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


def first_look(arena: Arena, cube: str, other: str, seed: int) -> FirstLook:
    task = f"pick:{cube}:{other}"
    words = arena.sim.reset(task, seed)
    arena.policy.forget()
    trace = np.array(arena.reply(words, None).trace, float)
    camera, data = arena.cameras[0], arena.sim.copy_data()
    places = np.array([arena.sim.object_poses()[f"{colour}_cube"][0] for colour in (cube, other)])
    to_asked, to_other = (np.linalg.norm(trace - point, axis=1).min() for point in trace_of(places, camera, data))
    return FirstLook(task, seed, round(float(to_asked), 1), round(float(to_other), 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--scenes", type=int, default=36, help="each is asked for both of its cubes")
    parser.add_argument("--seed", type=int, default=500000, help="of the first scene")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    arena = Arena(arguments.checkpoint, None)
    looks = []
    for index in range(arguments.scenes):
        cube, other = PAIRS[index % len(PAIRS)]
        looks += [first_look(arena, *pair, arguments.seed + index) for pair in ((cube, other), (other, cube))]
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
