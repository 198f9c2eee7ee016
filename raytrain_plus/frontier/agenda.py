"""Chooses the next trial of a sweep: a pure function of the trials that the sweep has run.

The order is:

1. the baseline at every duration, at the shortest with several seeds, which show the noise;
2. a calibration, if one is due;
3. the factorial design;
4. all seeds for the best baseline of each duration, since every comparison depends on them; also
   at durations that are longer than any recipe's;
5. the design with further seeds;
6. promotions and the sampler's proposals, in turns.

At each duration the baseline is tuned first. No set of aspects is tried there more often than the
baseline itself.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain_plus.clock import Duration
from raytrain_plus.frontier.designs import Design
from raytrain_plus.frontier.domain import Choice, Domain
from raytrain_plus.frontier.points import FinishedTrial, Point, key_of, points
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.space import RecipeSpace
from raytrain_plus.seeds import seed_for

BASELINE, TUNING, CALIBRATION = "baseline", "tuning", "calibration"
PROMOTION, FACTORIAL, SEARCH = "promotion", "factorial", "search"

Promoted = tuple[Recipe, int]
"""A recipe at some duration, and the seed to run it with."""
Promote = Callable[[Sequence[FinishedTrial]], Iterable[Promoted]]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A trial to run.

    Attributes:
        purpose: why it is run, one of the constants at the top of this module.
        recipe: what to train.
        seed: seed of the run.
    """

    purpose: str
    recipe: Recipe
    seed: int

    @property
    def key(self) -> tuple[str, int]:
        """A key that differs between trials that compute different results."""
        return key_of(self.recipe), self.seed


