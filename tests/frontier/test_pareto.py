"""The frontier: which points are dominated, how clearly, and how much is covered."""

import math

import moocore
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.frontier.pareto import (
    Noise,
    Tolerance,
    attainment,
    dominance,
    frontier,
    hypervolume,
    hypervolume_over_budget,
    non_dominated,
)
from raytrain_plus.frontier.points import Objective, Point, PointError
from tests.frontier.spaces import SPACE
from tests.frontier.test_points import finished

UP, DOWN = Objective(metric="accuracy", mode="max"), Objective(metric="loss", mode="min")
EXACT = Tolerance(cost=0.0, quality=0.0)
QUIET = Noise(cost=0.0, quality=0.0, freedom=10)
NOISE = Noise(cost=0.05, quality=0.01, freedom=20)
UNKNOWN = Noise(cost=0.0, quality=0.0, freedom=0)


def point(cost, quality, seeds=1):
    """Return a point; a list of values is one per seed."""
    costs = cost if isinstance(cost, list) else [cost] * seeds
    qualities = quality if isinstance(quality, list) else [quality] * len(costs)
    return Point(
        recipe=SPACE.baseline,
        costs=dict(enumerate(costs)),
        qualities=dict(enumerate(qualities)),
    )


MEASURED = st.builds(
    point,
    st.integers(1, 30).map(float),
    st.integers(0, 30).map(lambda q: q / 32),
    st.integers(1, 5),
)
SETS = st.lists(MEASURED, min_size=1, max_size=12)
NOISES = st.builds(
    Noise, cost=st.floats(0, 0.3), quality=st.floats(0, 0.2), freedom=st.integers(0, 30)
)
TOLERANCES = st.builds(Tolerance, cost=st.floats(0, 0.3), quality=st.floats(0, 0.2))


@given(SETS, st.sampled_from([UP, DOWN]))
def test_without_noise_it_is_plain_dominance(found, objective):
    plane = np.array([[p.cost, objective.sign * p.quality] for p in found])
    expected = moocore.is_nondominated(plane, maximise=[False, True], keep_weakly=True)
    clear = dominance(found, objective, QUIET, EXACT)
    assert (~clear.any(axis=0) == expected).all()
    # Of equal points, moocore keeps one.
    kept = {(p.cost, p.quality) for p in frontier(found, objective)}
    assert kept == {(p.cost, p.quality) for p, on in zip(found, expected, strict=True) if on}


@given(SETS, NOISES, TOLERANCES)
def test_noise_never_makes_a_point_dominated(found, noise, tolerance):
    plain = dominance(found, UP, QUIET, EXACT)
    clear = dominance(found, UP, noise, tolerance)
    assert not (clear & ~plain).any()
    assert not clear[np.eye(len(found), dtype=bool)].any()
    assert set(map(id, frontier(found, UP))) <= set(
        map(id, non_dominated(found, UP, noise, tolerance))
    )


@given(SETS, NOISES, TOLERANCES, st.integers(1, 5))
def test_more_seeds_with_the_same_result_do_not_undo_dominance(found, noise, tolerance, more):
    again = [point(p.cost, p.quality, len(p.seeds) + more) for p in found]
    before = dominance(found, UP, noise, tolerance)
    assert not (before & ~dominance(again, UP, noise, tolerance)).any()


@given(SETS)
def test_without_repeated_runs_no_dominance_is_clear(found):
    assert not dominance(found, UP, UNKNOWN).any()


def test_random_differences_alone_do_not_dominate():
    found = [point(10.0, 0.91), point(10.0, 0.90)]
    assert non_dominated(found, UP, NOISE) == found
    many = [point(10.0, 0.91, 30), point(10.0, 0.90, 30)]
    assert non_dominated(many, UP, NOISE) == many[:1]


def test_a_worse_point_of_equal_cost_is_dominated():
    found = [point(10.0, 0.95, 9), point(10.05, 0.90, 9)]
    assert non_dominated(found, UP, NOISE, Tolerance(cost=0.1)) == found[:1]
    assert non_dominated(found, UP, NOISE, EXACT) == found  # it may be cheaper


