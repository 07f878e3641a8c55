from __future__ import annotations

import pytest
from teleop_recorder.monitor import Monitor

PERIOD_NS = 33_333_333
START_NS = 1_700_000_000 * 10**9


@pytest.fixture
def monitor():
    monitor = Monitor(silence_s=1.0)
    monitor.add("/front", required_hz=25.0, camera=True)
    monitor.add("/wrist", required_hz=25.0, camera=True)
    monitor.add("/chunk")
    monitor.begin(0.0)
    return monitor


def play(monitor, frames, topics=("/front", "/wrist"), shift_ns=0, first=0):
    """Frames at 30 Hz, received as they are stamped."""
    for frame in frames:
        for topic in topics:
            stamp_ns = START_NS + frame * PERIOD_NS + shift_ns
            monitor.on_message(topic, frame * PERIOD_NS / 1e9, stamp_ns, first + frame)


def test_rate_is_measured_over_the_last_seconds(monitor):
    for second in range(10):
        for half in (0, 15):
            play(monitor, range(second * 30 + half, second * 30 + half + 15))
            monitor.tick(second + half / 30, second + half / 30)
    assert monitor.streams["/front"].rate_hz == pytest.approx(30.0, rel=0.02)
    assert monitor.streams["/chunk"].rate_hz == 0.0
    assert monitor.events == []


def test_frame_the_camera_left_out_is_counted(monitor):
    play(monitor, range(40), topics=["/front"])
    monitor.on_message("/front", 2.0, START_NS + 42 * PERIOD_NS, 40)  # two are missing; the middleware lost none
    assert monitor.streams["/front"].dropped == 2


def test_message_lost_on_the_way_is_counted_once(monitor):
    play(monitor, [*range(40), *range(43, 60)], topics=["/front"])
    assert monitor.streams["/front"].dropped == 3


def test_sequence_of_several_publishers_says_nothing(monitor):
    monitor.on_publishers("/chunk", [b"a", b"b"], 0.0)
    for sequence in (1, 100, 2, 101, 3):
        monitor.on_message("/chunk", 0.1, None, sequence)
    assert monitor.streams["/chunk"].dropped == 0
    assert monitor.events == []


@pytest.mark.parametrize("shift_ns", [0, 5_000_000, 16_000_000])
def test_gap_between_cameras_is_that_of_nearest_frames(monitor, shift_ns):
    for frame in range(60):
        play(monitor, [frame], topics=["/front"])
        play(monitor, [frame], topics=["/wrist"], shift_ns=shift_ns)
    assert monitor.largest_camera_gap_ns == shift_ns


def test_gap_between_cameras_does_not_depend_on_who_comes_first(monitor):
    for frame in range(60):
        play(monitor, [frame], topics=["/wrist"], shift_ns=5_000_000)
        play(monitor, [frame], topics=["/front"])
    assert monitor.largest_camera_gap_ns == 5_000_000


def test_dropped_frame_widens_the_gap(monitor):
    for frame in range(60):
        play(monitor, [frame], topics=["/front"])
        if frame != 50:
            play(monitor, [frame], topics=["/wrist"])
    assert monitor.largest_camera_gap_ns == PERIOD_NS


def test_required_topics_that_are_silent_are_named(monitor):
    assert monitor.silent(0.0) == ["nothing has come on /front", "nothing has come on /wrist"]
    play(monitor, range(30))
    assert monitor.silent(1.0) == []
    play(monitor, range(30, 90), topics=["/wrist"])
    assert monitor.silent(3.0) == ["/front is silent for 2.0 s"]


def test_slow_topic_may_be_silent_for_three_of_its_periods():
    monitor = Monitor(silence_s=1.0)
    monitor.add("/slow", required_hz=0.5)
    monitor.on_message("/slow", 0.0, None, 0)
    assert monitor.silent(5.9) == []
    assert monitor.silent(6.1) == ["/slow is silent for 6.1 s"]


def test_time_that_goes_back_is_one_event_for_all_topics(monitor):
    play(monitor, range(60))
    play(monitor, range(60, 70), shift_ns=-10 * 10**9)
    assert monitor.events == ["2.0 s: time went back: /front, /wrist (by 9.97 s)"]


def test_clock_that_stands_still_is_marked_once(monitor):
    play(monitor, range(30))
    for frame in range(30, 120):
        monitor.on_message("/front", frame / 30, START_NS + 29 * PERIOD_NS, frame)
        monitor.on_message("/wrist", frame / 30, START_NS + frame * PERIOD_NS, frame)
        if frame % 15 == 0:
            monitor.tick(frame / 30, frame / 30)
    (event,) = [event for event in monitor.events if "stands still" in event]
    assert "/front" in event
    assert "/wrist" not in event


def test_restarted_publisher_is_seen_by_its_identifier_or_its_count(monitor):
    monitor.on_publishers("/front", [b"old"], 0.0)
    monitor.on_publishers("/front", [], 1.0)
    monitor.on_publishers("/front", [b"old"], 2.0)  # was only lost from sight
    assert monitor.events == []
    monitor.on_publishers("/front", [b"new"], 3.0)
    monitor.on_message("/wrist", 3.0, START_NS, 500)
    monitor.on_message("/wrist", 3.1, START_NS + PERIOD_NS, 1)
    assert monitor.events == ["3.0 s: the publisher was restarted: /front, /wrist"]
    assert monitor.streams["/wrist"].dropped == 0


def test_killed_publisher_that_stays_in_sight_is_seen_to_be_replaced(monitor):
    monitor.on_publishers("/front", [b"killed"], 0.0)
    monitor.on_publishers("/front", [b"killed", b"new"], 1.0)
    assert monitor.events == []
    monitor.on_publishers("/front", [b"new"], 6.0)
    assert monitor.events == ["6.0 s: the publisher was restarted: /front"]


def test_one_of_two_publishers_that_leaves_is_no_restart(monitor):
    monitor.on_publishers("/front", [b"one", b"two"], 0.0)
    monitor.on_publishers("/front", [b"two"], 1.0)
    assert monitor.events == []


def test_rate_below_the_required_one_is_marked(monitor):
    for frame in range(0, 300, 2):
        play(monitor, [frame])
        monitor.tick(frame / 30, frame / 30)
    assert [event for event in monitor.events if "slower than required: /front, /wrist" in event]


def test_system_clock_that_is_set_is_marked(monitor):
    for half in range(4):
        monitor.tick(half / 2, 1000.0 + half / 2 - (3.0 if half > 1 else 0.0))
    assert monitor.events == ["1.0 s: the system's clock was set (by -3.00 s)"]


def test_events_are_of_the_episode(monitor):
    monitor.on_message("/front", 0.0, START_NS, 9)
    monitor.on_message("/front", 0.1, START_NS + PERIOD_NS, 1)
    monitor.begin(1.0)
    assert monitor.events == []
    assert monitor.streams["/front"].received == 0
