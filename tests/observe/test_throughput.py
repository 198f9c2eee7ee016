"""The current speed: exact while a run is steady, falling while it makes no steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.observe.throughput import Throughput


def steady(seconds, steps, began=1e9):
    throughput = Throughput()
    for step in range(1, steps + 1):
        throughput.add(began + step * seconds, step)
    return throughput, began + steps * seconds


@given(st.floats(0.001, 1000), st.integers(2, 200), st.floats(0, 1))
def test_a_steady_run_has_its_rate_at_any_moment(seconds, steps, share):
    throughput, last = steady(seconds, steps)
    assert throughput.rate(last + share * seconds) == pytest.approx(1 / seconds, rel=1e-3)


def test_the_rate_of_a_run_without_steps_falls_to_zero():
    throughput, last = steady(0.01, 1000)
    rates = [throughput.rate(last + waited) for waited in (0.0, 1.0, 4.0, 60.0, 3600.0)]
    assert rates[0] == pytest.approx(100)
    assert rates == sorted(rates, reverse=True)
    assert rates[3] < 0.05


def test_after_a_pause_a_run_soon_has_its_rate_again():
    throughput, last = steady(0.01, 100)
    for step in range(1, 1000):
        throughput.add(last + 60 + step * 0.01, 100 + step)
    assert throughput.rate(last + 60 + 9.99) == pytest.approx(100, rel=0.01)


def test_before_the_second_step_there_is_no_rate():
    throughput = Throughput()
    assert throughput.rate(5.0) == 0.0
    throughput.add(5.0, 1)
    assert throughput.rate(6.0) == 0.0


def test_steps_that_are_computed_again_do_not_count_backwards():
    throughput, last = steady(1.0, 20)
    throughput.add(last + 1, 5)
    throughput.add(last + 2, 6)
    assert throughput.rate(last + 2) == 1.0


def test_steps_at_the_same_time_and_a_late_clock_cause_no_error():
    throughput = Throughput()
    throughput.add(5.0, 1)
    throughput.add(5.0, 2)
    assert throughput.rate(5.0) == 0.0
    assert throughput.rate(4.0) == 0.0