@dataclass(frozen=True, kw_only=True)
class Agenda:
    """The order of a sweep's trials.

    Attributes:
        space: the recipes that may be proposed.
        seeds: seeds of the runs; all trials except promotions use the first.
        promote: returns what is promoted.
        beyond: longer durations, for the baseline only.
        design: a factorial design to run, or None.
        design_at: duration of the design. Default the shortest.
        design_seeds: number of seeds of the design.
        calibrate_every: number of trials between two calibrations; 0 for none.
        sign: 1 if higher quality is better, -1 if lower quality is better.
        explore: the sampler's share of the training for promotions and for the sampler.
    """

    space: RecipeSpace
    seeds: tuple[int, ...]
    promote: Promote
    beyond: tuple[str, ...] = ()
    design: Design | None = None
    design_at: str | None = None
    design_seeds: int = 1
    calibrate_every: int = 10
    sign: int = 1
    explore: float = 0.3

    def next(
        self,
        finished: Sequence[FinishedTrial],
        pending: Sequence[Proposal],
        draw: Callable[[], Recipe | None],
        fits: Callable[[Recipe], bool] = lambda _: True,
    ) -> Proposal | None:
        """Return what to run now, or None if nothing can run before another trial ends.

        Args:
            finished: all trials that have ended.
            pending: proposals whose trials have not ended.
            draw: returns the sampler's recipe, at the shortest duration while there is a new one
                there; None if there are no more. It repeats a recipe until it has been proposed.
            fits: returns whether a recipe fits into the budget.
        """
        known = {(key_of(t.recipe), t.seed) for t in finished} | {p.key for p in pending}
        tried = _run(finished, pending)
        for wish in self._wishes(finished, pending, draw):
            if (wish.purpose != CALIBRATION and wish.key in known) or not fits(wish.recipe):
                continue
            return self._tuned_first(wish, tried, known, finished)
        return None

    def _wishes(
        self,
        finished: Sequence[FinishedTrial],
        pending: Sequence[Proposal],
        draw: Callable[[], Recipe | None],
    ) -> Iterator[Proposal]:
        first, shortest = self.seeds[0], self.space.rungs[0]
        for duration in self.space.rungs:
            recipe = self.space.recipe_with((), duration)
            yield Proposal(purpose=BASELINE, recipe=recipe, seed=first)
        for seed in self.seeds[:_SEEDS_OF_BASELINE]:
            recipe = self.space.recipe_with((), shortest)
            yield Proposal(purpose=BASELINE, recipe=recipe, seed=seed)
        if self._calibration_due(finished, pending):
            recipe = self.space.recipe_with((), shortest)
            yield Proposal(purpose=CALIBRATION, recipe=recipe, seed=first)
        yield from self._designed(self.seeds[:1])
        for duration in self.beyond:
            recipe = self.space.recipe_with(()).model_copy(update={"duration": duration})
            yield Proposal(purpose=BASELINE, recipe=recipe, seed=first)
        yield from self._repeats_of_the_best(finished)
        yield from self._designed(self.seeds[1 : self.design_seeds])
        explores = self._explores(finished, pending)
        if explores and (drawn := draw()) is not None:
            yield Proposal(purpose=SEARCH, recipe=drawn, seed=first)
        for recipe, seed in self.promote(finished):
            yield Proposal(purpose=PROMOTION, recipe=recipe, seed=seed)
        if not explores and (drawn := draw()) is not None:
            yield Proposal(purpose=SEARCH, recipe=drawn, seed=first)

    def _designed(self, seeds: Sequence[int]) -> Iterator[Proposal]:
        for seed in seeds:
            for on in self.design.runs if self.design is not None else ():
                recipe = self.space.recipe_with(on, self.design_at or self.space.rungs[0])
                yield Proposal(purpose=FACTORIAL, recipe=recipe, seed=seed)

    def _explores(self, finished: Sequence[FinishedTrial], pending: Sequence[Proposal]) -> bool:
        """Say whether it is the sampler's turn."""
        lengths: Counter[str] = Counter()
        for purpose, recipe in _run(finished, pending):
            lengths[purpose] += round(length_of(recipe))
        both = lengths[SEARCH] + lengths[PROMOTION]
        return both > 0 and lengths[SEARCH] < self.explore * both

    def _repeats_of_the_best(self, finished: Sequence[FinishedTrial]) -> Iterator[Proposal]:
        """Yield the missing trials of the best baseline of each duration, one seed at a time.

        A recipe that was best by luck falls behind with a further seed. Then the next best follows.
        """
        plain = self._baselines(finished)
        for duration in (*self.space.rungs, *self.beyond):
            there = [point for point in plain if point.recipe.duration == duration]
            if not there:
                continue
            best = max(there, key=lambda point: self.sign * point.quality)
            lacking = [seed for seed in self.seeds if seed not in best.seeds]
            if lacking:
                yield Proposal(purpose=BASELINE, recipe=best.recipe, seed=lacking[0])

    def _calibration_due(
        self, finished: Sequence[FinishedTrial], pending: Sequence[Proposal]
    ) -> bool:
        if not self.calibrate_every:
            return False
        done = sum(t.purpose == CALIBRATION for t in finished)
        done += sum(p.purpose == CALIBRATION for p in pending)
        others = len(finished) - sum(t.purpose == CALIBRATION for t in finished)
        return others >= (done + 1) * self.calibrate_every

    def _tuned_first(
        self,
        wish: Proposal,
        tried: Sequence[tuple[str, Recipe]],
        known: set[tuple[str, int]],
        finished: Sequence[FinishedTrial],
    ) -> Proposal:
        """Return the wanted trial, or one that tunes the baseline at the same duration."""
        on = self.aspects_of(wish.recipe)
        if not on:
            return wish
        counts = Counter(
            self.aspects_of(recipe)
            for purpose, recipe in tried
            if recipe.duration == wish.recipe.duration and purpose != CALIBRATION
        )
        if counts[on] < counts[frozenset()]:
            return wish
        for recipe, seed in self._tunings(wish.recipe.duration, finished):
            proposal = Proposal(purpose=TUNING, recipe=recipe, seed=seed)
            if proposal.key not in known:
                return proposal
        return wish  # there is nothing left to tune

    def _tunings(self, duration: str, finished: Sequence[FinishedTrial]) -> Iterator[Promoted]:
        """Yield baselines with other settings of the task, or other seeds if no setting varies.

        Settings that were best at the next shorter duration come first, then random ones.
        """
        varied = {key: self.space.entries[key] for key in self.space.settings_of("task")}
        varied["batch_size"] = self.space.entries["batch_size"]
        if all(isinstance(d, Choice) and len(d.values) == 1 for d in varied.values()):
            baseline = self.space.recipe_with((), duration)
            yield from ((baseline, seed) for seed in self.seeds)
            return
        place = self.space.rungs.index(duration)
        shorter = self.space.rungs[place - 1] if place else ""
        there = [p for p in self._baselines(finished) if p.recipe.duration == shorter]
        for point in sorted(there, key=lambda point: -self.sign * point.quality):
            yield point.recipe.model_copy(update={"duration": duration}), self.seeds[0]
        for number in range(_MOST_TUNINGS):
            chance = random.Random(seed_for(self.seeds[0], "tuning", number))
            config = {key: _drawn(domain, chance) for key, domain in varied.items()}
            yield self.space.recipe(config | {"duration": duration}), self.seeds[0]

    def _baselines(self, finished: Sequence[FinishedTrial]) -> list[Point]:
        """Return the baseline's points at all durations and settings."""
        return [point for point in points(finished) if not self.aspects_of(point.recipe)]

    def aspects_of(self, recipe: Recipe) -> frozenset[str]:
        """Return the aspects that a recipe adds to the baseline."""
        return frozenset(recipe.algorithms.keys() - self.space.baseline.algorithms.keys())


