"""The charts of a run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from raytrain_plus.observe.charts import (
    MOST_POINTS,
    Axis,
    Mark,
    Part,
    Point,
    Series,
    chart,
    stacked_bar,
)
from raytrain_plus.observe.report.changes import GroupChange
from raytrain_plus.observe.report.history import RunHistory
from raytrain_plus.observe.report.spending import (
    ENDING,
    STARTUP,
    TRAINING,
    UNKNOWN,
    Spending,
    spans,
)
from raytrain_plus.observe.scales import smoothed, telling_places

NAMES = {
    "compute": "compute",
    "exchange": "exchange",
    "data": "waiting for data",
    "evaluation": "evaluation",
    "snapshot": "checkpoints' snapshots",
    UNKNOWN: UNKNOWN,
    "pause": "pauses",
    STARTUP: STARTUP,
    ENDING: ENDING,
}
COLOURS = {
    "compute": 0,
    "exchange": 1,
    "data": 2,
    "evaluation": 3,
    "snapshot": 4,
    "pause": 5,
    UNKNOWN: 6,
    STARTUP: 7,
    ENDING: 7,
}
_SMOOTH_ABOVE = 200  # steps
_SMOOTH_POINTS = 500
_LOG_ABOVE = 20  # largest loss over smallest

Scalar = int | float


def loss_charts(history: RunHistory) -> list[str]:
    """Return the loss over steps, and over time."""
    charts = []
    losses = history.losses
    positive = bool(losses) and min(losses) > 0
    y = Axis(label="loss", log=positive and max(losses) > _LOG_ABOVE * min(losses))
    across = (
        ("Loss over steps", history.steps, Axis(label="step", whole=True)),
        ("Loss over time", history.active, Axis(label="time", seconds=True, low=0.0)),
    )
    for title, places, x in across:
        charts.append(chart(title, _loss_series(places, losses), x, y))
    return charts


def metric_charts(history: RunHistory) -> list[tuple[str, list[str]]]:
    """Return for each metric that is a number its name, and its charts over steps and time."""
    found = []
    for i, name in enumerate(_scalar_names(history)):
        values = [
            (step, at, float(metrics[name]))
            for step, at, metrics in history.evaluations
            if is_number(metrics.get(name))
        ]
        y, colour = Axis(label=name), (3, 2, 4, 7)[i % 4]
        across = (
            (f"{name} over steps", 0, Axis(label="step", whole=True, low=0)),
            (f"{name} over time", 1, Axis(label="time", seconds=True, low=0.0)),
        )
        charts = []
        for title, place, x in across:
            points: list[Point] = [(value[place], value[2]) for value in values]
            curve = Series(label="", points=points, kind="line and dots", colour=colour)
            charts.append(chart(title, [curve], x, y))
        found.append((name, charts))
    return found


def logged_charts(history: RunHistory) -> list[tuple[str, list[str]]]:
    """Return for each logged scalar its name, and its charts over steps and time.

    Values that are not finite are left out.
    """
    found = []
    for name, columns in sorted(history.logged.items()):
        rows = [row for row in zip(*columns, strict=True) if math.isfinite(row[2])]
        values = [row[2] for row in rows]
        across = (
            (f"{name} over steps", 0, Axis(label="step", whole=True)),
            (f"{name} over time", 1, Axis(label="time", seconds=True, low=0.0)),
        )
        charts = [
            chart(title, _loss_series([row[i] for row in rows], values), x, Axis(label=name))
            for title, i, x in across
        ]
        if rows:
            found.append((name, charts))
    return found


def workers_chart(history: RunHistory, marks: list[Mark]) -> str:
    """Return the number of workers over time; zero while the group pauses for long."""
    points: list[Point] = []
    for session in history.sessions:
        points.append((session.active(session.start), 0))
        for generation, start, until in spans(session):
            points.append((session.active(start), generation.workers))
            last = (session.active(until), generation.workers)
            if last[0] > points[-1][0]:
                points.append(last)
        points.append((session.active(session.end), points[-1][1]))
    most = max((y for _, y in points), default=1)
    return chart(
        "Workers over time",
        [Series(label="", points=points, kind="steps", colour=0)],
        Axis(label="time", seconds=True, low=0.0),
        Axis(label="workers", low=0, high=most * 1.15 + 0.2, whole=True),
        marks,
        tall=True,
    )


def worker_seconds_bar(spent: Spending) -> str:
    """Return where the workers' time went."""
    parts = [
        Part(label=NAMES[part], value=spent.workers[part], colour=COLOURS[part])
        for part in (*TRAINING, "pause", UNKNOWN)
    ]
    return stacked_bar("Worker-seconds", parts)


def wall_bar(spent: Spending) -> str:
    """Return where the wall's time went."""
    parts = [Part(label=STARTUP, value=spent.startup, colour=COLOURS[STARTUP])]
    parts += [
        Part(label=NAMES[part], value=spent.shares[part], colour=COLOURS[part])
        for part in (*TRAINING, UNKNOWN)
    ]
    parts += [
        Part(label=f"paused: {cause}", value=seconds, colour=COLOURS["pause"])
        for cause, seconds in sorted(spent.pauses.items())
    ]
    parts.append(Part(label=ENDING, value=spent.ending, colour=COLOURS[ENDING]))
    return stacked_bar("Wall time", parts)


def is_number(value: Any) -> bool:
    """Say whether a metric's value is one number, which can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def last_metrics(history: RunHistory) -> Mapping[str, Any]:
    """Return the values of the last evaluation that stands."""
    return history.evaluations[-1][2] if history.evaluations else {}


def workers_between(changes: list[GroupChange]) -> tuple[int, int]:
    """Return the least and the most workers that a run had."""
    counts = [change.after for change in changes] or [0]
    return min(counts), max(counts)


def _loss_series(places: Sequence[float], losses: Sequence[float]) -> list[Series]:
    """Return the loss of each step, and its mean; made for runs of millions of steps."""
    told = telling_places(losses, MOST_POINTS)
    points = [(places[i], losses[i]) for i in told]
    if len(losses) <= _SMOOTH_ABOVE:
        return [Series(label="", points=points, colour=0)]
    window = max(5, len(losses) // 50)
    at = sorted({*range(0, len(losses), max(1, len(losses) // _SMOOTH_POINTS)), len(losses) - 1})
    means = smoothed(losses, window, at)
    mean = [(places[i], y) for i, y in zip(at, means, strict=True)]
    return [
        Series(label="each step", points=points, kind="faint", colour=0),
        Series(label=f"mean of {window:,} steps", points=mean, colour=0),
    ]


def _scalar_names(history: RunHistory) -> list[str]:
    names: dict[str, None] = {}
    for _, _, metrics in history.evaluations:
        names |= {name: None for name, value in metrics.items() if is_number(value)}
    return list(names)
