"""Following a run from the process that started it, or from another one, by its journal."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from raytrain_plus.elastic.messages import NAMESPACE, Event, Outcome
from raytrain_plus.observe import journal

Watcher = Callable[[list[Event]], None]

_POLL = 0.2  # seconds between two looks at the journal
_LOOK = 2.0  # seconds between two looks at whether the coordinator lives


class LostError(RuntimeError):
    """The coordinator was ended from outside, so that the run will not go on by itself."""


def follow(run: str, folder: Path, watcher: Watcher | None = None, offset: int = 0) -> Outcome:
    """Wait for the end of a run.

    The first interrupt asks the run to stop after the step in flight, the second leaves it alone.

    Args:
        run: its name.
        folder: its folder.
        watcher: called now and then with the journal's new events.
        offset: of the journal, from which on events are new.

    Raises:
        LostError: the coordinator was ended from outside.
    """
    seen: list[Event] = []
    look_at = time.monotonic() + _LOOK
    interrupted = gone = False
    while True:
        try:
            events, offset = journal.follow(folder / journal.FILE_NAME, offset)
            seen += (event for event in events if event["event"] in ("run", "generation", "end"))
            if watcher is not None:
                watcher(events)
            if any(event["event"] == "end" for event in events):
                return outcome_of(seen)
            if gone:
                raise LostError(f"the coordinator of run {run} was ended from outside")
            if time.monotonic() > look_at:
                look_at = time.monotonic() + _LOOK
                gone = not _lives(run)  # then look once more at what it has written last
            time.sleep(0.0 if gone else _POLL)
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            ray.get_actor(run, namespace=NAMESPACE).stop.remote()


def outcome_of(events: Sequence[Event]) -> Outcome:
    """Read from a journal how its last run ended; it must have."""
    run = journal.since_last_run(list(events))
    end = next(event for event in reversed(run) if event["event"] == "end")
    told: dict[str, Any] = {key: end[key] for key in Outcome.__dataclass_fields__ if key in end}
    generations = [
        {key: event[key] for key in ("generation", "step", "workers", "cause", "pause_seconds")}
        for event in run
        if event["event"] == "generation"
    ]
    folder = end.get("checkpoint")
    return Outcome(
        **{
            **told,
            "steps": end["step"],
            "generations": generations,
            "checkpoint": Path(folder) if folder else None,
        }
    )


def _lives(run: str) -> bool:
    """Say whether the coordinator lives, or is being started again."""
    try:
        ray.get_actor(run, namespace=NAMESPACE)
    except ValueError:
        return False
    except RayActorError:
        return True
    return True
