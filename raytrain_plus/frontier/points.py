"""Finished trials as values; a point holds the trials of one recipe over seeds.

A point is made of complete runs only. Cost is device-seconds: the summed busy time of a trial's
workers. On a CPU this is the CPU time of the processes.
"""

import hashlib
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from raytrain_plus.frontier.recipe import Recipe

Outcome = Literal["complete", "dominated", "failed"]
"""Ran to the end; stopped early as surely dominated or diverged; raised an error."""


class PointError(ValueError):
    """Trials or points that cannot be understood or compared."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The metric that a sweep improves at low cost.

    Attributes:
        metric: the name of one of the task's metrics.
        mode: `max` or `min`, as in Ray Tune.
    """

    metric: str
    mode: Literal["max", "min"]

    def __post_init__(self) -> None:
        if self.mode not in ("max", "min"):
            raise PointError(f"mode {self.mode!r} of {self.metric} is neither 'max' nor 'min'")

    @property
    def sign(self) -> int:
        """1 if higher is better, -1 if lower is: of quality times this, higher is always better."""
        return 1 if self.mode == "max" else -1


@dataclass(frozen=True, kw_only=True)
class FinishedTrial:
    """One run of a sweep that has ended.

    Attributes:
        name: unique in the sweep; letters, digits, `_`, `-` and `.`.
        purpose: why the trial was run, such as `baseline`, `factorial`, `search`, `promotion` or
            `calibration`.
        outcome: how it ended.
        recipe: what was trained.
        seed: seed of the run.
        cost: device-seconds.
        quality: the objective's metric; NaN unless the outcome is `complete`.
        started, ended: seconds since the epoch.
        aspect_costs: device-seconds in each aspect's advice, by the aspect's name.
        parts: device-seconds by part of the work, such as `compute` and `exchange`.
        error: the error of a failed trial.
    """

    name: str
    purpose: str
    outcome: Outcome = "complete"
    recipe: Recipe
    seed: int
    cost: float
    quality: float = math.nan
    started: float
    ended: float
    aspect_costs: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    def __post_init__(self) -> None:
        if not self.name or set(self.name) - _LETTERS or self.name.startswith("."):
            raise PointError(
                f"trial name {self.name!r} would be no name of a file: use letters, digits, _, - "
                "and ."
            )
        if self.outcome not in ("complete", "dominated", "failed"):
            raise PointError(f"trial {self.name}: {self.outcome!r} is no outcome of a trial")
        complete = self.outcome == "complete"
        if complete != math.isfinite(self.quality):
            raise PointError(
                f"trial {self.name} is {self.outcome} with quality {self.quality}: a complete "
                "trial has a finite one, any other has none (not a number)"
            )
        if not (math.isfinite(self.cost) and self.cost >= 0) or (complete and not self.cost):
            raise PointError(
                f"trial {self.name} has cost {self.cost}: device-seconds must be finite, and above "
                "zero for a complete trial"
            )


@dataclass(frozen=True, kw_only=True)
class Point:
    """Costs and qualities of the complete trials of one recipe at one duration.

    Attributes:
        recipe: what was trained.
        costs: device-seconds, by seed.
        qualities: by seed.
    """

    recipe: Recipe
    costs: Mapping[int, float]
    qualities: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.costs or self.costs.keys() != self.qualities.keys():
            raise PointError("a point needs a cost and a quality for each of its seeds")

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that were run, in rising order."""
        return tuple(sorted(self.costs))

    @cached_property
    def cost(self) -> float:
        """Mean over seeds, in device-seconds."""
        return statistics.fmean(self.costs[seed] for seed in self.seeds)

    @cached_property
    def quality(self) -> float:
        """Mean over seeds."""
        return statistics.fmean(self.qualities[seed] for seed in self.seeds)


def points(trials: Iterable[FinishedTrial]) -> list[Point]:
    """Group the complete trials by recipe.

    If a recipe was run several times with one seed, as in calibrations, the mean counts.

    Returns:
        One point per recipe, in an order that does not depend on the order of the trials.
    """
    groups: dict[str, dict[int, list[FinishedTrial]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if trial.outcome == "complete":
            groups[key_of(trial.recipe)][trial.seed].append(trial)
    found = []
    for _, seeds in sorted(groups.items()):
        some = next(iter(seeds.values()))[0]
        found.append(
            Point(
                recipe=some.recipe,
                costs={s: statistics.fmean(t.cost for t in seeds[s]) for s in sorted(seeds)},
                qualities={s: statistics.fmean(t.quality for t in seeds[s]) for s in sorted(seeds)},
            )
        )
    return found


def key_of(recipe: Recipe) -> str:
    """Return a short text that identifies a recipe, its duration included."""
    return _digest({**_said(recipe), "duration": recipe.duration})


def label_of(recipe: Recipe) -> str:
    """Return the names of a recipe's algorithms, for people; several recipes may share it."""
    return " + ".join(sorted(aspects_of(recipe))) or "no algorithms"


def aspects_of(recipe: Recipe) -> frozenset[str]:
    """Return the class names of a recipe's algorithms."""
    return frozenset(name.rpartition(":")[2] for name in recipe.algorithms)


def _said(recipe: Recipe) -> dict[str, object]:
    # Without `about`, which does not change what is trained.
    algorithms = {name: dict(settings or {}) for name, settings in recipe.algorithms.items()}
    return {
        "batch_size": recipe.batch_size,
        "task": dict(recipe.task),
        "algorithms": algorithms,
    }


def _digest(said: Mapping[str, object]) -> str:
    text = json.dumps(said, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


_LETTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
