import pytest
from molmoact_ros.diagnostics import LatencyMeter, RateMeter


def test_rate_is_that_of_the_stamps_not_of_their_arrival():
    meter = RateMeter(window_s=2.0)
    for index in range(31):
        meter.tick(100.0 + index / 30)
    assert meter.rate(101.0) == pytest.approx(30.0)
    assert meter.total == 31


def test_rate_of_a_stream_that_ended_is_zero():
    meter = RateMeter(window_s=2.0)
    for index in range(10):
        meter.tick(float(index) / 10)
    assert meter.rate(5.0) == 0.0


def test_rate_begins_anew_when_the_clock_jumps_back():
    meter = RateMeter(window_s=2.0)
    for stamp in (50.0, 50.1, 1.0, 1.5):
        meter.tick(stamp)
    assert meter.rate(1.5) == pytest.approx(2.0)


def test_latencies_are_those_of_the_newest_samples():
    meter = LatencyMeter(samples=3)
    assert meter.milliseconds() == {}
    for seconds in (9.0, 0.001, 0.002, 0.003):
        meter.add(seconds)
    assert meter.milliseconds()["median"] == pytest.approx(2.0)
    assert meter.milliseconds()["max"] == pytest.approx(3.0)
