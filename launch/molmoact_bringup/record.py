"""``molmoact record``: demonstrations with no one there.

The scripted operator teleoperates the simulated arm through the safety layer, as a person would, and the recorder
writes an episode of each attempt. Half of them reach the goal by other paths. The system runs on the simulator's clock.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from franka_sim.errors import FrankaSimError
from franka_sim.scripted_teleop import WANDERING, ScriptedTeleoperator, scene_of_the_simulator, wanders

from molmoact_bringup.arguments import add_episode_arguments
from molmoact_bringup.demo import NodeLog
from molmoact_bringup.domain import check_names_are_free, choose_domain, private_domains
from molmoact_bringup.errors import BringupError, SystemFailure
from molmoact_bringup.graph import RecordingDeployment, recording
from molmoact_bringup.local import config_directory, dds_environment, start_locally
from molmoact_bringup.operator import Operator
from molmoact_bringup.supervisor import Interrupted, interrupted_by_signals

NODES = ("franka_sim", "franka_bridge", "recorder")
LOG = "log.txt"


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="molmoact record", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_episode_arguments(parser, episodes=20, seed=1, timeout_s=40.0)
    parser.add_argument("--wander", choices=WANDERING, default="half", help="who goes other ways (default: half)")
    parser.add_argument("--depth", action="store_true", help="record the front camera's depth, too")
    parser.add_argument("--out", type=Path, default=Path("episodes"), help="of the episodes (default: episodes)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every episode was recorded, whatever its outcome."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    with interrupted_by_signals():
        try:
            record(options)
        except Interrupted as interruption:
            print(f"molmoact record: interrupted by {interruption}", file=sys.stderr)
            return 1
        except (BringupError, FrankaSimError, OSError) as error:
            print(f"molmoact record: {error}", file=sys.stderr)
            return 1
    print(f"next: molmoact episodes verify {options.out}")
    return 0


def record(options: argparse.Namespace) -> None:
    """Bring the system up, record every episode, and take it down again."""
    config = config_directory()
    options.out.mkdir(parents=True, exist_ok=True)
    depth = "true" if options.depth else "false"
    nodes = recording(RecordingDeployment(episodes=str(options.out), use_sim_time="true", depth=depth), config)
    domain = choose_domain(os.environ, private_domains())
    environment = dds_environment(config, domain, simulated=True)
    os.environ.update(environment)
    check_names_are_free(domain, [node.full_name for node in nodes])
    print(f"ROS_DOMAIN_ID={domain}  starting {', '.join(node.name for node in nodes)} …", flush=True)
    with (
        (options.out / LOG).open("a", encoding="utf-8") as log,
        start_locally(nodes, environment, NodeLog(log)) as system,
        closing(Operator(domain, use_sim_time=True, alarm=lambda: system.failure)) as operator,
    ):
        operator.wait_until_ready(NODES)
        teleoperator = ScriptedTeleoperator(operator.node, scene_of_the_simulator(operator.node))
        successes = 0
        for index in range(options.episodes):
            successes += record_episode(operator, teleoperator, options, index)
        print(f"{successes} of {options.episodes} episodes succeeded, all are in {options.out}", flush=True)


def record_episode(
    operator: Operator, teleoperator: ScriptedTeleoperator, options: argparse.Namespace, index: int
) -> bool:
    """Lay out a scene, record the attempt at its task with its outcome, and print a line; whether it succeeded."""
    round_of_tasks, which = divmod(index, len(options.task))
    task, seed, wander = options.task[which], options.seed + index, wanders(options.wander, round_of_tasks)
    instruction = teleoperator.prepare(task, seed)
    operator.start_recording(task, instruction)
    try:
        outcome = teleoperator.operate(task, seed, wander, options.timeout)
    except FrankaSimError as error:
        operator.stop_recording("failure", str(error))
        raise
    word = "success" if outcome.success else "failure"
    try:
        name = operator.stop_recording(word, outcome.reason)
    except SystemFailure as error:  # the recorder has ended the episode by itself, and keeps it as a failure
        print(f"{index + 1:3}/{options.episodes} {task} seed {seed}: {error}", flush=True)
        return False
    way = "another way" if wander else "the straight way"
    print(
        f"{index + 1:3}/{options.episodes} {name}  {task} seed {seed}, {way}: {word} in {outcome.duration_s:.1f} s: "
        f"{outcome.reason}",
        flush=True,
    )
    return outcome.success


if __name__ == "__main__":
    sys.exit(main())
