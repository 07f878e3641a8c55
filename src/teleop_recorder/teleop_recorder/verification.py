"""What is wrong with an episode, said so that a person can decide. No ROS in here.

`read` goes through the bag once and keeps times, poses and fingerprints of pictures, never pictures; `find_defects`
judges what it kept by the limits of config/curation.yaml. What has one cause is reported once: the rate of a topic is
its rate between its gaps, and cameras are compared where both sent pictures.

Distances in time are those of header stamps. Where in the episode something happened is told by receipt, in seconds
from the first message, because clocks of stamps may differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from statistics import median_low
from typing import Any

import numpy as np
import yaml
from mcap.stream_reader import MAGIC_SIZE
from mcap.writer import MCAP0_MAGIC

from teleop_recorder.curation import Curation
from teleop_recorder.episode import INTERRUPTED, METADATA, STATUS_TOPIC, Episode, RecordedMessage
from teleop_recorder.errors import EpisodeError
from teleop_recorder.pictures import PICTURE_TYPES, decode_picture, fingerprint, recorded_name

POSE_TYPE, GRIPPER_TYPE = "geometry_msgs/msg/PoseStamped", "sensor_msgs/msg/JointState"
# Bytes of a serialized header: 4 about the encoding, the stamp, the length of the frame.
SHORTEST_HEADER = 16
# One picture in this time is decoded, to see that it can be.
DECODE_EVERY_S = 1.0
# A clock that goes back by less was not set.
CLOCK_STEP_S = 0.05
# By which messages may be late at the beginning and the end, which are known by receipt only.
RECEIPT_JITTER_S = 0.2
# By which a measured pose may be off from one sample to the next, whatever the time between their stamps.
POSE_NOISE_M = 0.002
POSE_NOISE_RAD = 0.02


class Kind(str, Enum):
    """What can be wrong."""

    UNREADABLE = "unreadable"
    INTERRUPTED = "interrupted"
    TOO_SHORT = "too short"
    MISSING_TOPIC = "missing topic"
    LOW_RATE = "low rate"
    GAP = "gap"
    MISALIGNED = "misaligned cameras"
    CLOCK = "other clock"
    FROZEN = "frozen image"
    BAD_PICTURE = "bad picture"
    WRONG_FRAME = "wrong frame"
    BACKWARDS = "time backwards"
    STOPPED = "time stands still"
    JUMP = "jump in pose"
    NOT_FINITE = "pose not finite"
    IDLE = "all idle"
    EVENT = "noticed by the recorder"


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong.

    topic: Where; empty for the episode as a whole.
    begin_s, end_s: When, in seconds from the first message; equal for a moment.
    explanation: The numbers, and what was expected.
    """

    kind: Kind
    topic: str
    begin_s: float
    end_s: float
    explanation: str

    def __str__(self) -> str:
        return f"{self.topic or 'whole episode'}: at {self.begin_s:.2f} s: {self.kind.value}: {self.explanation}"


@dataclass
class Track:
    """The messages of one topic, in the order they were written.

    name: The topic in the bag.
    seconds [N]: Of receipt, since the episode's first message.
    stamps_ns [N]: Of the headers; of receipt for a type without one.
    fingerprints: [N] of pictures, [0] for another type.
    """

    name: str
    type: str
    seconds: np.ndarray
    stamps_ns: np.ndarray
    frames: Counter[str] = field(default_factory=Counter)
    fingerprints: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass
class Recording:
    """What `find_defects` and the picture of an episode need to know of it.

    tracks: By the name that the settings give a topic.
    positions [N, 3] m and quaternions [N, 4] x y z w: one for each message of the pose's track.
    widths [M] m: one for each message of the gripper's.
    """

    episode: Episode
    settings: Curation
    tracks: dict[str, Track]
    length_s: float
    positions: np.ndarray
    quaternions: np.ndarray
    widths: np.ndarray
    events: tuple[str, ...]  # that the recorder noticed
    defects: list[Defect]  # found while reading


def verify(episode: Episode, settings: Curation) -> list[Defect]:
    """Every defect, those of the whole episode first, then in the order of time. Raises as `read`."""
    return find_defects(read(episode, settings))


