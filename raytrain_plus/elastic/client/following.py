"""Following a run by its journal, from the process that started it or from another one."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from raytrain_plus.elastic.client.coordinator_watch import CoordinatorWatch
from raytrain_plus.elastic.protocol.messages import CoordinatorHealth, Outcome
from raytrain_plus.elastic.protocol.records import GENERATION
from raytrain_plus.elastic.protocol.run_state import RunState
from raytrain_plus.interrupts import Interrupted, Interrupts, RunInterrupted
from raytrain_plus.observe import journal
from raytrain_plus.observe.events import scalars_for_json
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.output import Tail
from raytrain_plus.observe.stored_journal import journal_of
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.fencing import FencedError
from raytrain_plus.storage.ownership import Owners
from raytrain_plus.storage.segments import SegmentError
from raytrain_plus.storage.store import Folder, store_of

Watcher = Callable[[list[Event]], None]

_SUMMARIZED = ("run", "environment", "generation", "end")  # events that a summary is made of
_POLL = 0.2  # seconds between two looks at the journal
_FAILED_READS = 5  # that are repeated at once: a run that seems lost may have written its end
_LOOK = 2.0  # seconds between two looks at whether the coordinator lives


class Watch(Protocol):
    """Watches a run's coordinator; see `CoordinatorWatch`."""

    @property
    def health(self) -> CoordinatorHealth | None:
        """The last answer, None before the first."""

    @property
    def given_up(self) -> bool:
        """Whether to stop waiting for a coordinator that was asked to stop."""

    def ask_stop(self, now: float) -> None:
        """Ask the coordinator to stop the run."""

    def look(self, now: float) -> str | None:
        """Return why the run cannot go on without help; None while it may go on."""


class LostError(RuntimeError):
    """The coordinator is gone and will not be restarted, so that the run cannot go on.

    Attributes:
        summary: what is known of the run.
    """

    def __init__(self, message: str, summary: dict[str, Any]) -> None:
        super().__init__(message)
        self.summary = summary


@dataclass(frozen=True)
class Ended:
    """A run that has ended.

    Attributes:
        outcome: how.
        summary: the same as data, as the command line prints it.
    """

    outcome: Outcome
    summary: dict[str, Any]


def follow(  # noqa: PLR0913 - how each kind of driver follows
    run: str,
    folder: Folder,
    watcher: Watcher | None = None,
    offset: int = 0,
    claim: str | None = None,
    *,
    interrupts: Interrupts | None = None,
    is_ours: bool = False,
    watch: Watch | None = None,
) -> Ended:
    """Wait for the end of a run.

    The first signal (Ctrl-C, or SIGTERM, as `ray job stop` sends it) asks the run to stop after
    the step in flight. The second one leaves it alone. SIGHUP leaves a run alone that can go on
    without this process. What the workers' Python prints is written to stderr, with the worker's
    name before each line.

    Args:
        run: its name.
        folder: its folder.
        watcher: called several times a second with the journal's new events.
        offset: in the journal, from which on events are new.
        claim: of the driver that has started the run. Default: any driver's run is followed.
        interrupts: notes the signals. Default: signals are handled while this waits.
        is_ours: whether the run ends with this process.
        watch: watches a coordinator in this process, whose worker prints here. Default: the
            coordinator is an actor, and what its workers print is shown.

    Raises:
        LostError: the coordinator was ended from outside, or another driver has the run.
        RunInterrupted: this process was asked to leave the run alone.
    """
    with contextlib.ExitStack() as stack:
        if interrupts is None:
            interrupts = stack.enter_context(Interrupts())
            stack.enter_context(interrupts.held())
        follower = _Follower(run, folder, watcher, offset, interrupts, claim, is_ours=is_ours)
        return follower.follow(watch)


