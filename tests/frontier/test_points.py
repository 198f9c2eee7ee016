"""Points from finished trials: means over seeds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.frontier.points import (
    FinishedTrial,
    Objective,
    Point,
    PointError,
    key_of,
    label_of,
    points,
)
from tests.frontier.spaces import SPACE

RECIPE = SPACE.recipe_with(["BlurPool", "EMA"], "1000sp")


def finished(name="t1", seed=1, cost=10.0, quality=0.9, recipe=RECIPE, **said):
    return FinishedTrial(
        name=name,
        purpose="search",
        recipe=recipe,
        seed=seed,
        cost=cost,
        quality=quality,
        **{"started": 100.0, "ended": 120.0, **said},
    )


def test_only_complete_trials_make_points():
    trials = [
        finished("a"),
        finished("b", seed=2, quality=math.nan, outcome="dominated"),
        finished("c", seed=3, quality=math.nan, cost=0.0, outcome="failed", error="no luck"),
    ]
    (point,) = points(trials)
    assert point == Point(recipe=RECIPE, costs={1: 10.0}, qualities={1: 0.9})
    assert points(trials[1:]) == []


def test_one_seed_twice_counts_as_its_mean():
    trials = [finished("a", cost=10), finished("b", cost=14), finished("c", seed=2, cost=20)]
    (point,) = points(trials)
    assert point.costs == {1: 12.0, 2: 20.0}
    assert (point.seeds, point.cost, point.quality) == ((1, 2), 16.0, pytest.approx(0.9))


@given(st.permutations(range(6)))
def test_the_order_of_trials_does_not_matter(order):
    recipes = [RECIPE, SPACE.baseline, SPACE.recipe_with(["CutOut"])]
    trials = [finished(f"t{i}", seed=i // 3, cost=1.0 + i, recipe=recipes[i % 3]) for i in range(6)]
    assert points([trials[i] for i in order]) == points(trials)


def test_the_key_distinguishes_recipes():
    longer = RECIPE.model_copy(update={"duration": "2000sp"})
    assert key_of(longer) != key_of(RECIPE)
    other = RECIPE.model_copy(update={"batch_size": 64})
    assert key_of(other) != key_of(RECIPE)
    talked = RECIPE.model_copy(update={"about": "words change nothing"})
    assert key_of(talked) == key_of(RECIPE)
    assert label_of(RECIPE) == "BlurPool + EMA + GradientClipping"
    assert label_of(RECIPE.model_copy(update={"algorithms": {}})) == "no algorithms"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"name": "../t1"}, "no name of a file"),
        ({"name": ""}, "no name of a file"),
        ({"outcome": "half-way"}, "'half-way' is no outcome"),
        ({"quality": math.nan}, "is complete with quality nan"),
        ({"outcome": "dominated"}, "is dominated with quality 0.9"),
        ({"cost": 0.0}, "above zero"),
        ({"cost": math.inf}, "must be finite"),
    ],
)
def test_an_impossible_trial_is_refused(said, told):
    with pytest.raises(PointError, match=told):
        finished(**said)


def test_the_direction_of_quality():
    assert Objective(metric="accuracy", mode="max").sign == 1
    assert Objective(metric="loss", mode="min").sign == -1
    with pytest.raises(PointError, match="neither 'max' nor 'min'"):
        Objective(metric="loss", mode="low")


def test_a_point_needs_both_values_for_each_seed():
    with pytest.raises(PointError, match="each of its seeds"):
        Point(recipe=RECIPE, costs={1: 1.0}, qualities={2: 1.0})
