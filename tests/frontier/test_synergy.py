"""Contributions of aspects alone and in pairs: existing ones are found, and no others."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from raytrain_plus.frontier.curve import Curve
from raytrain_plus.frontier.designs import factorial
from raytrain_plus.frontier.synergy import (
    Observation,
    by_gain,
    by_quality,
    effects,
    holm,
    observe,
)
from tests.frontier.spaces import SPACE
from tests.frontier.test_pareto import DOWN, UP
from tests.frontier.test_points import finished

NAMES = ("A", "B", "C", "D")
NUMBERS = st.floats(-1, 1).map(lambda x: round(x, 3))


def seen(truth, runs, seeds=5, noise=0.0, durations=("1ep", "2ep"), drawn=0):
    """Return observations; `truth` maps tuples of names to contributions."""
    rng = np.random.default_rng(drawn)
    return [
        Observation(
            on=on,
            duration=duration,
            seed=seed,
            value=10.0 * place
            + 3.0 * seed  # the effect of seeds and durations on all
            + sum(v for names, v in truth.items() if set(names) <= on)
            + noise * rng.standard_normal(),
        )
        for place, duration in enumerate(durations)
        for seed in range(seeds)
        for on in runs
    ]


def named(found):
    return {effect.aspects: effect for effect in found}


TRUTHS = st.fixed_dictionaries({names: NUMBERS for n in (1, 2) for names in combinations(NAMES, n)})


@given(TRUTHS, st.sampled_from([None, 5]))
def test_known_contributions_are_found(truth, resolution):
    found = effects(seen(truth, factorial(NAMES, resolution).runs))
    assert found.unknown == ()
    for effect in (*found.alone, *found.pairs):
        assert effect.estimate.value == pytest.approx(truth[effect.aspects], abs=1e-6)
    assert {e.aspects for e in (*found.alone, *found.pairs)} == truth.keys()
    values = [effect.estimate.value for effect in found.pairs]
    assert values == sorted(values, reverse=True)


def test_a_synergy_is_shown_and_its_absence_is_not():
    truth = {("A",): 0.5, ("B",): 0.5, ("A", "B"): 0.4, ("C",): -0.5, ("C", "D"): -0.4}
    found = effects(seen(truth, factorial(NAMES).runs, noise=0.05))
    verdicts = {aspects: e.verdict for aspects, e in named(found.pairs).items()}
    assert verdicts.pop(("A", "B")) == "shown"
    assert verdicts.pop(("C", "D")) == "hurts"
    assert set(verdicts.values()) == {"not shown"}
    alone = {aspects[0]: e.verdict for aspects, e in named(found.alone).items()}
    assert alone == {"A": "shown", "B": "shown", "C": "hurts", "D": "not shown"}


def test_an_aspect_that_changes_no_bit_contributes_nothing():
    found = effects(seen({("A",): 0.1}, factorial("AB").runs))
    inert = named(found.alone)["B",]
    assert (inert.estimate.value, inert.p, inert.verdict) == (0.0, 1.0, "not shown")
    assert named(found.alone)["A",].verdict == "shown"


def test_with_all_trials_for_all_seeds_it_is_the_paired_t_test():
    observations = seen({}, factorial("AB").runs, seeds=4, noise=1.0, durations=("1ep",))
    value = {(o.seed, o.on): o.value for o in observations}
    a, b = frozenset("A"), frozenset("B")
    per_seed = [
        value[s, a | b] - value[s, a] - value[s, b] + value[s, frozenset()] for s in range(4)
    ]
    (pair,) = effects(observations).pairs
    expected = ttest_1samp(per_seed, 0.0)
    assert pair.estimate.value == pytest.approx(np.mean(per_seed))
    assert pair.p == pytest.approx(expected.pvalue)
    interval = expected.confidence_interval(0.95)
    assert (pair.estimate.low, pair.estimate.high) == pytest.approx((interval.low, interval.high))


def test_random_differences_are_rarely_reported_as_effects():
    runs = factorial(NAMES).runs
    wrong = [
        any(e.verdict != "not shown" for e in effects(seen({}, runs, noise=1.0, drawn=n)).pairs)
        for n in range(100)
    ]
    assert sum(wrong) <= 12  # 5 expected, three standard deviations more


def test_contributions_that_trials_cannot_separate_are_reported():
    # Of resolution 3: the third column is the product of the first two.
    mixed = effects(seen({}, factorial("ABC", 3).runs))
    assert mixed.pairs == ()
    assert dict(mixed.unknown)["A", "B"] == "confounded with others in these trials"
    apart = effects(seen({("A",): 0.2}, [frozenset(), frozenset("A"), frozenset("B")]))
    assert apart.unknown == ((("A", "B"), "never run together"),)
    assert named(apart.alone)["A",].estimate.value == pytest.approx(0.2)


def test_one_seed_shows_no_effect():
    runs = factorial("AB").runs
    single = effects(seen({("A", "B"): 9.0}, runs, seeds=1))
    (pair,) = single.pairs
    assert (pair.seeds, pair.p, pair.verdict) == (1, 1.0, "not shown")
    assert pair.estimate.value == pytest.approx(9.0)
    # The same if other seeds exist, but without that pair.
    others = [o for o in seen({("A", "B"): 9.0}, runs) if o.seed == 0 or len(o.on) < 2]
    (pair,) = effects(others).pairs
    assert (pair.seeds, pair.verdict) == (1, "not shown")


def test_trials_of_different_blocks_are_not_compared():
    lone = [
        Observation(on=frozenset("A"), duration="1ep", seed=1, value=5.0),
        Observation(on=frozenset(), duration="2ep", seed=1, value=1.0),
        Observation(on=frozenset(), duration="1ep", seed=2, value=1.0),
    ]
    assert effects(lone).unknown == ((("A",), "confounded with others in these trials"),)
    assert effects([]).alone == ()


def test_trials_become_observations():
    both = SPACE.recipe_with(["BlurPool", "CutOut"])
    trials = [
        finished("a", recipe=both, cost=20.0, quality=0.9),
        finished("b", recipe=SPACE.baseline, cost=10.0, quality=0.7, seed=2),
        finished("c", recipe=both, cost=90.0, quality=0.9),
        finished("d", recipe=both, quality=float("nan"), outcome="failed"),
    ]
    seen_by_quality = observe(trials, by_quality(DOWN))
    assert [o.value for o in seen_by_quality] == [-0.9, -0.7, -0.9]
    assert seen_by_quality[0].on == {"GradientClipping", "BlurPool", "CutOut"}
    assert (seen_by_quality[1].duration, seen_by_quality[1].seed) == ("4000sp", 2)
    gains = observe(trials, by_gain(UP, Curve([10.0, 40.0], [0.7, 0.9])))
    assert [o.value for o in gains] == pytest.approx([0.1, 0.0])  # 90 is beyond the curve
    # An aspect that is on in all trials has no measurable contribution.
    assert named(effects(seen_by_quality).alone).keys() == set()
    assert ("GradientClipping",) not in dict(effects(seen_by_quality).unknown)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holms_correction(chances):
    corrected = holm(chances)
    assert all(c >= p for c, p in zip(corrected, chances, strict=True))
    order = sorted(range(len(chances)), key=chances.__getitem__)
    assert [corrected[i] for i in order] == sorted(corrected)
    if chances:
        assert min(corrected) == min(1, len(chances) * min(chances))


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
