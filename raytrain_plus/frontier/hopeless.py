"""Which trials may be stopped before their end: those that surely come to nothing.

A trial that is stopped is no point on the frontier and is counted as what it is. It may be stopped
when its loss is no number any more, or when even the greatest gain that any complete trial of its
duration still made from there on would leave it dominated by a point that is known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Glimpse:
    """How a trial stands at some moment; quality always so that more is better.

    Attributes:
        progress: the part of the run that is done, in (0, 1].
        cost: device-seconds so far.
        quality: of the last evaluation, not a number before the first.
        loss: of the last step.
    """

    progress: float
    cost: float
    quality: float = math.nan
    loss: float = 0.0


def why_hopeless(
    now: Glimpse,
    curves: Sequence[Sequence[Glimpse]],
    points: Sequence[tuple[float, float]],
    slack: float = 1.5,
) -> str:
    """Say why a trial need not go on; empty where it should.

    Args:
        now: how it stands.
        curves: complete trials of the same duration, each from its first evaluation to its last.
        points: (cost, quality) of what is known, at any duration.
        slack: by how much more than the greatest known gain a trial may still gain. Default 1.5.
    """
    if not math.isfinite(now.loss):
        return f"its loss is {now.loss}"
    if not math.isfinite(now.quality) or now.progress >= 1.0:
        return ""
    gains = [
        curve[-1].quality - before[-1].quality
        for curve in curves
        if (before := [one for one in curve if one.progress <= now.progress])
    ]
    if len(gains) < _FEWEST:
        return ""
    best = now.quality + slack * max(0.0, *gains)
    for cost, quality in points:
        if cost <= now.cost and quality >= best:
            return (
                f"at {now.progress:.0%} it has cost {now.cost:.4g} s and can hardly get better "
                f"than {abs(best):.4g}; {abs(quality):.4g} is known for {cost:.4g} s"
            )
    return ""


_FEWEST = 3  # complete trials to learn from
