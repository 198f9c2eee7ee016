"""Which points are on the frontier, and how much the frontier covers.

A point dominates another where it costs no more and is no worse, and is better in one of the two.
Means over a few seeds say that by chance as well; so here a point is dominated only where another
one does so by more than what seeds alone explain.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from raytrain_plus.frontier.estimates import CONFIDENCE, Array, t_quantile
from raytrain_plus.frontier.points import (
    FinishedTrial,
    Objective,
    Point,
    PointError,
    key_of,
    points,
)

_BLOCK = 256  # points looked at at once: thousands fit into memory then


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What seeds alone do to a trial: standard deviations, pooled over recipes.

    Attributes:
        cost: of the logarithm of device-seconds, which is about a part of the cost.
        quality: in the metric's own units.
        freedom: degrees of freedom of both: trials less recipes. With 0 nothing is known, and no
            point is clearly dominated.
    """

    cost: float
    quality: float
    freedom: int

    @classmethod
    def of(cls, measured: Iterable[Point]) -> "Noise":
        """Pool what points with more than one seed show; one seed shows nothing."""
        squares = np.zeros(2)
        freedom = 0
        for point in measured:
            values = np.array([[math.log(point.costs[s]), point.qualities[s]] for s in point.seeds])
            squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0)
            freedom += len(values) - 1
        cost, quality = np.sqrt(squares / max(freedom, 1))
        return cls(cost=float(cost), quality=float(quality), freedom=freedom)


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How much worse is as good as equal.

    Attributes:
        cost: as a part of the cost. Default 0.1, about the noise of CPU time on a shared machine; a
            point whose mean cost is lower is never dominated, however little.
        quality: in the metric's own units. Default 0.
    """

    cost: float = 0.1
    quality: float = 0.0

    def __post_init__(self) -> None:
        if not (self.cost >= 0 and self.quality >= 0):
            raise PointError(f"a tolerance below zero, {self}, has no meaning: take 0 or more")


def dominance(
    found: Sequence[Point],
    objective: Objective,
    noise: Noise,
    tolerance: Tolerance | None = None,
    confidence: float = CONFIDENCE,
    columns: slice = slice(None),
) -> NDArray[np.bool_]:
    """Say which points clearly dominate which.

    One does where its means are no worse in both, where it is surely better in one, and where it is
    surely not worse in the other by more than the tolerance. "Surely" is a two-sided t interval of
    the difference, with the pooled noise and no pairing of seeds. More seeds with the same means
    never undo it, and points never dominate one another in a circle.

    Args:
        found: the points.
        objective: what is good.
        noise: what seeds alone do.
        tolerance: default `Tolerance()`.
        confidence: of each comparison by itself.
        columns: of which points it is asked whether they are dominated. Default all.

    Returns:
        Shape (n, number of columns): whether the point of the row dominates that of the column.
    """
    tolerance = tolerance or Tolerance()
    costs, qualities = _coordinates(found, objective)
    counts = np.array([1 / len(point.seeds) for point in found])
    error = np.sqrt(counts[:, None] + counts[columns]) * t_quantile(noise.freedom, confidence)
    cheaper = np.log(costs)[None, columns] - np.log(costs)[:, None]
    better = qualities[:, None] - qualities[None, columns]
    no_worse = (cheaper >= 0) & (better >= 0)
    with np.errstate(invalid="ignore"):  # no noise known, and none seen: 0 times infinity
        unsure = np.nan_to_num(error * noise.cost, nan=math.inf, posinf=math.inf)
        unsure_quality = np.nan_to_num(error * noise.quality, nan=math.inf, posinf=math.inf)
    surely_cheaper, surely_better = cheaper > unsure, better > unsure_quality
    as_cheap = cheaper - unsure >= -math.log1p(tolerance.cost)
    as_good = better - unsure_quality >= -tolerance.quality
    clear: NDArray[np.bool_] = no_worse & as_cheap & as_good & (surely_cheaper | surely_better)
    return clear


def non_dominated(
    found: Sequence[Point],
    objective: Objective,
    noise: Noise,
    tolerance: Tolerance | None = None,
    confidence: float = CONFIDENCE,
) -> list[Point]:
    """Return the points that none clearly dominates (see `dominance`), from cheap to dear."""
    if not found:
        return []
    blocks = [slice(at, at + _BLOCK) for at in range(0, len(found), _BLOCK)]
    dominated = np.concatenate(
        [dominance(found, objective, noise, tolerance, confidence, b).any(axis=0) for b in blocks]
    )
    return sorted(
        (found[i] for i in np.flatnonzero(~dominated).tolist()), key=lambda point: point.cost
    )


def frontier(found: Sequence[Point], objective: Objective) -> list[Point]:
    """Return the points whose means none dominates, from cheap to dear, without regard to noise."""
    if not found:
        return []
    kept = moocore.is_nondominated(plane(found, objective), maximise=[False, True])
    return sorted(
        (p for p, on in zip(found, kept, strict=True) if on), key=lambda point: point.cost
    )


def hypervolume(
    found: Sequence[Point], objective: Objective, reference: tuple[float, float]
) -> float:
    """Return the area between the points' means and a reference.

    Args:
        found: the points.
        objective: what is good.
        reference: cost and quality; a point that is not better in both adds nothing.

    Returns:
        In doublings of cost times units of quality.
    """
    if not found:
        return 0.0
    cost, quality = reference
    corner = [math.log2(cost), objective.sign * quality]
    area = moocore.hypervolume(plane(found, objective), ref=corner, maximise=[False, True])
    return float(area)


def hypervolume_over_budget(
    trials: Sequence[FinishedTrial],
    objective: Objective,
    reference: tuple[float, float],
    steps: int = 100,
) -> list[tuple[float, float]]:
    """Return what a sweep had reached when it had spent how much.

    Args:
        trials: all of them, of any outcome and purpose, in any order; they count when they end.
        objective: what is good.
        reference: see `hypervolume`.
        steps: at most so many pairs.

    Returns:
        Device-seconds spent, and the hypervolume of the points so far; it falls where further seeds
        take back what one was lucky with.
    """
    ended = sorted(trials, key=lambda trial: (trial.ended, trial.name))
    places = set(np.linspace(1, len(ended), min(steps, len(ended))).round().astype(int).tolist())
    told: list[tuple[float, float]] = []
    spent, by_recipe = 0.0, defaultdict[str, list[FinishedTrial]](list)
    known: dict[str, Point] = {}
    changed: set[str] = set()
    for count, trial in enumerate(ended, 1):
        spent += trial.cost
        if trial.outcome == "complete":
            key = key_of(trial.recipe)
            by_recipe[key].append(trial)
            changed.add(key)
        if count in places:
            known |= {key: points(by_recipe[key])[0] for key in changed}
            changed.clear()
            told.append((spent, hypervolume(list(known.values()), objective, reference)))
    return told


def attainment(
    found: Sequence[Point], objective: Objective, attained_by: Iterable[int] | None = None
) -> dict[int, list[tuple[float, float]]]:
    """Return the empirical attainment surfaces of a set of points over seeds.

    The surface of k bounds what is reached, at that cost and that quality or better, by k seeds at
    least (Grunert da Fonseca et al. 2001; computed by moocore).

    Args:
        found: points that share at least two seeds; their other seeds are left out.
        objective: what is good.
        attained_by: numbers of seeds. Default 1, the half and all.

    Returns:
        Number of seeds -> corners (cost, quality), from cheap to dear.

    Raises:
        PointError: fewer than two seeds are shared.
    """
    seeds = sorted(set.intersection(*(set(point.seeds) for point in found))) if found else []
    if len(seeds) < 2:
        raise PointError(
            f"the {len(found)} points share the seeds {seeds}: an attainment surface needs two or "
            "more that all have"
        )
    rows = np.array(
        [[p.costs[s], -objective.sign * p.qualities[s], s] for s in seeds for p in found]
    )
    counts = sorted(set(attained_by or (1, math.ceil(len(seeds) / 2), len(seeds))))
    # Half a seed less than asked for, so that no rounding asks for one more.
    levels = {100 * (count - 0.5) / len(seeds): count for count in counts}
    corners = moocore.eaf(rows[:, :2], rows[:, 2], percentiles=list(levels))
    return {
        count: sorted(
            (float(c), float(-objective.sign * q))
            for c, q, at in corners
            if math.isclose(at, level)
        )
        for level, count in levels.items()
    }


def _coordinates(found: Sequence[Point], objective: Objective) -> tuple[Array, Array]:
    """Return costs, and qualities of which more is better."""
    costs = np.array([point.cost for point in found], dtype=np.float64)
    return costs, np.array([objective.sign * point.quality for point in found], dtype=np.float64)


def plane(found: Sequence[Point], objective: Objective) -> Array:
    """Return the binary logarithm of cost, and quality of which more is better, shape (n, 2)."""
    costs, qualities = _coordinates(found, objective)
    return np.stack([np.log2(costs), qualities], axis=1)
