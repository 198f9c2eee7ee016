"""The page of a sweep: one HTML file, which loads itself anew while the sweep is running."""

from pathlib import Path

from raytrain_plus.frontier.report.findings import Findings
from raytrain_plus.frontier.report.view import view_of
from raytrain_plus.observe.pages.rendering import render

_TEMPLATE = Path(__file__).parent / "page.html"


def page_of(found: Findings, command: str, now: float) -> str:
    """Return the page of a sweep.

    Args:
        found: of the sweep.
        command: that trains the winner.
        now: Unix time, to be named as the page's.
    """
    return render(_TEMPLATE, view_of(found, command, now))
