"""The charts of a sweep as a PNG for documents that cannot contain a page.

The page's charts have their text as HTML next to the SVG, so an SVG renderer would lose the text.
matplotlib draws the same values instead: it needs no browser and has its own font.
"""

from pathlib import Path
from typing import Any

from raytrain_plus.frontier.report.drawings import Drawing
from raytrain_plus.observe.charts import Series

_PALETTE = (
    "#2b66d9", "#d97a06", "#0a8f66", "#8a3fd1", "#0a84a5", "#d03a3a", "#a3acb9", "#5c6b85",
)  # fmt: skip
_INK, _SOFT, _GRID = "#16202e", "#566174", "#e9ecf1"
_SIZE, _DOTS_PER_INCH = (9.6, 5.0), 150


def write_picture(drawing: Drawing, path: Path) -> None:
    """Write a chart as PNG.

    Args:
        drawing: the chart.
        path: path of the file.

    Raises:
        OSError: it cannot be written.
    """
    # The import takes a second, and reading a sweep's table does not need it.
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=_SIZE, layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for one in drawing.series:
        if one.points:
            _draw(axes, one)
    for mark in drawing.marks:
        axes.annotate(
            mark.label,
            (mark.at, mark.height),
            ha="center",
            va="center",
            fontsize=7,
            fontweight="bold",
            color="white",
            bbox={"boxstyle": "circle,pad=0.25", "fc": _PALETTE[0], "ec": "white"},
            zorder=6,
        )
    _frame(axes, drawing)
    figure.savefig(path, dpi=_DOTS_PER_INCH, metadata={"Software": None})


def _draw(axes: Any, series: Series) -> None:
    xs, ys = zip(*series.points, strict=True)
    colour = _PALETTE[series.colour]
    plain: dict[str, Any] = {"color": colour, "label": series.label or None}
    if series.kind == "band":
        axes.fill(xs, ys, alpha=0.15, lw=0, zorder=1, **plain)
    elif series.kind == "whiskers":
        for start in range(0, len(xs), 2):
            axes.plot(xs[start : start + 2], ys[start : start + 2], lw=1.2, zorder=4, color=colour)
    elif series.kind in ("steps", "stairs"):
        axes.step(xs, ys, where="post", lw=1.6, zorder=3, **plain)
    elif series.kind in ("dots", "specks"):
        size = 12 if series.kind == "specks" else 34
        axes.scatter(xs, ys, s=size, zorder=2 if series.kind == "specks" else 5, **plain)
    else:
        marker = "o" if series.kind == "line and dots" else None
        axes.plot(xs, ys, lw=1.6, marker=marker, ms=5, zorder=4, **plain)


def _frame(axes: Any, drawing: Drawing) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter  # noqa: PLC0415

    if drawing.x.log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(drawing.x.low, drawing.x.high)
    axes.set_ylim(drawing.y.low, drawing.y.high)
    axes.set_xlabel(_plain(drawing.x.label), color=_SOFT)
    axes.set_ylabel(_plain(drawing.y.label), color=_SOFT)
    axes.set_title(_plain(drawing.title), loc="left", color=_INK, fontsize=11, fontweight="bold")
    axes.grid(color=_GRID)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_SOFT, which="both")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, labelcolor=_SOFT, fontsize=8, loc="best")


def _plain(text: str) -> str:
    # A metric's name is not a formula.
    return text.replace("$", r"\$")
