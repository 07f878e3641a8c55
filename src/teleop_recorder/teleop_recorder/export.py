"""`molmoact episodes export`: from episodes to a LeRobotDataset v3.0, and the statistics that the release trains with.

Every episode becomes finished pieces in a folder beside the dataset, one process per core; then one process puts them
together. What is interrupted goes on with the episodes that are not finished yet. Equal episodes give equal bytes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml
from ament_index_python.packages import PackageNotFoundError, get_package_share_directory
from molmoact_policy.actions import statistics_of
from molmoact_policy.embodiment import EMBODIMENT_FILE, Embodiment
from molmoact_policy.errors import EmbodimentError
from numpy.typing import NDArray
from tqdm import tqdm

from teleop_recorder.alignment import (
    NEAREST,
    POLICIES,
    Samples,
    Timing,
    align,
    image_topic,
    read_arm,
    read_picture_stamps,
)
from teleop_recorder.episode import (
    DISCARD,
    DISCARD_MARK,
    FAILURE,
    INTERRUPTED,
    METADATA,
    SUCCESS,
    Episode,
    Labels,
    find_episodes,
)
from teleop_recorder.errors import EpisodeError
from teleop_recorder.idle import IdleRule, kept_frames
from teleop_recorder.lerobot_layout import Layout, Piece, VideoWriter, write_dataset, write_json
from teleop_recorder.motion_labels import action_rows, state_rows
from teleop_recorder.pictures import decode_picture, viewable

UNREADABLE = "unreadable"
MEASURED, TARGET, COMMAND = "measured", "target", "command"
STATISTICS_FILE = "dataset_statistics.json"
SOURCES_FILE = "meta/source_frames.jsonl"
SETTINGS_FILE = "meta/export.json"
PIECE_FILE = "piece.json"
# Counts up when the same settings give other pieces: what an older version left is not used.
PIECES_VERSION = 1
ROBOT_TYPE = "franka"
# The opening below which the bridge closes the hand, unless it is set otherwise (gripper_close_below).
CLOSED_BELOW = 0.3
STATE_NAMES = ("x", "y", "z", "qx", "qy", "qz", "qw", "gripper")


@dataclass(frozen=True)
class ExportSettings:
    """What decides how the dataset looks; it is written into it.

    actions, gripper: "measured", or from what was asked for ("target", "command").
    cameras: names, or NAME=TOPIC. size: width, height; None: as recorded. arms: prefixes of their topics.
    idle: None: idle frames stay.
    """

    timing: Timing
    actions: str
    gripper: str
    cameras: tuple[str, ...]
    size: tuple[int, int] | None
    arms: tuple[str, ...]
    idle: IdleRule | None
    key: str
    embodiment: Embodiment

    @property
    def camera_names(self) -> tuple[str, ...]:
        return tuple(camera.partition("=")[0] for camera in self.cameras)


@dataclass(frozen=True)
class Exported:
    """What became of one episode: its labels, and why it has no pieces, if it has none."""

    name: str
    labels: Labels
    left_out: str = ""  # for a good reason
    problem: str = ""  # it should have been exported
    pieces: Path | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="where the episodes are")
    parser.add_argument("--out", type=Path, required=True, metavar="DATASET", help="directory to create")
    parser.add_argument("--embodiment", required=True, metavar="KEY", help="conventions of the actions, by their key")
    parser.add_argument(
        "--embodiments", type=Path, metavar="FILE", help="where KEY is described [config/embodiments.yaml]"
    )
    parser.add_argument("--rate", type=int, default=15, metavar="HZ", help="samples per second [15]")
    parser.add_argument("--align", choices=POLICIES, default=NEAREST, help="what a sample is made of [nearest]")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.05,
        metavar="S",
        help="largest distance of a message from its sample [0.05]",
    )
    parser.add_argument(
        "--sync-tolerance", type=float, default=0.05, metavar="S", help="largest distance between its pictures [0.05]"
    )
    parser.add_argument(
        "--actions", choices=(MEASURED, TARGET), default=MEASURED, help="from current_pose or target_pose [measured]"
    )
    parser.add_argument(
        "--gripper",
        choices=(MEASURED, COMMAND),
        default=MEASURED,
        help="opening between the fingers, or what teleop_command asked for [measured]",
    )
    parser.add_argument("--cameras", nargs="+", metavar="NAME[=TOPIC]", help="in this order [those of the embodiment]")
    parser.add_argument("--size", type=_size, metavar="WxH", help="of the pictures [that of the embodiment]")
    parser.add_argument(
        "--arms", nargs="+", default=[""], metavar="PREFIX", help="before the topics of each arm: left/ right/ [none]"
    )
    parser.add_argument(
        "--outcome", nargs="+", choices=(SUCCESS, FAILURE), default=[SUCCESS], help="which episodes [success]"
    )
    parser.add_argument("--drop-idle", action="store_true", help="leave out frames in which nothing happens")
    rule = IdleRule()
    for name, unit in (("linear-speed", "m/s"), ("angular-speed", "rad/s"), ("gripper-speed", "openings/s")):
        parser.add_argument(
            f"--idle-{name}",
            type=float,
            default=getattr(rule, name.replace("-", "_")),
            metavar=unit,
            help="idle is slower than this [%(default)s]",
        )
    parser.add_argument(
        "--idle-longer-than",
        type=float,
        default=rule.longer_than,
        metavar="S",
        help="and for longer than this [%(default)s]",
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="processes [cores]")


def run(options: argparse.Namespace) -> int:
    """Exit code: 0 when the dataset is there, 1 when episodes cannot be exported, 2 when the request makes no sense."""
    try:
        settings = _settings(options)
        directories = find_episodes(options.directory)
        if options.out.exists():
            raise ValueError(f"{options.out} exists already; choose another --out, or remove it")
        if not directories:
            raise ValueError(f"{options.directory}: there are no episodes")
        if options.jobs < 1:
            raise ValueError(f"--jobs {options.jobs}: expected at least 1")
    except (EmbodimentError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 2
    return _export(options.directory, directories, options.out, tuple(options.outcome), settings, options.jobs)


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"{text!r}, expected WIDTHxHEIGHT such as 320x240")
    if int(width) % 2 or int(height) % 2:
        raise argparse.ArgumentTypeError(f"{text!r}: video needs even numbers")
    return int(width), int(height)


def _settings(options: argparse.Namespace) -> ExportSettings:
    embodiment = Embodiment.from_file(options.embodiments or _shipped_embodiments(), options.embodiment)
    cameras = tuple(options.cameras or embodiment.cameras)
    names = [camera.partition("=")[0] for camera in cameras]
    if len(set(names)) < len(names) or not all(name and "/" not in name for name in names):
        raise ValueError(f"--cameras {' '.join(cameras)}: expected different names without a slash")
    if len(set(options.arms)) < len(options.arms):
        raise ValueError(f"--arms {' '.join(options.arms)}: expected different prefixes")
    rule = IdleRule(
        options.idle_linear_speed, options.idle_angular_speed, options.idle_gripper_speed, options.idle_longer_than
    )
    return ExportSettings(
        timing=Timing(options.rate, options.align, options.tolerance, options.sync_tolerance),
        actions=options.actions,
        gripper=options.gripper,
        cameras=cameras,
        size=options.size or embodiment.image_size,
        arms=tuple(options.arms),
        idle=rule if options.drop_idle else None,
        key=options.embodiment,
        embodiment=embodiment,
    )


def _shipped_embodiments() -> Path:
    try:
        return Path(get_package_share_directory("molmoact_bringup")) / "config" / "embodiments.yaml"
    except PackageNotFoundError:
        raise ValueError("package molmoact_bringup is not installed: pass --embodiments") from None


def _export(
    root: Path, directories: Sequence[Path], out: Path, outcomes: tuple[str, ...], settings: ExportSettings, jobs: int
) -> int:
    work = out.with_name(f".{out.name}.pieces")
    work.mkdir(parents=True, exist_ok=True)
    names = [
        directory.relative_to(root).as_posix() if directory != root else directory.name for directory in directories
    ]
    requests = [
        _Request(directory, name, work / quote(name, safe=""), outcomes, settings)
        for directory, name in zip(directories, names, strict=True)
    ]
    done = list(tqdm(_in_processes(requests, jobs), total=len(requests), unit="episode", desc="export"))
    # A person may have discarded one while the others were being exported.
    done = [_unless_discarded(request.directory, result) for request, result in zip(requests, done, strict=True)]
    for result in done:
        if result.left_out == UNREADABLE:
            print(f"export: episode {result.name} is {UNREADABLE}: see `molmoact episodes verify`", file=sys.stderr)
    problems = [result for result in done if result.problem]
    if problems:
        for result in problems:
            print(f"export: {result.problem}", file=sys.stderr)
        print(
            f"export: {len(problems)} of {len(done)} episodes cannot be exported: discard them, relabel them, or "
            "export with other options. Those that are finished are kept for the next attempt.",
            file=sys.stderr,
        )
        return 1
    exported = [result for result in done if result.pieces is not None]
    if not exported:
        print(f"export: no episode of {len(done)} is to be exported: {_left_out(done)}", file=sys.stderr)
        return 1
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        summary = _put_together(new, exported, settings)
    except EpisodeError as error:
        shutil.rmtree(new)
        print(f"export: {error}", file=sys.stderr)
        return 1
    new.replace(out)
    shutil.rmtree(work)
    print(f"{out}: {summary}")
    if len(exported) < len(done):
        print(f"left out: {_left_out(done)}")
    return 0


def _left_out(results: Iterable[Exported]) -> str:
    counts = Counter(result.left_out for result in results if result.left_out)
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))


@dataclass(frozen=True)
class _Request:
    directory: Path
    name: str
    pieces: Path
    outcomes: tuple[str, ...]
    settings: ExportSettings


def _in_processes(requests: Sequence[_Request], jobs: int) -> Iterator[Exported]:
    if jobs == 1 or len(requests) == 1:
        yield from map(_export_episode, requests)
        return
    # spawn: a forked process would inherit the threads' locks of whatever runs in this one.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(requests)), mp_context=context) as pool:
        try:
            yield from pool.map(_export_episode, requests)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _export_episode(request: _Request) -> Exported:
    """Pieces of one episode, unless they are there; runs in a process of its own."""
    try:
        episode = Episode.open(request.directory)
    except EpisodeError:  # then nothing says that it is a success
        return Exported(request.name, Labels(), left_out=UNREADABLE)
    labels = episode.labels
    outcome = labels.outcome if episode.closed or labels.outcome == DISCARD else INTERRUPTED
    if outcome not in request.outcomes:
        shutil.rmtree(request.pieces, ignore_errors=True)
        return Exported(request.name, labels, left_out=outcome)
    try:
        if not (labels.instruction or labels.task):
            raise EpisodeError(f"episode {episode.name}: has no instruction: relabel it")
        _write_pieces(episode, request)
    except EpisodeError as error:
        return Exported(request.name, labels, problem=str(error))
    return Exported(request.name, labels, pieces=request.pieces)


def _unless_discarded(directory: Path, result: Exported) -> Exported:
    """What is decided about the episode now, without reading it again."""
    if result.pieces is None:
        return result
    outcome = result.labels.outcome
    if (directory / DISCARD_MARK).exists() or not (directory / METADATA).exists():
        outcome = DISCARD
    else:
        information = yaml.safe_load((directory / METADATA).read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        outcome = (information.get("custom_data") or {}).get("outcome", outcome)
    return result if outcome == result.labels.outcome else replace(result, pieces=None, left_out=outcome)


def _write_pieces(episode: Episode, request: _Request) -> None:
    """Files of one episode below `request.pieces`, which is there as a whole or not at all."""
    settings, directory = request.settings, request.pieces
    made_from = {
        "version": PIECES_VERSION,
        "settings": _described(settings),
        "files": {
            path.name: [path.stat().st_size, path.stat().st_mtime_ns]
            for path in sorted(episode.directory.glob("*.mcap"))
        },
    }
    if (directory / PIECE_FILE).exists():
        if json.loads((directory / PIECE_FILE).read_text(encoding="utf-8"))["made_from"] == made_from:
            return
        shutil.rmtree(directory)
    part = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    runs = _write_runs(episode, settings, part)
    (part / PIECE_FILE).write_text(json.dumps({"made_from": made_from, "runs": runs}), encoding="utf-8")
    part.rename(directory)


def _write_runs(episode: Episode, settings: ExportSettings, part: Path) -> list[dict[str, Any]]:
    """Rows and videos of every run of samples of an episode, in `part`; what is to be known about each."""
    topics = {camera.partition("=")[0]: image_topic(episode, camera) for camera in settings.cameras}
    cameras = read_picture_stamps(episode, topics)
    arms = [
        read_arm(episode, prefix, settings.actions == TARGET, settings.gripper == COMMAND) for prefix in settings.arms
    ]
    all_samples = align(cameras, arms, settings.timing)
    kept = [_kept(samples, settings) for samples in all_samples]
    # The last frame of a run has no action: it is only where the last step ends.
    usable = [(samples, keep) for samples, keep in zip(all_samples, kept, strict=True) if len(keep) > 1]
    if not usable:
        raise EpisodeError(
            f"episode {episode.name}: no two samples in a row have messages of all streams within "
            f"{settings.timing.tolerance} s: see --tolerance, --sync-tolerance and `molmoact episodes verify`"
        )
    with ExitStack() as films_open:
        films = []
        for column, (name, topic) in enumerate(topics.items()):
            wanted = [samples.pictures[keep[:-1], column].tolist() for samples, keep in usable]
            paths = [part / f"{run}.{name}.mp4" for run in range(len(usable))]
            films.append(
                (topic, films_open.enter_context(_Films(f"episode {episode.name}: {topic}", paths, wanted, settings)))
            )
        _expose(episode, films)
        sizes = {film.size for _, film in films}
        histograms = {
            name: [histogram.tolist() for histogram in film.histograms]
            for name, (_, film) in zip(topics, films, strict=True)
        }
    if len(sizes) > 1:
        raise EpisodeError(
            f"episode {episode.name}: pictures of {' and '.join(map(_pixels, sorted(sizes)))}: choose a --size"
        )
    for run, (samples, keep) in enumerate(usable):
        np.save(part / f"{run}.state.npy", _states(samples, keep))
        np.save(part / f"{run}.action.npy", _actions(samples, keep, settings))
    return [
        {
            "begin_stamp_ns": int(samples.stamps[0]),
            "first_moment": samples.first,
            "moments": len(samples),
            "kept": _ranges(keep),
            "idle": len(samples) - len(keep),
            "size": list(next(iter(sizes))),
            "histograms": {name: of_camera[run] for name, of_camera in histograms.items()},
        }
        for run, (samples, keep) in enumerate(usable)
    ]


def _kept(samples: Samples, settings: ExportSettings) -> NDArray[np.int64]:
    """Which of the samples stay."""
    if settings.idle is None or len(samples) < 2:
        return np.arange(len(samples))
    motion = samples.motion_positions, samples.motion_quaternions, samples.motion_openings
    return np.flatnonzero(kept_frames(*motion, settings.timing.rate, settings.idle))


def _states(samples: Samples, keep: NDArray[np.int64]) -> NDArray[np.float32]:
    rows = state_rows(samples.positions, samples.quaternions, samples.openings)
    return rows[keep[:-1]].astype(np.float32)


def _actions(samples: Samples, keep: NDArray[np.int64], settings: ExportSettings) -> NDArray[np.float32]:
    motion = samples.motion_positions[keep], samples.motion_quaternions[keep], samples.motion_openings[keep]
    return action_rows(*motion, settings.embodiment).astype(np.float32)


def _ranges(numbers: NDArray[np.int64]) -> list[list[int]]:
    """Ascending numbers as [begin, end) ranges."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in np.split(numbers, breaks)]


