"""How fast searches find the frontier: our sweep, plain random search, plain Optuna.

Run as `python -m benchmarks.searches [--repetitions N] [--slots K] [--json]`.

Trials are not trained: their costs and qualities are looked up in a table that was recorded from
real runs (`benchmarks.recorded_space`). The clock is simulated: each of K slots holds a trial for
as long as it costs. Every search gets one slot per trial, so only the order of the trials is
compared; the gain of the elastic pool is measured in `benchmarks.idle`. The searches are Ray Tune's
own random draws, Ray Tune's OptunaSearch with both objectives, and the sweep's searcher with its
baselines, seeds, design and promotions. The score is the hypervolume of the recipes that have been
tried, each at its mean over the recorded seeds, as a share of the hypervolume of all recipes of the
space.
"""

import heapq
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain

from benchmarks import report
from benchmarks.record import Row
from benchmarks.recorded_space import OBJECTIVE, SPACE, Known, known, recipes
from benchmarks.report import Aim
from raytrain_plus.frontier.agenda import Proposal
from raytrain_plus.frontier.definition import Sweep
from raytrain_plus.frontier.pareto import hypervolume
from raytrain_plus.frontier.points import FinishedTrial, Point, key_of
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.searching import RecipeSearch
from raytrain_plus.frontier.sweep import agenda_of
from raytrain_plus.frontier.tune_space import optuna_space, tune_space

_MARKS = (100.0, 200.0, 400.0, 800.0)  # device-seconds
_GOALS = (0.9, 0.95, 0.99)  # as parts of the whole hypervolume
_AIMED = 0.95


@dataclass(frozen=True)
class Ended:
    """A trial whose end the simulated clock has reached."""

    recipe: Recipe
    seed: int
    cost: float
    quality: float
    at: float


class Search(Protocol):
    """A search that proposes trials."""

    def suggest(self, ticket: str) -> tuple[Recipe, int] | None:
        """Return a recipe and a seed, or None if there is no trial at the moment."""

    def tell(self, ticket: str, ended: Ended) -> None:
        """Report the end of a trial."""


class Random:
    """Ray Tune's own draws."""

    def __init__(self, repetition: int) -> None:
        self._chance = np.random.RandomState(repetition)
        self._space = tune_space(SPACE)

    def suggest(self, ticket: str) -> tuple[Recipe, int]:
        """Draw a recipe from the flat space."""
        del ticket
        config = {
            key: value.sample(random_state=self._chance) if isinstance(value, Domain) else value
            for key, value in self._space.items()
        }
        return SPACE.recipe(config), 0

    def tell(self, ticket: str, ended: Ended) -> None:
        """Learn nothing."""


class Optuna:
    """Ray Tune's OptunaSearch over recipes and durations alike."""

    def __init__(self, repetition: int) -> None:
        self._search = OptunaSearch(
            space=optuna_space(SPACE),
            metric=["cost", "quality"],
            mode=["min", OBJECTIVE.mode],
            sampler=optuna.samplers.TPESampler(seed=repetition),
        )

    def suggest(self, ticket: str) -> tuple[Recipe, int]:
        """Return the next proposal of the search."""
        return SPACE.recipe(self._search.suggest(ticket)), 0

    def tell(self, ticket: str, ended: Ended) -> None:
        """Report both objectives."""
        values = {"cost": ended.cost, "quality": ended.quality}
        self._search.on_trial_complete(ticket, result=values)


@dataclass
class _Kept:
    """A sweep's folder in memory."""

    path: Path = Path()
    trials: list[FinishedTrial] = field(default_factory=list)

    def spent(self) -> float:
        return 0.0

    def proposals(self) -> dict[str, Proposal]:
        return {}

    def propose(self, proposal: Proposal, names: Sequence[str]) -> str:
        return f"{len(names):05d}-{proposal.purpose}"

    def finished(self) -> list[FinishedTrial]:
        return list(self.trials)

    def write(self, event: str, **fields: Any) -> None:
        """Note nothing."""


class Ours:
    """A sweep's searcher as `raytrain-plus sweep` runs it, without calibrations.

    Args:
        repetition: number of the repetition; determines the seed.
        seeds: number of seeds that a recipe needs before its result is claimed.
        factors: the factors of the design.
    """

    def __init__(
        self, repetition: int, seeds: int = 2, factors: tuple[str, ...] = tuple(SPACE.names)
    ) -> None:
        sweep = Sweep(
            name="played",
            task="raytrain_plus.reference.cluttered_digits:ClutteredDigits",
            space=SPACE,
            objective=OBJECTIVE,
            seeds=(2 * repetition, 2 * repetition + 1)[:seeds],
            factors=factors,
            calibrate_every=0,
        )
        self._kept = _Kept()
        kept: Any = self._kept
        self._search = RecipeSearch(sweep, kept, agenda_of(sweep), budget=1e9, workers=1)
        self._proposed: dict[str, Row] = {}

    def suggest(self, ticket: str) -> tuple[Recipe, int] | None:
        """Return the next proposal of the search."""
        config = self._search.suggest(ticket)
        if config is None or config == Searcher.FINISHED:
            return None
        self._proposed[ticket] = config
        return Recipe.model_validate(config["recipe"]), config["seed"]

    def tell(self, ticket: str, ended: Ended) -> None:
        """Store the trial, and report it."""
        config = self._proposed[ticket]
        trial = FinishedTrial(
            name=config["name"],
            purpose=config["purpose"],
            recipe=ended.recipe,
            seed=ended.seed,
            cost=ended.cost,
            quality=ended.quality,
            started=ended.at - ended.cost,
            ended=ended.at,
        )
        self._kept.trials.append(trial)
        self._search.on_trial_complete(ticket)


