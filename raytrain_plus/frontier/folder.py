"""A sweep's folder: its files, its lock and its journal.

sweep/journal.jsonl   sessions, proposals and trials, one line each
trials/               the finished trials, one Parquet file each
runs/                 each trial's run: its journal and its last state
data/                 the data, once for all runs
tune/                 the files of Ray Tune

A finished trial is written under a temporary name and then renamed. The file is never changed
afterwards. So a kill leaves only whole files, and writing a trial twice has the same effect as
writing it once. A table of trials may also be one Parquet file.
"""

import fcntl
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raytrain_plus.frontier.agenda import Proposal
from raytrain_plus.frontier.errors import SweepError
from raytrain_plus.frontier.points import FinishedTrial, PointError
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.names import check_name
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event, Journal

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
    """Write one trial into a folder; after this returns, a kill cannot lose it.

    Args:
        trial: the trial; an earlier one of the same name is replaced.
        folder: the folder; it is made if it does not exist.

    Returns:
        The file.

    Raises:
        OSError: it cannot be written; an earlier file is unchanged.
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
    """Write trials as one Parquet file, sorted by name."""
    pq.write_table(to_table(sorted(trials, key=lambda trial: trial.name)), path)


def read_trials(path: Path) -> list[FinishedTrial]:
    """Read the trials of a folder or of one file, in the order in which they ended.

    Raises:
        PointError: the path has no trials, or is not a table of trials of this version.
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


class SweepFolder:
    """Reads and writes a sweep's files; several processes may each have one.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self._trials: dict[Path, list[FinishedTrial]] = {}

    @property
    def exists(self) -> bool:
        """Whether a sweep has begun in this folder."""
        return (self.path / "sweep" / journal.FILE_NAME).exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder until the block or the process ends, even by a kill.

        Raises:
            SweepError: another process has the lock.
        """
        (self.path / "sweep").mkdir(parents=True, exist_ok=True)
        with (self.path / "sweep" / "lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SweepError(
                    f"another sweep is running in {self.path}: wait for its end, or give another "
                    "folder"
                ) from error
            yield

    # -- what has happened

    def write(self, event: str, **fields: Any) -> None:
        """Append an event."""
        opened = Journal(self.path / "sweep")
        opened.write(event, **fields)
        opened.close()

    def events(self) -> list[Event]:
        """Return all events."""
        return journal.read(self.path / "sweep") if self.exists else []

    def spent(self) -> float:
        """Return the seconds of all sessions that the journal records."""
        total, began, last = 0.0, None, 0.0
        for event in self.events():
            if event["event"] == "session":
                total += last - began if began is not None else 0.0
                began = event["time"]
            last = event["time"]
        return total + (last - began if began is not None else 0.0)

    # -- trials

    def propose(self, proposal: Proposal, names: Sequence[str]) -> str:
        """Record a proposal; returns the name of its trial."""
        name = f"{len(names):05d}-{proposal.purpose}"
        self.write(
            "proposal",
            name=name,
            purpose=proposal.purpose,
            recipe=proposal.recipe.model_dump(mode="json"),
            seed=proposal.seed,
        )
        return name

    def proposals(self) -> dict[str, Proposal]:
        """Return all proposals by the names of their trials, in order."""
        told = [event for event in self.events() if event["event"] == "proposal"]
        try:
            return {
                check_name(event["name"], "trial name"): Proposal(
                    purpose=event["purpose"],
                    recipe=Recipe.model_validate(event["recipe"]),
                    seed=event["seed"],
                )
                for event in told
            }
        except ValueError as error:
            raise SweepError(
                f"the journal of the sweep in {self.path} is damaged: {error}"
            ) from error

    def finish(self, trial: FinishedTrial) -> None:
        """Keep a finished trial; after this returns, a kill cannot lose it."""
        record(trial, self.path / "trials")
        self.write(
            "trial", name=trial.name, outcome=trial.outcome, cost=trial.cost, seconds=time.time()
            - trial.started,
        )  # fmt: skip

    def finished(self) -> list[FinishedTrial]:
        """Return all finished trials, in the order in which they ended."""
        for path in (self.path / "trials").glob("*.parquet"):
            if path not in self._trials:  # a file never changes once it is there
                self._trials[path] = read_trials(path)
        found = [trial for trials in self._trials.values() for trial in trials]
        return sorted(found, key=lambda trial: (trial.ended, trial.name))

    def new_run(self, trial: str) -> str:
        """Return the name of a trial's next run; a trial that was interrupted starts again."""
        attempts = len(list(self.runs.glob(f"{trial}.*")))
        return f"{trial}.{attempts}"