class _Films:
    """The videos of one camera, one for each run: takes pictures as they come from the bag, each when it is its turn.

    `where` names it in errors; `wanted`: for each run the number of the message shown in every frame.
    """

    def __init__(
        self, where: str, paths: Sequence[Path], wanted: Sequence[list[int]], settings: ExportSettings
    ) -> None:
        self.size = settings.size or (0, 0)
        self.histograms = [np.zeros((3, 256), np.int64) for _ in paths]
        self._where = where
        self._paths = paths
        self._settings = settings
        self._queue = [(run, message) for run, messages in enumerate(wanted) for message in messages]
        self._uses = Counter(message for _, message in self._queue)
        self._pictures: dict[int, NDArray[np.uint8]] = {}
        self._next = 0
        self._run = -1
        self._writer = ExitStack()
        self._film: VideoWriter | None = None

    def wants(self, message: int) -> bool:
        return message in self._uses

    def add(self, message: int, picture: NDArray[np.uint8]) -> None:
        """Raises EpisodeError for a picture of another size than the first, or one that video cannot hold."""
        if self.size == (0, 0):
            self.size = (picture.shape[1], picture.shape[0])
            if self.size[0] % 2 or self.size[1] % 2:
                raise EpisodeError(
                    f"{self._where}: pictures of {_pixels(self.size)}: video needs even numbers, choose a --size"
                )
        if self._settings.size is None and self.size != picture.shape[1::-1]:
            raise EpisodeError(
                f"{self._where}: pictures of {_pixels(self.size)} and of {_pixels(picture.shape[1::-1])}: "
                "choose a --size"
            )
        self._pictures[message] = self._settings.embodiment.resized(picture, self.size)
        while self._next < len(self._queue) and self._queue[self._next][1] in self._pictures:
            self._write(*self._queue[self._next])
            self._next += 1

    def _write(self, run: int, message: int) -> None:
        if run != self._run or self._film is None:
            self._writer.close()
            self._film = self._writer.enter_context(
                VideoWriter(self._paths[run], self.size, round(self._settings.timing.rate))
            )
            self._run = run
        picture = self._pictures[message]
        self._film.write(picture)
        for channel in range(3):
            self.histograms[run][channel] += np.bincount(picture[..., channel].ravel(), minlength=256)
        self._uses[message] -= 1
        if not self._uses[message]:
            del self._pictures[message]

    def __enter__(self) -> _Films:
        return self

    def __exit__(self, *error: Any) -> None:
        self._writer.__exit__(*error)


