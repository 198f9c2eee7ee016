"""The scale of an axis, its round numbers, and the thinning of curves."""

import itertools
import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

_STEPS = (1.0, 2.0, 5.0, 10.0)
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
_DAY = 86400
_LEAST = 1e-100  # on a logarithmic axis


@dataclass(frozen=True)
class Scale:
    """An axis from `low` to `high`, which are not equal."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at `low`, 1 at `high`, never outside."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def ticks(self, most: int, *, whole: bool = False, seconds: bool = False) -> list[float]:
        """Return at most about `most` round values inside, growing."""
        if self.log:
            return _log_ticks(self.low, self.high, most)
        step = _step(self.high - self.low, most, seconds=seconds)
        step = max(1.0, round(step)) if whole else step
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def scale_of(
    values: Sequence[float],
    low: float | None = None,
    high: float | None = None,
    *,
    log: bool = False,
    room: float = 0.0,
) -> Scale:
    """Return the scale on which all values lie.

    Args:
        values: what it is for.
        low: its lower end. Default: the least value.
        high: its upper end. Default: the greatest value.
        log: whether it is logarithmic, if all values are above zero and neither tiny nor huge.
        room: what part of it is left free at each end that is not given.
    """
    least = min(values, default=0.0) if low is None else low
    most = max(values, default=1.0) if high is None else high
    log = log and least > _LEAST and most < 1 / _LEAST
    if most <= least:
        around = abs(least) * 0.1 or 1.0
        return Scale(least * 0.9 if log else least - around, least + around, log)
    if log:
        free = (most / least) ** room
        return Scale(least if low else least / free, most if high else most * free, log)
    free = (most - least) * room
    return Scale(least - free * (low is None), most + free * (high is None))


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Return at most about `most` points of a curve that keep its shape, by `telling_places`."""
    if len(points) <= most:
        return list(points)
    return [points[i] for i in telling_places([y for _, y in points], most)]


def telling_places(values: Sequence[float], most: int) -> Sequence[int]:
    """Return the places of at most `most` values that keep the shape of a curve, growing.

    The curve is cut into stretches of equal length. The lowest and the highest value of each
    stretch stay, and the first and the last value of the curve.

    Args:
        values: by growing x.
        most: at least 4.
    """
    if len(values) <= most:
        return range(len(values))
    stretches = (most - 2) // 2
    kept = [0]
    inner = len(values) - 2
    for i in range(stretches):
        stretch = range(1 + inner * i // stretches, 1 + inner * (i + 1) // stretches)
        lowest = min(stretch, key=values.__getitem__)
        highest = max(stretch, key=values.__getitem__)
        kept += sorted({lowest, highest})
    return [*kept, len(values) - 1]


def smoothed(values: Sequence[float], window: int, places: Sequence[int]) -> list[float]:
    """Return at some places the mean of `window` values around each, fewer at the ends."""
    sums = array("d", itertools.accumulate(values, initial=0.0))
    half = window // 2
    means = []
    for i in places:
        start, stop = max(0, i - half), min(len(values), i + half + 1)
        means.append((sums[stop] - sums[start]) / (stop - start))
    return means


def _step(span: float, most: int, *, seconds: bool) -> float:
    least = span / most
    if seconds and least > 1:
        return float(
            next((s for s in _TIME_STEPS if s >= least), 0) or _DAY * _step_of(least / _DAY)
        )
    return _step_of(least)


def _step_of(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * step for step in _STEPS if power * step >= least * (1 - 1e-9))


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // most))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [
            float(f"{step}e{power}")
            for power in range(first, last + 1, every)
            for step in (steps if every == 1 else (1,))
        ]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= most + 1:
            return inside or [low, high]
    return inside
