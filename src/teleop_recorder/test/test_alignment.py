"""Which messages make a sample. What the policy would have been shown live is played to its own runner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_policy.frames import SECOND, FrameBuffer
from molmoact_policy.policy import Prediction
from molmoact_policy.runner import Runner, Settings
from molmoact_policy.task import Tasks
from scipy.spatial.transform import Rotation
from teleop_recorder.alignment import (
    DROP,
    HOLD,
    NEAREST,
    ArmTracks,
    Openings,
    Poses,
    Timing,
    align,
    choose_pictures,
    image_topic,
    interpolate_openings,
    interpolate_poses,
    moments,
    read_arm,
    read_picture_stamps,
)
from teleop_recorder.episode import Episode
from teleop_recorder.errors import EpisodeError

from .episodes import (
    FRONT,
    GRIPPER,
    POSE,
    START_NS,
    make_episode,
    position_at,
    progress_at,
    quaternion_at,
    restamp,
    stamp_of,
    width_at,
)

MS = SECOND // 1000


def stamps(*milliseconds: int) -> np.ndarray:
    return np.array(milliseconds, np.int64) * MS


def chosen(policy: str, times: tuple[int, ...], tolerance: float = 0.05, **cameras: tuple[int, ...]):
    """Milliseconds of the pictures chosen for each moment."""
    tracks = {camera: stamps(*taken) for camera, taken in cameras.items()}
    pictures = choose_pictures(tracks, stamps(*times), Timing(15, policy, tolerance))
    return [
        None
        if picture is None
        else tuple(cameras[camera][number] for camera, number in zip(cameras, picture, strict=True))
        for picture in pictures
    ]


def test_hold_repeats_the_last_pictures_through_a_gap():
    assert chosen(HOLD, (0, 100, 200, 300), front=(0, 290), wrist=(5, 295)) == [None, None, None, (290, 295)]
    assert chosen(HOLD, (10, 100, 200, 300), front=(0, 290), wrist=(5, 295)) == [(0, 5), (0, 5), (0, 5), (290, 295)]


def test_nearest_takes_a_picture_from_after_the_moment_within_the_tolerance():
    assert chosen(NEAREST, (20, 60, 130), front=(0, 33, 66), wrist=(0, 33, 66)) == [(33, 33), (66, 66), None]


def test_drop_takes_none_older_than_the_tolerance_and_none_from_the_future():
    assert chosen(DROP, (20, 60, 130), front=(0, 33, 66), wrist=(0, 33, 66)) == [(0, 0), (33, 33), None]


def test_pictures_that_arrive_out_of_order_are_chosen_by_stamp():
    assert chosen(DROP, (70,), front=(0, 66, 33), wrist=(66, 0, 33)) == [(66, 66)]


@pytest.mark.parametrize("policy", [HOLD, NEAREST, DROP])
def test_cameras_further_apart_than_the_tolerance_make_no_sample(policy):
    assert chosen(policy, (100,), tolerance=0.2, front=(0,), wrist=(90,)) == [None]


class LivePolicy:
    """The runner of the policy node: which pictures does it show the model at a moment?"""

    def __init__(self, cameras, tolerance: float) -> None:
        self.now = 0
        self.shown = []
        self.frames = FrameBuffer(cameras, sync_tolerance=0.05, max_image_age=tolerance)
        tasks = Tasks(lambda _: None)
        tasks.open()
        self.runner = Runner(
            self,
            lambda frames: [frame.message for frame in frames],
            self.frames,
            tasks,
            Settings(
                synchronous=False,
                action_prefix=False,
                execute_rows=0,
                step_period=1,
                settle_time=0,
                observation_timeout=SECOND,
                max_bad_replies=1000,
            ),
            lambda: self.now,
            output=self,
        )
        tasks.set("task", 0)

    def look(self, moment: int) -> tuple[int, ...] | None:
        self.now, before = moment, len(self.shown)
        self.runner.step()
        return self.shown[-1] if len(self.shown) > before else None

    def forget(self): ...

    def act(self, observation, should_stop):
        self.shown.append(tuple(observation.images))
        return Prediction([], [], np.zeros((1, 7)), "", [], 0.0, 1)

    def chunk(self, chunk): ...
    def reply(self, seen, reply, sequence, error): ...
    def unusable(self, reason): ...
    def given_up(self, task): ...


def taken_at(rate: float, jitter: list[int], phase: int) -> np.ndarray:
    return np.array([phase + round(n * 1000 / rate) + shift for n, shift in enumerate(jitter)], np.int64) * MS


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-8, 8), min_size=20, max_size=60),
    st.lists(st.integers(-8, 8), min_size=20, max_size=60),
    st.integers(0, 30),
    st.sampled_from([15.0, 20.0]),
    st.sets(st.integers(0, 59), max_size=20),
)
def test_export_chooses_the_frames_that_the_policy_is_shown_live(front, wrist, phase, rate, lost):
    there = [number for number in range(len(wrist)) if number not in lost]
    cameras = {"front": taken_at(30, front, 10), "wrist": taken_at(30, wrist, 10 + phase)[there]}
    times = moments(0, 2 * SECOND, rate)
    live = LivePolicy(tuple(cameras), tolerance=0.1)
    waiting = sorted((int(stamp), camera, n) for camera, taken in cameras.items() for n, stamp in enumerate(taken))
    looked_at = 0  # stamp before which the policy does not look again
    for moment, exported in zip(times.tolist(), choose_pictures(cameras, times, Timing(rate, DROP, 0.1)), strict=True):
        while waiting and waiting[0][0] <= moment:
            stamp, camera, number = waiting.pop(0)
            live.frames.add(camera, stamp, number)
        shown = live.look(moment)
        oldest = (
            -1 if exported is None else min(int(cameras[name][n]) for name, n in zip(cameras, exported, strict=True))
        )
        assert shown == (exported if oldest >= looked_at else None)
        looked_at = max(looked_at, oldest + 1)


def pose_track(*milliseconds: int) -> Poses:
    """Moves 1 m/s along x and turns 1 rad/s about z."""
    seconds = np.array(milliseconds) / 1000
    positions = np.stack([seconds, 0 * seconds, 0 * seconds], 1)
    return Poses(stamps(*milliseconds), positions, Rotation.from_euler("z", seconds[:, None]).as_quat())


def test_pose_between_two_messages_is_interpolated_in_place_and_turn():
    positions, quaternions, present = interpolate_poses(pose_track(0, 10, 20), stamps(4, 10, 17), Timing(15))
    np.testing.assert_allclose(positions[:, 0], [0.004, 0.010, 0.017])
    np.testing.assert_allclose(Rotation.from_quat(quaternions).as_euler("xyz")[:, 2], [0.004, 0.010, 0.017])
    assert present.all()


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (HOLD, [None, 0.0, 0.0, 0.0, 0.3, 0.3]),
        (NEAREST, [0.0, 0.0, None, 0.3, 0.3, None]),
        (DROP, [None, 0.0, None, None, 0.3, None]),
    ],
)
def test_pose_in_a_gap_and_beyond_the_ends_follows_the_policy(policy, expected):
    moments_ms = (-40, 40, 150, 260, 340, 400)
    positions, _, present = interpolate_poses(pose_track(0, 300), stamps(*moments_ms), Timing(15, policy, 0.05))
    assert [x if there else None for x, there in zip(positions[:, 0], present, strict=True)] == expected


def test_commanded_opening_holds_until_the_next_command_and_a_measured_one_is_interpolated():
    times = stamps(-10, 0, 250, 500)
    commanded = Openings(stamps(0, 500), np.array([1.0, 0.0]), commanded=True)
    values, present = interpolate_openings(commanded, times, Timing(15))
    assert present.tolist() == [False, True, True, True] and values[1:].tolist() == [1.0, 1.0, 0.0]
    values, _ = interpolate_openings(Openings(stamps(0, 500), np.array([1.0, 0.0])), times, Timing(15, tolerance=0.5))
    np.testing.assert_allclose(values[1:], [1.0, 0.5, 0.0])


def test_moments_do_not_drift_from_the_rate():
    times = moments(START_NS, START_NS + 3600 * SECOND, 15)
    assert len(times) == 3600 * 15 + 1 and times[-1] == START_NS + 3600 * SECOND


def test_last_moment_may_be_the_last_stamp_whatever_it_was_rounded_to():
    for count in range(1, 200):
        end = START_NS + round((count - 1) * SECOND / 15)
        assert len(moments(START_NS, end, 15)) == count


def test_gap_ends_a_run_of_samples_so_that_no_step_jumps_over_it():
    poses = pose_track(*range(0, 2001, 10))
    openings = Openings(poses.stamps, np.ones(len(poses.stamps)))
    arm = ArmTracks(poses, openings, poses, openings)
    taken = np.array([t for t in range(0, 2001, 33) if not 700 < t < 1100], np.int64) * MS
    runs = align({"front": taken}, [arm], Timing(20, NEAREST, 0.04))
    assert len(runs) == 2
    for run in runs:
        np.testing.assert_allclose(np.diff(run.stamps), SECOND / 20, atol=1)
        assert run.first == run.stamps[0] // (50 * MS)
    assert runs[0].stamps[-1] <= 740 * MS and runs[1].stamps[0] >= 1060 * MS


def test_streams_that_have_no_moment_in_common_give_no_samples():
    poses = pose_track(0, 10, 20)
    openings = Openings(poses.stamps, np.ones(3))
    arm = ArmTracks(poses, openings, poses, openings)
    assert align({"front": stamps(500, 600)}, [arm], Timing(15)) == []


def test_recorded_episode_gives_the_motion_it_was_made_of(tmp_path):
    episode = Episode.open(make_episode(tmp_path / "episode", seconds=2.0))
    arm = read_arm(episode, "", targets=False, commanded=False)
    topics = {"front": image_topic(episode, "front"), "wrist": image_topic(episode, "wrist")}
    (run,) = align(read_picture_stamps(episode, topics), [arm], Timing(15))
    for n, stamp in enumerate(run.stamps):
        progress = progress_at((stamp - START_NS) / SECOND, 2.0)
        np.testing.assert_allclose(run.positions[n, 0], position_at(progress), atol=1e-4)
        turn = Rotation.from_quat(run.quaternions[n, 0]).inv() * Rotation.from_quat(quaternion_at(progress))
        assert turn.magnitude() < 1e-3
        assert run.openings[n, 0] == pytest.approx(width_at(progress) / 0.08, abs=0.08)


def test_late_delivery_changes_nothing_because_stamps_count(tmp_path):
    def shuffled(samples):
        late = [
            sample._replace(log_ns=sample.log_ns + 40 * MS) if sample.topic == POSE else sample for sample in samples
        ]
        return sorted(late, key=lambda sample: sample.log_ns)

    runs = []
    for name, edit in (("plain", None), ("late", shuffled)):
        episode = Episode.open(make_episode(tmp_path / name, edit=edit))
        cameras = read_picture_stamps(episode, {"front": FRONT})
        runs.append(align(cameras, [read_arm(episode, "", False, False)], Timing(15))[0])
    np.testing.assert_array_equal(runs[0].positions, runs[1].positions)
    np.testing.assert_array_equal(runs[0].pictures, runs[1].pictures)


def test_clock_that_was_set_back_is_refused_with_the_topic_and_the_jump(tmp_path):
    def set_back(samples):
        return [
            restamp(sample, stamp_of(sample) - SECOND) if sample.topic == POSE and n > len(samples) / 2 else sample
            for n, sample in enumerate(samples)
        ]

    episode = Episode.open(make_episode(tmp_path / "episode", edit=set_back))
    with pytest.raises(EpisodeError, match=r"episode episode: /current_pose: stamps go back by 0.99"):
        read_arm(episode, "", False, False)


@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda episode: read_arm(episode, "left/", False, False), "there is no /left/current_pose"),
        (lambda episode: read_arm(episode, "", False, True), "there is no /teleop_command"),
        (lambda episode: image_topic(episode, "top"), "camera top: there is no /camera/top/color/image_raw and no"),
        (lambda episode: image_topic(episode, f"top={GRIPPER}"), "is sensor_msgs/msg/JointState, expected"),
    ],
)
def test_missing_topic_is_named(tmp_path, read, message):
    episode = Episode.open(make_episode(tmp_path / "episode", seconds=1.0))
    with pytest.raises(EpisodeError, match=message):
        read(episode)
