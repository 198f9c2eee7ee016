"""Factorial designs: balanced, of the stated resolution, without forbidden runs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.frontier.designs import DesignError, factorial
from tests.frontier.spaces import SPACE

NAMES = "abcdefghij"


def signs(design):
    """Return the design as -1 and +1, shape (runs, aspects)."""
    return np.array([[1 if a in run else -1 for a in design.aspects] for run in design.runs])


def resolution_of(design):
    """Return the length of the shortest product of columns that is the same in all runs."""
    columns = signs(design).T
    for size in range(1, len(columns) + 1):
        for chosen in combinations(columns, size):
            if abs(np.prod(chosen, axis=0).sum()) == len(design.runs):
                return size
    return None


@given(st.integers(1, 7), st.sampled_from([None, 3, 4, 5]))
def test_columns_are_balanced_and_orthogonal(count, resolution):
    design = factorial(NAMES[:count], resolution)
    columns = signs(design)
    assert (columns.T @ columns == len(design.runs) * np.eye(count)).all()
    assert (columns.sum(axis=0) == 0).all()
    assert design.runs[0] == frozenset()
    assert len(set(design.runs)) == len(design.runs)


@given(st.integers(1, 10), st.sampled_from([3, 4, 5]))
def test_the_resolution_is_the_stated_one(count, resolution):
    design = factorial(NAMES[:count], resolution)
    found = resolution_of(design)
    if design.resolution is None:
        assert (found, len(design.runs)) == (None, 2**count)
    else:
        assert found >= design.resolution == resolution


@pytest.mark.parametrize(
    ("count", "resolution", "runs"),
    # Box and Hunter's table: the fewest runs.
    [(3, 3, 4), (7, 3, 8), (4, 4, 8), (8, 4, 16), (5, 5, 16), (6, 5, 32), (7, 5, 64), (8, 5, 64)],
)
def test_designs_have_no_more_runs_than_the_published_tables(count, resolution, runs):
    assert len(factorial(NAMES[:count], resolution).runs) == runs


def test_full_designs_hold_every_combination():
    design = factorial("abc")
    assert set(design.runs) == {
        frozenset(chosen) for n in range(4) for chosen in combinations("abc", n)
    }
    assert str(design) == "8 runs over 3 aspects, full"


def test_forbidden_runs_are_dropped_and_reported():
    design = factorial(["BlurPool", "EMA", "SWA"], refusal=SPACE.refusal)
    both = frozenset({"EMA", "SWA"})
    assert [on for on, _ in design.dropped] == [both, both | {"BlurPool"}]
    assert all(SPACE.refusal(run) is None for run in design.runs)
    assert len(design.runs) == 6
    assert str(design) == (
        "6 runs over 3 aspects, full; 2 dropped, as EMA and SWA exclude each other"
    )
    for run in design.runs:
        assert SPACE.recipe_with(run).algorithms.keys() == {"GradientClipping", *run}


def test_a_lower_resolution_is_measured_as_lower():
    """The negative control of `resolution_of`."""
    assert resolution_of(factorial("abcde", 3)) == 3
    assert resolution_of(factorial("abcde", 5)) == 5


@pytest.mark.parametrize(
    ("aspects", "resolution", "told"),
    [
        ("", None, "at least one aspect"),
        ("aba", None, "given twice"),
        ("abc", 2, "resolution 2 would mix up"),
        ([f"a{i}" for i in range(13)], None, "13 aspects need 8192 runs"),
    ],
)
def test_impossible_designs_are_refused(aspects, resolution, told):
    with pytest.raises(DesignError, match=told):
        factorial(aspects, resolution)