def test_noise_is_pooled_over_recipes():
    found = [
        point([10.0, 10.0 * math.e**0.2], [0.8, 0.9]),
        point([20.0, 20.0 * math.e**0.2, 20.0 * math.e**0.1], [0.5, 0.6, 0.55]),
        point(99.0, 0.1),
    ]
    noise = Noise.of(found)
    assert noise.freedom == 3
    assert noise.quality == pytest.approx(math.sqrt((0.005 + 0.005) / 3))
    assert noise.cost == pytest.approx(math.sqrt((0.02 + 0.02) / 3))
    assert Noise.of([point(99.0, 0.1)]) == UNKNOWN


def test_a_tolerance_below_zero_is_refused():
    with pytest.raises(PointError, match="below zero"):
        Tolerance(cost=-0.1)


def test_hypervolume_counts_doublings_of_cost():
    found = [point(4.0, 0.8), point(8.0, 0.9), point(32.0, 0.95), point(4.0, 0.1)]
    # From the reference at cost 16: two doublings times 0.3, and one times 0.1 more.
    assert hypervolume(found, UP, (16.0, 0.5)) == pytest.approx(2 * 0.3 + 1 * 0.1)
    assert hypervolume(found, DOWN, (16.0, 0.5)) == pytest.approx(2 * 0.4)
    assert hypervolume([], UP, (16.0, 0.5)) == 0


@given(SETS, MEASURED)
def test_one_more_point_never_shrinks_the_hypervolume(found, more):
    reference = (31.0, -0.1)
    smaller = hypervolume(found, UP, reference)
    assert hypervolume([*found, more], UP, reference) >= smaller - 1e-12
    assert hypervolume(frontier(found, UP), UP, reference) == pytest.approx(smaller)


def test_the_hypervolume_of_a_sweep_grows_with_its_cost():
    trials = [
        finished("a", cost=8.0, quality=0.8, ended=1.0),
        finished("b", cost=3.0, quality=math.nan, outcome="failed", ended=2.0),
        finished("c", cost=4.0, quality=0.9, ended=3.0, recipe=SPACE.baseline),
    ]
    expected = [(8.0, 1 * 0.3), (11.0, 1 * 0.3), (15.0, 2 * 0.4)]
    found = hypervolume_over_budget(trials[::-1], UP, (16.0, 0.5))
    assert [x for pair in found for x in pair] == pytest.approx([x for p in expected for x in p])
    assert len(hypervolume_over_budget(trials, UP, (16.0, 0.5), steps=2)) == 2
    assert hypervolume_over_budget([], UP, (16.0, 0.5)) == []


def test_attainment_surfaces_say_how_many_seeds_reach_what():
    cheap = point([1.0, 2.0, 3.0], [0.5, 0.6, 0.7])
    dear = point([9.0, 9.0, 9.0], [0.9, 0.8, 0.7])
    surfaces = attainment([cheap, dear], UP)
    assert surfaces.keys() == {1, 2, 3}
    assert surfaces[3] == [(3.0, 0.5), (9.0, 0.7)]
    assert surfaces[1] == [(1.0, 0.5), (2.0, 0.6), (3.0, 0.7), (9.0, 0.9)]
    assert surfaces[2] == [(2.0, 0.5), (3.0, 0.6), (9.0, 0.8)]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=7, max_size=7).map(
            lambda pairs: point([float(c) for c, _ in pairs], [float(q) for _, q in pairs])
        ),
        min_size=1,
        max_size=4,
    )
)
def test_attainment_agrees_with_counting(found):
    for count, corners in attainment(found, UP, range(1, 8)).items():
        for cost, quality in corners:
            reached = sum(
                any(p.costs[s] <= cost and p.qualities[s] >= quality for p in found)
                for s in range(7)
            )
            assert reached >= count


def test_attainment_needs_shared_seeds():
    alone = point(1.0, 0.5)
    with pytest.raises(PointError, match=r"share the seeds \[0\]"):
        attainment([alone, point(1.0, 0.5, 3)], UP)
    with pytest.raises(PointError, match="the 0 points"):
        attainment([], UP)
