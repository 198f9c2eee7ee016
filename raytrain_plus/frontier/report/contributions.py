"""What aspects contribute, in three measures: quality at equal cost, quality, and cost.

Trials are compared only with those that have the same duration, seed, batch size and settings of
the task: a learning rate that was tried among others must not count as what an aspect does. And
doubt comes from seeds: where some recipes were run with several, those alone count, each with all
of the same seeds and at the same duration, so that seeds differ by nothing but chance.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from raytrain_plus.frontier.curve import Curve
from raytrain_plus.frontier.estimates import Estimate
from raytrain_plus.frontier.points import FinishedTrial, Objective, Point, aspects_of, key_of
from raytrain_plus.frontier.synergy import (
    Effect,
    Effects,
    Observation,
    by_gain,
    by_quality,
    effects,
    observe,
)

Aspects = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """What one aspect contributes, or what two add beyond the sum of each alone.

    Attributes:
        aspects: one or two.
        effect: on the measure that decides, with the evidence; None where these trials cannot tell.
        quality: in the metric's units, above zero is better.
        cost: as a factor: 1.1 is a tenth more.
    """

    aspects: Aspects
    effect: Effect | None
    quality: Estimate | None
    cost: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """All of them, the largest first.

    Attributes:
        at_equal_cost: whether what decides is quality at equal cost; else it is quality, since
            there is no curve of the baseline.
        alone: of each aspect without any other.
        pairs: beyond the sum of both.
        unknown: what the trials cannot tell, with the reason.
        duration: at which they were measured; empty for several.
        trials: how many took part.
        beyond: how many besides cost less or more than any baseline, and have no gain.
    """

    at_equal_cost: bool
    alone: Sequence[Contribution] = ()
    pairs: Sequence[Contribution] = ()
    unknown: Mapping[Aspects, str] = field(default_factory=dict)
    duration: str = ""
    trials: int = 0
    beyond: int = 0


def contributions_of(
    trials: Iterable[FinishedTrial], baseline: Sequence[Point], objective: Objective
) -> Contributions:
    """Estimate what aspects contribute.

    Args:
        trials: all of a sweep, but for its calibrations.
        baseline: its curve; with fewer than two costs, quality decides.
        objective: the metric and its direction.
    """
    alike = _alike(trials)
    groups = _repeated(alike)
    durations = {trial.recipe.duration for group in groups.values() for trial in group}
    at_equal_cost = len({point.cost for point in baseline}) > 1
    quality = _effects(groups, by_quality(objective))
    cost = _effects(groups, lambda trial: -math.log(trial.cost))
    main, counted = quality, sum(map(len, groups.values()))
    beyond = 0
    if at_equal_cost:
        curve = Curve([p.cost for p in baseline], [objective.sign * p.quality for p in baseline])
        gain = by_gain(objective, curve)
        main = _effects(groups, gain)
        beyond = sum(gain(trial) is None for group in groups.values() for trial in group)
    kinds = [
        _joined(_by_aspects(a), _by_aspects(b), _by_aspects(c))
        for a, b, c in (
            (main.alone, quality.alone, cost.alone),
            (main.pairs, quality.pairs, cost.pairs),
        )
    ]
    return Contributions(
        at_equal_cost=at_equal_cost,
        alone=kinds[0],
        pairs=kinds[1],
        unknown={
            **{
                aspects: why
                if aspects in dict(quality.unknown)
                else "not run at any baseline's cost"
                for aspects, why in main.unknown
            },
            **{
                (name,): "not run with the others with several seeds"
                for name in sorted(_names(alike) - _names(groups))
            },
        },
        duration=durations.pop() if len(durations) == 1 else "",
        trials=counted - beyond,
        beyond=beyond,
    )


def _alike(trials: Iterable[FinishedTrial]) -> dict[str, list[FinishedTrial]]:
    """Group complete trials by all that is to be equal, but for seed and duration.

    What stands alone in its block tells nothing, and is left out.
    """
    groups: dict[tuple[str, str, int], list[FinishedTrial]] = defaultdict(list)
    for trial in trials:
        if trial.outcome == "complete":
            recipe = trial.recipe
            said = json.dumps([recipe.batch_size, dict(recipe.task)], sort_keys=True, default=str)
            groups[said, recipe.duration, trial.seed].append(trial)
    alike: dict[str, list[FinishedTrial]] = defaultdict(list)
    for (said, _, _), block in groups.items():
        if len({frozenset(trial.recipe.algorithms) for trial in block}) > 1:
            alike[said] += block
    return alike


def _names(groups: Mapping[str, Sequence[FinishedTrial]]) -> set[str]:
    """Return the class names of all aspects of some trials."""
    trials = [trial for group in groups.values() for trial in group]
    return {name for trial in trials for name in aspects_of(trial.recipe)}


def _repeated(groups: Mapping[str, list[FinishedTrial]]) -> Mapping[str, list[FinishedTrial]]:
    """Return the largest set of recipes that were run alike and with the same seeds.

    Where nothing was run with two seeds, it is all trials.
    """
    best: tuple[int, int, str, list[FinishedTrial]] = (0, 0, "", [])
    for said, trials in sorted(groups.items()):
        for duration in sorted({trial.recipe.duration for trial in trials}):
            there = {
                (key_of(trial.recipe), trial.seed): trial
                for trial in trials
                if trial.recipe.duration == duration
            }
            for recipes, seeds in _complete(set(there)):
                size = len(recipes) * len(seeds)
                if (size, len(seeds)) > best[:2]:
                    kept = [there[recipe, seed] for recipe in recipes for seed in seeds]
                    best = (size, len(seeds), said, kept)
    return {best[2]: best[3]} if best[3] else groups


def _complete(runs: set[tuple[str, int]]) -> Iterator[tuple[list[str], list[int]]]:
    """Yield sets of recipes that were run with the same seeds, two or more of each."""
    counts = Counter(seed for _, seed in runs)
    often = sorted(counts, key=lambda seed: (-counts[seed], seed))
    recipes = sorted({recipe for recipe, _ in runs})
    for count in range(2, len(often) + 1):
        seeds = often[:count]
        shared = [one for one in recipes if all((one, seed) in runs for seed in seeds)]
        if len(shared) > 1:
            yield shared, seeds


def _effects(
    groups: Mapping[str, Sequence[FinishedTrial]],
    value: Callable[[FinishedTrial], float | None],
) -> Effects:
    observations: list[Observation] = []
    for said, trials in groups.items():
        # What tells two blocks apart is the duration; here it is the settings as well.
        observations += [
            replace(one, duration=f"{one.duration} {said}") for one in observe(trials, value)
        ]
    return effects(observations)


def _by_aspects(found: Iterable[Effect]) -> dict[Aspects, Effect]:
    return {effect.aspects: effect for effect in found}


def _joined(
    main: Mapping[Aspects, Effect],
    quality: Mapping[Aspects, Effect],
    cost: Mapping[Aspects, Effect],
) -> list[Contribution]:
    names = [*main, *(aspects for aspects in quality if aspects not in main)]
    return [
        Contribution(
            aspects=aspects,
            effect=main.get(aspects),
            quality=quality[aspects].estimate if aspects in quality else None,
            cost=_factor(cost[aspects].estimate) if aspects in cost else None,
        )
        for aspects in names
    ]


def _factor(estimate: Estimate) -> Estimate:
    """Return a factor on cost from an estimate of less logarithm of cost."""
    low = math.exp(-estimate.high) if math.isfinite(estimate.high) else 0.0
    high = math.exp(-estimate.low) if math.isfinite(estimate.low) else math.inf
    return Estimate(value=math.exp(-estimate.value), low=low, high=high)
