"""Successive promotion: which recipes deserve a longer run, and which more seeds.

Recipes start at the shortest duration with one seed. Those that none clearly dominates there get
more seeds, and with these, if still none dominates them, a run at the next duration; at the longest
they get all seeds. This is successive halving (Jamieson and Talwalkar 2016) with two objectives and
regard to noise, and with one difference: each run is a complete one, with its schedule scaled to
its duration, so that each is a point in its own right.
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
    """How recipes rise.

    Attributes:
        durations: from short to long.
        seeds: in the order in which they are used; the last duration uses all.
        seeds_at: how many seeds a recipe needs at each duration before it goes to the next. Default
            from one to all in even steps.
        at_most: how many recipes may rise from each duration. Default all that are not dominated.
        tolerance: what is as good as equal.
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
        recipe: with its duration.
        seed: of the run.
        reason: for people.
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

    Deterministic, whatever the order of the points. A point that dominates all others comes first
    at its duration, and no further evidence for it takes that away.

    Args:
        found: all points so far.
        rule: how recipes rise.
        objective: what is good.
        running: runs under way, which are not proposed again.
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
    """Return the points of one duration that are to go on, the best first.

    Args:
        found: all points so far; one of another duration can dominate as well.
        rule: how recipes rise.
        objective: what is good.
        place: of the duration among the rule's.
    """
    duration = rule.durations[place]
    noise = Noise.of(point for point in found if point.recipe.duration == duration)
    if noise.freedom < _ENOUGH:  # too little is known of this duration by itself
        noise = Noise.of(found)
    kept = non_dominated(found, objective, noise, rule.tolerance)
    here = [point for point in kept if point.recipe.duration == duration]
    return _ranked(here, objective)[: rule.at_most]


def _next(point: Point, rule: PromotionRule, place: int) -> list[Promotion]:
    """Return what a point that goes on lacks."""
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
    """Return points by their means: by front, and within one by what they alone cover."""
    if not found:
        return []
    where = plane(found, objective)
    fronts = moocore.pareto_rank(where, maximise=[False, True])
    # One doubling of cost beyond the dearest, and as much below the worst as it is apart from the
    # best, so that the ends of the front count too.
    costs, qualities = where[:, 0], where[:, 1]
    corner = [costs.max() + 1, qualities.min() - max(float(np.ptp(qualities)), 1e-9)]
    alone = moocore.hv_contributions(where, ref=corner, maximise=[False, True])
    order = sorted(range(len(found)), key=lambda i: (fronts[i], -alone[i], key_of(found[i].recipe)))
    return [found[i] for i in order]
