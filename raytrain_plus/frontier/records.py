"""The table of finished trials on disk: one small Parquet file per trial, or one for all.

While a sweep runs, each trial that ends becomes one file of a folder, written under another name
and then renamed: nothing that is there is ever touched again, a kill at any moment leaves whole
files alone, and writing a trial twice is writing it once.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain_plus.frontier.points import FinishedTrial, PointError
from raytrain_plus.frontier.recipe import Recipe

VERSION = 1

_SECONDS_BY_NAME = pa.map_(pa.string(), pa.float64())
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("purpose", pa.string(), nullable=False),
        pa.field("outcome", pa.string(), nullable=False),
        pa.field("recipe", pa.string(), nullable=False),  # JSON
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("cost", pa.float64(), nullable=False),
        pa.field("quality", pa.float64(), nullable=False),
        pa.field("started", pa.float64(), nullable=False),
        pa.field("ended", pa.float64(), nullable=False),
        pa.field("aspect_costs", _SECONDS_BY_NAME, nullable=False),
        pa.field("parts", _SECONDS_BY_NAME, nullable=False),
        pa.field("error", pa.string(), nullable=False),
    ],
    metadata={"raytrain_plus.trials": str(VERSION)},
)
"""The columns are the attributes of `FinishedTrial`."""


def record(trial: FinishedTrial, folder: Path) -> Path:
    """Write one trial into a folder; once this returns, no kill can lose it.

    Args:
        trial: the trial; one of the same name is replaced.
        folder: is made if it does not exist.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written; what was there before is there still.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{trial.name}.parquet"
    unfinished = folder / f".{trial.name}.{os.getpid()}"
    try:
        with unfinished.open("wb") as file:
            pq.write_table(to_table([trial]), file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def write_trials(trials: Iterable[FinishedTrial], path: Path) -> None:
    """Write trials as one Parquet file, by name."""
    pq.write_table(to_table(sorted(trials, key=lambda trial: trial.name)), path)


def read_trials(path: Path) -> list[FinishedTrial]:
    """Read the trials of a folder or of one file, in the order in which they ended.

    Raises:
        PointError: there is nothing there, or it is no table of trials of this version.
    """
    if not path.exists():
        raise PointError(f"there are no trials at {path}")
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    trials = [trial for file in files for trial in _read(file)]
    return sorted(trials, key=lambda trial: (trial.ended, trial.name))


def to_table(trials: Iterable[FinishedTrial]) -> pa.Table:
    """Return trials as an Arrow table."""
    return pa.Table.from_pylist([_row(trial) for trial in trials], schema=SCHEMA)


def _read(file: Path) -> list[FinishedTrial]:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise PointError(f"{file} is no Parquet file: {error}") from error
    found = (
        (table.schema.metadata or {}).get(b"raytrain_plus.trials", b"none").decode(errors="replace")
    )
    if found != str(VERSION):
        raise PointError(
            f"{file} holds trials of version {found}; this program reads version {VERSION}"
        )
    try:
        return [_trial(row) for row in table.to_pylist(maps_as_pydicts="strict")]
    except (ValueError, TypeError, LookupError, pa.ArrowException, RecursionError) as error:
        raise PointError(f"{file} holds something else than trials: {error}") from error


def _row(trial: FinishedTrial) -> dict[str, Any]:
    row = {field.name: getattr(trial, field.name) for field in fields(trial)}
    row["recipe"] = json.dumps(trial.recipe.model_dump(mode="json"), sort_keys=True)
    for name in ("aspect_costs", "parts"):
        row[name] = dict(row[name])
    return row


def _trial(row: dict[str, Any]) -> FinishedTrial:
    return FinishedTrial(**{**row, "recipe": Recipe.model_validate_json(row["recipe"])})
