"""What is known of a sweep: its trials, and what its journal says of it.

A sweep's folder holds `trials/`, one Parquet file per finished trial, and `sweep/journal.jsonl`,
with a `sitting` line for each time that it was run (which describes the sweep), a `proposal` line
for each trial that was begun, and `rest` at the end of a sitting. A bare table of trials is enough
as well, if the objective is named.
"""

import fcntl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raytrain_plus.frontier.folder import read_trials
from raytrain_plus.frontier.points import FinishedTrial, Objective, PointError
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event

State = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True, kw_only=True)
class SweepResults:
    """A sweep, as far as a report is concerned.

    Attributes:
        name: of the sweep.
        task: where to import it; empty if unknown.
        objective: what is to be good.
        trials: that have ended, in that order.
        state: whether it is running, has used up what it was given, or was cut off.
        under_way: trials that have begun and not ended.
        logical_ranks: V of every run; None if unknown.
        workers: of the pool, in the last sitting.
        budget: seconds of the pool, in all; None if unknown.
        problem: why it failed.
    """

    name: str
    task: str = ""
    objective: Objective
    trials: Sequence[FinishedTrial]
    state: State = "finished"
    under_way: int = 0
    logical_ranks: int | None = None
    workers: int | None = None
    budget: float | None = None
    problem: str = ""


def read_sweep(path: Path, objective: Objective | None = None, task: str = "") -> SweepResults:
    """Read a sweep's folder, or a bare table of trials.

    Args:
        path: the sweep's folder; or a Parquet file of trials, or a folder of such files.
        objective: default: what the journal says.
        task: where to import it. Default: what the journal says.

    Raises:
        PointError: there is no sweep, no objective is known, or trials cannot be read.
    """
    if not path.exists():
        raise PointError(f"there is no sweep at {path}: give the folder that `sweep` has named")
    events = _events(path)
    sittings = [event for event in events if event["event"] == "sitting"]
    trials = _trials(path, begun=bool(sittings))
    if not sittings:
        if objective is None:
            raise PointError(
                f"{path} has trials and no journal of a sweep, so what was to be "
                "good is not known: name it with --metric, such as --metric accuracy or "
                "--metric loss:min"
            )
        return SweepResults(name=path.stem, task=task, objective=objective, trials=trials)
    last, said = sittings[-1], sittings[-1]["sweep"]
    problems = [event["text"] for event in _since(events, last) if event["event"] == "problem"]
    ended = {trial.name for trial in trials}
    state = _state(path, _since(events, last))
    return SweepResults(
        name=said["name"],
        task=task or said["task"],
        objective=objective or Objective(metric=said["metric"], mode=said["mode"]),
        trials=trials,
        state=state,
        under_way=_under_way(events, ended) if state == "running" else 0,
        logical_ranks=said.get("logical_ranks"),
        workers=last.get("workers"),
        budget=last.get("budget"),
        problem=problems[-1] if problems else "",
    )


def objective_of(text: str) -> Objective:
    """Return the objective of a text such as `accuracy` or `loss:min`.

    Raises:
        PointError: it is of another form.
    """
    metric, _, mode = text.partition(":")
    if not metric or mode not in ("", "min", "max"):
        raise PointError(f"metric {text!r} is not METRIC, METRIC:max or METRIC:min")
    return Objective(metric=metric, mode="min" if mode == "min" else "max")


def _trials(path: Path, *, begun: bool) -> list[FinishedTrial]:
    folder = path / "trials"
    if folder.is_dir():
        return read_trials(folder)
    if begun:
        return []
    if path.is_dir() and not any(path.glob("*.parquet")):
        raise PointError(f"{path} holds neither a sweep nor trials: give the folder of a sweep")
    return read_trials(path)


def _events(path: Path) -> list[Event]:
    file = path / "sweep" / journal.FILE_NAME
    return journal.read(file) if file.exists() else []


def _since(events: Sequence[Event], first: Event) -> Sequence[Event]:
    return events[next(i for i, event in enumerate(events) if event is first) :]


def _under_way(events: Sequence[Mapping[str, Any]], ended: set[str]) -> int:
    begun = {event["name"] for event in events if event["event"] == "proposal"}
    return len(begun - ended)


def _state(path: Path, events: Sequence[Event]) -> State:
    told = {event["event"] for event in events}
    if "problem" in told:
        return "failed"
    if "rest" not in told and _is_held(path):
        return "running"
    return "finished" if "over" in told else "interrupted"


def _is_held(path: Path) -> bool:
    """Say whether a process works in a sweep's folder: it holds the folder's lock."""
    lock = path / "sweep" / "lock"
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
