"""The changes of a run's workers: when, why, what each cost, and the journal's notes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from raytrain_plus.observe.causes import CauseKind, main_kind, sentence
from raytrain_plus.observe.charts import Mark, Tone
from raytrain_plus.observe.journal import Event
from raytrain_plus.observe.quantities import duration, number
from raytrain_plus.observe.report.history import GenerationSpan, RunHistory, Session
from raytrain_plus.observe.report.spending import spans

_MOST_PINS = 40  # with numbers; more would hide each other
_MOST_WORDS = 400  # characters of one note
_NO_MARKS = ("start", "finished", "no end is written")
_TONES: dict[CauseKind, Tone] = {
    "corruption": "bad",
    **dict.fromkeys(("hung", "lost", "failed"), "bad"),
    "coordinator": "warn",
    "drained": "warn",
    "scaled": "warn",
    "joined": "good",
}
_ENDS: dict[str, Tone] = {"finished": "good", "stopped": "warn", "failed": "bad"}


@dataclass(frozen=True, kw_only=True)
class GroupChange:
    """A row of the table of changes.

    Attributes:
        at: active seconds.
        step: committed steps.
        what: in a few words.
        before, after: numbers of workers.
        pause: wall seconds without training, None if there was no pause.
        salvaged: logical ranks of the step in flight that need not be computed again.
        tone: how grave it is.
        notes: the journal's notes about it.
    """

    at: float
    step: int
    what: str
    before: int
    after: int
    pause: float | None = None
    salvaged: int = 0
    tone: Tone = "plain"
    notes: tuple[str, ...] = field(default=())


def changes_of(history: RunHistory) -> list[GroupChange]:
    """Return the changes of a run in order, with the starts and ends of its sessions."""
    found: list[GroupChange] = []
    workers = 0
    for session in history.sessions:
        found += _of_session(session, history)
        workers = session.generations[-1].workers if session.generations else workers
        found.append(_last(session, workers, found[-1].step if found else 0))
    return found


def marks_of(changes: list[GroupChange]) -> list[Mark]:
    """Return the changes as marks on an axis of active seconds, numbered as their rows."""
    pinned = len(changes) <= _MOST_PINS
    return [
        Mark(
            at=change.at,
            label=str(i) if pinned else "",
            title=f"{i}. {duration(change.at)}, step {change.step:,}: {said(change)}",
            tone=change.tone,
            anchor=f"change-{i}",
        )
        for i, change in enumerate(changes, 1)
        if change.what not in _NO_MARKS
    ]


def said(change: GroupChange) -> str:
    """Return a change in one line."""
    parts = [change.what]
    if change.before != change.after:
        parts.append(f"{change.before} to {change.after} workers")
    if change.pause is not None:
        parts.append(f"paused {duration(change.pause)}")
    return ", ".join(parts)


def words_of(event: Event) -> str:
    """Return a note of the journal for people."""
    kind = event["event"]
    if kind == "worker":
        reason = event.get("reason")
        words = f"{event.get('worker')} {event.get('state')}" + (f": {reason}" if reason else "")
    elif kind == "fault":
        hit = ", ".join(event.get("hit", ()))
        phase = f" in {event['phase']}" if event.get("phase") else ""
        words = f"on purpose: {event.get('action')}{f' of {hit}' if hit else ''}{phase}"
    elif kind == "hang":
        culprits = (f"{who}: {why}" for who, why in event.get("culprits", {}).items())
        words = f"no progress for {number(event.get('deadline', 0.0))} s; {'; '.join(culprits)}"
    elif kind == "corruption":
        guilty = ", ".join([*event.get("accused", ()), *event.get("guilty", ())])
        words = f"corruption, {event.get('reason')}{f'; {guilty} did it' if guilty else ''}"
    elif kind == "withdrawn":
        words = f"all steps after {event.get('step')} withdrawn: {event.get('reason')}"
    elif kind == "coordinator_restart":
        words = f"the coordinator was restarted and found {len(event.get('workers', ()))} workers"
    elif kind == "target":
        words = f"{event.get('workers')} workers wanted: {event.get('reason')}"
    elif kind == "stop":
        words = "the run was asked to stop"
    else:
        words = str(event.get("text", kind))
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]} ..."


def _of_session(session: Session, history: RunHistory) -> Iterator[GroupChange]:
    before: tuple[GenerationSpan, float] | None = None
    for generation, start, until in spans(session):
        paused = None if before is None else start - before[1]
        yield GroupChange(
            at=session.active(start),
            step=generation.step,
            what=_beginning(session, history) if before is None else sentence(generation.causes),
            before=before[0].workers if before else generation.workers,
            after=generation.workers,
            pause=paused,
            salvaged=generation.salvaged,
            tone=_TONES.get(main_kind(generation.causes), "plain"),
            notes=tuple(map(words_of, generation.notes)),
        )
        before = generation, until


def _beginning(session: Session, history: RunHistory) -> str:
    if session is history.sessions[0]:
        return "start"
    changed = session.run.get("changes")
    return "resumed" + (f" with changes: {'; '.join(map(str, changed))}" if changed else "")


def _last(session: Session, workers: int, step: int) -> GroupChange:
    end = session.ended
    what = str(end["state"]) if end is not None else "no end is written"
    step = max([step, *(g.last_step for g in session.generations)])
    return GroupChange(
        at=session.active(session.end),
        step=end["step"] if end is not None else step,
        what=what,
        before=workers,
        after=workers,
        tone=_ENDS.get(what, "plain"),
        notes=tuple(map(words_of, session.notes)),
    )
