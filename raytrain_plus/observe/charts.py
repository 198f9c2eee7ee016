"""Charts as HTML and SVG, without a library: lines, steps, dots, bands, and stacked bars.

A drawing stretches with the page, the words next to it do not: curves are drawn in an SVG that
takes whatever room there is, with strokes of fixed width, and labels are HTML at places in percent.
So one chart reads well on a wide screen and on a phone. The style sheet and the script that shows
values under the pointer are those of the page (`pages/style.css`, `pages/script.js`); without the
script a chart loses nothing but that.

All functions are pure; all text that they are given is escaped.
"""

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from raytrain_plus.observe.quantities import duration, number
from raytrain_plus.observe.scales import Scale, scale_of, thinned

Point = tuple[float, float]
Kind = Literal[
    "line", "faint", "steps", "stairs", "band", "whiskers", "dots", "specks", "line and dots"
]
Tone = Literal["bad", "warn", "good", "plain", "accent"]

_WIDTH, _HEIGHT = 1000, 300  # units of the drawing
_ROOM = 0.05  # of the height, above and below the values
_PALE = ("faint", "specks", "band")
MOST_POINTS = 1200  # of a curve: about one for each pixel of its width


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What an axis shows.

    Attributes:
        label: what is measured.
        low, high: its ends. Default: those of the values.
        log: whether equal distances are equal ratios; only where all values are above zero.
        seconds: whether values are seconds, to be told as durations.
        whole: whether only whole numbers make sense.
    """

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    seconds: bool = False
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Series:
    """A curve.

    Attributes:
        label: its name in the legend; empty for none.
        points: (x, y), by growing x unless they are dots. What is not finite is left out.
        kind: how it is drawn: `faint` is a line behind another, `steps` keeps each value until the
            next and is filled, `stairs` does so and is not; `band` fills what its points go round;
            `whiskers` are lines between the first and second point, third and fourth, and so on;
            `specks` are small dots of which there may be many.
        colour: from 0 to 7, of the page's palette.
        names: of each point, for clouds of dots, which must be finite: the name of the nearest is
            shown under the pointer. Where no series has any, values at the pointer's x are.
    """

    label: str
    points: Sequence[Point]
    kind: Kind = "line"
    colour: int = 0
    names: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened, at one place of the x axis, or a point that has a number.

    Attributes:
        at: where.
        height: where on the y axis its pin is. Default: above, with a line across.
        label: a few characters in a pin on a line; empty for a small tick at the top.
        title: what it was, shown under the pointer and told to screen readers.
        tone: how it is coloured.
        anchor: the id of the element that tells more; empty for none.
    """

    at: float
    height: float | None = None
    label: str = ""
    title: str = ""
    tone: Tone = "plain"
    anchor: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a stacked bar: its name, value and colour (0 to 7)."""

    label: str
    value: float
    colour: int


def chart(
    title: str,
    series: Sequence[Series],
    x: Axis,
    y: Axis,
    marks: Sequence[Mark] = (),
    *,
    tall: bool = False,
) -> str:
    """Return a chart of curves as an HTML `figure`.

    Args:
        title: what it shows.
        series: the curves; one without points is left out.
        x: the horizontal axis.
        y: the vertical axis.
        marks: lines across it.
        tall: whether it may take more room.
    """
    shown = [(one, _finite(one.points)) for one in series]
    shown = [(one, points) for one, points in shown if points]
    across = scale_of([p[0] for _, points in shown for p in points], x.low, x.high, log=x.log)
    heights = [p[1] for _, points in shown for p in points]
    up = scale_of(heights, y.low, y.high, log=y.log, room=_ROOM)
    curves = [(one, _thinned(one, points)) for one, points in shown]
    pins = [mark for mark in marks if across.low <= mark.at <= across.high]
    told = _told(title, shown, x, y)
    drawn = "".join(
        [
            *(_grid(up.place(tick)) for tick in up.ticks(5, whole=y.whole, seconds=y.seconds)),
            *(_curve(one, points, across, up) for one, points in curves),
        ]
    )
    return (
        f'<figure class="chart{" tall" if tall else ""}">'
        f"<figcaption><b>{_escaped(title)}</b>{_legend([one for one, _ in shown])}</figcaption>"
        f'<div class="plot"><div class="y" aria-hidden="true">{_labels(up, y, "bottom", 5)}</div>'
        f'<div class="area"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" '
        f'role="img" aria-label="{_escaped(told)}">{drawn}</svg>'
        f"{''.join(_pin(mark, across, up) for mark in pins)}</div>"
        f'<div class="x" aria-hidden="true">{_labels(across, x, "left", 6)}</div></div>'
        f'<p class="axis" aria-hidden="true">{_escaped(x.label)}</p>'
        f"{_values(curves, across, up, x, y)}</figure>"
    )


def stacked_bar(title: str, parts: Sequence[Part], *, unit: str = "") -> str:
    """Return one bar, cut into parts, as an HTML `figure`; parts of zero are left out.

    Args:
        title: what the whole is.
        parts: from left to right, none below zero.
        unit: of the values, in words; they are shown as durations.
    """
    whole = sum(part.value for part in parts)
    drawn, at = [], 0.0
    for part in parts:
        if part.value <= 0 or whole <= 0:
            continue
        width = _WIDTH * part.value / whole
        words = f"{part.label}: {duration(part.value)} ({part.value / whole:.1%})"
        drawn.append(
            f'<rect class="fill c{part.colour}" x="{at:.2f}" y="0" width="{width:.2f}" '
            f'height="{_HEIGHT}"><title>{_escaped(words)}</title></rect>'
        )
        at += width
    told = ", ".join(f"{p.label} {duration(p.value)}" for p in parts if p.value > 0) or "nothing"
    said = f"{duration(whole)}{' ' + unit if unit else ''}"
    return (
        f'<figure class="bar"><figcaption><b>{_escaped(title)}</b> '
        f"<span>{_escaped(said)}</span></figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{_escaped(f"{title}: {told}")}">{"".join(drawn)}</svg></figure>'
    )


def _finite(points: Iterable[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _grid(up: float) -> str:
    height = _HEIGHT * (1 - up)
    return f'<path class="grid" d="M0 {height:.1f}H{_WIDTH}"/>'


def _thinned(series: Series, points: Sequence[Point]) -> Sequence[Point]:
    whole = bool(series.names) or series.kind in ("band", "whiskers", "specks")
    return points if whole else thinned(points, MOST_POINTS)


def _curve(series: Series, points: Sequence[Point], across: Scale, up: Scale) -> str:
    places = [(_WIDTH * across.place(x), _HEIGHT * (1 - up.place(y))) for x, y in points]
    colour = f"c{series.colour}"
    dots = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
    if series.kind in ("dots", "specks"):
        return f'<path class="{series.kind} {colour}" d="{dots}"/>'
    if series.kind == "whiskers":
        ends = zip(places[::2], places[1::2], strict=False)
        lines = "".join(f"M{x:.1f} {y:.1f}L{to:.1f} {up:.1f}" for (x, y), (to, up) in ends)
        return f'<path class="whiskers {colour}" d="{lines}"/>'
    if series.kind == "band":
        outline = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places) + "Z"
        return f'<path class="band {colour}" d="{outline}"/>'
    if series.kind in ("steps", "stairs"):
        line = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(
            f"H{x:.1f}V{y:.1f}" for x, y in places[1:]
        )
        if series.kind == "stairs":
            return f'<path class="line {colour}" d="{line}"/>'
        filled = f"{line}V{_HEIGHT}H{places[0][0]:.1f}Z"
        return (
            f'<path class="under {colour}" d="{filled}"/><path class="line {colour}" d="{line}"/>'
        )
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    kind = "faint" if series.kind == "faint" else "line"
    drawn = f'<path class="{kind} {colour}" d="{line}"/>'
    alone = len(places) == 1  # a line of one point would not be seen
    if series.kind == "line and dots" or alone:
        drawn += f'<path class="dots {colour}" d="{dots}"/>'
    return drawn


def _pin(mark: Mark, across: Scale, up: Scale) -> str:
    place = f'style="left:{100 * across.place(mark.at):.2f}%"'
    kind = "pin"
    if mark.height is not None:
        place = f'{place[:-1]};top:{100 * (1 - up.place(mark.height)):.2f}%"'
        kind = "pin point"
    words = f'title="{_escaped(mark.title)}"'
    if not mark.label:
        return f'<i class="tick {mark.tone}" {place}></i>'
    line = f'<i class="rule {mark.tone}" {place}></i>' if mark.height is None else ""
    href = f' href="#{_escaped(mark.anchor)}"' if mark.anchor else ""
    return (
        f'{line}<a class="{kind} {mark.tone}" {place} {words}{href} '
        f'aria-label="{_escaped(mark.title)}">{_escaped(mark.label)}</a>'
    )


def _labels(scale: Scale, axis: Axis, side: str, most: int) -> str:
    return "".join(
        f'<span style="{side}:{100 * scale.place(tick):.2f}%">{_escaped(_said(tick, axis))}</span>'
        for tick in scale.ticks(most, whole=axis.whole, seconds=axis.seconds)
    )


def _said(value: float, axis: Axis) -> str:
    if not axis.seconds:
        return number(value)
    return "0" if value == 0 else duration(value).replace(".00 s", " s").replace(".0 s", " s")


def _legend(series: Sequence[Series]) -> str:
    keys = "".join(
        f'<li class="{"pale " if one.kind in _PALE else ""}c{one.colour}">'
        f"{_escaped(one.label)}</li>"
        for one in series
        if one.label
    )
    return f'<ul class="legend">{keys}</ul>' if keys else ""


def _told(title: str, shown: Sequence[tuple[Series, list[Point]]], x: Axis, y: Axis) -> str:
    """Say in words what a chart shows, for those who cannot see it."""
    if not shown:
        return f"{title}: nothing yet"
    told = []
    for one, points in shown:
        (first_x, first), (last_x, last) = points[0], points[-1]
        ys = [point[1] for point in points]
        told.append(
            f"{one.label or y.label} from {_said(first, y)} at {_said(first_x, x)} to "
            f"{_said(last, y)} at {_said(last_x, x)}, between {_said(min(ys), y)} and "
            f"{_said(max(ys), y)}"
        )
    return f"{title}, over {x.label}: {'; '.join(told)}"


def _values(
    curves: Sequence[tuple[Series, Sequence[Point]]], across: Scale, up: Scale, x: Axis, y: Axis
) -> str:
    """Return what the page's script shows under the pointer."""
    clouds = any(one.names for one, _ in curves)
    told = {
        "x": _axis(across, x),
        "y": _axis(up, y),
        "series": [
            {
                "label": one.label or y.label,
                "steps": one.kind in ("steps", "stairs"),
                "points": [[_short(px), _short(py)] for px, py in points],
            }
            | ({"names": list(one.names)} if one.names else {})
            for one, points in curves
            if (one.names if clouds else one.kind not in ("band", "whiskers"))
        ],
    }
    data = json.dumps(told, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json">{data}</script>'


def _axis(scale: Scale, axis: Axis) -> dict[str, object]:
    ends = {"low": scale.low, "high": scale.high, "log": scale.log}
    return {"label": axis.label, **ends, "seconds": axis.seconds}


def _short(value: float) -> float:
    return float(f"{value:.6g}")
