"""One picture of an episode: what each camera saw along time, which topics were there, how hand and arm moved."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from teleop_recorder.episode import DISCARD, FAILURE, SUCCESS, Episode
from teleop_recorder.errors import EpisodeError
from teleop_recorder.pictures import COMPRESSED_SUFFIX, decode_picture, viewable
from teleop_recorder.verification import Defect, Kind, Recording, find_defects

WIDTH = 1600
LEFT, RIGHT = 210, 60
PLOT = WIDTH - LEFT - RIGHT
COLUMNS = 8
SPACE = 14
HEADER = 96
LANE = 20
CURVE = 96
AXIS = 34
LINE = 22
MOST_LINES = 8  # of defects; the rest is counted
ROUND = (1, 2, 3, 4, 5, 6, 8, 10)
# Speeds are differences over this time: over one sample they would show the noise of the measurement.
SPEED_BASELINE_S = 0.05

Colour = tuple[int, int, int]  # RGB
PAPER, INK, PALE, GRID, PANEL = (255, 255, 255), (34, 40, 49), (110, 118, 129), (222, 226, 230), (247, 248, 250)
GOOD, BAD, WARN, NEUTRAL, LINE_COLOUR = (46, 140, 87), (205, 51, 51), (217, 119, 6), (120, 120, 130), (31, 100, 190)
OUTCOME_COLOURS = {SUCCESS: GOOD, FAILURE: BAD, DISCARD: NEUTRAL}
GAP_KINDS = (Kind.GAP, Kind.MISSING_TOPIC)
SHADED = (Kind.GAP, Kind.JUMP, Kind.FROZEN, Kind.BACKWARDS, Kind.STOPPED)


@dataclass(frozen=True)
class _Text:
    x: float
    y: float  # of its middle
    words: str
    size: int = 15
    colour: Colour = INK
    anchor: str = "lm"  # of Pillow: left, middle or right; middle


@dataclass
class _Canvas:
    """Pixels [H, W, 3] RGB drawn at once, words drawn at the end."""

    pixels: np.ndarray
    words: list[_Text] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        cv2.rectangle(self.pixels, (round(x), round(y)), (round(x + width) - 1, round(y + height) - 1), colour, -1)

    def shade(self, x: float, y: float, width: float, height: float, colour: Colour) -> None:
        """A box that lets through what is below."""
        rows, columns = slice(round(y), round(y + height)), slice(round(x), max(round(x + width), round(x) + 2))
        self.pixels[rows, columns] = (0.78 * self.pixels[rows, columns] + 0.22 * np.array(colour)).astype(np.uint8)

    def line(self, points: np.ndarray, colour: Colour) -> None:
        """Through points [N, 2] in pixels."""
        fixed = np.round(points * 16).astype(np.int32)
        cv2.polylines(self.pixels, [fixed], False, colour, 2, cv2.LINE_AA, 4)

    def text(self, text: _Text) -> None:
        self.words.append(text)

    def finished(self) -> np.ndarray:
        image = Image.fromarray(self.pixels)
        draw = ImageDraw.Draw(image)
        for it in self.words:
            draw.text((it.x, it.y), it.words, it.colour, _font(it.size), it.anchor)
        return np.asarray(image)


@dataclass(frozen=True)
class _Curve:
    title: str
    unit: str
    topic: str  # in the settings
    seconds: np.ndarray  # [N]
    values: np.ndarray  # [N]
    least_range: float


def write_picture(recording: Recording, path: Path) -> list[Defect]:
    """Draw the episode into a PNG file; what is wrong with it is marked and returned.

    Raises EpisodeError when there is nothing to draw, or the file cannot be written.
    """
    defects = find_defects(recording)
    picture = draw_episode(recording, defects)
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise EpisodeError(f"picture {path}: cannot be written: {error}") from error
    return defects


def draw_episode(recording: Recording, defects: Sequence[Defect]) -> np.ndarray:
    """uint8 [H, W, 3] RGB. Raises EpisodeError for an episode without length."""
    episode = recording.episode
    if recording.length_s == 0.0:
        raise EpisodeError(f"episode {episode.name}: has no length, there is nothing to show")
    frames = _sampled_frames(recording)
    curves = _curves(recording)
    row = _row_height(frames)
    lanes = list(recording.settings.required)
    lines = _defect_lines(defects)
    height = (
        HEADER
        + len(frames) * (row + SPACE)
        + len(lanes) * LANE
        + SPACE
        + len(curves) * (CURVE + SPACE)
        + AXIS
        + len(lines) * LINE
        + SPACE
    )
    canvas = _Canvas(np.full((height, WIDTH, 3), PAPER, np.uint8))
    _draw_header(canvas, recording, defects)
    y = HEADER
    for topic, pictures in frames.items():
        _draw_frames(canvas, y, row, topic, pictures, recording.length_s)
        y += row + SPACE
    for topic in lanes:
        _draw_lane(canvas, y, recording, topic, defects)
        y += LANE
    y += SPACE
    for curve in curves:
        _draw_curve(canvas, y, curve, recording.length_s, defects)
        y += CURVE + SPACE
    _draw_axis(canvas, y - SPACE, recording.length_s)
    y += AXIS
    for words, colour in lines:
        canvas.text(_Text(LEFT, y, _fitted(words, 15, WIDTH - LEFT - 10), 15, colour))
        y += LINE
    return canvas.finished()


def _sampled_frames(recording: Recording) -> dict[str, list[np.ndarray | None]]:
    """By camera, for each column the picture nearest to its middle; None where the column has none."""
    edges = np.linspace(0.0, recording.length_s, COLUMNS + 1)
    wanted: dict[str, dict[int, int]] = {}  # of each topic in the bag: index of message -> column
    frames: dict[str, list[np.ndarray | None]] = {}
    tracks = {topic: recording.tracks[topic] for topic in recording.settings.cameras if topic in recording.tracks}
    for topic, track in tracks.items():
        frames[topic] = [None] * COLUMNS
        chosen = wanted[track.name] = {}
        for column in range(COLUMNS):
            inside = np.flatnonzero((track.seconds >= edges[column]) & (track.seconds <= edges[column + 1]))
            if len(inside):
                middle = (edges[column] + edges[column + 1]) / 2
                chosen[int(inside[np.abs(track.seconds[inside] - middle).argmin()])] = column
    counts = dict.fromkeys(wanted, 0)
    topics = {track.name: topic for topic, track in tracks.items()}
    for message in recording.episode.messages(list(wanted)):
        index = counts[message.topic]
        counts[message.topic] += 1
        if index in wanted[message.topic]:
            try:
                picture = viewable(decode_picture(recording.episode, message.topic, message.data))
            except EpisodeError:
                continue  # a defect, which is listed
            frames[topics[message.topic]][wanted[message.topic][index]] = picture
    return frames


def _row_height(frames: dict[str, list[np.ndarray | None]]) -> int:
    shapes = [picture.shape for pictures in frames.values() for picture in pictures if picture is not None]
    tallest = max((height / width for height, width, _ in shapes), default=0.75)
    return round((PLOT / COLUMNS - 6) * tallest)


def _draw_header(canvas: _Canvas, recording: Recording, defects: Sequence[Defect]) -> None:
    episode, labels = recording.episode, recording.episode.labels
    canvas.text(_Text(24, 30, episode.name, 28))
    badge = labels.outcome.upper()
    width = _font(17).getlength(badge) + 28
    x = 24 + _font(28).getlength(episode.name) + 24
    canvas.box(x, 16, width, 30, OUTCOME_COLOURS.get(labels.outcome, WARN))
    canvas.text(_Text(x + width / 2, 31, badge, 17, PAPER, "mm"))
    x += width + 20
    facts = f"{recording.length_s:.1f} s   {episode.size / 1e6:.0f} MB   {_started(episode)}"
    canvas.text(_Text(WIDTH - 24, 30, facts, 17, PALE, "rm"))
    canvas.text(_Text(x, 31, _fitted(labels.reason, 17, WIDTH - 60 - _font(17).getlength(facts) - x), 17, PALE))
    verdict = f"{len(defects)} defect{'s' if len(defects) != 1 else ''}" if defects else "no defects"
    canvas.text(_Text(WIDTH - 24, 66, verdict, 19, BAD if defects else GOOD, "rm"))
    words = f"{labels.task or 'no task'}: “{labels.instruction}”" if labels.instruction else labels.task or "no task"
    canvas.text(_Text(24, 66, _fitted(words, 19, WIDTH - 200), 19))


def _started(episode: Episode) -> str:
    return datetime.fromtimestamp(episode.begin_ns / 1e9).strftime("%Y-%m-%d %H:%M:%S")


def _draw_frames(
    canvas: _Canvas, y: float, row: int, topic: str, pictures: Sequence[np.ndarray | None], length_s: float
) -> None:
    canvas.text(_Text(LEFT - 14, y + row / 2 - 9, _short(topic), 16, INK, "rm"))
    canvas.text(_Text(LEFT - 14, y + row / 2 + 12, "camera", 14, PALE, "rm"))
    cell = PLOT / COLUMNS
    for column, picture in enumerate(pictures):
        x, width = LEFT + column * cell + 3, round(cell - 6)
        if picture is None:
            canvas.box(x, y, width, row, (250, 228, 228))
            canvas.text(_Text(x + width / 2, y + row / 2, "no picture", 15, BAD, "mm"))
            continue
        scale = min(width / picture.shape[1], row / picture.shape[0])
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        top, left = round(y + (row - size[1]) / 2), round(x + (width - size[0]) / 2)
        resized = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
        canvas.pixels[top : top + size[1], left : left + size[0]] = resized


def _draw_lane(canvas: _Canvas, y: float, recording: Recording, topic: str, defects: Sequence[Defect]) -> None:
    """When a topic was there, and where it was not as it should be."""
    track, middle = recording.tracks.get(topic), y + LANE / 2
    canvas.text(_Text(LEFT - 14, middle, _short(topic), 14, INK, "rm"))
    if track is not None:
        begin, end = _x(track.seconds[0], recording), _x(track.seconds[-1], recording)
        canvas.box(begin, middle - 5, end - begin, 10, (160, 200, 178))
    for defect in defects:
        if defect.topic in (topic, topic + COMPRESSED_SUFFIX):
            begin, end = _x(defect.begin_s, recording), _x(defect.end_s, recording)
            moment = end - begin < 3
            canvas.box(
                begin - 2 if moment else begin,
                middle - 8 if moment else middle - 5,
                5 if moment else end - begin,
                16 if moment else 10,
                BAD if defect.kind in GAP_KINDS or moment else WARN,
            )


def _draw_curve(canvas: _Canvas, y: float, curve: _Curve, length_s: float, defects: Sequence[Defect]) -> None:
    canvas.box(LEFT, y, PLOT, CURVE, PANEL)
    canvas.text(_Text(LEFT - 14, y + CURVE / 2 - 9, curve.title, 16, INK, "rm"))
    canvas.text(_Text(LEFT - 14, y + CURVE / 2 + 12, curve.unit, 14, PALE, "rm"))
    for tick in _ticks(length_s):
        canvas.box(LEFT + PLOT * tick / length_s, y, 1, CURVE, GRID)
    for defect in defects:
        if defect.kind in SHADED:
            begin, end = (LEFT + PLOT * moment / length_s for moment in (defect.begin_s, defect.end_s))
            canvas.shade(begin, y, end - begin, CURVE, BAD)
    finite = np.isfinite(curve.values)
    seconds, values = curve.seconds[finite], curve.values[finite]
    if not len(values):
        canvas.text(_Text(LEFT + PLOT / 2, y + CURVE / 2, "not recorded", 16, BAD, "mm"))
        return
    # A jump is marked; it need not flatten everything else.
    top = _nice(max(float(np.percentile(values, 99)) * 1.15, curve.least_range))
    points = np.stack(
        [LEFT + PLOT * seconds / length_s, y + CURVE - 4 - (CURVE - 8) * (values / top).clip(0.0, 1.0)], axis=1
    )
    for part in np.split(points, _breaks(seconds, curve.topic, defects)):
        canvas.line(part, LINE_COLOUR)
    canvas.text(_Text(LEFT + PLOT + 8, y + 6, f"{top:g}", 13, PALE))
    canvas.text(_Text(LEFT + PLOT + 8, y + CURVE - 6, "0", 13, PALE))


def _breaks(seconds: np.ndarray, topic: str, defects: Sequence[Defect]) -> np.ndarray:
    """Indices of the first sample after each gap of the topic, across which no line is drawn."""
    middles = (seconds[1:] + seconds[:-1]) / 2
    in_gap = np.zeros(len(middles), bool)
    for defect in defects:
        if defect.kind == Kind.GAP and defect.topic == topic:
            in_gap |= (middles > defect.begin_s) & (middles < defect.end_s)
    return np.flatnonzero(in_gap) + 1


def _draw_axis(canvas: _Canvas, y: float, length_s: float) -> None:
    for tick in _ticks(length_s):
        canvas.text(_Text(LEFT + PLOT * tick / length_s, y + 14, f"{tick:g} s", 14, PALE, "mm"))


def _curves(recording: Recording) -> list[_Curve]:
    settings = recording.settings
    seconds, speeds, turns = tool_speeds(recording)
    gripper = recording.tracks.get(settings.gripper)
    gripper_seconds = gripper.seconds if gripper is not None else np.zeros(0)
    return [
        _Curve("gripper", "opening, mm", settings.gripper, gripper_seconds, recording.widths * 1e3, 10.0),
        _Curve("speed", "m/s", settings.pose, seconds, speeds, 0.05),
        _Curve("turning", "degrees/s", settings.pose, seconds, np.degrees(turns), 10.0),
    ]


def tool_speeds(recording: Recording) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(seconds [N], m/s [N], rad/s [N]) of the tool."""
    track = recording.tracks.get(recording.settings.pose)
    if track is None:
        return np.zeros(0), np.zeros(0), np.zeros(0)
    stamps_s = (track.stamps_ns - track.stamps_ns[0]) / 1e9
    ordered = np.maximum.accumulate(stamps_s)
    later = np.searchsorted(ordered, ordered + SPEED_BASELINE_S)
    first = np.flatnonzero(later < len(stamps_s))
    second = later[first]
    intervals = ordered[second] - ordered[first]
    distances = np.linalg.norm(recording.positions[second] - recording.positions[first], axis=1)
    q = recording.quaternions
    cosines = np.abs((q[first] * q[second]).sum(axis=1)).clip(0.0, 1.0)
    middles = (track.seconds[first] + track.seconds[second]) / 2
    return middles, distances / intervals, 2.0 * np.arccos(cosines) / intervals


