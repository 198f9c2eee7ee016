"""What happened in a run, read from the events of its journal in one pass.

This is the journal by sessions, generations and steps, without interpretation. A resumed run has
one session for each `run` event. Times are Unix seconds. `active` seconds count from the start of
the run and leave out the time between two sessions.
"""

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raytrain_plus.observe.causes import Cause, causes_of
from raytrain_plus.observe.journal import Event, JournalError, need

_NOTED = (
    "worker",
    "fault",
    "hang",
    "corruption",
    "coordinator_restart",
    "target",
    "warning",
    "stop",
)
_USUAL = ("ready", "left")  # states of workers that are no news


@dataclass
class GenerationSpan:
    """A stretch of training with one fixed set of workers.

    Attributes:
        number, step, workers, causes, pause_seconds, members: as the journal has them.
        start: when its first step began.
        last_commit: when its last step was committed; `start` if there was none.
        last_step: committed steps at its end.
        usage: the journal's `usage` event of it; None if there is none.
        salvaged: logical ranks that were not computed again in its first step.
        notes: what happened between the start of the generation before and its own.
    """

    number: int
    start: float
    step: int
    workers: int
    causes: tuple[Cause, ...]
    pause_seconds: float
    members: tuple[str, ...]
    last_commit: float
    last_step: int
    usage: Event | None = None
    salvaged: int = 0
    notes: list[Event] = field(default_factory=list)


@dataclass
class Session:
    """The part of a journal from one `run` event to the next.

    Attributes:
        run: that event.
        start, end: the times of its first and its last event.
        ended: its `end` event, or None: it lives, or was ended from outside.
        offset: active seconds before it.
        generations: in order.
        notes: what happened after the start of the last generation.
    """

    run: Event
    start: float
    end: float
    offset: float
    ended: Event | None = None
    generations: list[GenerationSpan] = field(default_factory=list)
    notes: list[Event] = field(default_factory=list)

    def active(self, time: float) -> float:
        """Return active seconds from Unix time."""
        return self.offset + max(0.0, time - self.start)


@dataclass
class RunHistory:
    """A run, by its journal.

    Attributes:
        sessions: at least one.
        steps, losses, active: of each step that stands: its number, loss and active seconds.
        evaluations: (step, active seconds, metrics) of each evaluation that stands.
        samples: (step, samples) of each evaluation that has some.
        logged: by name, (step, active seconds, value) of each logged scalar of a step that stands.
        checkpoints: all `checkpoint` events.
        fingerprint: how the workers compute.
        environment: the event that says so last, with the peak of their devices if it is known.
        withdrawn: steps that were withdrawn because of silent data corruption.
        busy_seconds: CPU time of all workers in steps.
        events: how many events the journal has.
    """

    sessions: list[Session] = field(default_factory=list)
    steps: "array[int]" = field(default_factory=lambda: array("q"))
    losses: "array[float]" = field(default_factory=lambda: array("d"))
    active: "array[float]" = field(default_factory=lambda: array("d"))
    evaluations: list[tuple[int, float, Mapping[str, Any]]] = field(default_factory=list)
    samples: list[tuple[int, list[Mapping[str, str]]]] = field(default_factory=list)
    logged: "dict[str, tuple[array[int], array[float], array[float]]]" = field(default_factory=dict)
    checkpoints: list[Event] = field(default_factory=list)
    fingerprint: Mapping[str, str] = field(default_factory=dict)
    environment: Event = field(default_factory=dict)
    withdrawn: int = 0
    busy_seconds: float = 0.0
    events: int = 0

    @property
    def last(self) -> Session:
        """The session that was written last."""
        return self.sessions[-1]

    @property
    def run(self) -> Event:
        """How the run is described now."""
        return self.last.run