def _run(
    finished: Sequence[FinishedTrial], pending: Sequence[Proposal]
) -> list[tuple[str, Recipe]]:
    """Return the purpose and the recipe of all trials so far."""
    return [(t.purpose, t.recipe) for t in finished] + [(p.purpose, p.recipe) for p in pending]


_SEEDS_OF_BASELINE = 4  # at the shortest duration
_MOST_TUNINGS = 1000


def _drawn(domain: Domain, chance: random.Random) -> Any:
    if isinstance(domain, Choice):
        return chance.choice(domain.values)
    if domain.log:
        value = domain.low * (domain.high / domain.low) ** chance.random()
    else:
        value = chance.uniform(domain.low, domain.high)
    value = min(max(value, domain.low), domain.high)
    return round(value) if domain.whole else value


@dataclass(frozen=True, kw_only=True)
class SweepBudget:
    """How much of a budget is spent, and whether another trial fits.

    Attributes:
        budget: seconds of the whole pool's time.
        spent: seconds of the budget that are spent so far.
        workers: number of workers in the pool.
        overhead: worker-seconds of the pool per device-second of training so far; at least 1.
    """

    budget: float
    spent: float
    workers: int
    overhead: float = 1.0

    def fits(self, proposal: Recipe, pending: Sequence[Recipe], rate: float | None) -> bool:
        """Say whether a trial would end within the budget, next to those that are running.

        Args:
            proposal: the trial's proposal.
            pending: proposals of the running trials.
            rate: device-seconds per unit of duration, None if it is not known yet.
        """
        if rate is None:
            return self.spent < self.budget
        return self.spent + self.seconds([proposal, *pending], rate) <= self.budget

    def seconds(self, recipes: Sequence[Recipe], rate: float) -> float:
        """Return how many seconds the pool needs for some recipes."""
        return sum(map(length_of, recipes)) * rate * self.overhead / self.workers


def length_of(recipe: Recipe) -> float:
    """Return a recipe's duration in its own unit."""
    return float(Duration.parse(recipe.duration).value)


def rate_of(finished: Sequence[FinishedTrial]) -> float | None:
    """Return the mean cost of a unit of duration in complete trials, None before the first."""
    complete = [t for t in finished if t.outcome == "complete"]
    lengths = sum(length_of(t.recipe) for t in complete)
    return sum(t.cost for t in complete) / lengths if lengths else None
