"""Ray Tune and Optuna draw from the space."""

import numpy as np
import optuna
import pytest
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.variant_generator import generate_variants

from raytrain_plus.frontier.space import SpaceError
from raytrain_plus.frontier.tune_space import optuna_space, tune_space
from tests.frontier.spaces import SPACE

DRAWS = 200


@pytest.fixture
def study():
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(
        directions=["minimize", "maximize"], sampler=optuna.samplers.RandomSampler(seed=1)
    )


def test_optunas_draws_are_conditional_and_valid(study):
    define = optuna_space(SPACE, {"duration": "1000sp"})
    on = set()
    for _ in range(DRAWS):
        trial = study.ask()
        config = define(trial)
        recipe = SPACE.recipe(config)
        on |= recipe.algorithms.keys()
        assert recipe.duration == "1000sp"
        assert config == SPACE.config(recipe)  # no setting of an aspect that is off
        assert trial.params.items() <= config.items()
        study.tell(trial, [1.0, 1.0])
    assert on == {*SPACE.names, "GradientClipping"}


def test_aspects_that_exclude_each_other_are_drawn_evenly(study):
    define = optuna_space(SPACE)
    found = [SPACE.on(define(study.ask())) for _ in range(DRAWS)]
    ema, swa = (sum(name in one for one in found) for name in ("EMA", "SWA"))
    assert ema + swa <= DRAWS
    for count in (ema, swa):  # a third each, within four standard deviations
        assert abs(count - DRAWS / 3) < 4 * (DRAWS * 2 / 9) ** 0.5


def test_optuna_proposes_through_tunes_own_searcher():
    search = OptunaSearch(
        optuna_space(SPACE),
        metric=["cost", "quality"],
        mode=["min", "max"],
        sampler=optuna.samplers.TPESampler(seed=1),
    )
    for number in range(5):
        recipe = SPACE.recipe(search.suggest(str(number)))
        search.on_trial_complete(str(number), {"cost": 1.0, "quality": len(recipe.algorithms)})


def test_tunes_draws_are_valid():
    drawn = tune_space(SPACE, {"BlurPool": True})
    assert drawn.keys() == SPACE.entries.keys()
    chance = np.random.default_rng(1)
    recipes = [
        SPACE.recipe(next(iter(generate_variants(drawn, random_state=chance)))[1])
        for _ in range(DRAWS)
    ]
    assert all("BlurPool" in recipe.algorithms for recipe in recipes)
    assert {recipe.batch_size for recipe in recipes} == {32, 64}
    assert {recipe.duration for recipe in recipes} == set(SPACE.rungs)
    augmented = [r.algorithms["AugMix"] for r in recipes if "AugMix" in r.algorithms]
    assert {settings["width"] for settings in augmented} == {2, 3, 4}


@pytest.mark.parametrize("make", [tune_space, optuna_space])
def test_fixed_values_outside_of_the_space_are_refused(make):
    with pytest.raises(SpaceError, match="duration='9sp' is not in the space"):
        make(SPACE, {"duration": "9sp"})
    with pytest.raises(SpaceError, match="everything is fixed"):
        make(SPACE, {k: d.typical for k, d in SPACE.entries.items()})
