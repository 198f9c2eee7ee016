"""Estimates with intervals: right for few seeds, and for values beyond the measured range."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.frontier.estimates import draws, from_replicates, t_quantile

VALUES = np.arange(1000.0)


def test_students_t():
    assert t_quantile(4) == pytest.approx(2.776, abs=1e-3)
    assert t_quantile(1e9) == pytest.approx(1.96, abs=1e-3)
    assert math.isinf(t_quantile(0))


@given(st.integers(2, 30))
def test_fewer_seeds_give_wider_intervals(seeds):
    few = from_replicates((500.0, 500.0), VALUES, VALUES, seeds)
    many = from_replicates((500.0, 500.0), VALUES, VALUES, seeds + 10)
    assert few.low <= many.low < 500 < many.high <= few.high
    assert many.low < 25  # wider than the plain percentiles, too
    assert many.high > 975


def test_one_seed_gives_no_interval():
    estimate = from_replicates((2.0, 2.0), VALUES, VALUES, 1)
    assert (estimate.low, estimate.high, str(estimate)) == (-math.inf, math.inf, "2")


def test_replicates_beyond_the_measured_range_open_one_end_only():
    beyond = np.where(VALUES > 500, np.inf, VALUES)
    estimate = from_replicates((2.0, 2.0), VALUES, beyond, 5)
    assert math.isinf(estimate.high)
    assert 0 <= estimate.low < 25
    assert from_replicates((2.0, math.inf), VALUES, beyond, 5).bound == "more than"
    assert from_replicates((0.0, 2.0), VALUES, VALUES, 5).bound == "less than"


def test_draws_follow_from_their_seed():
    drawn = draws(5, seed=1, replicates=100)
    assert (drawn.sum(axis=1) == 5).all()
    assert (drawn == draws(5, seed=1, replicates=100)).all()
    assert (drawn != draws(5, seed=2, replicates=100)).any()
