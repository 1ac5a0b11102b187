"""How long requests wait, so that a limit is kept."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transcript.pace import WINDOW, Pace

RATES = st.integers(1, 400)


def leave(pace, now, count):
    """When so many requests leave that are all ready at `now`."""
    return [now + pace.reserve(now) for _ in range(count)]


def most_in_a_window(times):
    return max(sum(begin <= time < begin + WINDOW - 1e-6 for time in times) for begin in times)


def test_a_tenth_of_a_minutes_requests_leaves_at_once():
    assert leave(Pace(240), 1000.0, 24) == [1000.0] * 24
    assert Pace(240).reserve(0.0) == 0.0


def test_then_one_after_the_other():
    times = leave(Pace(240), 1000.0, 30)
    steps = [later - earlier for earlier, later in pairwise(times[23:])]
    assert steps == pytest.approx([WINDOW / 217] * 6)


def test_one_a_minute_is_one_a_minute():
    assert leave(Pace(1), 0.0, 3) == pytest.approx([0.0, 60.0, 120.0])


@given(RATES, st.lists(st.floats(0, 20), min_size=1, max_size=300))
def test_no_minute_has_more_than_the_limit(rate, gaps):
    pace, now, times = Pace(rate), 0.0, []
    for gap in gaps:
        now += gap
        times.append(now + pace.reserve(now))
    assert most_in_a_window(times) <= rate
    assert times == sorted(times), "who comes first leaves first"


@given(RATES, st.lists(st.tuples(st.floats(0, 2), st.booleans()), min_size=1, max_size=300))
def test_what_is_spared_keeps_the_limit_too(rate, steps):
    pace, now, times = Pace(rate), 0.0, []
    for gap, is_message in steps:
        now += gap
        if is_message:
            times.append(now + pace.reserve(now))
        elif pace.take_spare(now):
            times.append(now)
    assert most_in_a_window(times) <= rate


def test_typing_leaves_half_of_the_burst_to_messages():
    pace = Pace(240)
    assert sum(pace.take_spare(0.0) for _ in range(100)) <= 13
    assert pace.reserve(0.0) == 0.0
    assert not pace.take_spare(0.0)
    assert pace.take_spare(10.0)


def test_while_messages_wait_nothing_is_to_spare():
    pace = Pace(10)
    leave(pace, 0.0, 3)
    assert not pace.take_spare(0.0)


def test_a_pause_holds_up_everything_and_lets_no_burst_follow():
    pace = Pace(60)
    pace.pause(100.0, 5.0)
    assert pace.is_paused(104.9) and not pace.is_paused(105.0)
    assert not pace.take_spare(101.0)
    times = leave(pace, 101.0, 3)
    assert times == pytest.approx([105.0, 105.0 + WINDOW / 55, 105.0 + 2 * WINDOW / 55])


def test_a_shorter_pause_does_not_end_a_longer_one():
    pace = Pace(60)
    pace.pause(0.0, 10.0)
    pace.pause(1.0, 1.0)
    assert pace.is_paused(9.0)


@given(RATES, st.floats(0, 100))
def test_a_wait_is_never_negative(rate, now):
    assert Pace(rate).reserve(now) >= 0
