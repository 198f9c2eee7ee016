"""The order of a sweep's trials: the baseline is first, and never has fewer runs than a recipe."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.frontier.agenda import (
    BASELINE,
    CALIBRATION,
    FACTORIAL,
    PROMOTION,
    SEARCH,
    TUNING,
    Agenda,
    Proposal,
    SweepBudget,
    rate_of,
)
from raytrain_plus.frontier.designs import factorial
from raytrain_plus.frontier.domain import Range
from raytrain_plus.frontier.points import FinishedTrial, points
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace

SPACE = RecipeSpace(
    baseline=Recipe(duration="100sp", batch_size=8, task={"learning_rate": 0.1}),
    aspects={"EMA": {}, "LabelSmoothing": {"smoothing": Range(low=0.01, high=0.2)}},
    task={"learning_rate": Range(low=0.01, high=1.0, log=True)},
    durations=("100sp", "200sp"),
)
SEEDS = (17, 18, 19, 20, 21)


def agenda(**changes):
    given_ = {
        "space": SPACE,
        "seeds": SEEDS,
        "promote": lambda _: (),
        "design": factorial(("EMA", "LabelSmoothing")),
        "calibrate_every": 5,
    }
    return Agenda(**{**given_, **changes})


def ended(number, proposal, outcome="complete", quality=0.5):
    return FinishedTrial(
        name=f"{number:05d}",
        purpose=proposal.purpose,
        outcome=outcome,
        recipe=proposal.recipe,
        seed=proposal.seed,
        cost=1.0,
        quality=quality if outcome == "complete" else float("nan"),
        started=float(number),
        ended=number + 1.0,
    )


def recipes(chance):
    """Return a sampler over the aspects of the space."""

    def draw():
        return SPACE.recipe_with(chance[draw.at % len(chance)], "100sp").model_copy(
            update={"task": {"learning_rate": 0.01 + draw.at / 1000}}
        )

    draw.at = 0
    return draw


def play(
    plan,
    trials,
    *,
    at_once=1,
    draw=lambda: None,
    outcomes=lambda _: "complete",
    quality=lambda _: 0.5,
    finished=None,
):
    """Run a sweep of trials that all end in the order in which they started."""
    finished = [] if finished is None else finished
    pending, order = [], []
    while len(order) < trials:
        proposal = plan.next(finished, pending, draw)
        if proposal is not None:
            order.append(proposal)
            pending.append(proposal)
            if proposal.purpose == SEARCH:
                draw.at += 1
        if proposal is None or len(pending) == at_once:
            if not pending:
                break
            first = pending.pop(0)
            finished.append(ended(len(finished), first, outcomes(first), quality(first)))
    return order


def test_the_baseline_comes_first_at_every_duration():
    order = play(agenda(), 30)
    assert [p.recipe.duration for p in order[:2]] == ["100sp", "200sp"]
    assert {p.purpose for p in order[:5]} == {BASELINE}
    assert [p.seed for p in order[2:5]] == [18, 19, 20]
    assert all(not p.recipe.algorithms for p in order[:5])


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([(), ("EMA",), ("LabelSmoothing",), ("EMA", "LabelSmoothing")]),
             min_size=1, max_size=5),
    st.integers(1, 4),
)  # fmt: skip
def test_no_combination_of_aspects_is_tried_more_often_than_the_baseline(chance, at_once):
    """For any draws of the sampler."""
    plan = agenda(seeds=(17,))
    order = play(plan, 40, at_once=at_once, draw=recipes(chance))
    tried = Counter()
    for proposal in order:
        if proposal.purpose == CALIBRATION:
            continue
        tried[proposal.recipe.duration, plan.aspects_of(proposal.recipe)] += 1
        for (duration, _), count in tried.items():
            assert count <= tried[duration, frozenset()]


def test_an_agenda_that_does_not_tune_is_noticed(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(Agenda, "_tuned_first", lambda _, wish, *__: wish)
    plan = agenda(seeds=(17,))
    order = play(plan, 20, draw=recipes([("EMA",)]))
    tried = Counter((p.recipe.duration, plan.aspects_of(p.recipe)) for p in order)
    assert any(count > tried[duration, frozenset()] for (duration, _), count in tried.items())


def test_the_baseline_is_tuned_within_the_space_without_repetition():
    order = play(agenda(seeds=(17,)), 60, draw=recipes([("EMA",)]))
    tunings = [p for p in order if p.purpose == TUNING]
    assert len({p.key for p in order if p.purpose != CALIBRATION}) == len(
        [p for p in order if p.purpose != CALIBRATION]
    )
    assert tunings
    for proposal in tunings:
        assert SPACE.config(proposal.recipe)["task.learning_rate"] != 0.1


def test_settings_for_a_longer_baseline_were_best_at_the_shorter_duration():
    risen = [SPACE.recipe_with(("EMA",), "200sp").model_copy(update={"batch_size": 8 + i})
             for i in range(8)]  # fmt: skip
    finished = []
    play(
        agenda(
            seeds=(17,),
            promote=lambda found: [(r, 17) for r in risen if len(found) > 30],
            sign=-1,
        ),
        60,
        draw=recipes([("EMA",)]),
        quality=lucky,
        finished=finished,
    )
    first = next(i for i, t in enumerate(finished)
                 if t.purpose == TUNING and t.recipe.duration == "200sp")  # fmt: skip
    before = [t for t in finished[:first] if not t.recipe.algorithms and t.purpose == TUNING]
    assert len(before) > 5
    best = min(before, key=lambda trial: trial.quality)
    assert best is not before[0]  # which a random draw would choose
    assert finished[first].recipe.task == best.recipe.task


def test_the_design_is_run_at_its_duration_with_its_seeds():
    order = play(agenda(design_at="200sp", design_seeds=3, promote=lambda _: ()), 60)
    runs = [p for p in order if p.purpose == FACTORIAL]
    assert {p.recipe.duration for p in runs} == {"200sp"}
    assert [p.seed for p in runs] == [17] * 3 + [18] * 3 + [19] * 3
    assert len({p.key for p in runs}) == 9


def test_a_baseline_without_settings_to_tune_gets_more_seeds():
    space = RecipeSpace(
        baseline=Recipe(duration="100sp", batch_size=8), aspects={"EMA": {}, "LabelSmoothing": {}}
    )
    plan = agenda(space=space, design=factorial(("EMA", "LabelSmoothing")), calibrate_every=0)
    assert {p.purpose for p in play(plan, 30)} == {BASELINE, FACTORIAL}


def lucky(proposal):
    """Return the quality of a run; a tenth of it is random."""
    chance = random.Random(repr(proposal.key)).random()
    return proposal.recipe.task["learning_rate"] + 0.1 * chance


def lacking(sign):
    """Run a sweep that tunes its baseline; return the missing seeds of each duration's best."""
    finished = []
    plan = agenda(sign=sign)
    play(plan, 60, draw=recipes([("EMA",)]), quality=lucky, finished=finished)
    plain = [point for point in points(finished) if not point.recipe.algorithms]
    best = {}
    for point in sorted(plain, key=lambda point: sign * point.quality):
        best[point.recipe.duration] = point
    assert len(plain) > 10
    return {duration: set(SEEDS) - set(point.seeds) for duration, point in best.items()}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_baseline_of_each_duration_gets_all_seeds(sign):
    assert lacking(sign) == {"100sp": set(), "200sp": set()}


