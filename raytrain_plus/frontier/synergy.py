"""What each aspect contributes alone, and what each pair adds beyond the sum of both.

Least squares: a trial's value is the value of its block, plus the contribution of each aspect that
is on, plus that of each pair that is on. A block is one duration at one seed, so the common effect
of seed and duration on all recipes cancels out. Interactions of three or more aspects stay in the
residual. (Aspects are coded 0 or 1. The coding -1 and +1 spans the same columns and gives the same
results.)

Standard errors come from leaving out one seed at a time (the cluster jackknife, CV3J of MacKinnon,
Nielsen and Webb 2023). If every seed has the same trials, this is the paired t test over seeds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from scipy.special import stdtr

from raytrain_plus.frontier.curve import Curve
from raytrain_plus.frontier.estimates import CONFIDENCE, Array, Estimate, t_quantile
from raytrain_plus.frontier.points import FinishedTrial, Objective, aspects_of

Verdict = Literal["shown", "not shown", "hurts"]


@dataclass(frozen=True, kw_only=True)
class Observation:
    """The part of a trial that contributions are estimated from.

    Attributes:
        on: class names of the aspects that are on.
        duration: duration of the trial; only trials of the same duration are compared.
        seed: seed of the trial; only trials of the same seed are compared.
        value: higher is better.
    """

    on: frozenset[str]
    duration: str
    seed: int
    value: float


@dataclass(frozen=True, kw_only=True)
class Effect:
    """A contribution and its evidence.

    Attributes:
        aspects: one, or the two of a pair.
        estimate: in the observations' units, with the interval of this single effect.
        seeds: number of seeds that have trials with all its aspects on.
        p: two-sided p value, corrected by Holm's method for the number of effects of its kind.
        verdict: `shown` or `hurts` if p is below 0.05.
    """

    aspects: tuple[str, ...]
    estimate: Estimate
    seeds: int
    p: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Effects:
    """All contributions, the largest first.

    Attributes:
        alone: contribution of each aspect without any other.
        pairs: contribution of each pair beyond the sum of both.
        unknown: contributions that cannot be estimated, each with the reason.
    """

    alone: tuple[Effect, ...]
    pairs: tuple[Effect, ...]
    unknown: tuple[tuple[tuple[str, ...], str], ...]


def observe(
    trials: Iterable[FinishedTrial], value: Callable[[FinishedTrial], float | None]
) -> list[Observation]:
    """Return the complete trials as observations.

    Args:
        trials: trials of any outcome.
        value: a trial's value, higher is better (see `by_quality`, `by_gain`); None leaves it out.
    """
    found = []
    for trial in trials:
        measured = value(trial) if trial.outcome == "complete" else None
        if measured is not None:
            on = aspects_of(trial.recipe)
            found.append(
                Observation(on=on, duration=trial.recipe.duration, seed=trial.seed, value=measured)
            )
    return found


def by_quality(objective: Objective) -> Callable[[FinishedTrial], float | None]:
    """Value a trial by its quality, independent of its cost."""
    return lambda trial: objective.sign * trial.quality


def by_gain(objective: Objective, curve: Curve) -> Callable[[FinishedTrial], float | None]:
    """Value a trial by its gain at equal cost; trials outside of the curve are left out."""

    def gain(trial: FinishedTrial) -> float | None:
        low, high = curve.quality_at(trial.cost)
        return objective.sign * trial.quality - low if low == high else None

    return gain


def effects(observations: Sequence[Observation]) -> Effects:
    """Estimate all contributions that the observations determine.

    An aspect that is on in all observations cannot be estimated and is left out.
    """
    names = sorted(
        name
        for name in frozenset().union(*(o.on for o in observations))
        if not all(name in o.on for o in observations)
    )
    pairs = list(combinations(names, 2))
    together = [pair for pair in pairs if any(o.on >= set(pair) for o in observations)]
    terms: list[tuple[str, ...]] = [*((name,) for name in names), *together]
    unknown: list[tuple[tuple[str, ...], str]] = [
        (pair, "never run together") for pair in pairs if pair not in together
    ]
    found = []
    for term, fitted in zip(terms, _jackknifed(observations, terms), strict=True):
        seeds = len({o.seed for o in observations if o.on >= set(term)})
        if fitted is None:
            unknown.append((term, "confounded with others in these trials"))
        else:
            found.append((term, *fitted, seeds))
    return Effects(
        alone=_judged([one for one in found if len(one[0]) == 1]),
        pairs=_judged([one for one in found if len(one[0]) == 2]),
        unknown=tuple(unknown),
    )


def holm(chances: Sequence[float]) -> list[float]:
    """Return p values, corrected for their number (Holm 1979)."""
    corrected = [0.0] * len(chances)
    least = 0.0
    for place, index in enumerate(sorted(range(len(chances)), key=chances.__getitem__)):
        least = max(least, min(1.0, (len(chances) - place) * chances[index]))
        corrected[index] = least
    return corrected


_Fitted = tuple[float, float]


def _judged(found: Sequence[tuple[tuple[str, ...], float, float, int]]) -> tuple[Effect, ...]:
    chances = holm([_chance(value, error, seeds) for _, value, error, seeds in found])
    judged = []
    for (term, value, error, seeds), p in zip(found, chances, strict=True):
        half = t_quantile(seeds - 1) * error if seeds > 1 else math.inf
        verdict: Verdict = "not shown"
        if p < 1 - CONFIDENCE:
            verdict = "shown" if value > 0 else "hurts"
        estimate = Estimate(value=value, low=value - half, high=value + half)
        judged.append(Effect(aspects=term, estimate=estimate, seeds=seeds, p=p, verdict=verdict))
    return tuple(sorted(judged, key=lambda effect: -effect.estimate.value))


def _chance(value: float, error: float, seeds: int) -> float:
    """Return the two-sided p value of an estimate."""
    if seeds < 2 or math.isinf(error):
        return 1.0
    if error == 0:
        return float(value == 0)
    return float(2 * stdtr(seeds - 1, -abs(value) / error))


def _jackknifed(
    observations: Sequence[Observation], terms: Sequence[tuple[str, ...]]
) -> list[_Fitted | None]:
    """Return each term's value and standard error; None for what cannot be estimated."""
    values = _fit(observations, terms)
    seeds = sorted({o.seed for o in observations})
    without = np.array([_fit([o for o in observations if o.seed != s], terms) for s in seeds])
    found: list[_Fitted | None] = []
    for term, value in enumerate(values):
        if math.isnan(value):
            found.append(None)
            continue
        left = without[:, term]
        # If only one seed determines it, its standard error is unknown.
        unsure = bool(np.isnan(left).any())
        squares = float(((left - left.mean()) ** 2).sum())
        error = math.sqrt((1 - 1 / len(seeds)) * squares) if not unsure else math.inf
        found.append((float(value), error))
    return found


def _fit(observations: Sequence[Observation], terms: Sequence[tuple[str, ...]]) -> Array:
    """Return each term's contribution; NaN for what cannot be estimated."""
    if not observations or not terms:
        return np.full(len(terms), math.nan)
    on = np.array([[o.on >= set(term) for term in terms] for o in observations], dtype=np.float64)
    values = np.array([o.value for o in observations])
    blocks = [(o.duration, o.seed) for o in observations]
    for block in set(blocks):
        rows = [i for i, other in enumerate(blocks) if other == block]
        on[rows] -= on[rows].mean(axis=0)
        values[rows] -= values[rows].mean()
    inverse = np.linalg.pinv(on, rcond=1e-9)
    told = np.isclose(inverse @ on, np.eye(len(terms)), atol=1e-6).all(axis=1)
    fitted = inverse @ values
    # A rounding error is not a contribution, even if it is equal in all seeds.
    fitted[np.abs(fitted) < 1e-9 * np.abs([o.value for o in observations]).max()] = 0.0
    return np.where(told, fitted, math.nan)
