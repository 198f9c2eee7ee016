"""The command that writes a run's report."""

import tempfile
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
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.redaction import redact
from raytrain_plus.storage import atomic_files
from raytrain_plus.storage.store import Folder, store_of

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
    storage: Annotated[
        str, typer.Option(help="Where runs are kept, a folder or a URL.")
    ] = "~/ray_results",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page about a run, live or ended, from its journal."""

    def run_it() -> dict[str, Any]:
        folder = control.folder_of(run, storage)
        text, told = _page_of(folder)
        place = _write(folder, output, text)
        if not as_json:
            Console(markup=False).print(f"The report is {place}", soft_wrap=True, highlight=False)
        if open_it:
            webbrowser.open(_shown(place, text).as_uri())
        return {"run": told.pop("run"), "page": str(place), **told}

    answer(run_it, as_json=as_json, debug=debug)


def _write(folder: Folder, output: Path | None, text: bytes) -> Path | str:
    """Write the page; returns its path, or its URL in an object store."""
    if output is None and not isinstance(folder, Path):
        folder.write(_PAGE, text)
        return redact(folder.where(_PAGE))
    path = (output or store_of(folder).local_path / _PAGE).expanduser().resolve()
    try:
        atomic_files.write(path, text)
    except OSError as error:
        raise ValueError(
            f"the page cannot be written to {path}: {error}. Name another place with --output"
        ) from error
    return path


def _shown(place: Path | str, text: bytes) -> Path:
    """Return the page's file, or a copy of it on this machine for the browser."""
    if isinstance(place, Path):
        return place
    copy = Path(tempfile.mkdtemp(prefix="raytrain_plus-report-")) / _PAGE
    copy.write_bytes(text)
    return copy


def _page_of(folder: Folder) -> tuple[bytes, dict[str, Any]]:
    """Return the page and its main figures."""
    history = read_history(journal.each(journal_of(folder)))
    text = page_of(history, time.time()).encode()
    spent = spending_of(history)
    return text, {
        "run": history.run["run"],
        "state": state_of(history),
        "steps": history.steps[-1] if history.steps else 0,
        "wall_seconds": round(spent.wall, 3),
        "training_seconds": round(spent.training, 3),
        "startup_seconds": round(spent.startup, 3),
        "pause_seconds": {cause: round(seconds, 3) for cause, seconds in spent.pauses.items()},
        "worker_seconds": {part: round(seconds, 3) for part, seconds in spent.workers.items()},
    }
