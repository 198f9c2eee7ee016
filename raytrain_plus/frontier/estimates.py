"""Estimates with intervals, from as few seeds as one can afford."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

Array = NDArray[np.float64]

CONFIDENCE = 0.95
REPLICATES = 2000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value and the interval that holds the true one with 95 % confidence.

    Attributes:
        value: the estimate, or what it is known to be beyond.
        low, high: the ends; infinite where nothing is known.
        bound: `more than` or `less than` where the value itself lies beyond what was measured.
    """

    value: float
    low: float = -math.inf
    high: float = math.inf
    bound: Literal["", "more than", "less than"] = ""

    def __str__(self) -> str:
        known = f" ({self.low:.3g} to {self.high:.3g})" if self.low > -math.inf else ""
        return f"{self.bound} {self.value:.3g}{known}".strip()


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return how many standard errors the half of a two-sided interval of Student's t has.

    Args:
        freedom: degrees; infinite for the normal distribution, below 1 for an infinite answer.
        confidence: in (0, 1).
    """
    if freedom < 1:
        return math.inf
    return float(stdtrit(freedom, (1 + confidence) / 2))


def from_replicates(known: tuple[float, float], lows: Array, highs: Array, seeds: int) -> Estimate:
    """Return an estimate from a bootstrap over seeds.

    The interval is the expanded percentile interval of Hesterberg 2015 (arXiv 1411.5279, 4.3),
    since the plain one is too narrow for few seeds; for two or three it is all that was drawn.

    Args:
        known: between what the value lies; twice the same where it is known exactly, and with an
            infinite end (or 0 for a ratio) where it lies beyond what was measured.
        lows: the lower of these, in each replicate.
        highs: the higher.
        seeds: how many there were; with fewer than two nothing is known.
    """
    low, high = known
    bound: Literal["", "more than", "less than"] = ""
    if low != high:
        bound = "more than" if math.isinf(high) else "less than"
    value = high if bound == "less than" else low
    if seeds < 2 or not len(lows):
        return Estimate(value=value, bound=bound)
    tail = float(ndtr(-math.sqrt(seeds / (seeds - 1)) * t_quantile(seeds - 1)))
    ends = {"low": (lows, tail, "lower"), "high": (highs, 1 - tail, "higher")}
    found = {
        # Not interpolated, since some may be infinite.
        name: float(np.quantile(values, where, method=method))  # type: ignore[call-overload]
        for name, (values, where, method) in ends.items()
    }
    return Estimate(value=value, bound=bound, **found)


def draws(seeds: int, seed: int, replicates: int = REPLICATES) -> Array:
    """Return how often each seed is drawn in each replicate, shape (replicates, seeds).

    Args:
        seeds: how many there are to draw from.
        seed: of the drawing.
        replicates: how many.
    """
    chance = np.full(seeds, 1 / seeds)
    drawn = np.random.default_rng(seed).multinomial(seeds, chance, size=replicates)
    return drawn.astype(np.float64)
