"""Times among settings: wrong ones are refused at once, right ones are due when they should be."""

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.algorithms import Aspect
from raytrain_plus.algorithms.times import Interval, Time, check_order, due
from raytrain_plus.clock import DurationError
from tests.algorithms.tiny import CLOCK


class Timed(Aspect):
    start: Time = "0.5dur"
    interval: Interval = "1ep"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": "soon"}, "'soon' is not a number and a unit"),
        ({"start": "2dur"}, "longer than the run"),
        ({"interval": "1.5ba"}, "only epochs and dur"),
        ({"interval": "0ba"}, "must be above zero"),
    ],
)
def test_a_wrong_time_fails_when_the_aspect_is_constructed(settings, words):
    with pytest.raises(pydantic.ValidationError, match=words):
        Timed(**settings)


def test_right_times_stay_as_they_were_written():
    assert Timed(start="0ba", interval="0.25dur").model_dump() == {
        "start": "0ba",
        "interval": "0.25dur",
    }


@given(st.integers(0, 12), st.integers(1, 12), st.integers(0, 30))
def test_an_action_is_due_at_the_start_and_at_every_interval(start, interval, committed):
    expected = committed in range(start, 31, interval)
    assert due(CLOCK, committed, f"{start}ba", f"{interval}ba") == expected


def test_an_interval_below_a_step_counts_as_a_step():
    assert all(due(CLOCK, committed, "0dur", "0.01dur") for committed in range(12))


def test_a_stretch_that_is_certainly_empty_is_refused():
    check_order("0.2dur", "0.3dur")
    check_order("9ep", "1ba")  # comparable only once the run's length is known
    for start, finish in [("0.3dur", "0.3dur"), ("4ep", "2ep")]:
        with pytest.raises(DurationError, match=f"start='{start}' is not before finish"):
            check_order(start, finish)