class _Follower:
    def __init__(
        self,
        run: str,
        folder: Folder,
        watcher: Watcher | None,
        offset: int,
        interrupts: Interrupts,
        claim: str | None,
        *,
        is_ours: bool,
    ) -> None:
        self._run = run
        self._folder = folder
        self._watcher = watcher
        self._offset = offset
        self._interrupts = interrupts
        self._claim = claim
        self._is_ours = is_ours
        self._journal = journal_of(folder)
        self._seen: list[Event] = []
        self._last: dict[str, Event] = {}
        self._tail: Tail | None = Tail(folder)
        self._stopping = False
        self._unwritten = ""
        self._failed = 0  # reads of the journal in a row
        self._warned: set[str] = set()

    def follow(self, watch: Watch | None) -> Ended:
        """Wait for the end."""
        if watch is not None:
            self._tail = None
        watch = watch or CoordinatorWatch(self._run, self._seen, time.monotonic())
        look_at, lost = time.monotonic() + _LOOK, ""
        while True:
            try:
                is_behind = self._read()
                over = self._has_ended()
                self._print(last=over)
                if over:
                    return ended(self._seen, self._folder)
                self._end_if_lost("" if is_behind else lost)
                self._obey(watch)
                if time.monotonic() > look_at:
                    look_at = time.monotonic() + _LOOK
                    lost = watch.look(time.monotonic()) or ""
                    if lost:  # read the journal once more
                        self._journal = journal_of(self._folder)
                    self._take_unwritten(watch)
                time.sleep(0.0 if lost or is_behind else _POLL)
            except RunInterrupted:
                raise
            except KeyboardInterrupt as error:
                if not isinstance(error, Interrupted):  # from a notebook, or in a thread
                    self._interrupts.note()
                if self._interrupts.at_once:
                    raise self._left("at once") from None

    def _end_if_lost(self, why: str) -> None:
        """Raise LostError if the run cannot go on, for the reason given."""
        if why:
            self._check_last()
            raise LostError(f"{why}{self._kept()}", self._summary(RunState.LOST))

    def _read(self) -> bool:
        """Read new events of the journal; returns whether there are more already."""
        before = self._offset
        try:
            events, self._offset = journal.follow(self._journal, self._offset)
        except SegmentError:
            raise
        except StoreError as error:  # the run goes on, and its journal is read later
            self._warn_once(f"the journal cannot be read now: {error}")
            self._failed += 1
            return self._failed <= _FAILED_READS
        self._failed = 0
        claims = [event.get("claim") for event in events if event["event"] == "run"]
        if self._claim is not None and any(claim != self._claim for claim in claims):
            self._check_last()  # another driver writes the journal now
        self._note(events)
        return self._offset - before >= journal.AT_ONCE

    def _check_last(self) -> None:
        """Raise LostError if another driver has the run now."""
        with contextlib.suppress(StoreError):
            last = Owners(store_of(self._folder)).latest()
            if self._claim is not None and last is not None and last.claim != self._claim:
                raise LostError(
                    f"{FencedError(last, replaced=False)}", self._summary(RunState.LOST)
                )

    def _print(self, *, last: bool) -> None:
        """Write what the workers have printed."""
        if self._tail is None:
            return
        with contextlib.suppress(OSError):  # the terminal may have been closed
            for line in self._tail.new(time.monotonic(), last=last):
                sys.stderr.write(f"{line}\n")

    def _has_ended(self) -> bool:
        return any(event["event"] == "end" for event in journal.since_last_run(self._seen))

    def _note(self, events: list[Event]) -> None:
        self._seen += (event for event in events if event["event"] in _SUMMARIZED)
        for event in events:
            if event["event"] != "checkpoint" or ("folder" in event and "step" in event):
                self._last[event["event"]] = event
        try:
            if self._watcher is not None:
                self._watcher(events)
                return
            warnings = [event for event in events if event["event"] == "warning"]
            sys.stderr.writelines(f"warning: {event['text']}\n" for event in warnings)
        except OSError:  # the terminal has been closed
            self._watcher = None

    def _obey(self, watch: Watch) -> None:
        """Do what the signals ask for."""
        if not self._interrupts.number:
            return
        if self._interrupts.number == signal.SIGHUP and not self._is_ours:
            raise self._left("and goes on")
        if not self._stopping:
            self._stopping = True
            name = signal.Signals(self._interrupts.number).name
            self._warn(
                f"{name}: the run ends after the step in flight, or the evaluation, and its state "
                "is kept; a second signal ends this command at once"
            )
            watch.ask_stop(time.monotonic())
        if watch.given_up:
            raise self._left("since its coordinator does not answer")

    def _take_unwritten(self, watch: Watch) -> None:
        """Get the end of a run from its coordinator if the journal cannot be written."""
        health = watch.health
        if health is None:
            return
        self._seen += health.unwritten_end
        if health.unwritten != self._unwritten:
            self._unwritten = health.unwritten
            if health.unwritten:
                self._warn(f"the journal cannot be written: {health.unwritten}; its lines are kept")

    def _warn(self, text: str) -> None:
        self._note([{"event": "warning", "time": time.time(), "text": text}])

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._warn(text)

    def _left(self, how: str) -> RunInterrupted:
        number = self._interrupts.number
        text = f"run {self._run} was left alone by {signal.Signals(number).name} {how}"
        if self._is_ours:  # it ends with this process, which may just have written its last state
            after = (
                "a later one may have been written since; `raytrain-plus train ... --resume --name "
                f"{self._run}` continues from the newest one"
            )
        else:
            after = f"`raytrain-plus attach {self._run}` follows it, and says what is kept"
        text = f"{text}{self._kept()}; {after}"
        return RunInterrupted(number, text, self._summary(RunState.INTERRUPTED))

    def _summary(self, state: RunState) -> dict[str, Any]:
        step, run = self._last.get("step", {}), self._last.get("run", {})
        kept = self._last.get("checkpoint", {})
        return {
            "run": self._run,
            "state": state,
            "steps": step.get("step", run.get("resumed_step", 0)),
            "total_steps": run.get("total_steps"),
            "loss": step.get("loss"),
            "checkpoint": kept.get("folder", run.get("resumed_from")),
            "folder": str(self._folder),
        }

    def _kept(self) -> str:
        """Say how far the run came by its journal, and which state of it is saved."""
        run = self._last.get("run", {})
        before = run.get("resumed_step", 0)
        step = self._last.get("step", {}).get("step", before)
        kept = self._last.get("checkpoint", {}).get("step", before)
        newest = f"its newest checkpoint is that of step {kept}" if kept else "has no checkpoint"
        return f"; by its journal it has committed {step} steps, and {newest}"


