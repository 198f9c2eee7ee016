"""The domain of a setting: numbers between two ends, or one of some values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raytrain_plus.frontier.domain import Choice, Range


@given(st.integers(1, 1000), st.integers(1, 1000), st.booleans(), st.booleans())
def test_the_middle_and_the_ends_are_inside(low, length, log, whole):
    high = low + length
    domain = Range(low=low, high=high if whole else float(high), log=log)
    assert domain.whole == whole
    assert all(value in domain for value in domain.extremes)
    assert domain.typical in domain.extremes
    assert low - 1 not in domain
    assert high + 1 not in domain


def test_the_middle_of_a_logarithmic_range_is_a_geometric_one():
    assert Range(low=0.01, high=1.0, log=True).typical == pytest.approx(0.1)
    assert Range(low=0.01, high=1.0).typical == pytest.approx(0.505)


def test_fractions_and_booleans_are_not_whole_numbers():
    assert 2 in Range(low=1, high=3)
    assert 2.5 not in Range(low=1, high=3)
    assert True not in Range(low=1, high=3)
    assert "2" not in Range(low=1, high=3)
    assert 2 in Range(low=1.0, high=3.0)


def test_a_choice_distinguishes_true_from_one():
    assert 1 in Choice(values=(1, 2))
    assert True not in Choice(values=(1, 2))
    assert None in Choice(values=(None, 0.1))
    assert Choice(values=("b", "a")).typical == "b"


@pytest.mark.parametrize(
    ("kind", "said", "told"),
    [
        (Range, {"low": 2, "high": 1}, "2 to 1 is empty"),
        (Range, {"low": 0.0, "high": 1.0, "log": True}, "low must be above zero"),
        (Range, {"low": 0.0, "high": float("inf")}, "has no end"),
        (Range, {"low": "0", "high": 1}, "low"),
        (Choice, {"values": ()}, "at least 1"),
        (Choice, {"values": ("a", "a")}, "holds a value twice"),
    ],
)
def test_invalid_domains_are_refused(kind, said, told):
    with pytest.raises(ValidationError, match=told):
        kind(**said)