def read(episode: Episode, settings: Curation) -> Recording:
    """Go through the episode once. Raises EpisodeError when the pose or the gripper has another type than expected."""
    reader = _Reader(episode, settings)
    for message in episode.messages():
        reader.take(message)
    return reader.recording()


def find_defects(recording: Recording) -> list[Defect]:
    """See `verify`."""
    whole = [*_torn(recording), *_events(recording), *_too_short(recording)]
    if not recording.episode.topics or recording.length_s == 0.0:
        return whole
    found = [
        *recording.defects,
        *(defect for topic in recording.settings.required for defect in _topic_defects(recording, topic)),
        *_clocks(recording),
        *_misaligned(recording),
        *_frozen(recording),
        *_jumps(recording),
        *_idle(recording),
    ]
    return whole + sorted(found, key=lambda defect: (bool(defect.topic), defect.begin_s))


class ReceiptClock:
    """Seconds of receipt since the beginning of an episode, which go on where the recorder's clock was set back.

    That is seen in one topic alone: messages of different topics are not written in the order of receipt.
    """

    def __init__(self, begin_ns: int) -> None:
        self.length_s = 0.0
        self.set_backs: list[tuple[float, float]] = []  # when, and by how many s
        self._shifts_ns = [begin_ns]  # what is taken from the time of receipt; one more each time the clock is set
        self._topics: dict[str, tuple[int, int]] = {}  # the shift that counts for a topic, its last time of receipt
        self._newest_ns = begin_ns

    def seconds(self, topic: str, log_ns: int) -> float:
        """Of a message; ask in the order of the bag."""
        newest = len(self._shifts_ns) - 1
        shift, last_ns = self._topics.get(topic, (newest, log_ns))
        if last_ns - log_ns > CLOCK_STEP_S * 1e9:
            if shift == newest:
                self._set_back(log_ns)
            shift = len(self._shifts_ns) - 1
        self._topics[topic] = shift, log_ns
        if shift == len(self._shifts_ns) - 1:
            self._newest_ns = max(self._newest_ns, log_ns)
        seconds = max(0.0, (log_ns - self._shifts_ns[shift]) / 1e9)
        self.length_s = max(self.length_s, seconds)
        return seconds

    def _set_back(self, log_ns: int) -> None:
        step_ns = self._newest_ns - log_ns
        self.set_backs.append((self.length_s, step_ns / 1e9))
        self._shifts_ns.append(self._shifts_ns[-1] - step_ns)
        self._newest_ns = log_ns


def _set_back(at_s: float, step_s: float) -> Defect:
    return Defect(Kind.BACKWARDS, "", at_s, at_s, f"the recorder's clock was set back by {step_s:.2f} s")