def play(search: Search, table: Known, slots: int, budget: float) -> list[Ended]:
    """Run a search on the simulated clock; returns its trials in the order of their ends.

    Args:
        search: the search.
        table: what trials cost and reach.
        slots: number of trials at a time.
        budget: device-seconds of all slots together.
    """
    clock, asked = 0.0, 0
    ended: list[Ended] = []
    live: list[tuple[float, str, Ended]] = []
    while True:
        while len(live) < slots and (found := search.suggest(str(asked))) is not None:
            recipe, seed = found
            by_seed = table[key_of(recipe)]
            cost, quality = by_seed[seed % len(by_seed)]
            one = Ended(recipe, seed, cost, quality, clock + cost)
            heapq.heappush(live, (one.at, str(asked), one))
            asked += 1
        if not live:
            return ended
        clock, ticket, one = heapq.heappop(live)
        if clock * slots > budget:
            return ended
        ended.append(one)
        search.tell(ticket, one)


class Covered:
    """The hypervolume of some recipes, as a part of the hypervolume of all recipes.

    Args:
        table: what trials cost and reach.
    """

    def __init__(self, table: Known) -> None:
        self._points = {key_of(recipe): _point(recipe, table) for recipe in recipes()}
        plain = [self._points[key_of(SPACE.recipe_with((), d))] for d in SPACE.rungs]
        self._reference = 2 * max(p.cost for p in plain), min(p.quality for p in plain)
        self._all = hypervolume(list(self._points.values()), OBJECTIVE, self._reference)

    def by(self, keys: Sequence[str]) -> float:
        """Return the part that these recipes cover."""
        found = [self._points[key] for key in sorted(set(keys))]
        return hypervolume(found, OBJECTIVE, self._reference) / self._all


def _point(recipe: Recipe, table: Known) -> Point:
    by_seed = table[key_of(recipe)]
    return Point(
        recipe=recipe,
        costs={seed: cost for seed, (cost, _) in enumerate(by_seed)},
        qualities={seed: quality for seed, (_, quality) in enumerate(by_seed)},
    )


def progress(
    make: Callable[[int], Search], table: Known, slots: int, repetition: int
) -> list[tuple[float, float]]:
    """Return the device-seconds spent and the part covered after each trial."""
    covered = Covered(table)
    ended = play(make(repetition), table, slots, _MARKS[-1])
    keys = [key_of(one.recipe) for one in ended]
    return [(one.at * slots, covered.by(keys[: n + 1])) for n, one in enumerate(ended)]


def at(curve: Sequence[tuple[float, float]], seconds: float) -> float:
    """Return the part covered after a number of device-seconds."""
    return max((part for spent, part in curve if spent <= seconds), default=0.0)


def until(curve: Sequence[tuple[float, float]], part: float) -> float:
    """Return the device-seconds until a part was covered; infinite if it never was."""
    return min((spent for spent, covered in curve if covered >= part), default=float("inf"))


def main() -> None:
    """Run all searches and compare them."""
    parser = report.parser("how fast searches find the frontier")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--slots", type=int, default=4)
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table = known()
    searches: dict[str, Callable[[int], Search]] = {
        "sweep": Ours,
        "sweep, one seed": partial(Ours, seeds=1),
        "sweep, one seed, no design": partial(Ours, seeds=1, factors=()),
        "Tune, random": Random,
        "Tune, OptunaSearch": Optuna,
    }
    curves = {
        name: [progress(make, table, given.slots, r) for r in range(given.repetitions)]
        for name, make in searches.items()
    }
    rows = []
    for name, found in curves.items():
        row: Row = {"search": name}
        for mark in _MARKS:
            parts = [at(curve, mark) for curve in found]
            row[f"at {mark:g} s"] = round(statistics.fmean(parts), 3)
        for goal in _GOALS:
            row[f"s to {goal:.0%}"] = round(statistics.median(until(c, goal) for c in found), 1)
        rows.append(row)
    report.show(f"part of the hypervolume that is covered, {given.repetitions} repetitions", rows)
    ours, others = rows[0], [row for row in rows if row["search"].startswith("Tune")]
    to = f"s to {_AIMED:.0%}"
    aims = [
        Aim(f"{row['search']}: its {to}, over the sweep's", _ratio(row[to], ours[to]), least=1)
        for row in others
    ]
    report.finish(aims, {"searches": rows}, as_json=given.json)


def _ratio(theirs: float, ours: float) -> float:
    return round(theirs / ours, 2) if ours < float("inf") else 0.0


if __name__ == "__main__":
    main()