def _defect_lines(defects: Sequence[Defect]) -> list[tuple[str, Colour]]:
    lines = [(str(defect), BAD) for defect in defects[:MOST_LINES]]
    if len(defects) > MOST_LINES:
        lines.append((f"and {len(defects) - MOST_LINES} more", PALE))
    return lines


def _x(moment_s: float, recording: Recording) -> float:
    return LEFT + PLOT * moment_s / recording.length_s


def _ticks(length_s: float) -> np.ndarray:
    """Round seconds, at most a dozen."""
    power = 10.0 ** np.floor(np.log10(length_s / 12))
    step = next(round_ * power for round_ in (1, 2, 5, 10) if round_ * power >= length_s / 12)
    return np.arange(0.0, length_s + 1e-9, step)


def _nice(value: float) -> float:
    """The next round number that is not smaller."""
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(step * power for step in ROUND if step * power >= value * (1 - 1e-9)))


def _short(topic: str) -> str:
    """What tells one topic from another: of a camera its name."""
    parts = topic.strip("/").split("/")
    if "color" in parts[1:]:
        return parts[parts.index("color") - 1]
    return "/".join(parts[-2:]) if len(topic) > 22 and len(parts) > 1 else topic.strip("/")


def _fitted(words: str, size: int, width: float) -> str:
    """The words, or as many of their letters as fit."""
    if _font(size).getlength(words) <= width:
        return words
    letters = bisect_right(range(len(words)), width, key=lambda n: _font(size).getlength(words[:n] + "…")) - 1
    return words[: max(letters, 0)] + "…"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)  # type: ignore[return-value]
