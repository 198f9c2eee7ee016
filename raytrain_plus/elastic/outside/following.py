"""Following a run from the process that started it, or from another one, by its journal."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError

from raytrain_plus.elastic.membership.fencing import FencedError
from raytrain_plus.elastic.membership.ownership import Owners
from raytrain_plus.elastic.messages import Event, Outcome
from raytrain_plus.elastic.outside.joining import find_leader
from raytrain_plus.elastic.records.chronicle import GENERATION
from raytrain_plus.observe import journal
from raytrain_plus.observe.output import Tail
from raytrain_plus.streams.store import Store

Watcher = Callable[[list[Event]], None]

_POLL = 0.2  # seconds between two looks at the journal
_LOOK = 2.0  # seconds between two looks at whether the coordinator lives


class LostError(RuntimeError):
    """The coordinator has gone for good, so that this run will not go on by itself."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        outcome: how.
        summary: the same as data, as the command line prints it.
    """

    outcome: Outcome
    summary: dict[str, Any]


def follow(
    run: str,
    folder: Path,
    watcher: Watcher | None = None,
    offset: int = 0,
    claim: str | None = None,
) -> Ended:
    """Wait for the end of a run.

    The first interrupt (Ctrl-C, or SIGTERM, as `ray job stop` sends it) asks the run to stop after
    the step in flight, the second leaves it alone. What the workers' Python prints meanwhile is
    written to stderr, with the worker's name before each line.

    Args:
        run: its name.
        folder: its folder.
        watcher: called now and then with the journal's new events.
        offset: of the journal, from which on events are new.
        claim: of the driver that has started the run. Default: whoever has it is followed.

    Raises:
        LostError: the coordinator was ended from outside, or another driver has taken the run.
    """
    with _interrupted_by_sigterm():
        return _follow(run, folder, watcher, offset, claim)


def _follow(
    run: str, folder: Path, watcher: Watcher | None, offset: int, claim: str | None
) -> Ended:
    seen: list[Event] = []
    tail = Tail(folder)
    look_at = time.monotonic() + _LOOK
    interrupted = gone = False
    while True:
        try:
            before = offset
            events, offset = journal.follow(folder / journal.FILE_NAME, offset)
            is_behind = offset - before >= journal.AT_ONCE
            _check_ours(events, folder, claim)
            seen += (event for event in events if event["event"] in ("run", "generation", "end"))
            over = any(event["event"] == "end" for event in journal.since_last_run(seen))
            for line in tail.new(time.monotonic(), last=over):
                sys.stderr.write(f"{line}\n")
            if watcher is not None:
                watcher(events)
            else:
                warnings = [event for event in events if event["event"] == "warning"]
                sys.stderr.writelines(f"warning: {event['text']}\n" for event in warnings)
            if over:
                return ended(seen, folder)
            if gone and not is_behind:
                _check_last(folder, claim)
                raise LostError(f"the coordinator of run {run} was ended from outside")
            if time.monotonic() > look_at:
                look_at = time.monotonic() + _LOOK
                gone = not _lives(run, seen)  # then look once more at what it has written last
            time.sleep(0.0 if gone or is_behind else _POLL)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            find_leader(run, seen).stop.remote()


def _check_ours(events: Sequence[Event], folder: Path, claim: str | None) -> None:
    """See that no other driver has begun to write the journal."""
    if claim is not None and any(e["event"] == "run" and e.get("claim") != claim for e in events):
        _check_last(folder, claim)


def _check_last(folder: Path, claim: str | None) -> None:
    last = Owners(Store(folder)).latest()
    if claim is not None and last is not None and last.claim != claim:
        raise LostError(f"{FencedError(last, replaced=False)}")


@contextlib.contextmanager
def _interrupted_by_sigterm() -> Iterator[None]:
    """Take SIGTERM for Ctrl-C: Ray's own handler would end this process and leave the run alone."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Python lets nobody handle signals
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def ended(events: Sequence[Event], folder: Path) -> Ended:
    """Read from a journal how its last run ended; it must have."""
    events = journal.since_last_run(list(events))
    run = next(event for event in events if event["event"] == "run")
    end = next(event for event in reversed(events) if event["event"] == "end")
    journal.need(run, "run", "time", "batch_size", "batch_tokens")
    journal.need(end, "time", "state", "step")
    outcome = _outcome_of(events, end)
    summary = {
        "run": run["run"],
        "state": outcome.state,
        "steps": outcome.steps,
        "digest": outcome.digest,
        "loss": outcome.loss,
        "metrics": dict(outcome.metrics),
        "generations": list(outcome.generations),
        "samples": {"loaded": outcome.steps * run["batch_size"], "trained": outcome.samples},
        "tokens": {"loaded": outcome.steps * run["batch_tokens"], "trained": outcome.tokens},
        "algorithms": dict(outcome.costs),
        "device_seconds": round(outcome.device_seconds, 3),
        "wall_seconds": round(end["time"] - run["time"], 3),
        "bitwise": outcome.bitwise,
        "faults_left": outcome.faults_left,
        "checkpoint": outcome.checkpoint,
        "folder": str(folder),
        **({"changes": run["changes"]} if run.get("changes") else {}),
    }
    return Ended(outcome, summary)


def _outcome_of(events: Sequence[Event], end: Event) -> Outcome:
    told: dict[str, Any] = {key: end[key] for key in Outcome.__dataclass_fields__ if key in end}
    generations = [
        {key: event[key] for key in GENERATION}
        for event in events
        if event["event"] == "generation"
    ]
    return Outcome(**{**told, "steps": end["step"], "generations": generations})


def _lives(run: str, events: Sequence[Event]) -> bool:
    """Say whether the coordinator lives, or is being started again."""
    try:
        find_leader(run, events)
    except ValueError:
        return False
    except RayActorError:
        return True
    return True
