"""How often the scripted operator does each task in the physics, and how often with the hand held open.

It acts as through a bridge: four steps of 0.1 s from the measured pose, interpolated, a moment to settle, and gripper
commands by edges. Writes benchmarks/results/operator_success.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
from functools import cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

from franka_sim.episode import EPISODE_LIMIT_S, Episode, operator_episode
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation

HERE = Path(__file__).resolve().parent
TASKS = ("pick", "place", "push")
OPEN_LIMIT_S = 10.0
CAMPAIGNS = {"operator": False, "hand held open": True}


def wilson(successes: int, trials: int) -> list[float]:
    """95 % Wilson score interval of a proportion."""
    z, p = 1.959964, successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return [max(0.0, round(centre - half, 4)), min(1.0, round(centre + half, 4))]


@cache
def simulation_of(scene: Path) -> Simulation:
    """Built once per process; a reset leaves nothing of the episode before."""
    return Simulation(SceneConfig.load(scene))


def run_seed(scene: Path, job: tuple[str, int, bool]) -> Episode:
    """One episode of (task, seed, hand held open)."""
    task, seed, hold_open = job
    simulation = simulation_of(scene)
    simulation.reset(task, seed)
    return operator_episode(simulation, hold_open=hold_open, limit=OPEN_LIMIT_S if hold_open else EPISODE_LIMIT_S)


def summary(task: str, campaign: str, seeds: range, episodes: list[Episode]) -> dict[str, Any]:
    """One line of the result."""
    failed = [seed for seed, episode in zip(seeds, episodes, strict=True) if not episode.success]
    successes = len(seeds) - len(failed)
    return {
        "task": task,
        "campaign": campaign,
        "successes": successes,
        "trials": len(seeds),
        "wilson_95": wilson(successes, len(seeds)),
        "failed_seeds": failed if successes else "all",
        "mean_duration_s": round(fmean(episode.duration for episode in episodes), 2),
    }


def main() -> None:
    """Run the campaigns; the JSON is complete after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scene", type=Path, default=HERE.parent / "config/scenes/tabletop.yaml")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--open-seeds", type=int, default=20, help="seeds with the hand held open")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results/operator_success.json")
    arguments = parser.parse_args()
    os.nice(10)
    results = []
    with multiprocessing.Pool(arguments.processes) as pool:
        for (campaign, hold_open), task in itertools.product(CAMPAIGNS.items(), arguments.tasks):
            count = arguments.open_seeds if hold_open else arguments.seeds
            seeds = range(arguments.first_seed, arguments.first_seed + count)
            jobs = [(task, seed, hold_open) for seed in seeds]
            episodes = pool.map(partial(run_seed, arguments.scene), jobs, chunksize=2)
            results.append(summary(task, campaign, seeds, episodes))
            print(f"{task:6s} {campaign}: {results[-1]['successes']}/{count}", flush=True)
            report = {"scene": arguments.scene.name, "first_seed": arguments.first_seed, "results": results}
            arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
