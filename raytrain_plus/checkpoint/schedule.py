"""Which worker still has to write its share of a checkpoint, and when the next checkpoint is due.

Pure: time is passed in. An attempt begins when all workers have reached the same step of a
generation, which name it. Its writers take a snapshot, and write their shares while training goes
on. A share of any other attempt is ignored. When all shares are written, the caller commits. There
is one attempt at a time. A checkpoint that becomes due during an attempt is skipped,
and the newest step is used as soon as the attempt has ended.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain_plus.checkpoint.retention import Kept, Retention, surplus

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds


@dataclass(frozen=True)
class Attempt:
    """A checkpoint under way.

    Attributes:
        generation: in which the snapshots were taken. With `step` it names the attempt.
        step: after which the snapshots were taken.
        workers: the writers, in order; the first has all of the state.
    """

    generation: int
    step: int
    workers: tuple[str, ...]

    @property
    def name(self) -> tuple[int, int]:
        """Generation and step."""
        return self.generation, self.step


@dataclass(frozen=True)
class Shares:
    """All that the workers have returned of one attempt, in the order of its workers."""

    attempt: Attempt
    returned: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """An attempt that has failed.

    Attributes:
        step: the step whose state it should keep.
        reason: why.
        in_a_row: failures since the last checkpoint.
        delay: seconds until the next attempt.
    """

    step: int
    reason: str
    in_a_row: int
    delay: float


class Checkpoints:
    """Tracks a run's checkpoints: those that exist, and the attempt under way.

    Args:
        every: steps between two checkpoints; None: on request only.
        retention: which are kept.
        max_failures: failures in a row after which the run must end; None: no limit.
        there: the checkpoints that exist.
        step: the step at which the run starts or continues; it needs no checkpoint.

    Raises:
        ValueError: a number is below one.
    """

    def __init__(
        self,
        every: int | None,
        retention: Retention,
        max_failures: int | None = None,
        *,
        there: Sequence[Kept] = (),
        step: int = 0,
    ) -> None:
        for name, value in (("checkpoint_every", every), ("max_checkpoint_failures", max_failures)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or None")
        self._every = every
        self._retention = retention
        self._max_failures = max_failures
        self._kept = {one.name: one for one in there}
        self._last = step
        self._begun = (0, 0)  # generation and step of the latest attempt
        self._attempt: Attempt | None = None
        self._missing: set[str] = set()  # writers whose shares are not there
        self._returned: dict[str, Any] = {}
        self._asked = False
        self._retry_at: float | None = None
        self._failures: list[str] = []

    @property
    def under_way(self) -> Attempt | None:
        """The attempt that has begun and not ended, or None."""
        return self._attempt

    @property
    def kept(self) -> list[Kept]:
        """The checkpoints that exist, newest first."""
        return sorted(self._kept.values(), key=lambda one: one.step, reverse=True)

    @property
    def fatal(self) -> str | None:
        """Why the run must end: too many attempts have failed in a row. None: it need not end."""
        if self._max_failures is None or len(self._failures) < self._max_failures:
            return None
        return (
            f"no checkpoint could be written {len(self._failures)} times in a row, which is the "
            f"limit (max_checkpoint_failures); the last time: {self._failures[-1]}"
        )

    def request(self) -> None:
        """Ask for a checkpoint of a step that is still to come."""
        self._asked = True

    def next_step(self, step: int, now: float) -> int | None:
        """Return after which step to take the next snapshot; None if that is not known yet.

        Args:
            step: the last committed step.
            now: monotonic seconds.
        """
        if self._attempt is not None or self.fatal:
            return None
        if self._retry_at is not None:
            return step + 1 if now >= self._retry_at else None
        if self._asked:
            return step + 1
        if self._every is None:
            return None
        return max(step + 1, (self._last // self._every + 1) * self._every)

    def may_begin(self, generation: int, step: int) -> bool:
        """Say whether there is no attempt, and none of that generation and step or a later one was.

        So an attempt that was given up does not begin again when a late message arrives.
        """
        return self._attempt is None and (generation, step) > self._begun

    def begin_attempt(self, generation: int, step: int, workers: Sequence[str]) -> Attempt:
        """Begin an attempt: the writers have taken a snapshot, and each must write its share.

        Args:
            generation: in which.
            step: after which.
            workers: the names of the writers.
        """
        assert self.may_begin(generation, step), "there is one attempt at a time, and each once"
        self._begun = (generation, step)
        self._attempt = Attempt(generation, step, tuple(workers))
        self._missing, self._returned = set(workers), {}
        self._asked = False  # a later request is for a newer checkpoint
        return self._attempt

    def returned(self, generation: int, step: int, worker: str, share: Any) -> Shares | None:
        """Record a share that is written; returns all shares when this was the last.

        A share of another attempt than the one under way is ignored, also of one of the same step.

        Args:
            generation: in which the share's snapshot was taken.
            step: after which it was taken.
            worker: that wrote it.
            share: what it has returned.
        """
        attempt = self._attempt
        if attempt is None or attempt.name != (generation, step) or worker not in self._missing:
            return None
        self._missing.remove(worker)
        self._returned[worker] = share
        if self._missing:
            return None
        return Shares(attempt, tuple(self._returned[name] for name in attempt.workers))

    def lost(self, worker: str, now: float) -> bool:
        """Record that a worker is lost; returns whether that ends the attempt, due again now."""
        if self._attempt is None or worker not in self._missing:
            return False
        self._attempt, self._retry_at = None, now
        return True

    def give_up(self) -> None:
        """Give up the attempt under way, because its state is wrong."""
        self._attempt = None
        self._last = max((one.step for one in self._kept.values()), default=0)

    def failed(self, attempt: Attempt, reason: str, now: float) -> Failure | None:
        """Record that a share or the commit has failed; the delay before the next one doubles.

        Returns:
            The failure to report, or None if the attempt had been given up before.
        """
        if self._attempt != attempt:
            return None
        self._failures.append(reason)
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(60, len(self._failures) - 1))
        self._attempt, self._retry_at = None, now + delay
        return Failure(attempt.step, reason, len(self._failures), delay)

    def committed(self, attempt: Attempt, name: str, metrics: Mapping[str, Any]) -> list[str]:
        """Record that a checkpoint is committed; returns those that must be deleted now.

        Each is returned again the next time, until `removed` is called for it.

        Args:
            attempt: that succeeded.
            name: of the checkpoint.
            metrics: of the last evaluation at or before its step.
        """
        assert self._attempt == attempt, "nothing is committed that was given up"
        self._kept[name] = Kept(name, attempt.step, dict(metrics))
        self._attempt, self._retry_at = None, None
        self._failures.clear()
        self._last = attempt.step
        return surplus(self.kept, self._retention)

    def rescore(self, metrics_of: Callable[[int], Mapping[str, Any]]) -> None:
        """Record what is known by now: an evaluation may end after the checkpoint of its step.

        Args:
            metrics_of: returns the metrics of a step.
        """
        for name, one in self._kept.items():
            known = {key: value for key, value in metrics_of(one.step).items() if value is not None}
            self._kept[name] = Kept(name, one.step, {**one.metrics, **known})

    def add(self, name: str, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """Record a checkpoint that one worker has written; returns those to delete now."""
        self._kept[name] = Kept(name, step, dict(metrics))
        self._last = max(self._last, step)
        return surplus(self.kept, self._retention)

    def removed(self, name: str) -> None:
        """Record that a checkpoint is deleted."""
        self._kept.pop(name, None)
