"""The charts of a sweep as values: the page draws them as SVG, the picture with matplotlib."""

from collections.abc import Sequence
from dataclasses import dataclass

from raytrain_plus.frontier.estimates import t_quantile
from raytrain_plus.frontier.points import Point, key_of
from raytrain_plus.frontier.report.findings import Corners, Findings
from raytrain_plus.frontier.report.wording import name_of
from raytrain_plus.observe.charts import Axis, Mark, Series, chart

OTHERS, FRONTIER, BASELINE, SPEED = 6, 0, 1, 2  # colours of the page's palette
MOST_OTHERS = 2000  # dots
_MARGIN = 0.12  # of the range of qualities, above and below the points of the report


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart.

    Attributes:
        title: what it shows.
        series: its curves.
        x, y: its axes.
        marks: numbered points.
        left_out: number of points outside of the chart.
    """

    title: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    marks: Sequence[Mark] = ()
    left_out: int = 0

    def html(self) -> str:
        """Return it as HTML."""
        return chart(self.title, self.series, self.x, self.y, self.marks)


def quality_label(found: Findings) -> str:
    """Return the metric's name, and whether higher or lower is better."""
    good = "higher" if found.objective.mode == "max" else "lower"
    return f"{found.objective.metric} ({good} is better)"


def frontier_drawing(found: Findings) -> Drawing:
    """Draw quality over cost: the frontier over seeds, the baseline's curve, and all recipes."""
    rows = [row.point for row in found.frontier]
    told = [*rows, *found.baseline]
    low, high = _range([point.quality for point in told])
    x_low, x_high = _decade([point.cost for point in told])
    keys = {key_of(point.recipe) for point in told}
    rest = [point for point in found.points if key_of(point.recipe) not in keys]
    inside = [p for p in rest if low <= p.quality <= high and x_low <= p.cost <= x_high]
    shown = sorted(inside, key=lambda p: -len(p.seeds))[:MOST_OTHERS]
    ends = (low, high) if found.objective.mode == "max" else (high, low)
    series = [
        _cloud("other recipes", shown, "specks", OTHERS),
        *_surfaces(found, ends[0], x_high),
        Series(label="", points=_whiskers(found.baseline, found), kind="whiskers", colour=BASELINE),
        Series(
            label="baseline",
            points=[(point.cost, point.quality) for point in found.baseline],
            kind="line and dots",
            colour=BASELINE,
            names=[f"baseline: {name_of(point)}" for point in found.baseline],
        ),
        Series(label="", points=_whiskers(rows, found), kind="whiskers", colour=FRONTIER),
        _cloud("on the frontier", rows, "dots", FRONTIER),
    ]
    return Drawing(
        title="Quality over cost",
        series=series,
        x=Axis(label="device-seconds", low=x_low, high=x_high, log=True),
        y=Axis(label=quality_label(found), low=low, high=high),
        marks=[
            Mark(
                at=point.cost,
                height=point.quality,
                label=str(number),
                title=f"{number}: {name_of(point)}",
                tone="accent",
                anchor=f"recipe-{number}",
            )
            for number, point in enumerate(rows, 1)
        ],
        left_out=len(rest) - len(shown),
    )


def hypervolume_drawing(found: Findings) -> Drawing:
    """Draw the hypervolume over the cost that was spent."""
    points = [(0.0, 0.0), *found.hypervolume] if found.hypervolume else []
    return Drawing(
        title="Hypervolume over budget",
        series=[Series(label="", points=points, kind="steps", colour=FRONTIER)],
        x=Axis(label="device-seconds spent", low=0.0),
        y=Axis(label="doublings of cost x quality", low=0.0),
    )


def calibration_drawing(found: Findings) -> Drawing:
    """Draw how fast the machine was."""
    times, speeds = found.calibration.times, found.calibration.speeds
    began = min((trial.started for trial in found.trials), default=0.0)
    reach = max([0.05, *(abs(speed - 1) for speed in speeds)]) * 1.2
    return Drawing(
        title="Speed of the machine",
        series=[
            Series(
                label="",
                points=[(time - began, speed) for time, speed in zip(times, speeds, strict=True)],
                kind="line and dots",
                colour=SPEED,
            )
        ],
        x=Axis(label="time of the sweep", seconds=True, low=0.0),
        y=Axis(label="speed relative to the usual", low=1 - reach, high=1 + reach),
    )


def _surfaces(found: Findings, worst: float, last: float) -> list[Series]:
    if found.surfaces is None:
        return []
    levels = sorted(found.surfaces.by_seeds)
    most = levels[-1]
    one, half, all_of_them = (found.surfaces.by_seeds[n] for n in (levels[0], levels[-2], most))
    upper, lower = _stairs(one, last), _stairs(all_of_them, last)
    outline = [*upper, *reversed(lower), (lower[0][0], worst), (upper[0][0], worst)]
    return [
        Series(label=f"reached by 1 to {most} seeds", points=outline, kind="band", colour=FRONTIER),
        Series(
            label=f"by {levels[-2]} of {most}",
            points=[*half, (max(last, half[-1][0]), half[-1][1])],
            kind="stairs",
            colour=FRONTIER,
        ),
    ]


def _stairs(corners: Corners, last: float) -> Corners:
    places: Corners = [corners[0]]
    for cost, quality in corners[1:]:
        places += [(cost, places[-1][1]), (cost, quality)]
    return [*places, (max(last, places[-1][0]), places[-1][1])]


def _cloud(label: str, points: Sequence[Point], kind: str, colour: int) -> Series:
    return Series(
        label=label if points else "",
        points=[(point.cost, point.quality) for point in points],
        kind="specks" if kind == "specks" else "dots",
        colour=colour,
        names=[name_of(point) for point in points],
    )


def _whiskers(points: Sequence[Point], found: Findings) -> list[tuple[float, float]]:
    """Return the intervals of means over seeds, with the noise of all recipes."""
    quantile = t_quantile(found.noise.freedom)
    ends = []
    for point in points:
        if len(point.seeds) > 1:
            half = quantile * found.noise.quality / len(point.seeds) ** 0.5
            ends += [(point.cost, point.quality - half), (point.cost, point.quality + half)]
    return ends


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values, default=0.0), max(values, default=1.0)
    free = (high - low or abs(low) or 1.0) * _MARGIN
    return low - free, high + free


def _decade(values: Sequence[float]) -> tuple[float, float]:
    return min(values, default=1.0) / 1.25, max(values, default=10.0) * 1.25