def _expose(episode: Episode, films: Sequence[tuple[str, _Films]]) -> None:
    """Show every film the pictures it wants, in one go through the bag."""
    by_topic = dict(films)
    seen = dict.fromkeys(by_topic, 0)
    for message in episode.messages(tuple(by_topic)):
        film, number = by_topic[message.topic], seen[message.topic]
        seen[message.topic] += 1
        if film.wants(number):
            film.add(number, viewable(decode_picture(episode, message.topic, message.data)))


def _pixels(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]} pixels"


def _described(settings: ExportSettings) -> dict[str, Any]:
    """As JSON can hold it."""
    return json.loads(json.dumps(asdict(settings)))


def _put_together(root: Path, exported: Sequence[Exported], settings: ExportSettings) -> str:
    """Write the dataset below `root`; what it holds, in words. Raises EpisodeError when the pieces do not fit."""
    keys = [f"observation.images.{name}" for name in settings.camera_names]
    pieces: list[Piece] = []
    sources: list[dict[str, Any]] = []
    sizes: dict[tuple[int, ...], str] = {}
    for result in exported:
        assert result.pieces is not None
        for number, run in enumerate(json.loads((result.pieces / PIECE_FILE).read_text(encoding="utf-8"))["runs"]):
            pieces.append(_piece(result, number, run, settings))
            sizes[tuple(run["size"])] = result.name
            facts = {name: run[name] for name in ("begin_stamp_ns", "first_moment", "moments", "kept", "idle")}
            outcome = {"outcome": result.labels.outcome, "task": result.labels.task}
            sources.append({"episode_index": len(sources), "source": result.name, **outcome, **facts})
    if len(sizes) > 1:
        pixels = ", ".join(f"{width}x{height} ({name})" for (width, height), name in sorted(sizes.items()))
        raise EpisodeError(f"episodes have pictures of different sizes: {pixels}: choose one --size")
    width, height = next(iter(sizes))
    layout = Layout(
        fps=round(settings.timing.rate),
        size=(width, height),
        state_names=_names(STATE_NAMES, settings.arms),
        action_names=_names(_action_names(settings.embodiment), settings.arms),
        video_keys=keys,
        robot_type=ROBOT_TYPE,
    )
    write_dataset(root, pieces, layout)
    _write_release_files(root, pieces, layout.size, settings)
    (root / SOURCES_FILE).write_text("".join(f"{json.dumps(source)}\n" for source in sources), encoding="utf-8")
    idle, frames = sum(source["idle"] for source in sources), sum(len(piece.action) for piece in pieces)
    write_json(root / SETTINGS_FILE, {**_described(settings), "frames": frames, "idle_frames_left_out": idle})
    return _summary(exported, sources, frames, idle, settings) + _gripper_note(pieces, settings)


