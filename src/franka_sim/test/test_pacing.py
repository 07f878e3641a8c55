import pytest
from franka_sim.pacing import MAX_BACKLOG_S, Pacer, Periodic
from hypothesis import given
from hypothesis import strategies as st

STEP = 0.001


# Short enough that, with what is left over from before, nothing is forgotten at four times real time.
LONGEST_PAUSE_S = (MAX_BACKLOG_S - STEP) / 4


@given(st.lists(st.floats(0.0, LONGEST_PAUSE_S), min_size=1, max_size=200), st.floats(0.1, 4.0))
def test_simulated_time_follows_the_wall_clock_times_the_factor(pauses, factor):
    pacer, now, steps = Pacer(factor, STEP), 0.0, 0
    pacer.steps_due(now)
    for pause in pauses:
        now += pause
        steps += pacer.steps_due(now)
    assert steps * STEP == pytest.approx(now * factor, abs=STEP * 1.01)


def test_a_stall_is_made_up_for_only_up_to_the_backlog():
    pacer = Pacer(1.0, STEP)
    pacer.steps_due(0.0)
    assert pacer.steps_due(10.0) == round(MAX_BACKLOG_S / STEP)
    assert pacer.steps_due(10.001) <= 1


def test_the_achieved_factor_counts_forgotten_time():
    pacer = Pacer(1.0, STEP)
    for now in range(11):
        pacer.steps_due(now * 0.1)
    assert pacer.achieved == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_a_factor_that_is_no_pace_is_refused(factor):
    with pytest.raises(ValueError, match="real time factor"):
        Pacer(factor, STEP)


@given(st.floats(0.5, 1000.0), st.integers(0, 10_000))
def test_a_periodic_event_keeps_its_rate_without_drift(rate, start):
    event = Periodic(rate, STEP, start)
    taken = sum(event.take(now) for now in range(start + 1, start + 5001))
    assert taken == pytest.approx(5.0 * rate, abs=1.001)


def test_events_that_were_slept_over_are_one():
    event = Periodic(30.0, STEP, 0)
    assert event.take(1000)
    assert not event.take(1001)


@given(st.floats(0.5, 100.0), st.integers(0, 10_000))
def test_an_event_with_a_phase_comes_that_part_of_a_period_earlier(rate, start):
    first, early = Periodic(rate, STEP, start), Periodic(rate, STEP, start, phase=0.25)
    steps = range(start + 1, start + 10_001)
    times = [step for step in steps if first.take(step)]
    early_times = [step for step in steps if early.take(step)]
    period = 1.0 / (rate * STEP)
    ahead = [min(time - other for other in early_times if other <= time) for time in times[1:]]
    assert ahead == pytest.approx([0.25 * period] * len(ahead), abs=1.001)
