"""episodes.jsonl: what is in a directory of episodes, one line each. A copy: the bags alone say all of it."""

from __future__ import annotations

import json
from pathlib import Path

from teleop_recorder.episode import Episode, find_episodes, to_index_line, write_atomically
from teleop_recorder.errors import EpisodeError

INDEX = "episodes.jsonl"


def rebuild(root: Path) -> list[str]:
    """Write the index anew from the bags; a sentence for each that cannot be read, which is left out."""
    lines, problems = {}, []
    for directory in find_episodes(root):
        try:
            lines[directory.name] = to_index_line(Episode.open(directory))
        except EpisodeError as error:
            problems.append(str(error))
    _write(root, lines)
    return problems


def is_current(root: Path) -> bool:
    """Whether the index can be read and names the episodes that are there."""
    try:
        return set(_read(root)) == {directory.name for directory in find_episodes(root)}
    except ValueError:
        return False


def put(root: Path, episode: Episode) -> None:
    """Add the line of an episode, or replace the one it has."""
    try:
        lines = _read(root)
    except ValueError:
        rebuild(root)
        return
    _write(root, {**lines, episode.name: to_index_line(episode)})


def _read(root: Path) -> dict[str, str]:
    """Line by name of the episode. ValueError when one is not JSON, or says no name."""
    path = root / INDEX
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    if not all(isinstance(entry, dict) and isinstance(entry.get("episode"), str) for entry in entries):
        raise ValueError(f"{path}: a line names no episode")
    return {entry["episode"]: line for entry, line in zip(entries, lines, strict=True)}


def _write(root: Path, lines: dict[str, str]) -> None:
    write_atomically(root / INDEX, "".join(f"{lines[name]}\n" for name in sorted(lines)))
