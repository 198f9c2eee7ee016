"""Estimates with confidence intervals from few seeds."""

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
        value: the estimate, or the bound if `bound` is set.
        low, high: the ends of the interval; infinite if nothing is known.
        bound: `more than` or `less than` if the value itself lies outside of what was measured.
    """

    value: float
    low: float = -math.inf
    high: float = math.inf
    bound: Literal["", "more than", "less than"] = ""

    def __str__(self) -> str:
        known = f" ({self.low:.3g} to {self.high:.3g})" if self.low > -math.inf else ""
        return f"{self.bound} {self.value:.3g}{known}".strip()


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """Return the half width of a two-sided Student t interval, in standard errors.

    Args:
        freedom: degrees of freedom; infinite is the normal distribution, below 1 returns infinity.
        confidence: in (0, 1).
    """
    if freedom < 1:
        return math.inf
    return float(stdtrit(freedom, (1 + confidence) / 2))


def from_replicates(known: tuple[float, float], lows: Array, highs: Array, seeds: int) -> Estimate:
    """Return an estimate from a bootstrap over seeds.

    The interval is the expanded percentile interval of Hesterberg 2015 (arXiv 1411.5279, 4.3),
    since the plain one is too narrow for few seeds. For two or three it spans all replicates.

    Args:
        known: lower and upper bound of the value; equal if it is known exactly, and with an
            infinite end (or 0 for a ratio) if it lies outside of what was measured.
        lows: the lower bound in each replicate.
        highs: the upper bound in each replicate.
        seeds: number of seeds; with fewer than two the interval is infinite.
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
        # Quantiles are not interpolated, since some values may be infinite.
        name: float(np.quantile(values, where, method=method))  # type: ignore[call-overload]
        for name, (values, where, method) in ends.items()
    }
    return Estimate(value=value, bound=bound, **found)


def draws(seeds: int, seed: int, replicates: int = REPLICATES) -> Array:
    """Return the count of each seed in each replicate, shape (replicates, seeds).

    Args:
        seeds: number of seeds to draw from.
        seed: seed of the draws.
        replicates: number of replicates.
    """
    chance = np.full(seeds, 1 / seeds)
    drawn = np.random.default_rng(seed).multinomial(seeds, chance, size=replicates)
    return drawn.astype(np.float64)