def _summary(
    exported: Sequence[Exported], sources: Sequence[dict[str, Any]], frames: int, idle: int, settings: ExportSettings
) -> str:
    text = f"{frames} frames ({frames / settings.timing.rate:.1f} s) of {len(exported)} episodes"
    missing = _missing_moments(sources)
    if missing:
        text += (
            f", in {len(sources)} parts: at {missing} moments something was missing or out of sync "
            "(see --align, --tolerance, --sync-tolerance)"
        )
    if settings.idle is not None:
        text += f"; {idle} idle frames left out ({100 * idle / max(1, frames + idle):.1f} %)"
    return text


def _gripper_note(pieces: Sequence[Piece], settings: ExportSettings) -> str:
    """Fingers that hold something wide are never seen closed: a policy taught so does not close them."""
    openings = np.concatenate([piece.state[:, len(STATE_NAMES) - 1 :: len(STATE_NAMES)] for piece in pieces])
    if settings.gripper == COMMAND or openings.min() < CLOSED_BELOW or np.ptp(openings) < CLOSED_BELOW:
        return ""
    return (
        f"\nnote: the gripper moves, but is never less than {openings.min():.2f} open, as if it held something: "
        "--gripper command teaches what was asked of it instead"
    )


def _missing_moments(sources: Sequence[dict[str, Any]]) -> int:
    """Between the parts of the episodes that have several."""
    ends: dict[str, int] = {}
    missing = 0
    for source in sources:
        missing += source["first_moment"] - ends.get(source["source"], source["first_moment"])
        ends[source["source"]] = source["first_moment"] + source["moments"]
    return missing


