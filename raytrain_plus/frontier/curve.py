"""How much faster and how much better a point is than the baseline's curve.

The baseline is trained at several durations. Between them its quality is interpolated linearly over
the logarithm of its cost. The curve never falls as cost rises: where noise made a longer run worse,
the quality of the shorter run counts, which favours the baseline. Outside of the curve's ends only
a bound is known.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from raytrain_plus.frontier.estimates import Array, Estimate, draws, from_replicates
from raytrain_plus.frontier.points import Objective, Point, PointError

Known = tuple[float, float]
"""Lower and upper bound of a number; both are equal if it is known exactly."""


class Curve:
    """Quality as a function of cost.

    Args:
        costs: device-seconds, above zero; at least two that differ, in any order.
        qualities: higher is better.

    Raises:
        PointError: fewer than two costs.
    """

    def __init__(self, costs: Iterable[float], qualities: Iterable[float]) -> None:
        pairs = sorted(zip(costs, qualities, strict=True))
        if len({cost for cost, _ in pairs}) < 2:
            raise PointError(
                "a curve needs runs at two costs or more: train the baseline at more durations"
            )
        self._costs: Array = np.log([cost for cost, _ in pairs])
        self._qualities: Array = np.maximum.accumulate([quality for _, quality in pairs])

    def quality_at(self, cost: float) -> Known:
        """Return bounds of the quality at a cost."""
        at = math.log(cost)
        if at < self._costs[0]:
            return -math.inf, float(self._qualities[0])
        if at > self._costs[-1]:
            return float(self._qualities[-1]), math.inf
        quality = float(np.interp(at, self._costs, self._qualities))
        return quality, quality

    def cost_of(self, quality: float) -> Known:
        """Return bounds of the least cost of a quality."""
        place = int(np.searchsorted(self._qualities, quality))
        if place == len(self._qualities):
            return math.exp(self._costs[-1]), math.inf
        if place == 0:
            first = math.exp(self._costs[0])
            return (first if quality == self._qualities[0] else 0.0), first
        low, high = self._qualities[place - 1], self._qualities[place]
        part = (quality - low) / (high - low)
        cost = math.exp(
            self._costs[place - 1] + part * (self._costs[place] - self._costs[place - 1])
        )
        return cost, cost


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A point compared with the baseline's curve.

    Attributes:
        point: the point.
        speed_up: the baseline's cost of the point's quality, divided by the point's cost.
        gain: the point's quality minus the baseline's at the point's cost, in the metric's units;
            above zero is better, also if a lower metric is better.
    """

    point: Point
    speed_up: Estimate
    gain: Estimate


def compare(
    point: Point, baseline: Sequence[Point], objective: Objective, seed: int = 0
) -> Comparison:
    """Compare a point with the baseline's curve.

    Intervals come from a bootstrap over seeds (see `estimates`). Each seed is drawn for the point
    and for the whole curve together, so shared seeds are paired. The number of seeds that counts is
    the smallest among the point and the points of the curve.

    Args:
        point: the point.
        baseline: one point per duration, at least two.
        objective: the metric and its direction.
        seed: seed of the bootstrap.

    Raises:
        PointError: there are fewer than two baselines, or all have the same cost.
    """
    all_points = [point, *baseline]
    seeds = sorted({s for p in all_points for s in p.seeds})
    fewest = min(len(p.seeds) for p in all_points)
    once = np.ones((1, len(seeds)))
    known = _speed_up_and_gain(*_means(all_points, seeds, once, objective)[0])
    weights = draws(len(seeds), seed)
    drawn = [_speed_up_and_gain(*means) for means in _means(all_points, seeds, weights, objective)]
    replicates = np.array(drawn).reshape(-1, 2, 2)  # speed-up and gain, lower and higher
    return Comparison(
        point=point,
        speed_up=from_replicates(known[0], replicates[:, 0, 0], replicates[:, 0, 1], fewest),
        gain=from_replicates(known[1], replicates[:, 1, 0], replicates[:, 1, 1], fewest),
    )


def best_per_duration(found: Iterable[Point], objective: Objective) -> list[Point]:
    """Return the tuned baseline: the best baseline recipe of each duration, by rising cost.

    Only the recipes with the most seeds are candidates; among them the best mean wins.
    """
    best: dict[str, Point] = {}

    def rank(point: Point) -> tuple[int, float]:
        return len(point.seeds), objective.sign * point.quality

    for point in found:
        duration = point.recipe.duration
        if duration not in best or rank(point) > rank(best[duration]):
            best[duration] = point
    return sorted(best.values(), key=lambda point: point.cost)


def _speed_up_and_gain(costs: Array, qualities: Array) -> tuple[Known, Known]:
    """Return the speed-up and the gain of the first point over the curve of the others."""
    curve = Curve(costs[1:], qualities[1:])
    cost, quality = float(costs[0]), float(qualities[0])
    needed, reached = curve.cost_of(quality), curve.quality_at(cost)
    speed_up = needed[0] / cost, needed[1] / cost
    return speed_up, (quality - reached[1], quality - reached[0])


def _means(
    found: Sequence[Point], seeds: Sequence[int], weights: Array, objective: Objective
) -> list[tuple[Array, Array]]:
    """Return all points' costs and qualities in each replicate.

    A replicate that drew none of a point's seeds is left out.
    """
    has = np.array([[s in p.costs for s in seeds] for p in found], dtype=np.float64)
    costs = np.array([[p.costs.get(s, 0.0) for s in seeds] for p in found])
    qualities = np.array([[p.qualities.get(s, 0.0) for s in seeds] for p in found])
    total = weights @ has.T
    kept = weights[(total > 0).all(axis=1)]
    total = kept @ has.T
    mean_costs, mean_qualities = kept @ costs.T / total, kept @ qualities.T / total
    return list(zip(mean_costs, objective.sign * mean_qualities, strict=True))
