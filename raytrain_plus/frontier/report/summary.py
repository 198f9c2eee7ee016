"""The main figures of a sweep as JSON."""

import math
from typing import Any

from raytrain_plus.frontier.estimates import Estimate
from raytrain_plus.frontier.report.findings import Findings, Standing


def summary_of(found: Findings) -> dict[str, Any]:
    """Return the main figures of a sweep."""
    outcomes = [trial.outcome for trial in found.trials]
    return {
        "sweep": found.account.name,
        "state": found.account.state,
        "metric": found.objective.metric,
        "trials": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "device_seconds": round(sum(trial.cost for trial in found.trials), 3),
        "dominated": found.dominated,
        "frontier": [_row(row) for row in found.frontier],
        "winner": _row(found.winner) if found.winner else None,
        "synergies": [
            list(one.aspects)
            for one in found.contributions.pairs
            if one.effect is not None and one.effect.verdict == "shown"
        ],
    }


def _row(row: Standing) -> dict[str, Any]:
    return {
        "recipe": row.point.recipe.model_dump(mode="json"),
        "seeds": list(row.point.seeds),
        "cost": row.point.cost,
        "quality": row.point.quality,
        "baseline": row.is_baseline,
        "speed_up": _estimate(row.speed_up),
        "gain": _estimate(row.gain),
    }


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as JSON, which has no infinity: an unknown end is null."""
    if estimate is None:
        return None
    ends = {"low": estimate.low, "high": estimate.high}
    known = {key: value if abs(value) < math.inf else None for key, value in ends.items()}
    return {"value": estimate.value, **known, "bound": estimate.bound}
