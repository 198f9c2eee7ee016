"""Where a run's time went: the wall's and the workers', each second in one part.

Wall time is cut at the beginnings and ends of generations, so that its parts sum to it exactly.
Worker-seconds are workers times seconds: of all members while a generation trains, and of those
that were there before and after while it pauses. What a worker did is known from its report at the
end of a generation. The time of a worker that died, and of a generation that still runs, is
unknown.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from raytrain_plus.observe.causes import CauseKind, main_kind
from raytrain_plus.observe.report.history import GenerationSpan, RunHistory, Session

TRAINING = ("compute", "exchange", "data", "evaluation", "snapshot")
UNKNOWN = "unknown"
STARTUP, ENDING = "starting up", "ending"
_PUT_DOWN_TO: Mapping[CauseKind, str] = {
    "corruption": "a worker computed wrong",
    "coordinator": "the coordinator was restarted",
    # Noticing a hang takes seconds, a death milliseconds: they are not one kind of pause.
    "hung": "a worker hung",
    "lost": "a worker was lost",
    "failed": "the task failed on a worker",
    "drained": "a worker was drained",
    "scaled": "the run was scaled",
    "rebalanced": "the work was rebalanced",
    "joined": "a worker joined",
    "start": "the run started",
    "other": "the group was formed again",
}


@dataclass
class Spending:
    """Seconds by part.

    Attributes:
        startup, ending: of wall time, before the first generations and after the last.
        training: of wall time, while generations trained.
        pauses: of wall time, by what caused them.
        pause_counts: how many pauses, by what caused them.
        longest_pause: the longest, of wall time.
        wall: all of it.
        workers: worker-seconds by part, of `TRAINING`, `UNKNOWN` and `"pause"`.
        shares: of the wall time of training, by part: the mean over a generation's workers.
        forming: worker-seconds of meeting and healing, which are part of pauses and of starting.
    """

    startup: float = 0.0
    ending: float = 0.0
    training: float = 0.0
    pauses: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    pause_counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    longest_pause: float = 0.0
    wall: float = 0.0
    workers: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    forming: float = 0.0
    shares: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    @property
    def paused(self) -> float:
        """Wall seconds of all pauses."""
        return sum(self.pauses.values())

    @property
    def worker_seconds(self) -> float:
        """All worker-seconds."""
        return sum(self.workers.values())


def spending_of(history: RunHistory) -> Spending:
    """Return where a run's time went, over all its sessions."""
    spent = Spending()
    for session in history.sessions:
        _add_session(spent, session)
    return spent


def cause_of(generation: GenerationSpan) -> str:
    """Return what caused the pause before a generation, in words."""
    return _PUT_DOWN_TO[main_kind(generation.causes)]


def spans(session: Session) -> Iterator[tuple[GenerationSpan, float, float]]:
    """Yield each generation with its start and end; they follow each other within the session."""
    at = session.start
    for i, generation in enumerate(session.generations):
        after = session.generations[i + 1 : i + 2]
        most = after[0].start if after else session.end
        start = min(max(at, generation.start), session.end)
        told = (generation.usage or {}).get("until", 0.0)
        until = max(start, min(max(told, generation.last_commit), max(start, most)))
        yield generation, start, min(until, session.end)
        at = until


def _add_session(spent: Spending, session: Session) -> None:
    spent.wall += session.end - session.start
    runs = list(spans(session))
    if not runs:
        spent.startup += session.end - session.start
        return
    spent.startup += runs[0][1] - session.start
    spent.ending += session.end - runs[-1][2]
    for generation, start, until in runs:
        _add_training(spent, generation, until - start)
    for (before, _, until), (after, start, _) in itertools.pairwise(runs):
        cause, seconds = cause_of(after), start - until
        spent.pauses[cause] += seconds
        spent.pause_counts[cause] += 1
        spent.longest_pause = max(spent.longest_pause, seconds)
        spent.workers["pause"] += seconds * _held(before, after)


def _add_training(spent: Spending, generation: GenerationSpan, seconds: float) -> None:
    spent.training += seconds
    whole = seconds * generation.workers
    told: Mapping[str, float] = (generation.usage or {}).get("seconds", {})
    known = {part: max(0.0, told.get(part, 0.0)) for part in TRAINING}
    spent.forming += told.get("forming", 0.0)
    total = sum(known.values())
    # Workers end a generation some milliseconds apart: the sum of their parts may exceed it.
    fit = min(1.0, whole / total) if total else 0.0
    parts = {part: value * fit for part, value in known.items()}
    parts[UNKNOWN] = max(0.0, whole - sum(parts.values()))
    for part, value in parts.items():
        spent.workers[part] += value
        spent.shares[part] += value / generation.workers


def _held(before: GenerationSpan, after: GenerationSpan) -> int:
    """Return how many workers a pause kept waiting: those in both generations."""
    if before.members and after.members:
        return len(set(before.members) & set(after.members))
    return min(before.workers, after.workers)
