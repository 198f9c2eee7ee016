"""The report of a made-up sweep finds its known effects."""

import random
from dataclasses import replace

import pytest

from raytrain_plus.frontier.points import FinishedTrial, Objective, label_of
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.report.contributions import contributions_of
from raytrain_plus.frontier.report.findings import findings_of
from tests.frontier import synthetic
from tests.frontier.synthetic import World

SYNERGY = ("BlurPool", "ProgressiveResizing")
QUIET = dict.fromkeys(("BlurPool", "EMA", "LabelSmoothing"), (0.0, 1.0))


@pytest.fixture(scope="module")
def found():
    return findings_of(synthetic.whole().results())


def shuffled(sweep, seed=0):
    """Return a sweep in which a trial's quality is independent of its recipe."""
    complete = [trial for trial in sweep.trials if trial.outcome == "complete"]
    others = random.Random(seed).sample(complete, len(complete))
    swapped = dict(zip((trial.name for trial in complete), others, strict=True))
    return [
        replace(t, quality=swapped[t.name].quality) if t.name in swapped else t
        for t in sweep.trials
    ]


def shown(found, verdict="shown"):
    both = [*found.contributions.alone, *found.contributions.pairs]
    return {one.aspects for one in both if one.effect and one.effect.verdict == verdict}


def test_the_known_winner_is_found_and_is_significantly_faster(found):
    winner = found.winner
    assert label_of(winner.point.recipe) == "BlurPool + EMA + ProgressiveResizing"
    assert winner.point.recipe.duration == "48000sp"
    world = synthetic.World()
    on = tuple(winner.point.recipe.algorithms)
    truth = world.cost((), 48000) / world.cost(on, 48000)  # it is better than any baseline
    assert winner.speed_up.bound == "more than"
    assert winner.speed_up.value == pytest.approx(truth, rel=0.02)
    assert winner.is_faster
    assert winner.gain.low > 0


def test_gains_and_speed_ups_are_the_true_ones(found):
    world = synthetic.World()
    told = [r for r in found.frontier if len(r.point.seeds) > 1 and not r.speed_up.bound]
    assert len(told) >= 5
    for row in told:
        on, samples = tuple(row.point.recipe.algorithms), int(row.point.recipe.duration[:-2])
        quality, cost = world.quality(on, samples), world.cost(on, samples)
        # The baseline gains three points for each doubling of its cost.
        needed = 12 * 2 ** ((quality - 0.8) / 0.03)
        assert row.speed_up.value == pytest.approx(needed / cost, rel=0.08)
        assert row.speed_up.low < row.speed_up.value < row.speed_up.high


@pytest.mark.parametrize("seed", range(3))
def test_the_known_synergy_is_shown_and_no_other(seed):
    world = World(seed=seed)
    found = findings_of(synthetic.whole(world).results())
    pairs = {aspects for aspects in shown(found) if len(aspects) == 2}
    assert pairs == {SYNERGY}
    effect = next(one.effect for one in found.contributions.pairs if one.aspects == SYNERGY)
    assert effect.estimate.value == pytest.approx(0.012, abs=0.005)
    assert shown(found, "hurts") == {("SAM",)}


def test_without_effects_no_effect_is_shown():
    wrong = 0
    for seed in range(6):
        sweep = synthetic.whole(World(effects=QUIET, synergies={}, seed=seed))
        found = findings_of(sweep.results())
        wrong += bool(shown(found) | shown(found, "hurts"))
    assert wrong <= 1  # as many as 95 % confidence allows


def test_shuffled_qualities_show_no_effect():
    """The negative control."""
    sweep = synthetic.whole()
    found = findings_of(sweep.results(trials=shuffled(sweep)))
    assert SYNERGY not in shown(found)
    assert not [row for row in found.frontier if row.is_faster and len(row.point.seeds) > 1]


def test_a_badly_tuned_baseline_does_not_look_like_an_effect(found):
    """Trials with other learning rates are in other blocks; without them the result is the same."""
    sweep = found.sweep
    trials = [t for t in found.trials if t.purpose not in ("tuning", "search", "calibration")]
    without = contributions_of(trials, found.baseline, sweep.objective)
    told = {one.aspects: one.effect.estimate.value for one in found.contributions.alone}
    for one in without.alone:
        assert told[one.aspects] == pytest.approx(one.effect.estimate.value, abs=1e-12)
    ema = next(one for one in found.contributions.alone if one.aspects == ("EMA",))
    assert ema.quality.low < 0.012 < ema.quality.high
    assert ema.cost.value == pytest.approx(1.02, abs=0.02)


