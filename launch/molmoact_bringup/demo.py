"""``molmoact demo``: episodes of a task through the whole simulated system, with a summary, a bag and a video.

The system runs on the simulator's clock, so that a busy machine makes it slow but not clumsy. Times and rates in the
summary are on that clock; ``real_time_factor`` says how it went compared with the wall's.

Leaves in ``runs/<time>/``: ``summary.json``, ``bag/`` (rosbag2, MCAP), ``front.mp4`` and ``log.txt`` (what the nodes
wrote).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml
from teleop_recorder.errors import RecordingError
from teleop_recorder.recorder import RecorderSettings, TopicCount, TopicRecorder

from molmoact_bringup.analysis import distribution, limit_violations, wilson_95
from molmoact_bringup.arguments import add_episode_arguments
from molmoact_bringup.domain import check_names_are_free, choose_domain, private_domains
from molmoact_bringup.errors import BringupError, ConfigurationError
from molmoact_bringup.graph import Deployment, single_arm
from molmoact_bringup.local import config_directory, dds_environment, start_locally
from molmoact_bringup.operator import Episode, Operator
from molmoact_bringup.runlog import RunLog, read_run
from molmoact_bringup.supervisor import Interrupted, interrupted_by_signals
from molmoact_bringup.video import write_video

_WORTH_SHOWING = re.compile(r"\[(WARN|ERROR|FATAL)\]")


@dataclass
class Run:
    """What is known of a run so far; whatever happens, it becomes the summary."""

    tasks: list[str]  # taken in turn
    checkpoint: str
    seeds: list[int]
    timeout_s: float
    directory: Path
    started: str
    episodes: list[Episode] = field(default_factory=list)
    ended: str = ""  # why before the last episode; empty when all were run
    bridge_parameters: dict[str, Any] = field(default_factory=dict)
    topics: dict[str, TopicCount] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # with the bag or the video

    @property
    def successes(self) -> int:
        return sum(episode.outcome == "success" for episode in self.episodes)

    @property
    def real_time_factor(self) -> float | None:
        """Time on the system's clock by time on the wall's."""
        wall_s = sum(episode.wall_duration_s for episode in self.episodes)
        return round(sum(episode.duration_s for episode in self.episodes) / wall_s, 3) if wall_s else None


class NodeLog:
    """Keeps what the nodes write in a file and shows warnings and errors."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __call__(self, name: str, line: str) -> None:
        if _WORTH_SHOWING.search(line):
            print(f"  [{name}] {line}", flush=True)
        self._file.write(f"[{name}] {line}\n")
        self._file.flush()


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="molmoact demo", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_episode_arguments(parser, episodes=10, seed=1000, timeout_s=60.0)
    parser.add_argument("--checkpoint", default="nano", help="'nano', a directory or a hub name (default: nano)")
    parser.add_argument("--out", type=Path, help="directory for the results (default: runs/<time>)")
    parser.add_argument("--no-video", action="store_true")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; 0 when every episode was run, whatever its outcome."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    started = time.strftime("%Y-%m-%dT%H-%M-%S")
    run = Run(
        tasks=options.task,
        checkpoint=options.checkpoint,
        seeds=list(range(options.seed, options.seed + options.episodes)),
        timeout_s=options.timeout,
        directory=(options.out or Path("runs") / started).resolve(),
        started=started,
    )
    try:
        create_directory(run.directory)
    except ConfigurationError as error:
        print(f"molmoact demo: {error}", file=sys.stderr)
        return 1
    with interrupted_by_signals():
        try:
            run_episodes(run)
        except Interrupted as interruption:
            run.ended = f"interrupted by {interruption}"
        except (BringupError, RecordingError, OSError) as error:
            run.ended = str(error)
    if run.ended:
        print(f"molmoact demo: {run.ended}", file=sys.stderr, flush=True)
    with interrupted_by_signals():
        try:
            report(run, options.no_video)
        except Interrupted as interruption:
            print(f"molmoact demo: evaluation interrupted by {interruption}", file=sys.stderr)
            return 1
        except OSError as error:
            print(f"molmoact demo: the results cannot be written: {error}", file=sys.stderr)
            return 1
    return 1 if run.ended else 0