class _Reader:
    """Takes the messages of an episode in their order."""

    def __init__(self, episode: Episode, settings: Curation) -> None:
        self._episode = episode
        self._settings = settings
        topics = dict.fromkeys([*settings.required, *settings.cameras, settings.pose, settings.gripper])
        self._names = {name: topic for topic in topics if (name := recorded_name(episode, topic)) is not None}
        for topic, kind in ((settings.pose, POSE_TYPE), (settings.gripper, GRIPPER_TYPE)):
            if topic in episode.topics and episode.topics[topic].type != kind:
                raise EpisodeError(f"episode {episode.name}: {topic} is {episode.topics[topic].type}, expected {kind}")
        self._rows: dict[str, list[tuple[float, int, int]]] = {name: [] for name in self._names}
        self._frames: dict[str, Counter[str]] = {name: Counter() for name in self._names}
        self._decoded_s: dict[str, float] = {}
        self._values: dict[str, list[Any]] = {settings.pose: [], settings.gripper: []}
        self._defects: list[Defect] = []
        self._events: tuple[str, ...] = ()
        self._clock = ReceiptClock(episode.begin_ns)

    def take(self, message: RecordedMessage) -> None:
        seconds = self._clock.seconds(message.topic, message.log_ns)
        try:
            self._take(message, seconds)
        except EpisodeError as error:
            self._defects.append(Defect(Kind.UNREADABLE, message.topic, seconds, seconds, str(error)))

    def _take(self, message: RecordedMessage, seconds: float) -> None:
        topic, data = message.topic, message.data
        if topic == STATUS_TOPIC:
            # Recordings of last month do not have them.
            self._events = tuple(getattr(self._episode.decode(topic, data), "events", ()))
        if topic not in self._names:
            return
        kind, values = self._episode.topics[topic].type, self._values.get(self._names[topic])
        stamp_ns = message.log_ns
        if _has_header(self._episode, kind):
            stamp_ns, frame = _header(data)
            self._frames[topic][frame] += 1
        if values is not None:
            values.append(self._episode.decode(topic, data))
        if kind in PICTURE_TYPES:
            self._try_to_decode(message, seconds)
        self._rows[topic].append((seconds, stamp_ns, fingerprint(data) if kind in PICTURE_TYPES else 0))

    def recording(self) -> Recording:
        tracks = {topic: self._track(name) for name, topic in self._names.items() if self._rows[name]}
        poses = [message.pose for message in self._values[self._settings.pose]]
        positions = [(pose.position.x, pose.position.y, pose.position.z) for pose in poses]
        turns = [(q.x, q.y, q.z, q.w) for q in (pose.orientation for pose in poses)]
        widths = [float(np.sum(message.position)) for message in self._values[self._settings.gripper]]
        return Recording(
            self._episode,
            self._settings,
            tracks,
            self._clock.length_s,
            np.array(positions, np.float64).reshape(-1, 3),
            np.array(turns, np.float64).reshape(-1, 4),
            np.array(widths, np.float64),
            self._events,
            self._defects + [_set_back(at_s, step_s) for at_s, step_s in self._clock.set_backs],
        )

    def _track(self, name: str) -> Track:
        seconds, stamps_ns, prints = zip(*self._rows[name], strict=True)
        kind = self._episode.topics[name].type
        return Track(
            name,
            kind,
            np.array(seconds, np.float64),
            np.array(stamps_ns, np.int64),
            self._frames[name],
            np.array(prints if kind in PICTURE_TYPES else [], np.int64),
        )

    def _try_to_decode(self, message: RecordedMessage, seconds: float) -> None:
        if seconds - self._decoded_s.get(message.topic, -DECODE_EVERY_S) < DECODE_EVERY_S:
            return
        self._decoded_s[message.topic] = seconds
        try:
            decode_picture(self._episode, message.topic, message.data)
        except EpisodeError as error:
            self._defects.append(Defect(Kind.BAD_PICTURE, message.topic, seconds, seconds, str(error)))


def _has_header(episode: Episode, kind: str) -> bool:
    """Whether messages of this type begin with a header."""
    _, fields = episode.typestore.fielddefs[kind]
    return bool(fields) and fields[0][1][1] == "std_msgs/msg/Header"


def _header(data: bytes) -> tuple[int, str]:
    """(stamp in ns, frame) of a serialized message that begins with a header, without decoding the rest.

    Raises EpisodeError for a message that is too short for one.
    """
    if len(data) < SHORTEST_HEADER:
        raise EpisodeError(f"a message of {len(data)} bytes has no header")
    order = "little" if data[1] & 1 else "big"
    seconds = int.from_bytes(data[4:8], order, signed=True)  # type: ignore[arg-type]
    nanoseconds = int.from_bytes(data[8:12], order)  # type: ignore[arg-type]
    length = int.from_bytes(data[12:16], order)  # type: ignore[arg-type]
    return seconds * 10**9 + nanoseconds, data[16 : 16 + max(0, length - 1)].decode("utf-8", "replace")


def _torn(recording: Recording) -> Iterator[Defect]:
    episode, end_s = recording.episode, recording.length_s
    if not episode.closed:
        text = f"never closed, the recorder died; {_count(episode)} messages can be read"
        yield Defect(Kind.INTERRUPTED, "", end_s, end_s, text)
        return
    if episode.labels.outcome == INTERRUPTED:
        reason = f": {episode.labels.reason}" if episode.labels.reason else ""
        yield Defect(Kind.INTERRUPTED, "", end_s, end_s, f"no outcome was recorded{reason}")
    expected = _expected_count(episode)
    if _count(episode) != expected:
        text = f"{_count(episode)} messages can be read, {METADATA} tells of {expected}"
        yield Defect(Kind.UNREADABLE, "", end_s, end_s, text)
    elif torn := [file.name for file in sorted(episode.directory.glob("*.mcap")) if not _has_trailer(file)]:
        yield Defect(Kind.UNREADABLE, "", end_s, end_s, f"{torn[0]} ends before its index")


