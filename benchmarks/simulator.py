"""Simulates a run under a trace: where the worker-seconds that a cloud offers go.

The simulated group has its own clock, plans with `assign` and has measured costs; all its workers
are equally fast. A worker-second that is offered is exactly one of these:

- *useful*: spent on a step that is part of the result;
- *redone*: spent on steps that had to be computed again;
- *imbalance*: waiting for the worker with the most logical ranks;
- *paused*: while a group forms;
- *starting*: while a worker starts and the others train.
"""

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

from raytrain_plus.chaos.trace import Change
from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign
from raytrain_plus.elastic.policy.imbalance import Imbalance
from raytrain_plus.elastic.protocol.messages import Assignment

_ROUNDING = 1e-9  # steps


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The costs of a system for each change of its group.

    Attributes:
        loss: seconds that training pauses when workers are lost.
        change: seconds that it pauses when workers join.
        start: seconds from the offer of a worker until it is ready.
        redone_steps: committed steps that a new group computes again.
        salvage: whether only the lost worker's part of the step in flight is computed again.
        noticed: whether losses are announced, so that no step is in flight when they happen.
        planned: whether ranges are those of `assign`; otherwise all are exactly equal.
        follows: whether the allowed imbalance follows the time of the exchange, which is zero here.
            A real group does so after some 30 steps, this one at once.
    """

    loss: float
    change: float
    start: float
    redone_steps: float = 0.0
    salvage: bool = False
    noticed: bool = False
    planned: bool = True
    follows: bool = True


@dataclass
class Spent:
    """Worker-seconds by their use."""

    useful: float = 0.0
    redone: float = 0.0
    imbalance: float = 0.0
    paused: float = 0.0
    starting: float = 0.0

    @property
    def offered(self) -> float:
        """All offered worker-seconds."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def goodput(self) -> float:
        """The useful share."""
        return self.useful / self.offered


@dataclass(frozen=True)
class Job:
    """The training job.

    Attributes:
        logical_ranks: parts of a step.
        rank_seconds: seconds that a worker needs for each part.
    """

    logical_ranks: int
    rank_seconds: float

    @property
    def step_work(self) -> float:
        """Worker-seconds of a step."""
        return self.logical_ranks * self.rank_seconds


def simulate(
    job: Job, changes: Sequence[Change], costs: Costs, until: float, seed: int = 0
) -> Spent:
    """Train until a time; lost workers are drawn at random.

    Args:
        job: the training job.
        changes: numbers of workers that are offered and lost, in order of time, from 0.
        costs: the system's costs.
        until: the time, in seconds.
        seed: seed of the random draw. Default 0.

    Returns:
        The offered worker-seconds by their use.
    """
    run = _Run(job, costs, random.Random(seed))
    events = [(change.seconds, order, change.delta) for order, change in enumerate(changes)]
    ready: list[tuple[float, int, list[str]]] = []
    heapq.heapify(events)
    while events or ready:
        # A worker that is ready at the instant of a loss may be lost like any other.
        if ready and (not events or ready[0][0] <= events[0][0]):
            seconds, _, workers = heapq.heappop(ready)
            if seconds > until:
                break
            run.advance(seconds)
            run.join(workers)
            continue
        seconds, order, delta = heapq.heappop(events)
        if seconds > until:
            break
        run.advance(seconds)
        if delta > 0:
            heapq.heappush(ready, (seconds + costs.start, order, run.offer(delta)))
        else:
            run.lose(-delta)
    run.advance(until)
    return run.result()


class _Run:
    def __init__(self, job: Job, costs: Costs, draw: random.Random) -> None:
        self._job, self._costs, self._draw = job, costs, draw
        self._spent = Spent()
        self._now = self._paused_until = 0.0
        self._steps = 0.0  # steps done, with the fraction of the step in flight
        self._restored = 0.0  # steps done when the last group formed
        self._names = 0
        self._coming: list[str] = []
        self._group: list[str] = []
        self._plan: tuple[Assignment, ...] = ()
        self._imbalance = Imbalance()

    def advance(self, to: float) -> None:
        """Advance the clock."""
        seconds = to - self._now
        paused = min(max(0.0, self._paused_until - self._now), seconds)
        self._now = to
        self._spent.starting += len(self._coming) * seconds
        self._spent.paused += len(self._group) * paused
        if self._group:
            steps = (seconds - paused) / self._step_seconds()
            self._steps += steps
            work = steps * self._job.step_work
            self._spent.imbalance += len(self._group) * (seconds - paused) - work

    def offer(self, workers: int) -> list[str]:
        """Start some workers; returns their names."""
        names = [f"w{self._names + i:06}" for i in range(workers)]
        self._names += workers
        self._coming += names
        return names

    def join(self, workers: Sequence[str]) -> None:
        """Add workers that are ready, if they have not been lost meanwhile."""
        joining = [worker for worker in workers if worker in self._coming]
        if joining:
            self._coming = [worker for worker in self._coming if worker not in joining]
            self._regroup([*self._group, *joining], self._costs.change if self._group else 0.0)

    def lose(self, workers: int) -> None:
        """Remove some workers at random."""
        lost = set(self._draw.sample([*self._group, *self._coming], workers))
        self._coming = [worker for worker in self._coming if worker not in lost]
        left = [worker for worker in self._group if worker not in lost]
        if len(left) < len(self._group):
            if not self._costs.noticed:
                share = self._share(lost) if self._costs.salvage and left else 1.0
                done = math.floor(self._steps + _ROUNDING)
                self._again(share * max(0.0, self._steps - done))
            self._regroup(left, self._costs.loss)

    def result(self) -> Spent:
        """Return the worker-seconds by their use."""
        self._spent.useful = self._steps * self._job.step_work
        return self._spent

    def _regroup(self, group: list[str], pause: float) -> None:
        # A group that forms before the last one has made a step starts from the same state.
        self._again(min(self._costs.redone_steps, self._steps - self._restored))
        self._restored = self._steps
        self._paused_until = max(self._paused_until, self._now + pause)
        self._group = group
        if self._costs.planned and group:
            members = [WorkerSpeed(worker) for worker in group]
            self._share_out(members)
            while self._wants_other(members):
                self._share_out(members)

    def _share_out(self, members: Sequence[WorkerSpeed]) -> None:
        ranks = self._job.logical_ranks
        self._plan = assign(ranks, members, self._plan, self._imbalance.follow())

    def _wants_other(self, members: Sequence[WorkerSpeed]) -> bool:
        speeds = {member.worker: 1 / self._job.rank_seconds for member in members}
        for _ in range(2 if self._costs.follows else 0):
            self._imbalance.judge(self._plan, members, speeds, 0.0, 0.0)
        return self._imbalance.advises()

    def _again(self, steps: float) -> None:
        self._steps -= steps
        self._spent.redone += steps * self._job.step_work

    def _share(self, workers: set[str]) -> float:
        """Return the share of a step that some workers compute."""
        if not self._costs.planned:
            return len(workers.intersection(self._group)) / len(self._group)
        ranks = sum(len(a.ranks) for a in self._plan if a.worker in workers)
        return ranks / self._job.logical_ranks

    def _step_seconds(self) -> float:
        if not self._costs.planned:
            return self._job.step_work / len(self._group)
        return max(len(a.ranks) for a in self._plan) * self._job.rank_seconds
