"""The page of a run: one HTML file that says all that its journal tells."""

from pathlib import Path

from raytrain_plus.observe.pages.rendering import render
from raytrain_plus.observe.report.history import RunHistory
from raytrain_plus.observe.report.view import view_of

_TEMPLATE = Path(__file__).parent / "page.html"


def page_of(history: RunHistory, now: float) -> str:
    """Return the page of a run.

    Args:
        history: of the run.
        now: Unix time, to be named as the page's.
    """
    return render(_TEMPLATE, view_of(history, now))
