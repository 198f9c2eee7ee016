"""Writes a sweep's report into a folder."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from raytrain_plus.frontier.report.document import document_of
from raytrain_plus.frontier.report.drawings import frontier_drawing
from raytrain_plus.frontier.report.findings import Findings
from raytrain_plus.frontier.report.page import page_of
from raytrain_plus.frontier.report.picture import write_picture
from raytrain_plus.frontier.report.tables import recipes_csv, trials_csv
from raytrain_plus.frontier.report.wording import command_of, recipe_text

PAGE, PICTURE, DOCUMENT = "frontier.html", "frontier.png", "frontier.md"
RECIPES, TRIALS, WINNER = "recipes.csv", "trials.csv", "winner.yaml"


def write_report(found: Findings, folder: Path) -> str:
    """Write the page, the picture, the tables, the document, and the winner's recipe.

    Each file replaces the one before atomically, so a reader always sees a whole file.

    Args:
        found: of the sweep.
        folder: the folder; it is made if it does not exist. The command names the recipe's file
            with this path.

    Returns:
        The command that trains the winner; empty if there is none yet.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ""
    if found.winner is not None:
        seed = found.winner.point.seeds[0]
        command = command_of(found.sweep, seed, folder / WINNER)
        _write(folder / WINNER, recipe_text(found.winner, found.sweep))
    _write(folder / RECIPES, recipes_csv(found))
    _write(folder / TRIALS, trials_csv(found))
    _write(folder / DOCUMENT, document_of(found, command, PICTURE))
    if found.points:
        picture = frontier_drawing(found)
        _replace(folder / PICTURE, lambda path: write_picture(picture, path))
    _write(folder / PAGE, page_of(found, command, time.time()))
    return command


def _write(path: Path, text: str) -> None:
    def write(unfinished: Path) -> None:
        unfinished.write_text(text, encoding="utf-8", newline="")

    _replace(path, write)


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    unfinished = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
