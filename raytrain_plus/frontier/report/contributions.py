"""Contributions of aspects in three measures: quality at equal cost, quality, and cost.

A trial is compared only with trials of the same duration, seed, batch size and task settings, so
the effect of another learning rate does not count as an aspect's. Intervals come from seeds. If
some recipes were run with several seeds, only these count. They share all their seeds and the
duration, so that seeds differ only by chance.
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
    """The contribution of one aspect, or of a pair beyond the sum of both.

    Attributes:
        aspects: one or two aspects.
        effect: effect on the deciding measure, with its p value; None if it cannot be estimated.
        quality: effect on quality in the metric's units; above zero is better.
        cost: effect on cost as a factor: 1.1 is a tenth more.
    """

    aspects: Aspects
    effect: Effect | None
    quality: Estimate | None
    cost: Estimate | None


@dataclass(frozen=True, kw_only=True)
class Contributions:
    """All contributions, the largest first.

    Attributes:
        at_equal_cost: whether the deciding measure is quality at equal cost; otherwise it is
            quality, since there is no curve of the baseline.
        alone: contribution of each aspect without any other.
        pairs: contribution of each pair beyond the sum of both.
        unknown: contributions that cannot be estimated, each with the reason.
        duration: duration at which they were measured; empty for several.
        trials: number of trials used.
        beyond: number of other trials, which cost less or more than any baseline and have no gain.
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
    """Estimate the contributions of aspects.

    Args:
        trials: all trials of a sweep except its calibrations.
        baseline: the points of its curve; with fewer than two costs, quality decides.
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
    """Group complete trials by all settings that must be equal, except seed and duration.

    A trial that is alone in its block cannot be compared and is left out.
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
    """Return the largest set of recipes with equal settings and the same seeds.

    If no recipe was run with two seeds, return all trials.
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
        # `synergy` separates blocks by duration and seed; here the settings separate them too.
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
    """Return a factor on cost from an estimate of the negative logarithm of cost."""
    low = math.exp(-estimate.high) if math.isfinite(estimate.high) else 0.0
    high = math.exp(-estimate.low) if math.isfinite(estimate.low) else math.inf
    return Estimate(value=math.exp(-estimate.value), low=low, high=high)