def read_history(events: Iterable[Event]) -> RunHistory:
    """Return what happened in a run.

    Raises:
        JournalError: there is no `run` line.
    """
    history = RunHistory()
    reading: dict[str, Callable[[RunHistory, Event], None]] = {
        "generation": _generation,
        "step": _step,
        "evaluate": _evaluate,
        "usage": _usage,
        "withdrawn": _withdrawn,
        "end": _end,
        **dict.fromkeys(_NOTED, _note),
    }
    for event in events:
        kind = event["event"]
        event.setdefault("time", history.last.end if history.sessions else 0.0)
        history.events += 1
        if kind == "run":
            _begin(history, event)
            continue
        if not history.sessions:
            continue
        history.last.end = max(history.last.end, event["time"])
        if kind == "checkpoint":
            history.checkpoints.append(event)
        elif kind == "environment":
            _environment(history, event)
        elif kind in reading:
            reading[kind](history, event)
    if not history.sessions:
        raise JournalError(
            "the journal has no `run` line: it is of no run, or of one that has just started"
        )
    return history


def _begin(history: RunHistory, event: Event) -> None:
    need(event, "run", "total_steps", "batch_size")
    before = history.sessions[-1] if history.sessions else None
    offset = before.active(before.end) if before else 0.0
    start = event["time"]
    history.sessions.append(Session(event, start, start, offset))
    if event.get("changes"):  # what follows is another run's
        _drop_after(history, event.get("resumed_step", 0))


def _environment(history: RunHistory, event: Event) -> None:
    history.fingerprint, history.environment = event.get("fingerprint", {}), event
    if changes := event.get("changes"):  # what follows is another run's
        run = history.last.run
        run["changes"] = [*run.get("changes", ()), *changes]
        _drop_after(history, run.get("resumed_step", 0))


def _generation(history: RunHistory, event: Event) -> None:
    session = history.last
    before = session.generations[-1] if session.generations else None
    start = max(event["time"], before.last_commit if before else session.start)
    session.generations.append(
        GenerationSpan(
            number=event["generation"],
            start=start,
            step=event["step"],
            workers=event["workers"],
            causes=tuple(causes_of(event)),
            pause_seconds=event["pause_seconds"],
            members=tuple(event.get("members", ())),
            last_commit=start,
            last_step=event["step"],
            notes=session.notes,
        )
    )
    session.notes = []


def _step(history: RunHistory, event: Event) -> None:
    _drop_after(history, event["step"] - 1)  # a journal may have lost lines
    session = history.last
    history.steps.append(event["step"])
    history.losses.append(event["loss"])
    at = session.active(event["time"])
    history.active.append(max(at, history.active[-1]) if history.active else at)
    history.busy_seconds += event.get("busy_seconds", 0.0)
    for name, value in event.get("logged", {}).items():
        steps, times, values = history.logged.setdefault(name, (array("q"), array("d"), array("d")))
        steps.append(event["step"])
        times.append(at)
        values.append(float(value))
    if session.generations:
        generation = session.generations[-1]
        if event.get("generation", generation.number) == generation.number:
            generation.last_commit = max(generation.last_commit, event["time"])
            generation.last_step = event["step"]
            generation.salvaged += event.get("salvaged", 0)


def _evaluate(history: RunHistory, event: Event) -> None:
    at = history.last.active(event["time"])
    history.evaluations.append((event["step"], at, event["metrics"]))
    if event.get("samples"):
        history.samples.append((event["step"], event["samples"]))


def _usage(history: RunHistory, event: Event) -> None:
    for generation in reversed(history.last.generations):
        if generation.number == event["generation"]:
            generation.usage = event
            return


def _withdrawn(history: RunHistory, event: Event) -> None:
    before = len(history.steps)
    _drop_after(history, event["step"])
    history.withdrawn += before - len(history.steps)
    _note(history, event)


def _end(history: RunHistory, event: Event) -> None:
    history.last.ended = event


def _note(history: RunHistory, event: Event) -> None:
    if event["event"] != "worker" or event.get("state") not in _USUAL:
        history.last.notes.append(event)


def _drop_after(history: RunHistory, step: int) -> None:
    """Drop the steps and evaluations after a step."""
    while history.steps and history.steps[-1] > step:
        for kept in (history.steps, history.losses, history.active):
            kept.pop()
    for steps, *others in history.logged.values():
        while steps and steps[-1] > step:
            steps.pop()
            for column in others:
                column.pop()
    while history.evaluations and history.evaluations[-1][0] > step:
        history.evaluations.pop()
    history.samples = [one for one in history.samples if one[0] <= step]
