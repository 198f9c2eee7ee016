"""Which checkpoints are kept. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Retention:
    """How many checkpoints are kept, and which.

    Attributes:
        num_to_keep: how many; None keeps all.
        score_attribute: the metric by which the best are kept; None keeps the newest.
        score_order: whether the largest (`max`) or the smallest (`min`) metric is the best.
    """

    num_to_keep: int | None = None
    score_attribute: str | None = None
    score_order: Literal["max", "min"] = "max"


@dataclass(frozen=True)
class Kept:
    """A checkpoint that is there.

    Attributes:
        name: of its folder.
        step: committed steps.
        metrics: of the last evaluation at or before that step.
    """

    name: str
    step: int
    metrics: Mapping[str, Any] = field(default_factory=dict)


def surplus(kept: Sequence[Kept], retention: Retention) -> list[str]:
    """Return the names of the checkpoints that are to be deleted, oldest first.

    The newest, from which a run continues, and the best are never deleted: if they differ, at least
    two are kept. A checkpoint without the metric, or with NaN, counts as the worst.
    """
    if retention.num_to_keep is None:
        return []
    by_age = sorted(kept, key=lambda one: (-one.step, one.name))
    by_score = sorted(by_age, key=lambda one: -_score(one, retention))  # of equals the newest
    spared = {one.name for one in (*by_age[:1], *by_score[:1])}
    for one in by_score:
        if len(spared) < retention.num_to_keep:
            spared.add(one.name)
    return [one.name for one in reversed(by_age) if one.name not in spared]


def ranked(kept: Sequence[Kept], retention: Retention) -> list[Kept]:
    """Return checkpoints with the best last: by their score, and by age where that is equal."""
    return sorted(kept, key=lambda one: (_score(one, retention), one.step, one.name))


def _score(one: Kept, retention: Retention) -> float:
    """Return a score that is larger for a better checkpoint; 0 for all if there is no metric."""
    if retention.score_attribute is None:
        return 0.0
    value = one.metrics.get(retention.score_attribute)
    if not isinstance(value, int | float) or math.isnan(value):
        return -math.inf
    return float(value) if retention.score_order == "max" else -float(value)
