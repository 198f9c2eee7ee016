"""The command that writes a sweep's report."""

import time
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raytrain_plus import extras
from raytrain_plus.cli.answers import Debug, Json, answer

FOLDER = "report"
"""The report's folder in a sweep's folder."""
_EVERY = 15.0  # seconds


def frontier(  # noqa: PLR0913 - one option each
    sweep: Annotated[
        Path, typer.Argument(metavar="DIR", help="A sweep's folder, or a table of its trials.")
    ],
    *,
    output: Annotated[
        Path | None, typer.Option(help="Where to write. Default: report/ in the sweep's folder.")
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="METRIC[:min]", help="The objective, if DIR is only a table."),
    ] = None,
    task: Annotated[str, typer.Option(help="Likewise, as module:attribute.")] = "",
    watch: Annotated[
        bool,
        typer.Option("--watch/--once", help="Write it repeatedly until the sweep has ended."),
    ] = False,
    open_it: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in a browser.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Report the recipes on the frontier, with intervals, and how to train the winner."""

    def run() -> dict[str, Any]:
        folder = output or (sweep if sweep.is_dir() else sweep.parent) / FOLDER
        shown = not open_it
        while True:
            told = write(sweep, folder, metric, task)
            if not shown:
                webbrowser.open(Path(told["page"]).resolve().as_uri())
                shown = True
            if not watch or told["state"] != "running":
                break
            time.sleep(_EVERY)
        if not as_json:
            _say(told)
        return told

    answer(run, as_json=as_json, debug=debug)


def write(sweep: Path, folder: Path, metric: str | None = None, task: str = "") -> dict[str, Any]:
    """Write the report; returns its path and its main figures.

    Args:
        sweep: the sweep's folder, or a table of its trials.
        folder: folder to write into.
        metric: the objective, if `sweep` is only a table.
        task: the task that was trained, if `sweep` is only a table.

    Raises:
        ValueError: a needed package is not installed, the sweep cannot be read, or the report
            cannot be written.
    """
    with extras.needed("frontier"):
        from raytrain_plus.frontier.report import results, writing  # noqa: PLC0415 - an extra
        from raytrain_plus.frontier.report.findings import findings_of  # noqa: PLC0415
        from raytrain_plus.frontier.report.tables import summary_of  # noqa: PLC0415
    objective = results.objective_of(metric) if metric else None
    found = findings_of(results.read_sweep(sweep, objective, task))
    try:
        command = writing.write_report(found, folder)
    except OSError as error:
        raise ValueError(
            f"the report cannot be written to {folder}: {error}. Name another place with --output"
        ) from error
    return {"page": str(folder / writing.PAGE), **summary_of(found), "command": command}


def _say(told: dict[str, Any]) -> None:
    console = Console(markup=False)
    console.print(f"The report is {told['page']}", soft_wrap=True, highlight=False)
    if told["command"]:
        console.print(told["command"], soft_wrap=True, highlight=False, markup=False)
