"""How often a checkpoint does the simulator's tasks, without ROS: for ablations; the whole graph takes hours.

The policy sees what the node would show it, the world goes on while it thinks, four rows of each chunk run from the
measured pose, the arm comes to rest, and it looks again. Campaigns: `instruction` (the scene's own words), `reworded`
(other words for the same), `trace` (words for one cube, a person's trace to the other; the episode counts when the
other cube is picked up), `words_only` (the same scenes, only re-worded language asks for the other cube). Writes one
JSON with Wilson intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from franka_sim.cameras import RgbdCamera
from franka_sim.episode import StepFollower
from franka_sim.operator import SceneView, ScriptedOperator, Step
from franka_sim.scene import SceneConfig
from franka_sim.simulation import Simulation
from franka_sim.tasks import TaskSpec
from molmoact_policy.errors import ReplyError
from molmoact_policy.policy import Observation, Policy, Prediction
from molmoact_training.posed_demonstrations import CAMERA_SIZE, PLAN_STEPS, trace_of

HERE = Path(__file__).resolve().parent
SCENE = HERE.parent / "config/scenes/tabletop.yaml"
COLOURS = ("red", "blue", "green", "yellow")
PAIRS = [(cube, other) for cube in COLOURS for other in COLOURS if cube != other]
TASKS = {
    "pick": [f"pick:{cube}:{other}" for cube, other in PAIRS],
    "place": [f"place:{cube}:{plate}" for cube in COLOURS for plate in ("red", "blue", "green")],
    "push": [f"push:{cube}:{side}" for cube in COLOURS for side in ("left", "right")],
}
REWORDED = {
    "pick": ["pick the {cube} block up", "move up the {cube} cube"],
    "place": ["place the {cube} cube on the {plate} plate", "put the {cube} block on the {plate} plate"],
    "push": ["push the {cube} block to the {side} of the plate", "move the {cube} cube to the {side} of the plate"],
}
CAMPAIGNS = ("instruction", "reworded", "trace", "words_only")
EXECUTE_ROWS = 4  # config/policy.yaml
SETTLE_TIME_S = 0.2
THINKING_TIME_S = 0.18  # median of the whole graph on two cores: the hand closes meanwhile
TIME_LIMIT_S = 60.0  # as `molmoact demo`
BAD_REPLIES = 3  # in a row end an episode, as they end the node's task


@dataclass(frozen=True)
class Trial:
    """One episode. wrong_cube: a cube that was not meant was lifted."""

    campaign: str
    task: str
    seed: int
    instruction: str
    success: bool
    wrong_cube: bool
    detail: str
    duration_s: float
    chunks: int
    bad_replies: int
    reused: int  # chunks whose reasoning was that of an earlier reply
    passes: int  # of the language model, over all chunks


class Arena:
    """The simulation with its cameras, and the policy; one per process."""

    def __init__(self, checkpoint: str, reuse_threshold: float | None) -> None:
        torch.set_num_threads(1)
        self.config = SceneConfig.load(SCENE)
        self.sim = Simulation(self.config)
        self.cameras = [RgbdCamera(self.sim.model, name, *CAMERA_SIZE) for name in ("front", "wrist")]
        self.policy = Policy.from_pretrained(checkpoint, reuse_threshold=reuse_threshold)

    def run(self, campaign: str, task: str, seed: int) -> Trial:
        """`task` is what shall happen; the words are for it, but for the campaign `trace`."""
        asked = task
        if campaign in ("trace", "words_only"):
            kind, cube, other = task.split(":")
            asked = f"{kind}:{other}:{cube}"
        self.sim.reset(task, seed)
        self.policy.forget()
        spec = TaskSpec.parse(task, self.config)
        words = TaskSpec.parse(asked, self.config).instruction if campaign == "trace" else spec.instruction
        if campaign in ("reworded", "words_only"):
            template = REWORDED[spec.kind][seed % len(REWORDED[spec.kind])]
            words = template.format(cube=spec.cube, plate=spec.plate, side=spec.side)
        trace = self._drawn_trace() if campaign == "trace" else None
        start, bad, in_a_row = self.sim.time, 0, 0
        replies: list[Prediction] = []
        follower = StepFollower(self.sim)
        while not self.sim.outcome().success and self.sim.time < start + TIME_LIMIT_S and in_a_row < BAD_REPLIES:
            try:
                replies.append(self.reply(words, trace))
                steps = self._steps(replies[-1])
                in_a_row = 0
            except ReplyError:
                steps = []
                bad, in_a_row = bad + 1, in_a_row + 1
            follower.settle(THINKING_TIME_S)
            follower.execute(steps)
            follower.settle(SETTLE_TIME_S)
        outcome = self.sim.outcome()
        return Trial(
            campaign=campaign,
            task=task,
            seed=seed,
            instruction=words,
            success=outcome.success,
            wrong_cube="was lifted" in outcome.detail,
            detail=outcome.detail,
            duration_s=round(self.sim.time - start, 2),
            chunks=len(replies),
            bad_replies=bad,
            reused=sum(reply.reused for reply in replies),
            passes=sum(reply.forward_passes for reply in replies),
        )

    def reply(self, words: str, trace: list[tuple[int, int]] | None) -> Prediction:
        data = self.sim.copy_data()
        images = [camera.colour(data).copy() for camera in self.cameras]
        return self.policy.act(Observation(images, words, trace))

    def _steps(self, prediction: Prediction) -> list[Step]:
        assert self.policy.embodiment is not None
        deltas = self.policy.embodiment.to_deltas(prediction.actions)[:EXECUTE_ROWS]
        return [Step(delta.translation, delta.rotation, round(delta.gripper)) for delta in deltas]

    def _drawn_trace(self) -> list[tuple[int, int]]:
        """What a person would draw at the start: the way to the cube that is meant, and up."""
        view = SceneView.from_simulation(self.sim)
        _, path = ScriptedOperator.for_simulation(self.sim).rollout(view, PLAN_STEPS)
        points = trace_of(np.array([view.position, *path]), self.cameras[0], self.sim.copy_data())
        return [(int(x), int(y)) for x, y in points]


@cache
def arena_of(checkpoint: str, reuse_threshold: float | None) -> Arena:
    return Arena(checkpoint, reuse_threshold)


def run_trial(job: tuple[str, float | None, str, str, int]) -> Trial:
    checkpoint, reuse_threshold, *trial = job
    return arena_of(checkpoint, reuse_threshold).run(*trial)


def wilson(successes: int, trials: int) -> list[float]:
    """95 % Wilson score interval of a proportion."""
    z, p = 1.959964, successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials)) / (1 + z * z / trials)
    return [max(0.0, round(centre - half, 4)), min(1.0, round(centre + half, 4))]


def jobs_of(arguments: argparse.Namespace) -> Iterator[tuple[str, float | None, str, str, int]]:
    for campaign in arguments.campaigns:
        for kind in arguments.tasks:
            if campaign in ("trace", "words_only") and kind != "pick":
                continue  # the other tasks' scenes have one cube
            for index in range(arguments.episodes):
                task = TASKS[kind][index % len(TASKS[kind])]
                yield arguments.checkpoint, arguments.reuse_threshold, campaign, task, arguments.seed + index


def summary(trials: list[Trial]) -> list[dict[str, Any]]:
    lines = []
    for campaign, kind in dict.fromkeys((trial.campaign, trial.task.split(":")[0]) for trial in trials):
        chosen = [trial for trial in trials if (trial.campaign, trial.task.split(":")[0]) == (campaign, kind)]
        successes, wrong = sum(trial.success for trial in chosen), sum(trial.wrong_cube for trial in chosen)
        lines.append(
            {
                "campaign": campaign,
                "task": kind,
                "successes": successes,
                "wrong_cube": wrong,
                "trials": len(chosen),
                "wilson_95": wilson(successes, len(chosen)),
                "bad_replies": sum(trial.bad_replies for trial in chosen),
                "chunks": sum(trial.chunks for trial in chosen),
                "reused": sum(trial.reused for trial in chosen),
                "passes": sum(trial.passes for trial in chosen),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--campaigns", nargs="+", choices=CAMPAIGNS, default=["instruction"])
    parser.add_argument("--episodes", type=int, default=100, help="of each task and campaign")
    parser.add_argument("--seed", type=int, default=1000, help="of the first; training scenes begin at 100000")
    parser.add_argument("--reuse-threshold", type=float, help="as of the policy node, with reasoning: reuse")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    trials: list[Trial] = []
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        for trial in pool.imap(run_trial, jobs_of(arguments)):
            trials.append(trial)
            mark = "✓" if trial.success else "✗"
            print(f"{len(trials):4} {mark} {trial.campaign} {trial.task} seed {trial.seed}: {trial.detail}", flush=True)
            report = {
                "checkpoint": Path(arguments.checkpoint).name,
                "first_seed": arguments.seed,
                "reuse_threshold": arguments.reuse_threshold,
                "wall_s": round(time.monotonic() - started, 1),
                "results": summary(trials),
                "trials": [asdict(trial) for trial in trials],
            }
            arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    for line in summary(trials):
        low, high = line["wilson_95"]
        print(f"{line['campaign']} {line['task']}: {line['successes']} of {line['trials']} ({low:.0%} to {high:.0%})")


if __name__ == "__main__":
    main()
