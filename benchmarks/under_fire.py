"""Samples per second while workers are killed at intervals, as a share of the undisturbed rate.

One run has, in this order: an undisturbed period, the kills, recovery of the whole group, and a
second undisturbed period. The undisturbed rate is the mean of both periods. So a change of the
machine's speed in between counts neither for nor against the kills, and is visible.
"""

import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks import torchft_group
from benchmarks.elastic import Event, of_kind, train
from benchmarks.outages import WORKERS, RunningGroup, stop
from benchmarks.tasks import Workload

Commits = Sequence[tuple[float, int]]  # Unix time, samples
Span = tuple[float, float]

_ENDLESS = 1_000_000  # steps


@dataclass(frozen=True)
class Fire:
    """The times of the kills.

    Attributes:
        every: seconds between two kills, and after the last.
        kills: number of kills.
        rest: seconds without kills, before and after.
    """

    every: float = 15.0
    kills: int = 8
    rest: float = 15.0


@dataclass
class Timeline:
    """The phases of a run, as Unix times.

    Attributes:
        rests: the spans without kills.
        fire: the span with kills.
    """

    rests: list[Span] = field(default_factory=list)
    fire: Span = (0.0, 0.0)


def share(commits: Commits, timeline: Timeline) -> dict[str, float]:
    """Return the rates before, during and after the kills, in samples/s.

    Returns:
        `before`, `fire`, `after`; `share`, the fraction of the mean of `before` and `after`; and
        `least`, the fraction of the faster of them, which a drift of the machine cannot improve.
    """
    before, after = (_rate(commits, span) for span in timeline.rests)
    fire = _rate(commits, timeline.fire)
    rates = {"before": before, "fire": fire, "after": after}
    return {**rates, "share": 2 * fire / (before + after), "least": fire / max(before, after)}


def _rate(commits: Commits, span: Span) -> float:
    begin, end = span
    return sum(samples for at, samples in commits if begin < at <= end) / (end - begin)


@dataclass
class PeriodicKiller:
    """Watches a run of raytrain_plus, kills workers between two undisturbed periods, and stops it.

    Attributes:
        fire: the times of the kills.
        timeline: the phases so far.
        killed: the number of kills so far.
    """

    fire: Fire
    timeline: Timeline = field(default_factory=Timeline)
    killed: int = 0
    _group: RunningGroup = field(default_factory=RunningGroup)
    _rests_since: float = 0.0

    def __call__(self, events: list[Event]) -> None:
        """Handle new events of the journal."""
        self._group.add(events)
        now = time.time()
        begin = self.timeline.fire[0]
        if self.killed and self.killed < self.fire.kills:
            if now >= begin + self.killed * self.fire.every:
                self._kill()
        elif self.killed and now < begin + self.fire.kills * self.fire.every:
            return
        elif not self._rests_since:
            self._rests_since = now if self._group.is_settled else 0.0
        elif now >= self._rests_since + self.fire.rest:
            self.timeline.rests.append((self._rests_since, now))
            self._rests_since = 0.0
            if self.killed:
                stop()
                return
            self.timeline.fire = (now, now + self.fire.kills * self.fire.every)
            self._kill()

    def _kill(self) -> None:
        self.killed += 1
        victim = random.choice(self._group.members)
        os.kill(victim, signal.SIGKILL)


def ours(workload: Workload, fire: Fire, spares: int) -> dict[str, float]:
    """Measure raytrain_plus.

    Returns:
        The same as `share`, and `alone`, the part of the time under fire with a single worker.
    """
    killer = PeriodicKiller(fire)
    events = train(workload, WORKERS, _ENDLESS, killer, spares=spares)
    steps = of_kind(events, "step")
    commits = [(step["time"], workload.batch_size) for step in steps]
    return {**share(commits, killer.timeline), "alone": alone(events, killer.timeline.fire)}


def alone(events: Sequence[Event], span: Span) -> float:
    """Return the part of a time span in which the group was not complete."""
    begin, end = span
    generations = of_kind(list(events), "generation")
    ends = [generation["time"] for generation in generations[1:]] + [end]
    lacking = [
        max(0.0, min(end, until) - max(begin, generation["time"]))
        for generation, until in zip(generations, ends, strict=True)
        if generation["workers"] < WORKERS
    ]
    return sum(lacking) / (end - begin)


def torchft(workload: Workload, fire: Fire, settings: torchft_group.Settings) -> dict[str, float]:
    """Measure torchft. Each replica has its own batch, so that one alone does half of the work."""
    timeline = Timeline()
    with torchft_group.group(workload, settings) as running:
        timeline.rests.append(_rest(fire))
        begin = time.time()
        for number in range(fire.kills):
            running.replace(random.randrange(WORKERS))
            time.sleep(max(0.0, begin + (number + 1) * fire.every - time.time()))
        timeline.fire = (begin, begin + fire.kills * fire.every)
        running.settle(time.time())
        timeline.rests.append(_rest(fire))
        commits = running.commits()
    # Each replica logs its own commits; those that were lost with its state count, too.
    batch = workload.batch_size // WORKERS
    return share([(commit["time"], batch) for commit in commits], timeline)


def _rest(fire: Fire) -> Span:
    begin = time.time()
    time.sleep(fire.rest)
    return begin, time.time()
