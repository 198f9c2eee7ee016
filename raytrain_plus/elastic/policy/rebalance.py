"""Stragglers: when a new plan would give a slow worker less to compute. Pure: no clock, no Ray.

Each committed step tells how long every worker computed. Steps are looked at in windows, one after
the other. At the end of each, a worker's speed is the median of its logical ranks per second, and
the question is asked once: would a new plan pay? Four things keep the answer calm:

- *Levels.* A plan uses speeds in steps of 25 % of the group's median. A worker keeps its level
  until it is clearly off it, so noise gives equal plans.
- *Threshold.* A new plan must shorten the step by more than the threshold, by the speeds measured.
  But a worker that computes less than its share because it was slow gets ranks back when it is
  faster, however little the step gains: in a large group it gains next to nothing.
- *Patience.* A number of windows in a row must say so. The number doubles each time that a
  rebalance is undone soon after, and is halved only after a calm as long as all that went before.
  So a worker that comes and goes costs a number of rebalances that grows as the logarithm of the
  length of the run, until its phases are so long that following them pays.
- *Warm-up.* The first steps of a generation do not count.

How much balance the plan gives away for fewer bytes is asked at the same times, see `imbalance.py`.

Limit: what a worker spends once per step, whatever its number of ranks, counts as time of its
ranks. So a worker with few ranks seems slower than it is. It gets its ranks back in several
rebalances, since each shows its speed more truly. It does not get the last few back if this cost
exceeds the time of a rank.
"""

import math
import statistics
from collections.abc import Mapping, Sequence

from raytrain_plus.elastic.policy.assignment import WorkerSpeed, assign, makespan
from raytrain_plus.elastic.policy.imbalance import Imbalance
from raytrain_plus.elastic.protocol.messages import Assignment

_LEVEL = math.log(1.25)  # from one level of speed to the next
_STICKS = 0.75  # levels that a worker must be off its own before it gets another
_SOON = 128  # windows; following a phase that lasts longer pays
_INSTANT = 1e-9  # seconds; the least that a rank takes


