"""Reads the results of a sweep: its trials and its journal.

A sweep's folder has `trials/` with one Parquet file per finished trial, and `sweep/journal.jsonl`.
The journal has a `session` line for each time that the sweep was run (it describes the sweep), a
`proposal` line for each trial that was begun, and a `session_end` line at the end of a session. A
table of trials without a journal is enough if the objective is given.
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
    """The data of a sweep that a report needs.

    Attributes:
        name: name of the sweep.
        task: import path of the task; empty if unknown.
        objective: the metric and its direction.
        trials: ended trials, in the order in which they ended.
        state: whether it is running, has finished, or was interrupted.
        under_way: number of trials that have begun and not ended.
        logical_ranks: V of every run; None if unknown.
        workers: number of workers of the pool in the last session.
        budget: seconds of the pool's time over all sessions; None if unknown.
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
    """Read a sweep's folder, or a table of trials without a journal.

    Args:
        path: the sweep's folder; or a Parquet file of trials, or a folder of such files.
        objective: the metric and its direction. Default: those in the journal.
        task: import path of the task. Default: the one in the journal.

    Raises:
        PointError: there is no sweep, the objective is unknown, or trials cannot be read.
    """
    if not path.exists():
        raise PointError(f"there is no sweep at {path}: give the folder that `sweep` has named")
    events = _events(path)
    sessions = [event for event in events if event["event"] == "session"]
    trials = _trials(path, begun=bool(sessions))
    if not sessions:
        if objective is None:
            raise PointError(
                f"{path} has trials and no journal of a sweep, so the metric is not "
                "known: name it with --metric, such as --metric accuracy or "
                "--metric loss:min"
            )
        return SweepResults(name=path.stem, task=task, objective=objective, trials=trials)
    last, said = sessions[-1], sessions[-1]["sweep"]
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
        PointError: the text has another form.
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
    if "session_end" not in told and _is_held(path):
        return "running"
    return "finished" if "finished" in told else "interrupted"


def _is_held(path: Path) -> bool:
    """Return whether a process holds the lock of a sweep's folder."""
    lock = path / "sweep" / "lock"
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
