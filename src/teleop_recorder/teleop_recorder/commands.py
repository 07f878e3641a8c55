"""`molmoact episodes`: look at recorded episodes, find what is wrong with them, decide what they are, export them."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from teleop_recorder import index
from teleop_recorder.curation import Curation, shipped_settings
from teleop_recorder.episode import DISCARD, FAILURE, OUTCOMES, SUCCESS, Episode, find_episodes
from teleop_recorder.episode_writer import RootLock
from teleop_recorder.errors import ConfigurationError, DefinitionError, EpisodeError, RecordingError
from teleop_recorder.play import PREFIX, replay, replayed_topics, write_video
from teleop_recorder.recovery import recover
from teleop_recorder.show import write_picture
from teleop_recorder.verification import read, verify

# 1: something is wrong with an episode, or was not done. 2: the command was not understood, as argparse has it.
GOOD, BAD, USAGE = 0, 1, 2
# Loaded when asked for: they need libraries that looking at episodes does not.
ELSEWHERE = {
    "export": ("teleop_recorder.export", "write a LeRobot dataset of the successful episodes"),
    "import": ("teleop_recorder.importing", "make episodes of a LeRobot dataset or of a foreign bag"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; the exit code, see GOOD, BAD and USAGE."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(arguments).parse_args(arguments)
    try:
        return options.run(options)
    except (ConfigurationError, DefinitionError, EpisodeError, RecordingError, OSError) as error:
        print(f"molmoact episodes: {error}", file=sys.stderr)
        return USAGE if isinstance(error, ConfigurationError) else BAD
    except KeyboardInterrupt:
        return BAD


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="molmoact episodes", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(run=run)
        return command

    paths = "directories of episodes, or episodes"
    command = add("list", _list, "one line for each episode")
    command.add_argument("paths", nargs="+", type=Path, help=paths)
    command.add_argument("--outcome", choices=OUTCOMES, help="only these")

    command = add("show", _show, "one picture for each episode")
    command.add_argument("paths", nargs="+", type=Path, help=paths)
    command.add_argument("--out", type=Path, help="folder of the pictures; default: beside each episode")
    _add_config(command)

    command = add("play", _play, "an episode as a video, or as topics below a prefix")
    command.add_argument("episode", type=Path)
    command.add_argument("--out", type=Path, help="the MP4 to write; default: beside the episode")
    command.add_argument("--ros", action="store_true", help="publish cameras and state instead, never a command")
    command.add_argument("--prefix", default=PREFIX, help="namespace of the topics of --ros (default %(default)s)")
    _add_config(command)

    command = add("verify", _verify, "explain every defect, one line each; the exit code is 1 when there is one")
    command.add_argument("paths", nargs="+", type=Path, help=paths)
    command.add_argument("--discarded", action="store_true", help="look at discarded episodes, too")
    _add_config(command)

    command = add("relabel", _relabel, "decide anew what episodes are")
    command.add_argument("episodes", nargs="+", type=Path)
    command.add_argument("--task")
    command.add_argument("--instruction")
    command.add_argument("--outcome", choices=(SUCCESS, FAILURE), help="see `discard` for the third")
    command.add_argument("--reason")

    command = add("discard", _discard, "discard episodes for good: no export ever contains them")
    command.add_argument("episodes", nargs="+", type=Path)
    command.add_argument("--reason")
    command.add_argument("--yes", action="store_true", help="do not ask")

    command = add("index", _index, f"write {index.INDEX} anew, from the episodes alone")
    command.add_argument("directory", type=Path)

    for name, (module_name, text) in ELSEWHERE.items():
        command = commands.add_parser(name, help=text)
        if arguments and arguments[0] == name:
            module = importlib.import_module(module_name)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config", type=Path, help="another curation.yaml than the shipped one")


def _settings(options: argparse.Namespace) -> Curation:
    return Curation.from_file(options.config or shipped_settings())


def _list(options: argparse.Namespace) -> int:
    directories = _directories(options.paths)
    width = max(len(directory.name) for directory in directories)
    print(f"{'episode':{width}}  {'outcome':11}  {'length':>8}  {'size':>9}  {'task':12}  instruction")
    code, outcomes, seconds, size = GOOD, Counter[str](), 0.0, 0
    for episode in _episodes(directories):
        if isinstance(episode, EpisodeError):
            code = _complain(episode)
            continue
        labels = episode.labels
        if options.outcome not in (None, labels.outcome):
            continue
        outcomes[labels.outcome] += 1
        seconds, size = seconds + episode.duration_s, size + episode.size
        print(
            f"{episode.name:{width}}  {labels.outcome:11}  {episode.duration_s:6.1f} s  {episode.size / 1e6:6.1f} MB  "
            f"{labels.task or '-':12}  {labels.instruction or '-'}"
        )
    counts = ", ".join(f"{outcomes[outcome]} {outcome}" for outcome in OUTCOMES if outcomes[outcome])
    total = _count(outcomes.total(), "episode")
    print(f"{total}{': ' if counts else ''}{counts}; {seconds:.0f} s, {size / 1e9:.2f} GB")
    return code


def _show(options: argparse.Namespace) -> int:
    settings, code = _settings(options), GOOD
    for episode in _episodes(_directories(options.paths)):
        if isinstance(episode, EpisodeError):
            code = _complain(episode)
            continue
        path = (options.out or episode.directory.parent) / f"{episode.name}.png"
        try:
            defects = write_picture(read(episode, settings), path)
        except EpisodeError as error:
            code = _complain(error)
            continue
        print(f"{path}: {episode.labels.outcome}, {_count(len(defects), 'defect')}")
    return code


def _play(options: argparse.Namespace) -> int:
    settings, episode = _settings(options), Episode.open(options.episode.resolve())
    if options.ros:
        topics = replayed_topics(episode, settings, options.prefix)
        for name in topics.values():
            print(name)
        print(f"{replay(episode, topics)} messages in {episode.duration_s:.1f} s")
        return GOOD
    path = options.out or episode.directory.parent / f"{episode.name}.mp4"
    print(f"{path}: {write_video(read(episode, settings), path)} frames")
    return GOOD


def _verify(options: argparse.Namespace) -> int:
    settings, count, bad, found, skipped = _settings(options), 0, 0, 0, 0
    directories = _directories(options.paths)
    for directory, episode in zip(directories, _episodes(directories), strict=True):
        if isinstance(episode, Episode) and episode.labels.outcome == DISCARD and not options.discarded:
            skipped += 1
            continue
        defects = _explained(episode, settings)
        count, bad, found = count + 1, bad + bool(defects), found + len(defects)
        for defect in defects:
            print(f"{directory.name}: {defect}", flush=True)
    discarded = f"; {skipped} discarded not looked at" if skipped else ""
    print(f"{_count(count, 'episode')}, {bad} of them with {_count(found, 'defect')}{discarded}")
    return BAD if found else GOOD


def _explained(episode: Episode | EpisodeError, settings: Curation) -> list[str]:
    if isinstance(episode, EpisodeError):
        return [str(episode)]
    try:
        return [str(defect) for defect in verify(episode, settings)]
    except EpisodeError as error:
        return [str(error)]


def _relabel(options: argparse.Namespace) -> int:
    names = ("task", "instruction", "outcome", "reason")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    if not changes:
        raise ConfigurationError("relabel: give at least one of --task, --instruction, --outcome, --reason")
    return _decide([_opened(path) for path in options.episodes], changes)


def _discard(options: argparse.Namespace) -> int:
    if not options.yes:
        for episode in (Episode.open(path.resolve()) for path in options.episodes):
            print(f"{episode.name}  {episode.labels.outcome}  {episode.duration_s:.1f} s  {episode.labels.instruction}")
        if not _confirmed(f"Discard {_count(len(options.episodes), 'episode')} for good? [y/N] "):
            print("nothing was discarded")
            return BAD
    changes = {"outcome": DISCARD} | ({"reason": options.reason} if options.reason is not None else {})
    return _decide([_opened(path) for path in options.episodes], changes)


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _index(options: argparse.Namespace) -> int:
    directories = _directories([options.directory])
    problems = index.rebuild(options.directory)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{options.directory / index.INDEX}: {_count(len(directories) - len(problems), 'episode')}")
    return BAD if problems else GOOD


def _decide(episodes: Sequence[Episode], changes: dict[str, str]) -> int:
    code = GOOD
    for episode in episodes:
        try:
            episode.label(**changes)
            index.put(episode.directory.parent, episode)
        except EpisodeError as error:
            code = _complain(error)
            continue
        print(f"{episode.name}: {episode.labels.outcome}, {episode.labels.task}: {episode.labels.instruction}")
    return code


def _opened(path: Path) -> Episode:
    """The episode, closed first if a crash left it open; not while a recorder may still be writing it."""
    episode = Episode.open(path.resolve())
    if episode.closed:
        return episode
    lock = RootLock(episode.directory.parent)
    try:
        return recover(episode.directory)
    finally:
        lock.release()


def _directories(paths: Sequence[Path]) -> list[Path]:
    """Of the episodes below the paths. Raises EpisodeError for a path without any."""
    found: dict[Path, None] = {}
    for path in paths:
        below = find_episodes(path.resolve())
        if not below:
            raise EpisodeError(f"{path}: {'holds no episode' if path.is_dir() else 'there is no such directory'}")
        found.update(dict.fromkeys(below))
    return list(found)


def _episodes(directories: Sequence[Path]) -> Iterator[Episode | EpisodeError]:
    """One after the other; instead of one that cannot be read, why."""
    for directory in directories:
        try:
            yield Episode.open(directory)
        except EpisodeError as error:
            yield error


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _complain(error: EpisodeError) -> int:
    print(f"molmoact episodes: {error}", file=sys.stderr)
    return BAD
