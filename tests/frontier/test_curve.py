"""A point compared with the baseline's curve: how much faster and better, with intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.frontier.curve import Curve, best_per_duration, compare
from raytrain_plus.frontier.points import Point, PointError
from tests.frontier.spaces import SPACE
from tests.frontier.test_pareto import DOWN, UP, point

CURVES = st.lists(
    st.tuples(st.floats(1.0, 1e4), st.floats(0.0, 1.0)),
    min_size=2,
    max_size=6,
    unique_by=lambda p: p[0],
).map(lambda pairs: Curve(*zip(*pairs, strict=True)))


@given(CURVES, st.floats(0.5, 2e4), st.floats(0.5, 2e4))
def test_quality_never_falls_as_cost_rises(curve, one, other):
    cheap, dear = sorted([one, other])
    assert curve.quality_at(cheap)[0] <= curve.quality_at(dear)[0] + 1e-12
    assert curve.quality_at(cheap)[1] <= curve.quality_at(dear)[1] + 1e-12


@given(CURVES, st.floats(-0.1, 1.1))
def test_the_least_cost_of_a_quality_reaches_it(curve, quality):
    low, high = curve.cost_of(quality)
    if low == high:
        assert curve.quality_at(low * (1 + 1e-9))[1] >= quality - 1e-9
        assert curve.quality_at(low * 0.99)[0] <= quality + 1e-9
    elif math.isinf(high):
        assert curve.quality_at(low)[1] < quality  # even the longest run does not reach it
    else:
        assert low == 0
        assert curve.quality_at(high)[0] > quality


def test_the_curve_is_straight_over_the_logarithm_of_cost():
    curve = Curve([10.0, 40.0], [0.8, 0.9])
    assert curve.quality_at(20.0)[0] == pytest.approx(0.85)
    assert curve.cost_of(0.85)[0] == pytest.approx(20.0)
    assert curve.cost_of(0.8) == (pytest.approx(10.0), pytest.approx(10.0))


def test_a_longer_run_that_is_worse_does_not_count():
    curve = Curve([10.0, 20.0, 40.0], [0.9, 0.8, 1.0])
    assert curve.quality_at(20.0)[0] == 0.9
    assert curve.cost_of(0.85) == (0.0, pytest.approx(10.0))
    assert curve.cost_of(0.95)[0] == pytest.approx(math.sqrt(20 * 40))


def baseline(jitter=0.0, seeds=5, sign=1):
    """Return a curve of 0.1 per doubling, from 10 to 40 device-seconds."""
    shifts = jitter * np.linspace(-1, 1, seeds)
    return [
        point([cost] * seeds, [sign * (quality + s) for s in shifts])
        for cost, quality in ((10.0, 0.7), (20.0, 0.8), (40.0, 0.9))
    ]


@pytest.mark.parametrize(("objective", "sign"), [(UP, 1), (DOWN, -1)])
def test_twice_as_fast_and_a_tenth_better(objective, sign):
    found = compare(point([10.0] * 5, [sign * 0.8] * 5), baseline(sign=sign), objective)
    assert found.speed_up.value == pytest.approx(2.0)
    assert found.gain.value == pytest.approx(0.1)
    assert (found.speed_up.bound, found.gain.bound) == ("", "")
    assert found.speed_up.low == pytest.approx(2.0)
    assert found.speed_up.high == pytest.approx(2.0)


def test_a_point_beyond_the_curve_is_only_reported_as_beyond():
    better = compare(point([20.0] * 5, [0.95] * 5), baseline(), UP)
    assert str(better.speed_up) == "more than 2 (2 to inf)"
    assert better.gain.value == pytest.approx(0.15)
    cheaper = compare(point([5.0] * 5, [0.75] * 5), baseline(), UP)
    assert str(cheaper.gain) == "more than 0.05 (0.05 to inf)"
    worse = compare(point([20.0] * 5, [0.6] * 5), baseline(), UP)
    assert worse.speed_up.bound == "less than"
    assert (worse.speed_up.low, worse.speed_up.value) == (0.0, pytest.approx(0.5))
    dearer = compare(point([80.0] * 5, [0.85] * 5), baseline(), UP)
    assert (dearer.gain.bound, dearer.gain.value) == ("less than", pytest.approx(-0.05))
    assert (dearer.gain.low, dearer.gain.high) == (-math.inf, pytest.approx(-0.05))


def test_shared_seeds_are_paired():
    """An effect of the seed on both adds no uncertainty to their difference."""
    paired = compare(point([10.0] * 5, list(0.8 + np.linspace(-0.05, 0.05, 5))), baseline(0.05), UP)
    assert paired.gain.low == pytest.approx(0.1, abs=1e-9)
    assert paired.gain.high == pytest.approx(0.1, abs=1e-9)
    others = dict(enumerate(0.8 + np.linspace(-0.05, 0.05, 5), start=100))
    apart = Point(recipe=SPACE.baseline, costs=dict.fromkeys(others, 10.0), qualities=others)
    unpaired = compare(apart, baseline(0.05), UP)
    assert unpaired.gain.low < 0.06
    assert unpaired.gain.high > 0.14


def test_the_baseline_compared_with_itself_is_not_faster():
    rng = np.random.default_rng(3)
    curve = [
        point(list(c * rng.uniform(0.9, 1.1, 5)), list(q + rng.uniform(0, 0.02, 5)))
        for c, q in ((10.0, 0.7), (20.0, 0.8), (40.0, 0.9))
    ]
    found = compare(curve[1], curve, UP)
    assert [found.speed_up.value, found.speed_up.low, found.speed_up.high] == pytest.approx(
        [1.0] * 3
    )
    assert [found.gain.value, found.gain.low, found.gain.high] == pytest.approx([0.0] * 3)


def test_one_seed_shows_no_interval():
    found = compare(point(10.0, 0.8), baseline(), UP)
    assert str(found.speed_up) == "2"
    assert math.isinf(found.speed_up.high)


def test_the_same_seed_gives_the_same_interval():
    other = point([10.0, 11.0, 12.0], [0.8, 0.81, 0.83])
    one, again = (compare(other, baseline(0.01), UP, seed=7) for _ in range(2))
    assert one == again


@pytest.mark.slow
def test_intervals_cover_the_truth_as_often_as_stated():
    rng = np.random.default_rng(5)
    held, short, tries = 0, 0, 400
    for number in range(tries):

        def noisy(cost, quality):
            return point([cost] * 5, list(quality + 0.01 * rng.standard_normal(5)))

        curve = [noisy(10.0, 0.7), noisy(20.0, 0.8), noisy(40.0, 0.9)]
        gain = compare(noisy(15.0, 0.85), curve, UP, seed=number).gain
        truth = 0.85 - (0.7 + 0.1 * math.log2(1.5))
        held += gain.low <= truth <= gain.high
        short += gain.low <= truth + 0.02 <= gain.high
    assert held / tries > 0.9
    assert short / tries < 0.5  # the negative control: the intervals are not simply wide


def test_the_tuned_baseline_is_the_best_at_each_duration():
    def at(duration, quality, seeds):
        recipe = SPACE.baseline.model_copy(update={"duration": duration})
        return Point(
            recipe=recipe,
            costs=dict.fromkeys(range(seeds), 9.0),
            qualities=dict.fromkeys(range(seeds), quality),
        )

    lucky, good, bad, long = (
        at("1000sp", 0.9, 1),
        at("1000sp", 0.8, 3),
        at("1000sp", 0.7, 3),
        at("2000sp", 0.9, 1),
    )
    assert best_per_duration([lucky, bad, good, long], UP) == [good, long]
    assert best_per_duration([lucky, bad, good, long], DOWN) == [bad, long]


def test_a_curve_needs_two_costs():
    with pytest.raises(PointError, match="train the baseline at more durations"):
        compare(point(10.0, 0.8), baseline()[:1], UP)
