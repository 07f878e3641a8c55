from builtin_interfaces.msg import Duration, Time
from hypothesis import given, settings
from hypothesis import strategies as st
from molmoact_ros import stamps


@settings(deadline=None)
@given(st.integers(0, 2**31 * stamps.NANOSECONDS - 1))
def test_nanoseconds_survive_the_message_exactly(nanoseconds):
    assert stamps.to_nanoseconds(stamps.from_nanoseconds(nanoseconds)) == nanoseconds
    assert stamps.duration_to_nanoseconds(stamps.duration_from_nanoseconds(nanoseconds)) == nanoseconds


def test_negative_duration_has_a_positive_remainder_as_ros_wants_it():
    assert stamps.duration_from_seconds(-0.25) == Duration(sec=-1, nanosec=750_000_000)
    assert stamps.duration_to_seconds(Duration(sec=-1, nanosec=750_000_000)) == -0.25


def test_seconds_are_rounded_to_the_nanosecond():
    assert stamps.from_seconds(1.1) == Time(sec=1, nanosec=100_000_000)
    assert stamps.to_seconds(Time(sec=2, nanosec=500_000_000)) == 2.5
