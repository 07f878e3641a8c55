"""Command line arguments of whatever runs episodes in the simulator."""

from __future__ import annotations

import argparse

from franka_sim.tasks import KINDS


def add_episode_arguments(parser: argparse.ArgumentParser, *, episodes: int, seed: int, timeout_s: float) -> None:
    """``--episodes``, ``--seed``, ``--task`` and ``--timeout`` with these defaults."""
    parser.add_argument("--episodes", type=_positive_integer, default=episodes)
    parser.add_argument(
        "--seed", type=_seed_number, default=seed, help="of the first episode; the next have the numbers after it"
    )
    parser.add_argument(
        "--task",
        type=_task,
        nargs="+",
        default=["pick"],
        metavar="TASK",
        help="pick, place or push, with colours and sides if wanted: pick:red:blue (a blue cube beside the red one),\n"
        "place:red:blue (onto the blue plate), push:red:left; several are taken in turn (default: pick)",
    )
    parser.add_argument(
        "--timeout", type=_positive_number, default=timeout_s, help="s for each episode, on the system's clock"
    )


def _task(text: str) -> str:
    if text.partition(":")[0] not in KINDS:
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with one of {', '.join(KINDS)}")
    return text


def _positive_integer(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _seed_number(text: str) -> int:
    if not text.isdecimal() or int(text) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2**63 - 1")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value