def _count(episode: Episode) -> int:
    return sum(facts.count for facts in episode.topics.values())


def _expected_count(episode: Episode) -> int | None:
    text = (episode.directory / METADATA).read_text(encoding="utf-8")
    return yaml.safe_load(text)["rosbag2_bagfile_information"].get("message_count")


def _has_trailer(file: Any) -> bool:
    with file.open("rb") as stream:
        stream.seek(-MAGIC_SIZE, 2)
        return stream.read() == MCAP0_MAGIC


def _events(recording: Recording) -> Iterator[Defect]:
    for event in recording.events:
        moment = re.match(r"(\d+\.\d+) s: (.*)", event)
        begin_s, text = (float(moment[1]), moment[2]) if moment else (0.0, event)
        yield Defect(Kind.EVENT, "", begin_s, recording.length_s, text)


def _too_short(recording: Recording) -> Iterator[Defect]:
    shortest = recording.settings.shortest
    if recording.length_s < shortest:
        text = f"{recording.length_s:.2f} s with {_count(recording.episode)} messages, expected at least {shortest:g} s"
        yield Defect(Kind.TOO_SHORT, "", 0.0, recording.length_s, text)


def _topic_defects(recording: Recording, topic: str) -> Iterator[Defect]:
    track, rule = recording.tracks.get(topic), recording.settings.required[topic]
    if track is None:
        yield Defect(Kind.MISSING_TOPIC, topic, 0.0, recording.length_s, f"no message in {recording.length_s:.2f} s")
        return
    yield from _gaps(recording, track, rule.gap)
    yield from _stopped(track, rule.gap)
    intervals = _advances(track) / 1e9
    between_gaps = intervals[(intervals > 0.0) & (intervals <= rule.gap)]
    rate = len(between_gaps) / between_gaps.sum() if len(between_gaps) else 0.0
    if rate < rule.rate:
        text = f"{rate:.1f} Hz ({len(track.seconds)} messages), expected at least {rule.rate:g} Hz"
        yield Defect(Kind.LOW_RATE, track.name, track.seconds[0], track.seconds[-1], text)
    if rule.frame is not None and (wrong := [frame for frame in track.frames if frame != rule.frame]):
        count = f"{track.frames[wrong[0]]} of {len(track.seconds)} messages"
        text = f"frame_id '{wrong[0]}' in {count}, expected '{rule.frame}'"
        yield Defect(Kind.WRONG_FRAME, track.name, track.seconds[0], track.seconds[-1], text)
    for index in np.flatnonzero(np.diff(track.stamps_ns) < 0):
        step_s = (track.stamps_ns[index] - track.stamps_ns[index + 1]) / 1e9
        text = f"a stamp {step_s:.3f} s before that of the message before"
        yield Defect(Kind.BACKWARDS, track.name, track.seconds[index + 1], track.seconds[index + 1], text)


def _stopped(track: Track, longest_s: float) -> Iterator[Defect]:
    for begin, end in _stretches(np.diff(track.stamps_ns) == 0):
        begin_s, end_s = track.seconds[begin], track.seconds[end]
        if end_s - begin_s > longest_s:
            text = f"{end - begin + 1} messages received in {end_s - begin_s:.2f} s have one stamp"
            yield Defect(Kind.STOPPED, track.name, begin_s, end_s, text)


def _advances(track: Track) -> np.ndarray:
    """[N - 1] ns by which each stamp is newer than all before it; negative for one that is not."""
    return track.stamps_ns[1:] - np.maximum.accumulate(track.stamps_ns)[:-1]