def ended(events: Sequence[Event], folder: Folder) -> Ended:
    """Read from a journal how its last run ended. It must have ended."""
    events = journal.since_last_run(list(events))
    run = next(event for event in events if event["event"] == "run")
    end = next(event for event in reversed(events) if event["event"] == "end")
    journal.need(run, "run", "time", "batch_size", "batch_tokens")
    journal.need(end, "time", "state", "step")
    outcome = _outcome_of(events, end)
    changes = [change for event in events for change in event.get("changes", ())]
    summary = {
        "run": run["run"],
        "state": outcome.state,
        "steps": outcome.steps,
        "total_steps": run.get("total_steps"),
        **({"reason": outcome.reason} if outcome.reason else {}),
        "digest": outcome.digest,
        "loss": outcome.loss,
        "metrics": dict(outcome.metrics),
        **({"logged": scalars_for_json(outcome.logged)} if outcome.logged else {}),
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
        **({"changes": changes} if changes else {}),
        **({"failed_on": dict(outcome.failed_on)} if outcome.failed_on else {}),
    }
    return Ended(outcome, summary)


def _outcome_of(events: Sequence[Event], end: Event) -> Outcome:
    told: dict[str, Any] = {key: end[key] for key in Outcome.__dataclass_fields__ if key in end}
    generations = [
        {key: event[key] for key in GENERATION}
        for event in events
        if event["event"] == "generation"
    ]
    told["state"] = RunState(told["state"])
    told["logged"] = {name: float(value) for name, value in end.get("logged", {}).items()}
    return Outcome(**{**told, "steps": end["step"], "generations": generations})
