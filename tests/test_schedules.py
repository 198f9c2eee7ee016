"""Schedules are pure functions of progress, for any duration."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.schedules import SCHEDULES, constant, cosine, linear, with_warmup

PROGRESS = st.floats(0, 1)


def test_schedules_start_at_one_and_end_at_the_given_value():
    assert [constant(p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [linear(p) for p in (0, 0.25, 1)] == [1, 0.75, 0]
    assert [cosine(p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])
    assert linear(1, 0.1) == pytest.approx(0.1)
    assert cosine(1, 0.1) == pytest.approx(0.1)
    assert cosine(0.25) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@given(PROGRESS, PROGRESS, st.sampled_from(sorted(SCHEDULES)))
def test_schedules_never_rise(one, other, name):
    early, late = sorted((one, other))
    assert SCHEDULES[name](early) >= SCHEDULES[name](late) - 1e-12


@given(st.floats(0.01, 0.9), st.sampled_from(sorted(SCHEDULES)))
def test_a_warm_up_rises_to_its_schedule(warmup, name):
    then = SCHEDULES[name]
    assert with_warmup(0, warmup, then, initial=0.2) == pytest.approx(0.2)
    assert with_warmup(warmup / 2, warmup, then, initial=0.2) == pytest.approx(0.6)
    assert with_warmup(warmup, warmup, then) == pytest.approx(1)
    middle = warmup + (1 - warmup) / 2
    assert with_warmup(middle, warmup, then) == pytest.approx(then(0.5))
    assert with_warmup(1, warmup, then) == pytest.approx(then(1))


@given(PROGRESS)
def test_a_warm_up_of_zero_changes_nothing(progress):
    assert with_warmup(progress, 0.0, linear) == linear(progress)
