"""A sweep's folder: what is in it, who works in it, what has happened there.

sweep/journal.jsonl   sittings, proposals and trials, one line each
trials/               the finished trials, one file each (`records.py`)
runs/                 each trial's run: its journal and its last state
data/                 the data, once for all runs
tune/                 Ray Tune's own
"""

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raytrain_plus.frontier.agenda import Proposal
from raytrain_plus.frontier.errors import SweepError
from raytrain_plus.frontier.points import FinishedTrial
from raytrain_plus.frontier.recipe import Recipe
from raytrain_plus.frontier.records import read_trials, record
from raytrain_plus.names import check_name
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event, Journal


class SweepFolder:
    """Reads and writes what a sweep keeps; several processes may each have one.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.runs = path / "runs"
        self._trials: dict[Path, list[FinishedTrial]] = {}

    @property
    def exists(self) -> bool:
        """Whether a sweep has begun here."""
        return (self.path / "sweep" / journal.FILE_NAME).exists()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Work here alone, until the block or the process ends, however it ends.

        Raises:
            SweepError: another process works here.
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
        """Return the seconds that all sittings have taken, as far as the journal knows."""
        total, began, last = 0.0, None, 0.0
        for event in self.events():
            if event["event"] == "sitting":
                total += last - began if began is not None else 0.0
                began = event["time"]
            last = event["time"]
        return total + (last - began if began is not None else 0.0)

    # -- trials

    def propose(self, proposal: Proposal, names: Sequence[str]) -> str:
        """Note a proposal; returns the name of its trial."""
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
        """Keep a finished trial; once this returns, no kill loses it."""
        record(trial, self.path / "trials")
        self.write(
            "trial", name=trial.name, outcome=trial.outcome, cost=trial.cost, seconds=time.time()
            - trial.started,
        )  # fmt: skip

    def finished(self) -> list[FinishedTrial]:
        """Return all finished trials, in the order in which they ended."""
        for path in (self.path / "trials").glob("*.parquet"):
            if path not in self._trials:  # which never changes again
                self._trials[path] = read_trials(path)
        found = [trial for trials in self._trials.values() for trial in trials]
        return sorted(found, key=lambda trial: (trial.ended, trial.name))

    def new_run(self, trial: str) -> str:
        """Return the name of a trial's next run: one that was cut off is begun anew."""
        attempts = len(list(self.runs.glob(f"{trial}.*")))
        return f"{trial}.{attempts}"
