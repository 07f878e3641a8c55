"""Every defect is injected into a recording that has none, and has to be the only one that is found."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from teleop_recorder.curation import Curation, Requirement
from teleop_recorder.episode import METADATA, Episode
from teleop_recorder.errors import ConfigurationError
from teleop_recorder.verification import Kind, find_defects, read, verify

from .episodes import (
    FRONT,
    GRIPPER,
    JOINTS,
    POSE,
    START_NS,
    TARGET,
    WRIST,
    Sample,
    make_episode,
    restamp,
    stamp_of,
    tear,
)

CONFIG = Path(__file__).parents[3] / "config" / "curation.yaml"
SETTINGS = Curation.from_file(CONFIG)


def defects(directory, edit=None, **options):
    return verify(Episode.open(make_episode(directory / "episode", edit=edit, **options)), SETTINGS)


def only(found, kind):
    """The one defect; its kind and that it is the only one are checked."""
    assert [defect.kind for defect in found] == [kind], "\n".join(map(str, found))
    return found[0]


def seconds(sample: Sample) -> float:
    return (sample.log_ns - START_NS) / 1e9


def silent(topic, begin_s=-1.0, end_s=math.inf):
    def edit(samples):
        return [it for it in samples if it.topic != topic or not begin_s < seconds(it) < end_s]

    return edit


def changed(topic, change, begin_s=-1.0, end_s=math.inf):
    """`change` each message of the topic between two moments, in place."""

    def edit(samples):
        for sample in samples:
            if sample.topic == topic and begin_s < seconds(sample) < end_s:
                change(sample)
        return samples

    return edit


@pytest.mark.parametrize("compressed", [False, True])
def test_good_episode_has_no_defect(tmp_path, compressed):
    assert defects(tmp_path, compressed=compressed) == []


@pytest.mark.parametrize("topic", [FRONT, WRIST, POSE, TARGET, GRIPPER])
def test_missing_topic_is_named(tmp_path, topic):
    defect = only(defects(tmp_path, silent(topic)), Kind.MISSING_TOPIC)
    assert defect.topic == topic
    assert str(defect) == f"{topic}: at 0.00 s: missing topic: no message in 3.00 s"


def test_topic_that_nobody_requires_may_be_missing(tmp_path):
    assert defects(tmp_path, silent(JOINTS)) == []


@pytest.mark.parametrize(("topic", "begin_s", "end_s"), [(WRIST, 1.0, 1.6), (POSE, 2.0, 2.2), (GRIPPER, 0.5, 1.5)])
def test_gap_is_given_with_its_time_and_length(tmp_path, topic, begin_s, end_s):
    defect = only(defects(tmp_path, silent(topic, begin_s, end_s)), Kind.GAP)
    assert defect.topic == topic
    assert (defect.begin_s, defect.end_s) == pytest.approx((begin_s, end_s), abs=0.07)
    assert f"no message for {defect.end_s - defect.begin_s:.2f} s, expected one every" in defect.explanation


def test_topic_that_falls_silent_has_a_gap_at_the_end(tmp_path):
    defect = only(defects(tmp_path, silent(WRIST, 2.0)), Kind.GAP)
    assert (defect.begin_s, defect.end_s) == pytest.approx((2.0, 3.0), abs=0.05)
    assert "at the end" in defect.explanation


def test_topic_that_begins_late_has_a_gap_at_the_beginning(tmp_path):
    defect = only(defects(tmp_path, silent(POSE, -1.0, 0.4)), Kind.GAP)
    assert (defect.begin_s, defect.end_s) == pytest.approx((0.0, 0.4), abs=0.05)
    assert "at the beginning" in defect.explanation


def test_message_that_comes_late_at_the_beginning_and_the_end_is_no_gap(tmp_path):
    # The pose may not be silent for longer than 0.1 s, but how busy the recorder's machine is must not matter.
    def edit(samples):
        return [it for it in samples if it.topic != POSE or 0.15 < seconds(it) < 2.85]

    assert defects(tmp_path, edit) == []


def test_rate_below_the_required_one_is_given_with_both(tmp_path):
    def every_eighth(samples):
        poses = [sample for sample in samples if sample.topic == POSE]
        return [sample for sample in samples if sample.topic != POSE or poses.index(sample) % 8 == 0]

    defect = only(defects(tmp_path, every_eighth), Kind.LOW_RATE)
    assert defect.topic == POSE
    assert defect.explanation == "12.5 Hz (38 messages), expected at least 50 Hz"


def test_messages_that_come_in_bursts_but_are_stamped_evenly_are_no_gap(tmp_path):
    def burst(samples):
        late = [it._replace(log_ns=START_NS + 1_800_000_000) if 1.0 < seconds(it) < 1.8 else it for it in samples]
        return sorted(late, key=lambda sample: sample.log_ns)

    assert defects(tmp_path, burst) == []


def test_cameras_whose_pictures_drift_apart_are_misaligned(tmp_path):
    # 0.2 s without a picture is no gap yet, but leaves pictures of the other camera 0.1 s from the nearest.
    defect = only(defects(tmp_path, silent(WRIST, 1.0, 1.19)), Kind.MISALIGNED)
    assert defect.topic == WRIST
    assert 1.0 < defect.begin_s <= defect.end_s < 1.2
    assert "pictures of /camera/front/color/image_raw are up to 0.1" in defect.explanation


@pytest.mark.parametrize("offset_s", [-0.4, 0.4])
def test_camera_with_another_clock_is_misaligned_and_told_by_how_much(tmp_path, offset_s):
    shift = changed(WRIST, lambda sample: restamp(sample, stamp_of(sample) + round(offset_s * 1e9)))
    defect = only(defects(tmp_path, shift), Kind.MISALIGNED)
    assert defect.topic == WRIST
    offset, direction = re.match(r"stamps are (\S+) s (\w+) than", defect.explanation).groups()
    assert float(offset) == pytest.approx(0.4, abs=0.01)
    assert direction == ("newer" if offset_s > 0 else "older")


def test_robot_state_with_another_clock_is_told_by_how_much(tmp_path):
    shift = changed(POSE, lambda sample: restamp(sample, stamp_of(sample) - 2 * 10**9))
    defect = only(defects(tmp_path, shift), Kind.CLOCK)
    assert defect.topic == POSE
    assert defect.explanation.startswith("stamps are 1.996 s older than those of other topics")


@pytest.mark.parametrize("compressed", [False, True])
def test_frozen_image_is_one_that_repeats_while_the_arm_moves(tmp_path, compressed):
    topic = f"{WRIST}/compressed" if compressed else WRIST

    def freeze(samples):
        first = next(it for it in samples if it.topic == topic and seconds(it) > 1.0)
        return changed(topic, lambda it: setattr(it.message, "data", first.message.data), 1.0, 2.0)(samples)

    defect = only(defects(tmp_path, freeze, compressed=compressed), Kind.FROZEN)
    assert defect.topic == topic
    assert (defect.begin_s, defect.end_s) == pytest.approx((1.0, 2.0), abs=0.05)
    assert "the same picture 30 times in 0.97 s while the arm moved" in defect.explanation


def test_picture_that_repeats_while_the_arm_rests_is_not_frozen(tmp_path):
    def freeze(samples):
        first = next(it for it in samples if it.topic == WRIST)
        return changed(WRIST, lambda it: setattr(it.message, "data", first.message.data), -1.0, 1.0)(samples)

    assert defects(tmp_path, freeze, still_s=1.5) == []


def test_picture_that_cannot_be_decoded_is_named_with_its_encoding(tmp_path):
    found = defects(tmp_path, changed(FRONT, lambda sample: setattr(sample.message, "encoding", "yuv422"), 1.5, 2.8))
    defect = only(found, Kind.BAD_PICTURE)
    assert defect.topic == FRONT
    assert "encoding 'yuv422' not supported" in defect.explanation


def test_jump_in_position_is_given_in_millimetres_and_seconds(tmp_path):
    def aside(sample):
        sample.message.pose.position.y += 0.2

    defect = only(defects(tmp_path, changed(POSE, aside, 1.5)), Kind.JUMP)
    assert defect.topic == POSE
    assert defect.begin_s == pytest.approx(1.5, abs=0.02)
    assert "mm and 0 degrees in 0.010 s, an arm does at most 3 m/s" in defect.explanation


def test_jump_in_orientation_is_found_and_a_changed_sign_of_the_quaternion_is_none(tmp_path):
    def turned(sample):
        it = sample.message.pose.orientation
        it.x, it.y, it.z, it.w = -it.y, it.x, it.z, it.w

    def negated(sample):
        it = sample.message.pose.orientation
        it.x, it.y, it.z, it.w = -it.x, -it.y, -it.z, -it.w

    assert defects(tmp_path / "negated", changed(POSE, negated, 1.5)) == []
    assert "180 degrees" in only(defects(tmp_path / "turned", changed(POSE, turned, 1.5)), Kind.JUMP).explanation


def test_pose_that_is_not_a_number_is_counted(tmp_path):
    def lose(sample):
        sample.message.pose.position.z = math.nan

    defect = only(defects(tmp_path, changed(POSE, lose, 1.0, 1.055)), Kind.NOT_FINITE)
    assert defect.explanation == "6 poses are not numbers"


def test_wrong_frame_is_given_with_the_right_one(tmp_path):
    def elsewhere(sample):
        sample.message.header.frame_id = "world"

    defect = only(defects(tmp_path, changed(POSE, elsewhere, 2.0)), Kind.WRONG_FRAME)
    assert defect.topic == POSE
    assert defect.explanation == "frame_id 'world' in 101 of 301 messages, expected 'fr3_link0'"


def test_episode_without_motion_is_idle_and_nothing_else(tmp_path):
    defect = only(defects(tmp_path, still_s=3.0), Kind.IDLE)
    assert defect.explanation == "in 3.00 s the tool moved 0.0 mm and 0.0 degrees and the fingers 0.0 mm"


def test_stamps_that_go_back_are_told_with_topic_and_step(tmp_path):
    restarted = changed(JOINTS, lambda sample: restamp(sample, stamp_of(sample) - 10**9), 1.5)
    assert defects(tmp_path / "unrequired", restarted) == []
    restarted = changed(GRIPPER, lambda sample: restamp(sample, stamp_of(sample) - 10**8), 1.5)
    defect = only(defects(tmp_path / "required", restarted), Kind.BACKWARDS)
    assert defect.topic == GRIPPER
    assert defect.begin_s == pytest.approx(1.5, abs=0.07)
    assert defect.explanation == "a stamp 0.033 s before that of the message before"


def test_stamps_that_stand_still_are_counted(tmp_path):
    def stop(samples):
        # The clock goes on where it stood, as that of a simulator that was paused.
        for sample in samples:
            if sample.topic == POSE:
                t = seconds(sample)
                restamp(sample, stamp_of(sample) - round(1e9 * min(max(t - 1.0, 0.0), 0.2)))
        return samples

    defect = only(defects(tmp_path, stop), Kind.STOPPED)
    assert defect.topic == POSE
    assert (defect.begin_s, defect.end_s) == pytest.approx((1.0, 1.2), abs=0.011)
    assert defect.explanation == "20 messages received in 0.19 s have one stamp"


def test_clock_set_back_is_told_once_and_does_not_make_gaps(tmp_path):
    def set_back(samples):
        return [it._replace(log_ns=it.log_ns - 40 * 10**9) if seconds(it) > 1.5 else it for it in samples]

    defect = only(defects(tmp_path, set_back), Kind.BACKWARDS)
    assert (defect.topic, defect.explanation) == ("", "the recorder's clock was set back by 40.00 s")
    assert defect.begin_s == pytest.approx(1.5, abs=0.01)


def test_topics_written_out_of_order_are_no_clock_set_back(tmp_path):
    def late(samples):
        return sorted(samples, key=lambda it: it.log_ns + (160_000_000 if it.topic in (FRONT, WRIST) else 0))

    assert defects(tmp_path, late) == []


def test_episode_that_was_never_closed_is_interrupted(tmp_path):
    defect = only(defects(tmp_path, closed=False), Kind.INTERRUPTED)
    assert defect.begin_s == pytest.approx(2.0, abs=0.3)
    assert "never closed, the recorder died" in defect.explanation


def test_closed_episode_without_an_outcome_is_interrupted(tmp_path):
    defect = only(defects(tmp_path, outcome="interrupted"), Kind.INTERRUPTED)
    assert defect.explanation == "no outcome was recorded"


def test_closed_episode_whose_end_is_torn_off_is_unreadable(tmp_path):
    directory = make_episode(tmp_path / "episode")
    metadata = (directory / METADATA).read_text()
    tear(directory, 0.9)
    (directory / METADATA).write_text(metadata)
    (unreadable,) = [it for it in verify(Episode.open(directory), SETTINGS) if it.kind != Kind.INTERRUPTED]
    assert unreadable.kind == Kind.UNREADABLE
    assert "of 928" in unreadable.explanation


def test_closed_episode_that_lacks_only_its_index_is_unreadable(tmp_path):
    directory = make_episode(tmp_path / "episode")
    metadata = (directory / METADATA).read_text()
    tear(directory, 0.9999)
    (directory / METADATA).write_text(metadata)
    assert "ends before its index" in only(verify(Episode.open(directory), SETTINGS), Kind.UNREADABLE).explanation


def test_episode_without_length_is_too_short_and_nothing_else(tmp_path):
    defect = only(defects(tmp_path, lambda samples: samples[-1:]), Kind.TOO_SHORT)
    assert defect.explanation == "0.00 s with 1 messages, expected at least 1 s"


def test_episode_without_a_message_is_too_short_and_interrupted(tmp_path):
    found = defects(tmp_path, lambda _: [])
    assert [defect.kind for defect in found] == [Kind.INTERRUPTED, Kind.TOO_SHORT]


def test_short_episode_is_told_with_its_length(tmp_path):
    assert only(defects(tmp_path, seconds=0.6), Kind.TOO_SHORT).explanation.startswith("0.60 s with ")


def test_what_the_recorder_noticed_is_passed_on(tmp_path):
    defect = only(defects(tmp_path, events=["1.3 s: the clock stands still: /current_pose"]), Kind.EVENT)
    assert str(defect) == "whole episode: at 1.30 s: noticed by the recorder: the clock stands still: /current_pose"


def test_two_defects_are_both_found_the_whole_episode_first(tmp_path):
    found = defects(tmp_path, silent(WRIST, 1.0, 1.6), outcome="interrupted")
    assert [defect.kind for defect in found] == [Kind.INTERRUPTED, Kind.GAP]


# Gaps of a synthetic track, without a bag.


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    return read(Episode.open(make_episode(tmp_path_factory.mktemp("good") / "episode")), SETTINGS)


@settings(max_examples=60, deadline=None)
@given(begin=st.integers(2, 250), length=st.integers(0, 45))
def test_a_gap_is_found_exactly_when_it_is_longer_than_allowed(recording, begin, length):
    track = recording.tracks[POSE]
    keep = np.ones(len(track.seconds), bool)
    keep[begin + 1 : begin + 1 + length] = False
    thinned = SimpleNamespace(**vars(recording))
    thinned.tracks = {
        **recording.tracks,
        POSE: type(track)(track.name, track.type, track.seconds[keep], track.stamps_ns[keep], track.frames),
    }
    thinned.positions, thinned.quaternions = recording.positions[keep], recording.quaternions[keep]
    gaps = [defect for defect in find_defects(thinned) if defect.kind == Kind.GAP]
    left_s = (length + 1) / 100
    assert len(gaps) == (left_s > SETTINGS.required[POSE].gap + 1e-9)
    if gaps:
        assert gaps[0].end_s - gaps[0].begin_s == pytest.approx(left_s, abs=1e-3)


# The settings.


def settings_text(**changes):
    content = yaml.safe_load(CONFIG.read_text())["curation"]
    content.update(changes)
    return yaml.safe_dump({"curation": {key: value for key, value in content.items() if value is not None}})


def test_shipped_settings_require_what_the_bridge_and_cameras_publish():
    assert SETTINGS.required[POSE] == Requirement(rate=50.0, gap=0.1, frame="fr3_link0")
    assert set(SETTINGS.cameras) <= set(SETTINGS.required)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"shortest": None}, r"curation.shortest: missing"),
        ({"shortest": "long"}, r"curation.shortest: 'long', expected a number of at least 0"),
        ({"shortest": math.nan}, r"curation.shortest: nan, expected a number"),
        ({"fastest_linear": -1.0}, r"curation.fastest_linear: -1.0, expected a number"),
        ({"cameras": "/front"}, r"curation.cameras: '/front', expected a list of topics"),
        ({"speed": 1.0}, r"curation.speed: unknown, expected some of cameras, pose"),
        ({"required": []}, r"curation.required: \[\], expected a mapping"),
        ({"required": {"/a": {"rate": 1.0}}}, r"curation.required./a.gap: missing"),
        ({"required": {"/a": {"rate": 1.0, "gap": 1.0, "frame": 3}}}, r"curation.required./a.frame: 3, expected text"),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path, changes, complaint):
    path = tmp_path / "curation.yaml"
    path.write_text(settings_text(**changes))
    with pytest.raises(ConfigurationError, match=complaint):
        Curation.from_file(path)


@pytest.mark.parametrize("text", ["", "[1, 2", "curation: 3", "other: {}"])
def test_settings_file_that_is_something_else_is_refused(tmp_path, text):
    path = tmp_path / "curation.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="curation.yaml: "):
        Curation.from_file(path)


def test_limit_of_zero_is_a_limit(tmp_path):
    path = tmp_path / "curation.yaml"
    path.write_text(settings_text(idle_distance=0.0))
    assert Curation.from_file(path).idle_distance == 0.0