class Rebalancer:
    """Measures the workers' speeds, and says when a new plan would pay.

    Args:
        threshold: share by which a new plan must shorten the step. Default 0.2.
        window: steps that are looked at together; odd, so that a median is a step. Default 15.
        warmup: first steps of each generation that are ignored. Default 3.
        patience: windows in a row that must speak for a new plan, to begin with. Default 2.
        measures: if False, all workers count as equally fast, and the imbalance never changes.
            Default True.

    Attributes:
        imbalance: how much imbalance to plan with.

    Raises:
        ValueError: a setting is out of its range.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.2,
        window: int = 15,
        warmup: int = 3,
        patience: int = 2,
        measures: bool = True,
    ) -> None:
        if not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold}; it is a share of a step between 0 and 1")
        for name, value, least in (
            ("window", window, 1),
            ("warmup", warmup, 0),
            ("patience", patience, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        self._measures = measures
        self._threshold = threshold
        self._window = window
        self._warmup = warmup
        self._least_patience = self._patience = patience
        self._group: tuple[Assignment, ...] = ()
        self._measured: dict[str, float] = {}
        self._levels: dict[str, int] = {}
        self._planned: dict[str, int] = {}  # levels that the present plan was made with
        self._directions: dict[str, int] = {}  # of the last rebalance
        self._windows = 0  # in all
        self._rebalanced = self._calm_since = 0  # windows
        self.imbalance = Imbalance()
        self._times: list[list[float]] = []
        self._exchange: list[tuple[float, float]] = []
        self._ignored = self._votes = 0
        self._last_step = -1

    def start_generation(self, group: Sequence[Assignment]) -> None:
        """Start a generation; earlier measurements of its workers are kept.

        Args:
            group: the plan, in the order in which `add_step` gives the workers' times.
        """
        workers = [assignment.worker for assignment in group]
        same = {assignment.worker for assignment in self._group} == set(workers)
        planned = {worker: self._levels.get(worker, 0) for worker in workers}
        if same and tuple(group) != self._group and planned != self._planned:
            self._note_rebalance(planned)
        self._group = tuple(group)
        self._planned = planned
        self._levels = dict(planned)
        self._measured = {w: s for w, s in self._measured.items() if w in planned}
        self._times = [[] for _ in group]
        self._exchange = []
        self._ignored = self._votes = 0
        self._last_step = -1

    def add_step(
        self,
        step: int,
        compute_seconds: Sequence[float],
        exchange: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Note a committed step of the generation. A step that is reported again is ignored.

        Args:
            step: its number.
            compute_seconds: seconds that each worker computed, in the group's order.
            exchange: seconds that the group waited for the exchange, and seconds that it ran, at
                most, while workers computed. Default 0 and 0.

        Raises:
            ValueError: there are more or fewer times than workers.
        """
        if len(compute_seconds) != len(self._group):
            raise ValueError(
                f"step {step} came with {len(compute_seconds)} compute times for a group of "
                f"{len(self._group)} workers; give one for each, in the order of the plan"
            )
        if step <= self._last_step or not self._measures:
            return
        self._last_step = step
        self._ignored += 1
        if self._ignored <= self._warmup:
            return
        for times, seconds, assignment in zip(
            self._times, compute_seconds, self._group, strict=True
        ):
            times.append(max(seconds / len(assignment.ranks), _INSTANT))
        self._exchange.append(exchange)
        if len(self._times[0]) == self._window:
            self._judge()

    def speeds(self, workers: Sequence[str]) -> list[WorkerSpeed]:
        """Return workers with the speeds to plan with.

        Args:
            workers: of the next generation.

        Returns:
            One each; 1.0 is the group's median, and the speed of a worker that is not known.
        """
        return _speeds({worker: self._levels.get(worker, 0) for worker in workers})

    @property
    def measured(self) -> Mapping[str, float]:
        """Logical ranks per second of each worker in the last full window."""
        return dict(self._measured)

    def advises(self) -> bool:
        """Say whether a new plan, with `speeds` and `imbalance`, would pay."""
        return self._votes >= self._patience or self.imbalance.advises()

    def _judge(self) -> None:
        """Measure at the end of a window, and ask once whether a new plan would pay."""
        self._windows += 1
        self._calm_down()
        for assignment, times in zip(self._group, self._times, strict=True):
            self._measured[assignment.worker] = 1 / statistics.median(times)
            times.clear()
        usual = statistics.median_high(self._measured.values())
        for worker, speed in self._measured.items():
            self._levels[worker] = _level(self._levels[worker], speed / usual)
        logical_ranks = self._group[-1].stop
        speeds = self.speeds([assignment.worker for assignment in self._group])
        better = assign(logical_ranks, speeds, self._group, self.imbalance.value)
        present, planned = (makespan(p, self._measured) for p in (self._group, better))
        pays = planned < (1 - self._threshold) * present
        self._votes = self._votes + 1 if pays or self._gives_back(better) else 0
        seen, unseen = map(statistics.median, zip(*self._exchange, strict=True))
        self._exchange.clear()
        if not self._votes:  # a straggler comes first
            speeds = _speeds(self._planned)
            self.imbalance.judge(self._group, speeds, self._measured, seen, unseen)
            if self.imbalance.advises():
                self._levels = dict(self._planned)  # the imbalance is all that is to change

    def _gives_back(self, plan: Sequence[Assignment]) -> bool:
        """Say whether a plan gives more ranks to a worker that was slow and is faster now."""
        present = {a.worker: len(a.ranks) for a in self._group}
        return any(
            self._planned[a.worker] < min(0, self._levels[a.worker])
            and len(a.ranks) > present[a.worker]
            for a in plan
        )

    def _note_rebalance(self, planned: Mapping[str, int]) -> None:
        """Note a rebalance of the same workers: be more patient if it undoes the last one."""
        changes = {worker: level - self._planned[worker] for worker, level in planned.items()}
        undone = any(change * self._directions.get(w, 0) < 0 for w, change in changes.items())
        if undone and self._windows - self._rebalanced < _SOON:
            self._patience *= 2
        self._directions = changes
        self._rebalanced = self._calm_since = self._windows

    def _calm_down(self) -> None:
        if self._patience > self._least_patience and self._windows >= 2 * self._calm_since:
            self._patience = max(self._least_patience, self._patience // 2)
            self._calm_since = self._windows


def _speeds(levels: Mapping[str, int]) -> list[WorkerSpeed]:
    return [WorkerSpeed(worker, math.exp(level * _LEVEL)) for worker, level in levels.items()]


def _level(before: int, relative: float) -> int:
    """Return the level of a speed relative to the usual one, given the level before."""
    exact = math.log(relative) / _LEVEL
    return before if abs(exact - before) <= _STICKS else round(exact)
