"""The page: one HTML file that needs nothing else, and says all that a run's journal tells."""

from pathlib import Path
from typing import Any

import jinja2

from raytrain_plus.observe.quantities import duration
from raytrain_plus.observe.report.history import History
from raytrain_plus.observe.report.view import view_of

_HERE = Path(__file__).parent


def page_of(history: History, now: float) -> str:
    """Return the page of a run.

    Args:
        history: of the run.
        now: Unix time, to be named as the page's.
    """
    return render(view_of(history, now))


def render(view: dict[str, Any]) -> str:
    """Fill in the template; all text is escaped, but for the charts, which do so themselves."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["duration"] = duration
    parts = {name: (_HERE / f"page.{name}").read_text(encoding="utf-8") for name in ("css", "js")}
    return environment.get_template("page.html").render(**view, **parts)
