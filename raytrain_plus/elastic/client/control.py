"""Looking at and steering a live run from another process, by its name."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from typing import Any

import ray

from raytrain_plus.elastic.client.find_run import find_coordinator
from raytrain_plus.elastic.protocol.handles import CoordinatorHandle, Ref
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.names import NAMESPACE, check_name, possible_folders
from raytrain_plus.observe import journal
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.ray_cluster.joining import join, trusted
from raytrain_plus.storage.locations import local_path
from raytrain_plus.storage.store import Folder, Store

_ANSWER_SECONDS = 30.0
_STATUS_EVENTS = ("run", "step", "evaluate", "end")  # of which a status is made


class SteeringError(RuntimeError):
    """A run that cannot be reached, or does not do what it was asked for."""


class RunFailedError(RuntimeError):
    """A run that failed; its text is the user's own traceback where there is one.

    Attributes:
        summary: what is known of the run.
    """

    def __init__(self, message: str, summary: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.summary = summary or {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process unpickle it, such as the driver of a Tune experiment."""
        return type(self), (str(self), self.summary)


def folder_of(run: str, storage: str) -> Folder:
    """Return a run's folder from its name or its folder.

    Args:
        run: its name, its folder or the URL of it.
        storage: where runs are kept, a folder or a URL.

    Raises:
        InvalidNameError: it is neither a usable name nor a folder.
        FileNotFoundError: there is no journal in either place.
    """
    candidates = possible_folders(run, storage)
    for place in candidates:
        folder = located(place)
        if journal_of(folder).exists():
            return folder.resolve() if isinstance(folder, Path) else folder
    raise FileNotFoundError(
        f"no run {run!r}: there is no journal in {' or '.join(map(str, candidates))}"
    )


def located(place: Path | str) -> Folder:
    """Return the folder at a path or URL.

    Raises:
        StorageError: the URL cannot be used.
    """
    path = local_path(place)
    return Store(str(place)) if path is None else path


def status(run: str, storage: str, address: str | None = None) -> Event:
    """Say how a run stands: by its coordinator if it lives, else by its journal.

    Args:
        run: its name or folder.
        storage: where runs are kept.
        address: of its cluster; None for the one that its journal names, if this machine vouches
            for it (`vouched.py`).
    """
    folder = folder_of(run, storage)
    events = _known(folder)
    if _ended(events):
        return _from_journal(folder, events)
    try:
        with _coordinator(events, address) as coordinator:
            return _ask(coordinator.status.remote())
    except SteeringError as error:
        return {
            **_from_journal(folder, events),
            "state": RunState.UNREACHABLE,
            "reason": str(error),
        }


def scale(run: str, workers: int, storage: str, address: str | None = None) -> Event:
    """Change the number of workers of a live run.

    Raises:
        ValueError: the run does not allow that many.
        SteeringError: the run does not live.
    """
    return _tell(run, storage, address, "scale", workers)


def checkpoint(run: str, storage: str, address: str | None = None) -> Event:
    """Let a live run write a checkpoint; its journal says when it is there.

    Raises:
        SteeringError: the run does not live.
    """
    return _tell(run, storage, address, "checkpoint")


def stop(run: str, storage: str, address: str | None = None) -> Event:
    """Let a live run end after the step in flight.

    Raises:
        SteeringError: the run does not live.
    """
    return _tell(run, storage, address, "stop")


def _tell(run: str, storage: str, address: str | None, what: str, *given: int) -> Event:
    with _coordinator(_known(folder_of(run, storage)), address) as coordinator:
        return _ask(getattr(coordinator, what).remote(*given))


@contextmanager
def reached(folder: Folder, address: str | None = None) -> Iterator[str]:
    """Be connected to the cluster of a run, if it has not ended; gives the run's name.

    Args:
        folder: the run's.
        address: of its cluster; None for the one that its journal names, if this machine vouches
            for it (`vouched.py`).

    Raises:
        SteeringError: the run does not live.
    """
    events = _known(folder)
    name: str = _run_of(events)["run"]
    if _ended(events):
        yield name
        return
    with _coordinator(events, address):
        yield name


def _known(folder: Folder) -> list[Event]:
    """Return the last event of each kind that a status is made of, in the journal's order."""
    return list(journal.newest(journal_of(folder), _STATUS_EVENTS).values())


