"""The command that writes a run's report."""

import time
import webbrowser
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raytrain_plus.cli.answers import Debug, Json, RunName, answer
from raytrain_plus.elastic.client import control
from raytrain_plus.observe import journal
from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.report.page import page_of
from raytrain_plus.observe.report.spending import spending_of
from raytrain_plus.observe.report.view import state_of
from raytrain_plus.storage import atomic_files

_PAGE = "report.html"


def report(
    run: RunName,
    *,
    output: Annotated[
        Path | None, typer.Option(help="The page's file. Default: report.html in the run's folder.")
    ] = None,
    open_it: Annotated[
        bool, typer.Option("--open/--no-open", help="Show the page in a browser.")
    ] = False,
    storage: Annotated[str, typer.Option(help="Where runs are kept.")] = "~/ray_results",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page about a run, live or ended, from its journal."""

    def run_it() -> dict[str, Any]:
        written = _write(control.folder_of(run, storage), output)
        if not as_json:
            Console(markup=False).print(
                f"The report is {written['page']}", soft_wrap=True, highlight=False
            )
        if open_it:
            webbrowser.open(Path(written["page"]).as_uri())
        return written

    answer(run_it, as_json=as_json, debug=debug)


def _write(folder: Path, output: Path | None) -> dict[str, Any]:
    """Write the page; returns its path and its main figures."""
    history = read_history(journal.each(folder / journal.FILE_NAME))
    path = (output or folder / _PAGE).expanduser().resolve()
    try:
        atomic_files.write(path, page_of(history, time.time()).encode())
    except OSError as error:
        raise ValueError(
            f"the page cannot be written to {path}: {error}. Name another place with --output"
        ) from error
    spent = spending_of(history)
    return {
        "run": history.run["run"],
        "page": str(path),
        "state": state_of(history),
        "steps": history.steps[-1] if history.steps else 0,
        "wall_seconds": round(spent.wall, 3),
        "training_seconds": round(spent.training, 3),
        "startup_seconds": round(spent.startup, 3),
        "pause_seconds": {cause: round(seconds, 3) for cause, seconds in spent.pauses.items()},
        "worker_seconds": {part: round(seconds, 3) for part, seconds in spent.workers.items()},
    }