def run(on, seed, quality, duration="2000sp"):
    return FinishedTrial(
        name=f"{'-'.join(on)}-{duration}-{seed}-{quality:.6f}",
        purpose="factorial",
        recipe=Recipe(duration=duration, batch_size=8, algorithms={name: {} for name in on}),
        seed=seed,
        cost=1.0,
        quality=quality,
        started=0.0,
        ended=1.0,
    )


SETS = [(), ("EMA",), ("SWA",), ("EMA", "SWA")]


def designed():
    """A design that was run with four seeds; EMA gains 0.1, seeds differ at random."""
    return [
        run(on, seed, 0.5 + 0.1 * ("EMA" in on) + 0.02 * seed + 0.001 * ((seed * 7 + len(on)) % 3))
        for on in SETS
        for seed in range(4)
    ]


def test_recipes_with_one_seed_do_not_blur_the_contributions_of_others():
    """At another duration, where EMA gains nothing, only one seed was run."""
    stray = [run(on, 0, 0.9, "8000sp") for on in SETS] + [run(("SAM",), 0, 0.3)]
    told = contributions_of([*designed(), *stray], [], Objective(metric="m", mode="max"))
    (ema,) = [one for one in told.alone if one.aspects == ("EMA",)]
    assert ema.effect.verdict == "shown"
    assert ema.effect.estimate.value == pytest.approx(0.1, abs=0.005)
    assert (told.duration, told.trials) == ("2000sp", 16)
    assert told.unknown["SAM",] == "not run with the others with several seeds"


def test_contributions_are_shown_also_if_there_is_only_one_seed():
    once = [trial for trial in designed() if trial.seed == 0]
    told = contributions_of(once, [], Objective(metric="m", mode="max"))
    assert told.trials == 4
    assert {one.effect.verdict for one in told.alone} == {"not shown"}


@pytest.mark.parametrize("calibrated", [True, False])
def test_costs_are_corrected_for_drift(calibrated):
    sweep = synthetic.whole(World(drift=0.3))
    kept = [t for t in sweep.trials if calibrated or t.purpose != "calibration"]
    found = findings_of(sweep.results(trials=kept))
    costs = [
        trial.cost
        for trial in found.trials
        if trial.recipe.duration == "12000sp"
        and not trial.recipe.algorithms
        and trial.purpose != "search"  # after the last calibration the drift is unknown
    ]
    if not calibrated:
        costs += [t.cost for t in sweep.trials if t.purpose == "calibration"]
    spread = max(costs) / min(costs) - 1
    assert (spread < 0.08) is calibrated
    assert bool(found.calibration.speeds) is calibrated


def test_a_loss_is_the_mirror_of_a_score():
    high = findings_of(synthetic.whole(World()).results())
    low = findings_of(synthetic.whole(World(less_is_better=True)).results())
    assert label_of(low.winner.point.recipe) == label_of(high.winner.point.recipe)
    # Noise is not mirrored: the two estimates are only about equal.
    assert low.winner.gain.value == pytest.approx(high.winner.gain.value, abs=0.01)
    assert ("SAM",) in shown(low, "hurts")
    assert low.hypervolume[-1][1] == pytest.approx(high.hypervolume[-1][1], rel=0.15)


def test_dominated_recipes_are_counted_and_not_listed(found):
    assert found.dominated > 20
    assert found.dominated + len(found.frontier) + found.unproven == len(found.points)
    assert not any("SAM" in row.point.recipe.algorithms for row in found.frontier)


def test_a_baseline_alone_is_the_best_so_far():
    sweep = synthetic.baseline_alone(World())
    found = findings_of(sweep.results())
    assert found.winner.is_baseline
    assert found.winner.point.recipe.duration == "48000sp"
    assert found.winner.speed_up is None
    assert len(found.baseline) == 3
    assert found.contributions.alone == []


def test_one_trial_and_none_are_enough():
    one = findings_of(synthetic.baseline_alone(World(), (12000,), (17,)).results())
    assert one.winner.point.seeds == (17,)
    assert one.surfaces is None
    none = findings_of(synthetic.Sweep(World()).results())
    assert (none.winner, none.frontier, none.hypervolume) == (None, [], [])


def test_one_unrepeated_duration_of_the_baseline_does_not_remove_all_intervals():
    sweep = synthetic.whole()
    kept = [
        t for t in sweep.trials
        if not (t.purpose == "baseline" and t.recipe.duration == "48000sp" and t.seed > 17)
    ]  # fmt: skip
    found = findings_of(sweep.results(trials=kept))
    assert [point.recipe.duration for point in found.baseline] == ["12000sp", "24000sp"]
    assert any(row.is_faster for row in found.frontier)
    alone = [t for t in kept if t.purpose != "baseline" or t.seed == 17]
    found = findings_of(sweep.results(trials=alone))
    assert not any(row.is_faster for row in found.frontier)  # the control
