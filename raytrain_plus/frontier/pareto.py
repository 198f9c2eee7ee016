"""Which points are on the frontier, and how much the frontier covers.

A point dominates another if it costs no more, is no worse, and is better in one of the two. Means
over a few seeds can show this by chance. So here a point is dominated only if the difference is
larger than the noise of seeds explains.
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

_BLOCK = 256  # points compared at once, so that thousands of points fit into memory


@dataclass(frozen=True, kw_only=True)
class Noise:
    """The noise of seeds: standard deviations of a trial, pooled over recipes.

    Attributes:
        cost: of the logarithm of device-seconds, so about relative to the cost.
        quality: in the metric's own units.
        freedom: degrees of freedom of both: number of trials minus number of recipes. With 0 the
            noise is unknown, and no point is clearly dominated.
    """

    cost: float
    quality: float
    freedom: int

    @classmethod
    def of(cls, measured: Iterable[Point]) -> "Noise":
        """Estimate the noise from all points that have more than one seed."""
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
    """Differences that count as equal.

    Attributes:
        cost: relative to the cost. Default 0.1, about the noise of CPU time on a shared machine. A
            point with a lower mean cost is never dominated, however small the difference.
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

    A point dominates another if its means are no worse in both, if it is surely better in one, and
    if it is surely not worse in the other by more than the tolerance. "Surely" is a two-sided t
    interval of the difference, with the pooled noise and without pairing of seeds. More seeds with
    the same means never undo a dominance, and points never dominate each other in a cycle.

    Args:
        found: the points.
        objective: the metric and its direction.
        noise: the noise of seeds.
        tolerance: differences that count as equal. Default `Tolerance()`.
        confidence: confidence of each single comparison.
        columns: the points to test for being dominated. Default all.

    Returns:
        Shape (n, number of columns): whether the row's point dominates the column's point.
    """
    tolerance = tolerance or Tolerance()
    costs, qualities = _coordinates(found, objective)
    counts = np.array([1 / len(point.seeds) for point in found])
    error = np.sqrt(counts[:, None] + counts[columns]) * t_quantile(noise.freedom, confidence)
    cheaper = np.log(costs)[None, columns] - np.log(costs)[:, None]
    better = qualities[:, None] - qualities[None, columns]
    no_worse = (cheaper >= 0) & (better >= 0)
    with np.errstate(invalid="ignore"):  # 0 times infinity, where the noise is unknown
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
    """Return the points that no other clearly dominates (see `dominance`), by rising cost."""
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
    """Return the points that no other dominates by its means, by rising cost; ignores noise."""
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
        objective: the metric and its direction.
        reference: cost and quality; a point that is not better in both adds nothing.

    Returns:
        The area, in doublings of cost times units of quality.
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
    """Return the hypervolume of a sweep as a function of the cost it had spent.

    Args:
        trials: all trials, of any outcome and purpose, in any order; each counts when it ends.
        objective: the metric and its direction.
        reference: see `hypervolume`.
        steps: the most pairs to return.

    Returns:
        Device-seconds spent, and the hypervolume of the points so far. It falls where further seeds
        correct a lucky first one.
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

    The surface of k bounds the pairs of cost and quality that at least k seeds reach or improve on
    (Grunert da Fonseca et al. 2001; computed by moocore).

    Args:
        found: points that share at least two seeds; their other seeds are left out.
        objective: the metric and its direction.
        attained_by: numbers of seeds. Default: 1, half of them and all.

    Returns:
        Number of seeds -> corners (cost, quality), by rising cost.

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
    # Half a seed less than asked for, so that rounding cannot ask for one more.
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
    """Return costs and qualities; higher quality is always better here."""
    costs = np.array([point.cost for point in found], dtype=np.float64)
    return costs, np.array([objective.sign * point.quality for point in found], dtype=np.float64)


def plane(found: Sequence[Point], objective: Objective) -> Array:
    """Return log2 of cost, and quality (higher is always better here), shape (n, 2)."""
    costs, qualities = _coordinates(found, objective)
    return np.stack([np.log2(costs), qualities], axis=1)
