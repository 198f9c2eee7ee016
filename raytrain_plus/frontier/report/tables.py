"""A sweep's results for programs: recipes and trials as CSV, the main figures as JSON."""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from raytrain_plus.frontier.estimates import Estimate
from raytrain_plus.frontier.points import FinishedTrial, Point, key_of, label_of
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.report.findings import Findings, FrontierRow

RECIPES = (
    "recipe", "label", "duration", "batch_size", "task", "algorithms", "seeds", "cost", "quality",
    "baseline", "frontier", "winner", "speed_up", "speed_up_low", "speed_up_high", "speed_up_bound",
    "gain", "gain_low", "gain_high", "gain_bound",
)  # fmt: skip
TRIALS = (
    "name", "purpose", "outcome", "recipe", "label", "duration", "batch_size", "task", "algorithms",
    "seed", "measured_cost", "cost", "quality", "started", "ended", "error",
)  # fmt: skip


def recipes_csv(found: Findings) -> str:
    """Return a row for each recipe at each duration, by rising cost.

    `frontier` is the recipe's number in the report, empty if it is not on the frontier. Unknown
    ends of intervals are empty.
    """
    numbers = {key_of(row.point.recipe): i for i, row in enumerate(found.frontier, 1)}
    rows = []
    for point in sorted(found.points, key=lambda point: point.cost):
        number = numbers.get(key_of(point.recipe))
        standing = found.frontier[number - 1] if number else None
        rows.append(_recipe_row(point, number, standing, found))
    return _csv(RECIPES, rows)


def trials_csv(found: Findings) -> str:
    """Return a row for each trial, in the order in which they ended."""
    return _csv(
        TRIALS,
        (
            _trial_row(measured, corrected)
            for measured, corrected in zip(found.sweep.trials, found.trials, strict=True)
        ),
    )


def _recipe_row(
    point: Point, number: int | None, standing: FrontierRow | None, found: Findings
) -> list[Any]:
    speed_up = standing.speed_up if standing else None
    gain = standing.gain if standing else None
    return [
        *_said(point.recipe),
        len(point.seeds),
        point.cost,
        point.quality,
        found.is_baseline(point),
        number or "",
        standing is not None and standing is found.winner,
        *_estimate_cells(speed_up),
        *_estimate_cells(gain),
    ]


def _trial_row(measured: FinishedTrial, corrected: FinishedTrial) -> list[Any]:
    return [
        measured.name,
        measured.purpose,
        measured.outcome,
        *_said(measured.recipe),
        measured.seed,
        measured.cost,
        corrected.cost,
        measured.quality,
        measured.started,
        measured.ended,
        measured.error,
    ]


def _said(recipe: Recipe) -> list[Any]:
    said = recipe.model_dump(mode="json")
    parts = [json.dumps(said[key], sort_keys=True) for key in ("task", "algorithms")]
    return [key_of(recipe), label_of(recipe), recipe.duration, recipe.batch_size, *parts]


def _estimate_cells(estimate: Estimate | None) -> list[Any]:
    if estimate is None:
        return ["", "", "", ""]
    ends = [end if math.isfinite(end) else "" for end in (estimate.low, estimate.high)]
    return [estimate.value, *ends, estimate.bound]


def _csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def summary_of(found: Findings) -> dict[str, Any]:
    """Return the main figures of a sweep."""
    outcomes = [trial.outcome for trial in found.trials]
    return {
        "sweep": found.sweep.name,
        "state": found.sweep.state,
        "metric": found.objective.metric,
        "trials": {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        "device_seconds": round(sum(trial.cost for trial in found.trials), 3),
        "dominated": found.dominated,
        "frontier": [_row_as_json(row) for row in found.frontier],
        "winner": _row_as_json(found.winner) if found.winner else None,
        "synergies": [
            list(one.aspects)
            for one in found.contributions.pairs
            if one.effect is not None and one.effect.verdict == "shown"
        ],
    }


def _row_as_json(row: FrontierRow) -> dict[str, Any]:
    return {
        "recipe": row.point.recipe.model_dump(mode="json"),
        "seeds": list(row.point.seeds),
        "cost": row.point.cost,
        "quality": row.point.quality,
        "baseline": row.is_baseline,
        "speed_up": _estimate_as_json(row.speed_up),
        "gain": _estimate_as_json(row.gain),
    }


def _estimate_as_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as JSON. JSON has no infinity, so an unknown end is null."""
    if estimate is None:
        return None
    ends = {"low": estimate.low, "high": estimate.high}
    known = {key: value if abs(value) < math.inf else None for key, value in ends.items()}
    return {"value": estimate.value, **known, "bound": estimate.bound}