def test_only_the_baseline_is_run_beyond_the_durations_of_the_space():
    order = play(agenda(beyond=("400sp",)), 40, draw=recipes([("EMA",)]))
    further = [p for p in order if p.recipe.duration == "400sp"]
    assert [p.seed for p in further] == list(SEEDS)
    assert {p.purpose for p in further} == {BASELINE}


def test_a_best_baseline_with_one_seed_is_noticed(monkeypatch):
    """The negative control."""
    monkeypatch.setattr(Agenda, "_repeats_of_the_best", lambda *_: ())
    assert lacking(1)["200sp"]


def test_calibrations_are_repeated_regularly():
    order = play(agenda(), 40, draw=recipes([("EMA",), ("LabelSmoothing",)]))
    calibrations = [p for p in order if p.purpose == CALIBRATION]
    assert 5 <= len(calibrations) <= 7
    assert len({p.key for p in calibrations}) == 1
    assert not any(p.purpose == CALIBRATION for p in play(agenda(calibrate_every=0), 40))


def test_promotions_come_before_drawn_trials_and_only_once():
    risen = SPACE.recipe_with(("EMA",), "200sp")
    plan = agenda(promote=lambda finished: [(risen, 17)] if len(finished) > 7 else [])
    order = play(plan, 40, draw=recipes([("EMA",)]))
    purposes = [p.purpose for p in order]
    assert purposes.count(PROMOTION) == 1
    assert purposes.index(PROMOTION) < purposes.index(SEARCH)


@pytest.mark.parametrize("explore", [0.0, 0.3, 1.0])
def test_the_sampler_gets_its_share_while_there_are_promotions(explore):
    rising = [SPACE.recipe_with(("EMA",), "200sp").model_copy(update={"batch_size": 8 + i})
              for i in range(500)]  # fmt: skip
    plan = agenda(promote=lambda _: [(r, 17) for r in rising], explore=explore, design=None)
    order = play(plan, 200, draw=recipes([("LabelSmoothing",)]))
    lengths = Counter()
    for proposal in order:
        lengths[proposal.purpose] += int(proposal.recipe.duration.removesuffix("sp"))
    part = lengths[SEARCH] / (lengths[SEARCH] + lengths[PROMOTION])
    assert part == pytest.approx(explore, abs=0.1)


def test_a_trial_that_failed_is_not_proposed_again():
    order = play(agenda(), 12, outcomes=lambda _: "failed")
    keys = [p.key for p in order if p.purpose != CALIBRATION]
    assert len(set(keys)) == len(keys)


def test_trials_that_do_not_fit_are_skipped_and_others_are_run():
    plan = agenda()
    only_short = plan.next([], [], lambda: None, lambda recipe: recipe.duration == "100sp")
    assert only_short.recipe.duration == "100sp"
    begun = [only_short]
    while (
        found := plan.next([], begun, lambda: None, lambda r: r.duration == "100sp")
    ) is not None:
        assert found.recipe.duration == "100sp"
        begun.append(found)
    assert plan.next([], begun, lambda: None, lambda _: False) is None


def test_a_trial_fits_if_the_pool_can_finish_it_with_the_running_ones():
    short, long = SPACE.recipe_with((), "100sp"), SPACE.recipe_with((), "200sp")
    spending = SweepBudget(budget=100.0, spent=50.0, workers=2)
    assert spending.seconds([short, long], rate=0.3) == pytest.approx(45.0)
    assert spending.fits(short, [long], 0.3)
    assert not spending.fits(long, [long], 0.3)
    assert spending.fits(long, [], None)  # not known yet
    slow = SweepBudget(budget=100.0, spent=50.0, workers=2, overhead=2.0)
    assert not slow.fits(short, [long], 0.3)


def test_the_rate_is_measured_on_complete_trials():
    proposal = Proposal(purpose=SEARCH, recipe=SPACE.recipe_with((), "200sp"), seed=1)
    assert rate_of([]) is None
    assert rate_of([ended(0, proposal, "failed")]) is None
    assert rate_of([ended(0, proposal), ended(1, proposal, "failed")]) == pytest.approx(1 / 200)