def _gaps(recording: Recording, track: Track, longest_s: float) -> Iterator[Defect]:
    def gap(begin_s: float, end_s: float, where: str) -> Defect:
        text = f"no message for {end_s - begin_s:.2f} s{where}, expected one every {longest_s:g} s at least"
        return Defect(Kind.GAP, track.name, begin_s, end_s, text)

    if track.seconds[0] > longest_s + RECEIPT_JITTER_S:
        yield gap(0.0, track.seconds[0], " at the beginning")
    for index in np.flatnonzero(_advances(track) > longest_s * 1e9):
        end_s = track.seconds[index + 1]
        yield gap(end_s - _advances(track)[index] / 1e9, end_s, "")
    if recording.length_s - track.seconds[-1] > longest_s + RECEIPT_JITTER_S:
        yield gap(track.seconds[-1], recording.length_s, " at the end")


def _clocks(recording: Recording) -> Iterator[Defect]:
    """Topics whose stamps are of another time than the others'."""
    delays = _delays(recording)
    for topic, delay_s in delays.items():
        off_s = delay_s - median_low(delays.values())
        if abs(off_s) > recording.settings.clock_tolerance:
            track = recording.tracks[topic]
            kind = Kind.MISALIGNED if topic in recording.settings.cameras else Kind.CLOCK
            text = (
                f"stamps are {abs(off_s):.3f} s {'older' if off_s > 0 else 'newer'} than those of other topics "
                f"received at the same time, expected at most {recording.settings.clock_tolerance:g} s"
            )
            yield Defect(kind, track.name, track.seconds[0], track.seconds[-1], text)


def _delays(recording: Recording) -> dict[str, float]:
    """s from stamp to receipt plus a constant, the median of each topic up to where its stamps go back."""
    delays = {}
    for topic, track in recording.tracks.items():
        steps_back = np.flatnonzero(np.diff(track.stamps_ns) < 0)
        end = steps_back[0] + 1 if len(steps_back) else len(track.seconds)
        since_s = (track.stamps_ns[:end] - recording.episode.begin_ns) / 1e9
        delays[topic] = float(np.median(track.seconds[:end] - since_s))
    return delays


def _misaligned(recording: Recording) -> Iterator[Defect]:
    """Pictures of the first camera without one of another camera beside them, where both were sending."""
    settings, delays = recording.settings, _delays(recording)
    cameras = [topic for topic in settings.cameras if topic in delays]
    for other in cameras[1:]:
        if abs(delays[other] - delays[cameras[0]]) > settings.clock_tolerance:
            continue  # another clock, which is reported as such
        track, partner = recording.tracks[cameras[0]], recording.tracks[other]
        others_ns = np.sort(partner.stamps_ns)
        distances = _distances(track.stamps_ns, others_ns) / 1e9
        # At either end the partner may lie outside of the episode.
        outside = (track.stamps_ns < others_ns[0]) | (track.stamps_ns > others_ns[-1])
        period_s = np.median(np.diff(others_ns)) / 1e9 if len(others_ns) > 1 else 0.0
        allowed_s = np.where(outside, max(settings.camera_tolerance, period_s), settings.camera_tolerance)
        apart = (distances > allowed_s) & ~_in_gaps(recording, cameras[0], other, track.seconds)
        for begin, end in _stretches(apart):
            text = (
                f"{end - begin} pictures of {track.name} are up to {distances[begin:end].max():.3f} s from the nearest "
                f"of these, expected at most {settings.camera_tolerance:g} s"
            )
            yield Defect(Kind.MISALIGNED, partner.name, track.seconds[begin], track.seconds[end - 1], text)


def _distances(stamps_ns: np.ndarray, others_ns: np.ndarray) -> np.ndarray:
    """[N] ns from each stamp to the nearest of the sorted others."""
    after = np.searchsorted(others_ns, stamps_ns).clip(0, len(others_ns) - 1)
    before = (after - 1).clip(0)
    return np.minimum(np.abs(others_ns[after] - stamps_ns), np.abs(others_ns[before] - stamps_ns))


def _in_gaps(recording: Recording, first: str, second: str, seconds: np.ndarray) -> np.ndarray:
    """[N] whether one of the cameras is in a gap at these seconds."""
    inside = np.zeros(len(seconds), bool)
    for topic in (first, second):
        rule = recording.settings.required.get(topic)
        if rule is not None:
            for gap in _gaps(recording, recording.tracks[topic], rule.gap):
                inside |= (seconds >= gap.begin_s) & (seconds <= gap.end_s)
    return inside


