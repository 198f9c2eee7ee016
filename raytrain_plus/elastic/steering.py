"""Looking at and steering a live run from another process, by its name."""

import importlib
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from raytrain_plus.elastic.leader import find_leader
from raytrain_plus.elastic.messages import NAMESPACE, Event
from raytrain_plus.observe import journal

_ANSWER_SECONDS = 30.0
_CONNECT_SECONDS = 5.0


class SteeringError(RuntimeError):
    """A run that cannot be reached, or does not do what it was asked for."""


def folder_of(run: str, storage: str) -> Path:
    """Return a run's folder from its name or its folder.

    Raises:
        FileNotFoundError: there is no journal in either place.
    """
    candidates = [Path(run).expanduser(), Path(storage).expanduser() / run]
    for folder in candidates:
        if (folder / journal.FILE_NAME).exists():
            return folder.resolve()
    raise FileNotFoundError(
        f"no run {run!r}: there is no journal in {' or '.join(map(str, candidates))}"
    )


def status(run: str, storage: str) -> Event:
    """Say how a run stands: by its coordinator if it lives, else by its journal."""
    folder = folder_of(run, storage)
    events = journal.read(folder)
    if _ended(events):
        return _from_journal(folder, events)
    try:
        with _coordinator(events) as coordinator:
            answer: Event = _ask(coordinator.status.remote())
            return answer
    except SteeringError:
        return {**_from_journal(folder, events), "state": "unreachable"}


def scale(run: str, workers: int, storage: str) -> Event:
    """Change the number of workers of a live run.

    Raises:
        ValueError: the run does not allow that many.
        SteeringError: the run does not live.
    """
    return _tell(run, storage, "scale", workers)


def checkpoint(run: str, storage: str) -> Event:
    """Let a live run write a checkpoint; its journal says when it is there.

    Raises:
        SteeringError: the run does not live.
    """
    return _tell(run, storage, "checkpoint")


def stop(run: str, storage: str) -> Event:
    """Let a live run end after the step in flight.

    Raises:
        SteeringError: the run does not live.
    """
    return _tell(run, storage, "stop")


def _tell(run: str, storage: str, what: str, *given: int) -> Event:
    with _coordinator(journal.read(folder_of(run, storage))) as coordinator:
        answer: Event = _ask(getattr(coordinator, what).remote(*given))
        return answer


@contextmanager
def reached(folder: Path) -> Iterator[str]:
    """Be connected to the cluster of a run, if it has not ended; gives the run's name.

    Raises:
        SteeringError: the run does not live.
    """
    events = journal.read(folder)
    name: str = [e for e in events if e["event"] == "run"][-1]["run"]
    if _ended(events):
        yield name
        return
    with _coordinator(events):
        yield name


def _ended(events: list[Event]) -> bool:
    kinds = [e["event"] for e in events if e["event"] in ("run", "end")]
    return bool(kinds) and kinds[-1] == "end"


def _from_journal(folder: Path, events: list[Event]) -> Event:
    run = [e for e in events if e["event"] == "run"][-1]
    last: dict[str, Event] = {e["event"]: e for e in events}
    step, end = last.get("step", {}), last.get("end", {})
    return {
        "run": run["run"],
        "state": end.get("state", "unknown"),
        "step": step.get("step", 0),
        "total_steps": run["total_steps"],
        "loss": step.get("loss"),
        "metrics": last.get("evaluate", {}).get("metrics", {}),
        "generation": step.get("generation", 0),
        "digest": end.get("digest", ""),
        "folder": str(folder),
    }


@contextmanager
def _coordinator(events: list[Event]) -> Iterator[Any]:
    run = [e for e in events if e["event"] == "run"][-1]
    if _ended(events):
        raise SteeringError(f"run {run['run']} has ended")
    connected = ray.is_initialized()
    try:
        if not connected:
            _connect(run["address"])
        yield find_leader(run["run"], run.get("lender"))
    except (OSError, RuntimeError, ray.exceptions.RayError) as error:
        if isinstance(error, SteeringError):
            raise
        raise SteeringError(
            f"run {run['run']} cannot be reached at Ray cluster {run['address']}: {error}"
        ) from error
    except ValueError as error:
        if "Failed to look up actor" not in str(error):
            raise
        raise SteeringError(f"run {run['run']} does not live any more") from error
    finally:
        if not connected:
            ray.shutdown()


def _connect(address: str) -> None:
    present_token()
    host, _, port = address.rpartition(":")
    # Ray tries for half a minute where a refused connection says it at once.
    socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    ray.init(address=address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)


def present_token() -> None:
    """Make this process show the token of `~/.ray`, if there is one.

    A cluster that `ray.init` starts asks for it, but a process that joins by address does not show
    it unless RAY_AUTH_MODE says so from the start.
    """
    module = importlib.import_module("ray._private.authentication.authentication_token_setup")
    logging.getLogger(module.__name__).setLevel(logging.ERROR)
    module.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def _ask(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=_ANSWER_SECONDS)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
