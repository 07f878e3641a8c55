"""Conversions between ROS time messages and numbers. Nanoseconds are exact; seconds lose them beyond 2**53 ns."""

from builtin_interfaces.msg import Duration, Time

NANOSECONDS = 1_000_000_000


def to_nanoseconds(stamp: Time) -> int:
    """Nanoseconds since the clock's epoch."""
    return stamp.sec * NANOSECONDS + stamp.nanosec


def from_nanoseconds(nanoseconds: int) -> Time:
    seconds, rest = divmod(int(nanoseconds), NANOSECONDS)
    return Time(sec=seconds, nanosec=rest)


def to_seconds(stamp: Time) -> float:
    """Seconds since the clock's epoch, good to about 0.2 us for wall clock stamps."""
    return to_nanoseconds(stamp) / NANOSECONDS


def from_seconds(seconds: float) -> Time:
    return from_nanoseconds(round(seconds * NANOSECONDS))


def duration_to_nanoseconds(duration: Duration) -> int:
    return duration.sec * NANOSECONDS + duration.nanosec


def duration_from_nanoseconds(nanoseconds: int) -> Duration:
    seconds, rest = divmod(int(nanoseconds), NANOSECONDS)
    return Duration(sec=seconds, nanosec=rest)


def duration_to_seconds(duration: Duration) -> float:
    return duration_to_nanoseconds(duration) / NANOSECONDS


def duration_from_seconds(seconds: float) -> Duration:
    return duration_from_nanoseconds(round(seconds * NANOSECONDS))