def _frozen(recording: Recording) -> Iterator[Defect]:
    settings = recording.settings
    for topic in settings.cameras:
        track = recording.tracks.get(topic)
        if track is None:
            continue
        same = np.diff(track.fingerprints) == 0
        for begin, end in _stretches(same):
            begin_s, end_s = track.seconds[begin], track.seconds[end]
            moved_m = _moved(recording, begin_s, end_s)
            if end_s - begin_s > settings.frozen_time and (moved_m is None or moved_m > settings.frozen_motion):
                text = f"the same picture {end - begin + 1} times in {end_s - begin_s:.2f} s"
                text += "" if moved_m is None else f" while the arm moved {moved_m * 1e3:.0f} mm"
                yield Defect(Kind.FROZEN, track.name, begin_s, end_s, text)


def _moved(recording: Recording, begin_s: float, end_s: float) -> float | None:
    """How far the tool got, in m, from where it was at the beginning; None where its pose is not known."""
    track = recording.tracks.get(recording.settings.pose)
    if track is None:
        return None
    inside = (track.seconds >= begin_s) & (track.seconds <= end_s)
    positions = recording.positions[inside & _finite(recording)]
    return float(np.linalg.norm(positions - positions[0], axis=1).max()) if len(positions) else None


def _jumps(recording: Recording) -> Iterator[Defect]:
    settings = recording.settings
    track = recording.tracks.get(settings.pose)
    if track is None:
        return
    finite = _finite(recording)
    for begin, end in _stretches(~finite):
        text = f"{end - begin} poses are not numbers"
        yield Defect(Kind.NOT_FINITE, track.name, track.seconds[begin], track.seconds[end - 1], text)
    seconds, intervals = track.seconds[finite], np.diff(track.stamps_ns[finite]) / 1e9
    distances = np.linalg.norm(np.diff(recording.positions[finite], axis=0), axis=1)
    angles = _angles(recording.quaternions[finite][:-1], recording.quaternions[finite][1:])
    too_far = distances > settings.fastest_linear * intervals + POSE_NOISE_M
    turned = angles > settings.fastest_angular * intervals + POSE_NOISE_RAD
    for index in np.flatnonzero((too_far | turned) & (intervals > 0.0)):
        text = (
            f"{distances[index] * 1e3:.0f} mm and {np.degrees(angles[index]):.0f} degrees in {intervals[index]:.3f} s, "
            f"an arm does at most {settings.fastest_linear:g} m/s and "
            f"{np.degrees(settings.fastest_angular):.0f} degrees/s"
        )
        yield Defect(Kind.JUMP, track.name, seconds[index], seconds[index + 1], text)


def _angles(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N] rad between orientations [N, 4]; the sign of a quaternion does not matter."""
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = np.abs((first * second).sum(axis=1)) / np.where(norms > 0.0, norms, 1.0)
    return 2.0 * np.arccos(cosines.clip(0.0, 1.0))


def _idle(recording: Recording) -> Iterator[Defect]:
    settings = recording.settings
    finite = _finite(recording)
    if not finite.any():
        return
    positions, quaternions = recording.positions[finite], recording.quaternions[finite]
    distance = float(np.linalg.norm(positions - positions[0], axis=1).max())
    angle = float(_angles(np.broadcast_to(quaternions[0], quaternions.shape), quaternions).max())
    width = float(np.ptp(recording.widths)) if len(recording.widths) else 0.0
    if distance <= settings.idle_distance and angle <= settings.idle_angle and width <= settings.idle_width:
        text = (
            f"in {recording.length_s:.2f} s the tool moved {distance * 1e3:.1f} mm and {np.degrees(angle):.1f} degrees "
            f"and the fingers {width * 1e3:.1f} mm"
        )
        yield Defect(Kind.IDLE, "", 0.0, recording.length_s, text)


def _finite(recording: Recording) -> np.ndarray:
    """[N] which poses are numbers."""
    return np.isfinite(recording.positions).all(axis=1) & np.isfinite(recording.quaternions).all(axis=1)


def _stretches(mask: np.ndarray) -> list[tuple[int, int]]:
    """[begin, end) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