def _run_of(events: list[Event]) -> Event:
    """Return the last `run` line."""
    found = [event for event in events if event["event"] == "run"]
    if not found:
        raise journal.JournalError(
            "the journal has no `run` line: it tells of no run, or has just begun"
        )
    journal.need(found[-1], "run", "total_steps")
    check_name(found[-1]["run"])
    return found[-1]


def _ended(events: list[Event]) -> bool:
    kinds = [e["event"] for e in events if e["event"] in ("run", "end")]
    return bool(kinds) and kinds[-1] == "end"


def watch(
    run: str, storage: str, every: float = 1.0, address: str | None = None
) -> Iterator[Event]:
    """Say again and again how a run stands, until it has ended or cannot be reached.

    Args:
        run: its name or folder.
        storage: where runs are kept.
        every: seconds between two answers. Default 1.
        address: of its cluster; None for the one that its journal names, if this machine vouches
            for it (`vouched.py`).

    Raises:
        FileNotFoundError: there is no journal of that run.
    """
    folder = folder_of(run, storage)
    followed = journal_of(folder)
    offset = journal.size_of(followed)
    known = _known(folder)
    try:
        with reached(folder, address) as name:
            while not _ended(known):
                yield _live(name, known) or {
                    **_from_journal(folder, known),
                    "state": RunState.NO_ANSWER,
                }
                sleep(every)
                events, offset = journal.follow(followed, offset)
                known = list(journal.newest_of([*known, *events], _STATUS_EVENTS).values())
        yield _from_journal(folder, known)
    except SteeringError as error:
        known = _known(folder)
        told = _from_journal(folder, known)
        gone = {"state": RunState.UNREACHABLE, "reason": str(error)}
        yield told if _ended(known) else {**told, **gone}  # it may have ended a moment ago


def _live(name: str, events: list[Event]) -> Event | None:
    """Ask a run's coordinator; None if it does not answer, as when Ray is starting it again."""
    try:
        answer: Event = _ask(find_coordinator(name, events).status.remote())
    except ray.exceptions.RayError:
        return None
    return answer


def _from_journal(folder: Folder, events: list[Event]) -> Event:
    run = _run_of(events)
    last: dict[str, Event] = {}
    for event in events:
        if event["event"] == "run":  # it stands where it goes on, whatever was computed before
            at = event.get("resumed_step", 0)
            last = {k: e for k, e in last.items() if k == "evaluate" and e["step"] <= at}
            last["step"] = {"step": at}
        last[event["event"]] = event
    step, end = last.get("step", {}), last.get("end", {})
    return {
        "run": run["run"],
        "state": RunState(end.get("state", RunState.UNKNOWN)),
        "step": end.get("step", step.get("step", 0)),
        "total_steps": run["total_steps"],
        "loss": end.get("loss", step.get("loss")),
        "metrics": end.get("metrics", last.get("evaluate", {}).get("metrics", {})),
        "logged": end.get("logged", step.get("logged", {})),
        "generation": step.get("generation", 0),
        "digest": end.get("digest", ""),
        "folder": str(folder),
    }


@contextmanager
def _coordinator(events: list[Event], address: str | None) -> Iterator[CoordinatorHandle]:
    run = _run_of(events)
    if _ended(events):
        raise SteeringError(f"run {run['run']} has ended")
    if run.get("local"):
        raise SteeringError(
            f"run {run['run']} is a local run (0 workers): it is in its driver's process alone, "
            "and no other process can reach it. Its journal says how it stands (`report`); Ctrl-C "
            "or SIGTERM stops it"
        )
    connected = ray.is_initialized()
    try:
        if not connected:
            if address in (None, "local"):
                journal.need(run, "address")
                address = trusted(run["address"])
            join(address, namespace=NAMESPACE)
        yield find_coordinator(run["run"], events)
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        if isinstance(error, SteeringError):
            raise
        raise SteeringError(f"run {run['run']} cannot be reached: {error}") from error
    except ValueError as error:
        if "Failed to look up actor" not in str(error):
            raise
        raise SteeringError(f"run {run['run']} does not live any more") from error
    finally:
        if not connected:
            ray.shutdown()


def _ask(ref: Ref[Event]) -> Event:
    try:
        answer: Event = ray.get(ref, timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return answer