def create_directory(directory: Path) -> None:
    """An empty directory for the results.

    Raises:
        ConfigurationError: it cannot be made, or has a summary already.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out {directory}: cannot be created: {error.strerror}") from error
    if any(directory.iterdir()):
        raise ConfigurationError(f"--out {directory}: is not empty")


def run_episodes(run: Run) -> None:
    """Bring the system up, run every episode, and take the system down again."""
    config = config_directory()
    nodes = single_arm(Deployment(checkpoint=run.checkpoint, use_sim_time="true"), config)
    domain = choose_domain(os.environ, private_domains())
    environment = dds_environment(config, domain, simulated=True)
    os.environ.update(environment)
    check_names_are_free(domain, [node.full_name for node in nodes])
    print(f"{run.directory}\nROS_DOMAIN_ID={domain}  starting {', '.join(node.name for node in nodes)} …", flush=True)
    with (
        (run.directory / "log.txt").open("w", encoding="utf-8") as log,
        start_locally(nodes, environment, NodeLog(log)) as system,
    ):
        recorder: TopicRecorder | None = None

        def alarm() -> str | None:
            return system.failure or (recorder.failure if recorder else None)

        with closing(Operator(domain, use_sim_time=True, alarm=alarm)) as operator:
            try:
                operator.wait_until_ready()
                run.bridge_parameters = operator.parameters_of("franka_bridge")
                recorder = TopicRecorder(operator.node, run.directory / "bag", recorder_settings(config))
                run.topics = recorder.counts
                for seed, task in zip(run.seeds, itertools.cycle(run.tasks), strict=False):
                    run.episodes.append(operator.run_episode(task, seed, run.timeout_s))
                    show_progress(run)
            finally:
                # First of all the arm holds. How it came to rest is recorded, too.
                system.stop()
                if recorder is not None:
                    recorder.close()


def recorder_settings(config: Path) -> RecorderSettings:
    """The settings of ``recorder.yaml``."""
    values = yaml.safe_load((config / "recorder.yaml").read_text(encoding="utf-8"))["demo_recorder"]["ros__parameters"]
    return RecorderSettings(
        exclude=tuple(values["exclude"]), image_rate=values["image_rate"], jpeg_quality=values["jpeg_quality"]
    )


def show_progress(run: Run) -> None:
    """One line for the latest episode, with the success rate so far."""
    episode = run.episodes[-1]
    done = len(run.episodes)
    mark = "✓" if episode.outcome == "success" else "✗"
    if sys.stdout.isatty():
        mark = f"\033[{32 if episode.outcome == 'success' else 31}m{mark}\033[0m"
    print(
        f"{done:3}/{len(run.seeds)} {mark} {episode.task} seed {episode.seed}  {episode.duration_s:5.1f} s  "
        f"{run.successes}/{done} = {run.successes / done:4.0%}  {episode.reason}",
        flush=True,
    )


def report(run: Run, no_video: bool) -> None:
    """Write ``summary.json`` and the video from the bag, and print the result.

    Raises:
        OSError: the summary cannot be written.
    """
    bag = run.directory / "bag"
    log: RunLog | None = None
    if (bag / "metadata.yaml").is_file():
        log = read_run(bag)
    elif run.topics:
        run.problems.append(f"bag {bag}: has no index, so nothing could be computed from it")
    write_summary(run, log)
    if log is not None and not no_video:
        print("writing the video …", flush=True)
        try:
            write_video(bag, run.directory / "front.mp4", recorder_settings(config_directory()).image_rate)
        except BringupError as error:
            run.problems.append(str(error))
            write_summary(run, log)
    for problem in run.problems:
        print(f"molmoact demo: {problem}", file=sys.stderr)
    low, high = wilson_95(run.successes, len(run.episodes))
    print(
        f"{run.successes} of {len(run.episodes)} episodes succeeded (95 % interval {low:.0%} to {high:.0%})\n"
        f"{run.directory}"
    )


def write_summary(run: Run, log: RunLog | None) -> None:
    """``summary.json``; its fields are documented in docs/reference."""
    done = len(run.episodes)
    low, high = wilson_95(run.successes, done)
    summary: dict[str, Any] = {
        "tasks": run.tasks,
        "checkpoint": run.checkpoint,
        "started": run.started,
        "ended": run.ended or "all episodes were run",
        "complete": not run.ended,
        "seeds": run.seeds,
        "timeout_s": run.timeout_s,
        "success_rate": run.successes / done if done else None,
        "wilson_95": [round(low, 4), round(high, 4)],
        "episodes": [asdict(episode) for episode in run.episodes],
        "real_time_factor": run.real_time_factor,
        "rates_hz": {name: round(count.rate_hz, 2) for name, count in sorted(run.topics.items())},
        "messages": {name: count.received for name, count in sorted(run.topics.items())},
        "messages_not_recorded": {name: count.dropped for name, count in run.topics.items() if count.dropped},
        "problems": run.problems,
        "versions": versions(),
    }
    if log is not None:
        summary["chunk_latency_ms"] = distribution(log.chunk_latency_ms)
        summary["chunk_latency_without_model_ms"] = distribution(log.overhead_latency_ms)
        summary["replies"] = {"total": log.replies, "without_chunk": log.replies_without_chunk}
        violations = limit_violations(log.path, run.bridge_parameters)
        summary["limit_violations"] = {
            "total": sum(violations.values()),
            "targets_checked": len(log.path.times),
            **violations,
        }
        summary["refusals"] = {**log.refusals, "last": log.last_refusal}
        summary["bridge"] = log.counters
    temporary = run.directory / "summary.json.tmp"
    temporary.write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(run.directory / "summary.json")


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide the result."""
    found = {"python": platform.python_version()}
    for name in (
        "molmoact_bringup",
        "molmoact_policy",
        "franka_bridge",
        "franka_sim",
        "mujoco",
        "torch",
        "transformers",
        "rclpy",
    ):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
