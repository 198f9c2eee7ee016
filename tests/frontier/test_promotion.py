"""Successive promotion: only recipes that are not dominated get longer runs and more seeds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.frontier.points import Objective, Point, PointError, key_of
from raytrain_plus.frontier.promotion import PromotionRule, propose, risers
from tests.frontier.spaces import SPACE
from tests.frontier.test_pareto import UP

DURATIONS = ("1000sp", "2000sp", "4000sp")
SEEDS = (11, 12, 13, 14, 15)
RULE = PromotionRule(durations=DURATIONS, seeds=SEEDS)
RATES = [0.01, 0.05, 0.1, 0.2, 0.5, 1.0]


def recipe(rate, duration="1000sp"):
    return SPACE.baseline.model_copy(
        update={"duration": duration, "task": {**SPACE.baseline.task, "learning_rate": rate}}
    )


def point(rate, cost, quality, duration="1000sp", seeds=1, jitter=0.0):
    some = SEEDS[:seeds]
    return Point(
        recipe=recipe(rate, duration),
        costs=dict.fromkeys(some, cost),
        qualities={s: quality + jitter * (-1) ** i for i, s in enumerate(some)},
    )


KNOWN = point(9.0, 50.0, 0.5, seeds=5, jitter=0.01)  # a baseline that shows the noise
SETS = st.lists(
    st.builds(
        point,
        st.sampled_from(RATES),
        st.integers(8, 12).map(float),
        st.integers(60, 90).map(lambda q: q / 100),
        st.sampled_from(DURATIONS),
        st.integers(1, 5),
        st.just(0.01),
    ),
    max_size=10,
    unique_by=lambda p: key_of(p.recipe),
)


def runs(proposals):
    return [(p.recipe.task["learning_rate"], p.recipe.duration, p.seed) for p in proposals]


def test_promotion_goes_from_one_seed_to_a_longer_run_to_all_seeds():
    assert RULE.wanted == (1, 3, 5)
    start = [point(0.1, 10.0, 0.8)]
    assert runs(propose(start, RULE, UP)) == [(0.1, "2000sp", 11)]
    longer = [*start, point(0.1, 20.0, 0.85, "2000sp")]
    assert runs(propose(longer, RULE, UP)) == [(0.1, "2000sp", 12), (0.1, "2000sp", 13)]
    last = [*start, point(0.1, 20.0, 0.85, "2000sp", 3), point(0.1, 40.0, 0.9, "4000sp", 4)]
    assert runs(propose(last, RULE, UP)) == [(0.1, "4000sp", 15)]
    whole = [*last[:2], point(0.1, 40.0, 0.9, "4000sp", 5)]
    assert propose(whole, RULE, UP) == []


def test_clearly_dominated_recipes_are_not_promoted():
    found = [KNOWN, point(0.1, 10.0, 0.9), point(0.5, 12.0, 0.6)]
    assert runs(propose(found, RULE, UP)) == [(0.1, "2000sp", 11)]
    # The negative control: a difference below the noise is not clear, and both are promoted.
    close = [KNOWN, point(0.1, 10.0, 0.9), point(0.5, 10.0, 0.89)]
    assert {run[0] for run in runs(propose(close, RULE, UP))} == {0.1, 0.5}


def test_without_any_repeated_run_no_recipe_is_clearly_dominated():
    found = [point(0.1, 10.0, 0.9), point(0.5, 12.0, 0.1)]
    assert len(propose(found, RULE, UP)) == 2


def test_a_shorter_run_of_another_recipe_can_dominate():
    found = [KNOWN, point(0.1, 10.0, 0.9), point(0.5, 20.0, 0.7, "2000sp")]
    assert risers(found, RULE, UP, 1) == []


def test_running_trials_are_not_proposed_again():
    found = [point(0.1, 20.0, 0.85, "2000sp")]
    running = {(key_of(recipe(0.1, "2000sp")), 12)}
    assert runs(propose(found, RULE, UP, running)) == [(0.1, "2000sp", 13)]


@given(SETS)
def test_no_trial_is_proposed_that_was_run_or_is_not_in_the_rule(found):
    done = {(p.recipe.task["learning_rate"], p.recipe.duration, s) for p in found for s in p.seeds}
    proposed = runs(propose(found, RULE, UP))
    assert not done & set(proposed)
    assert len(set(proposed)) == len(proposed)
    assert {seed for _, _, seed in proposed} <= set(SEEDS)
    assert {rate for rate, _, _ in proposed} <= {rate for rate, _, _ in done}


@given(SETS, st.randoms(use_true_random=False))
def test_the_order_of_the_points_does_not_matter(found, shuffler):
    shuffled = list(found)
    shuffler.shuffle(shuffled)
    assert propose(shuffled, RULE, UP) == propose(found, RULE, UP)


@given(SETS, SETS, st.integers(1, 4), st.sampled_from([None, 1, 2]))
def test_more_evidence_does_not_remove_a_clear_winner(found, more, seeds, at_most):
    """It also keeps its place if only few may be promoted."""
    rule = PromotionRule(durations=DURATIONS, seeds=SEEDS, at_most=at_most)
    others = [KNOWN, *(p for p in found if p.recipe.task["learning_rate"] != 0.05)]
    winner = point(0.05, 1.0, 0.99)
    assert risers([*others, winner], rule, UP, 0)[0] == winner
    known = {key_of(p.recipe) for p in others}
    added = [
        p for p in more if key_of(p.recipe) not in known and p.recipe.task["learning_rate"] != 0.05
    ]
    surer = point(0.05, 1.0, 0.99, seeds=1 + seeds, jitter=0.001)
    assert risers([*others, *added, surer], rule, UP, 0)[0] == surer


@given(st.sets(st.sampled_from(RATES), min_size=1), st.integers(0, 3))
def test_a_sweep_ends_with_all_seeds_for_the_best(rates, at_most):
    rule = PromotionRule(durations=DURATIONS, seeds=SEEDS, at_most=at_most or None)

    def train(rate, duration, seed):
        cost = int(duration.removesuffix("sp")) / 100
        return cost, 0.5 + 0.1 * DURATIONS.index(duration) - abs(rate - 0.1) + 0.001 * (seed % 3)

    shown = {(rate, "1000sp"): {SEEDS[0]: train(rate, "1000sp", SEEDS[0])} for rate in rates}
    for _ in range(len(rates) * len(DURATIONS) * len(SEEDS) + 1):
        found = [
            Point(
                recipe=recipe(rate, duration),
                costs={s: cost for s, (cost, _) in seeds.items()},
                qualities={s: quality for s, (_, quality) in seeds.items()},
            )
            for (rate, duration), seeds in shown.items()
        ]
        proposed = runs(propose(found, rule, UP))
        if not proposed:
            break
        rate, duration, seed = proposed[0]
        shown.setdefault((rate, duration), {})[seed] = train(rate, duration, seed)
    assert proposed == []
    best = min(rates, key=lambda rate: abs(rate - 0.1))
    assert shown[best, "4000sp"].keys() == set(SEEDS)


def test_only_few_recipes_are_promoted():
    found = [point(rate, 10.0 + i, 0.7 + i / 100) for i, rate in enumerate(RATES)]
    all_of_them = propose(found, RULE, UP)
    few = PromotionRule(durations=DURATIONS, seeds=SEEDS, at_most=2)
    assert len(all_of_them) == len(RATES)
    assert len(propose(found, few, UP)) == 2
    assert set(runs(propose(found, few, UP))) <= set(runs(all_of_them))


def test_recipes_that_cover_most_are_promoted_first():
    front = [point(0.1, 10.0, 0.8), point(0.2, 20.0, 0.9), point(0.5, 21.0, 0.901)]
    behind = point(0.05, 10.0, 0.7)  # not clearly, because no noise is known
    assert risers([behind, *front[::-1]], RULE, UP, 0) == [*front, behind]


def test_less_can_be_better():
    found = [KNOWN, point(0.1, 12.0, 0.9), point(0.5, 10.0, 0.6)]
    lower = propose(found, RULE, Objective(metric="loss", mode="min"))
    assert 0.1 not in {rate for rate, _, _ in runs(lower)}
    assert {rate for rate, _, _ in runs(propose(found, RULE, UP))} == {0.1, 0.5}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"durations": ()}, "at least one of each"),
        ({"seeds": (1, 1)}, "no seed twice"),
        ({"seeds_at": (1, 2)}, "one number for each of 3 durations"),
        ({"seeds_at": (0, 1, 2)}, "from 1 up to 5"),
        ({"seeds_at": (1, 2, 6)}, "from 1 up to 5"),
        ({"seeds_at": (3, 2, 5)}, "none falling"),
        ({"at_most": 0}, "would let no recipe rise"),
    ],
)
def test_invalid_rules_are_refused(said, told):
    with pytest.raises(PointError, match=told):
        PromotionRule(**{"durations": DURATIONS, "seeds": SEEDS, **said})


def test_one_duration_gets_all_seeds():
    rule = PromotionRule(durations=("1000sp",), seeds=SEEDS)
    assert rule.wanted == (5,)
    assert len(propose([point(0.1, 10.0, 0.8)], rule, UP)) == 4
