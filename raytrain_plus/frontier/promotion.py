"""Successive promotion: which recipes deserve a longer run, and which more seeds.

Recipes start at the shortest duration with one seed. A recipe that no other clearly dominates there
gets more seeds. If it is still not dominated, it gets a run at the next duration. At the longest
duration it gets all seeds. This is successive halving (Jamieson and Talwalkar 2016) with two
objectives and with regard to noise. One thing differs: each run is complete, with its schedule
scaled to its duration, so each result is a valid point at that duration.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import moocore
import numpy as np

from raytrain_plus.frontier.pareto import Noise, Tolerance, non_dominated, plane
from raytrain_plus.frontier.points import Objective, Point, PointError, key_of
from raytrain_plus.frontier.recipe import Recipe

Run = tuple[str, int]
"""The key of a recipe (`points.key_of`), and a seed."""

_ENOUGH = 3


@dataclass(frozen=True, kw_only=True)
class PromotionRule:
    """The rule by which recipes are promoted.

    Attributes:
        durations: from short to long.
        seeds: seeds in the order of their use; the last duration uses all.
        seeds_at: number of seeds that a recipe needs at each duration before it goes to the next.
            Default: from one to all in even steps.
        at_most: most recipes to promote from each duration. Default: all that are not dominated.
        tolerance: differences that count as equal.
    """

    durations: tuple[str, ...]
    seeds: tuple[int, ...]
    seeds_at: tuple[int, ...] = ()
    at_most: int | None = None
    tolerance: Tolerance = field(default_factory=Tolerance)

    def __post_init__(self) -> None:
        if not self.durations or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise PointError(
                f"promotion over durations {self.durations} with seeds {self.seeds}: name at least "
                "one of each, and no seed twice"
            )
        counts = self.wanted
        rising = all(a <= b for a, b in pairwise(counts))
        inside = min(counts) >= 1 and max(counts) <= len(self.seeds)
        if not (rising and inside and len(counts) == len(self.durations)):
            raise PointError(
                f"seeds_at={self.seeds_at} must hold one number for each of "
                f"{len(self.durations)} durations, from 1 up to {len(self.seeds)}, none falling"
            )
        if self.at_most is not None and self.at_most < 1:
            raise PointError(f"at_most={self.at_most} would let no recipe rise: take 1 or more")

    @property
    def wanted(self) -> tuple[int, ...]:
        """How many seeds a recipe needs at each duration."""
        if self.seeds_at:
            return self.seeds_at
        steps = np.linspace(1, len(self.seeds), len(self.durations)).round().astype(int).tolist()
        return tuple(steps) if len(self.durations) > 1 else (len(self.seeds),)


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """A run that is worth its cost.

    Attributes:
        recipe: the recipe, with its duration.
        seed: seed of the run.
        reason: the reason, as text for people.
    """

    recipe: Recipe
    seed: int
    reason: str


def propose(
    found: Sequence[Point],
    rule: PromotionRule,
    objective: Objective,
    running: Collection[Run] = (),
) -> list[Promotion]:
    """Return the runs that are worth their cost, the longest first.

    The result is deterministic and does not depend on the order of the points. A point that
    dominates all others comes first at its duration, and more seeds of it do not change that.

    Args:
        found: all points so far.
        rule: how recipes rise.
        objective: the metric and its direction.
        running: runs in progress, which are not proposed again.
    """
    done = {(key_of(point.recipe), seed) for point in found for seed in point.seeds}
    taken = done | set(running)
    proposals: list[Promotion] = []
    for place in reversed(range(len(rule.durations))):
        for point in risers(found, rule, objective, place):
            proposals += [p for p in _next(point, rule, place) if _run(p) not in taken]
    return proposals


def risers(
    found: Sequence[Point], rule: PromotionRule, objective: Objective, place: int
) -> list[Point]:
    """Return the points of one duration that may be promoted, the best first.

    Args:
        found: all points so far; a point of another duration can dominate too.
        rule: how recipes rise.
        objective: the metric and its direction.
        place: index of the duration in the rule.
    """
    duration = rule.durations[place]
    noise = Noise.of(point for point in found if point.recipe.duration == duration)
    if noise.freedom < _ENOUGH:  # this duration alone has too few repeats
        noise = Noise.of(found)
    kept = non_dominated(found, objective, noise, rule.tolerance)
    here = [point for point in kept if point.recipe.duration == duration]
    return _ranked(here, objective)[: rule.at_most]


def _next(point: Point, rule: PromotionRule, place: int) -> list[Promotion]:
    """Return the missing runs of a point that may be promoted."""
    duration = rule.durations[place]
    lacking = [seed for seed in rule.seeds[: rule.wanted[place]] if seed not in point.seeds]
    if lacking:
        reason = f"not dominated at {duration} with {len(point.seeds)} seeds: more seeds"
        return [Promotion(recipe=point.recipe, seed=seed, reason=reason) for seed in lacking]
    if place + 1 == len(rule.durations):
        return []
    longer = point.recipe.model_copy(update={"duration": rule.durations[place + 1]})
    reason = f"not dominated at {duration} with {len(point.seeds)} seeds: longer"
    return [Promotion(recipe=longer, seed=rule.seeds[0], reason=reason)]


def _run(proposal: Promotion) -> Run:
    return key_of(proposal.recipe), proposal.seed


def _ranked(found: Sequence[Point], objective: Objective) -> list[Point]:
    """Sort points by their means: by front, and in a front by the area that only they cover."""
    if not found:
        return []
    where = plane(found, objective)
    fronts = moocore.pareto_rank(where, maximise=[False, True])
    # The reference is one doubling above the highest cost, and as far below the worst quality as
    # the worst is below the best, so that the ends of the front count too.
    costs, qualities = where[:, 0], where[:, 1]
    corner = [costs.max() + 1, qualities.min() - max(float(np.ptp(qualities)), 1e-9)]
    alone = moocore.hv_contributions(where, ref=corner, maximise=[False, True])
    order = sorted(range(len(found)), key=lambda i: (fronts[i], -alone[i], key_of(found[i].recipe)))
    return [found[i] for i in order]
