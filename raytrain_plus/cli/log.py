"""The command that writes a run's values to loggers afterwards."""

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from raytrain_plus.cli.answers import DEFAULT_STORAGE, Debug, Json, RunName, Storage, answer
from raytrain_plus.elastic.client import control
from raytrain_plus.loggers import LoggerError
from raytrain_plus.loggers.feed import Feed
from raytrain_plus.loggers.naming import check_loggers, make_logger, names_of, parse_logger
from raytrain_plus.storage.staging import staged
from raytrain_plus.storage.store import Folder

LoggerOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:key=value,...]", help="csv, mlflow, tensorboard or wandb. May be repeated."
    ),
]


def log(
    run: RunName,
    *,
    logger: LoggerOption = None,
    group: Annotated[str | None, typer.Option(help="A name that joins runs.")] = None,
    storage: Storage = DEFAULT_STORAGE,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a run's values to loggers, from its journal; values that they have are left out.

    It follows a run that lives to its end.
    """

    def write() -> dict[str, Any]:
        folder = control.folder_of(run, storage)
        written = {
            name: _fed(name, text, folder, group)
            for name, text in zip(_names(logger or []), logger or [], strict=True)
        }
        if not as_json:
            for name, rows in written.items():
                Console(markup=False).print(f"logger {name}: {rows:,} events", highlight=False)
        return {"folder": str(folder), "written": written}

    answer(write, as_json=as_json, debug=debug)


def _names(texts: list[str]) -> list[str]:
    if not texts:
        raise LoggerError("no logger is named: give --logger csv, for example")
    made = [make_logger(*parse_logger(text)) for text in texts]
    check_loggers(made)
    return names_of(made)


def _fed(name: str, text: str, folder: Folder, group: str | None) -> int:
    """Feed one logger to the run's end; returns how many events it has seen now."""
    if isinstance(folder, Path):
        return _fed_with(name, text, folder, group, folder)
    files = Path(tempfile.mkdtemp(prefix="raytrain_plus-log-")) / "loggers"
    with staged(folder, files):
        return _fed_with(name, text, folder, group, files)


def _fed_with(name: str, text: str, folder: Folder, group: str | None, files: Path) -> int:
    feed = Feed(name, lambda: make_logger(*parse_logger(text)), folder, group, files=files)
    before = feed.cursor.position
    while not feed.is_done:
        if not feed.look():
            if feed.cursor.trouble:
                raise LoggerError(f"logger {name}: {feed.cursor.trouble}")
            time.sleep(0.5)
    return feed.cursor.position - before