def _piece(result: Exported, number: int, run: dict[str, Any], settings: ExportSettings) -> Piece:
    assert result.pieces is not None
    return Piece(
        task=result.labels.instruction or result.labels.task,
        state=np.load(result.pieces / f"{number}.state.npy"),
        action=np.load(result.pieces / f"{number}.action.npy"),
        videos={f"observation.images.{name}": result.pieces / f"{number}.{name}.mp4" for name in settings.camera_names},
        histograms={
            f"observation.images.{name}": np.array(values, np.int64) for name, values in run["histograms"].items()
        },
    )


def _names(names: Sequence[str], arms: Sequence[str]) -> list[str]:
    return [f"{prefix.strip('/')}_{name}" if prefix else name for prefix in arms for name in names]


def _action_names(embodiment: Embodiment) -> tuple[str, ...]:
    rotation = ("roll", "pitch", "yaw") if embodiment.rotation == "rpy" else ("rx", "ry", "rz")
    return ("x", "y", "z", *rotation, "gripper")


def _write_release_files(root: Path, pieces: Sequence[Piece], size: tuple[int, int], settings: ExportSettings) -> None:
    """What the release trains with, and the conventions of the actions, so that they travel with the dataset."""
    state = statistics_of(np.concatenate([piece.state for piece in pieces]))
    del state["mask"]
    actions = np.concatenate([piece.action for piece in pieces])
    statistics = {
        "action": statistics_of(actions),
        "proprio": state,
        "num_transitions": len(actions),
        "num_trajectories": len(pieces),
    }
    write_json(root / STATISTICS_FILE, {settings.key: statistics})
    changed = {
        "step_period": 1 / settings.timing.rate,
        "cameras": list(settings.camera_names),
        "image_size": list(size),
    }
    entry = {field.name: getattr(settings.embodiment, field.name) for field in fields(Embodiment)} | changed
    (root / EMBODIMENT_FILE).write_text(yaml.safe_dump({settings.key: entry}, sort_keys=False), encoding="utf-8")
