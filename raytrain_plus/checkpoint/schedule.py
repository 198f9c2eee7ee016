"""Who owes what of a checkpoint, and when the next one is due. Pure: time is given, never taken.

An attempt begins when all workers have taken a snapshot after the same step. Each then writes its
share while training goes on; when all shares are in, somebody commits. There is one attempt at a
time: another that falls due meanwhile is left out, and the newest step is taken as soon as the one
under way has ended.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytrain_plus.checkpoint.retention import Kept, Retention, surplus

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 60.0  # seconds


@dataclass(frozen=True)
class Attempt:
    """A checkpoint under way.

    Attributes:
        number: tells it from others of the same step; workers give it back with their share.
        step: after which the snapshots were taken.
        workers: the writers, the first of which has the model.
    """

    number: int
    step: int
    workers: tuple[str, ...]


@dataclass(frozen=True)
class Shares:
    """All that the workers have returned of one attempt, in the order of its workers."""

    attempt: Attempt
    returned: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """An attempt that came to nothing.

    Attributes:
        step: whose state it was to keep.
        reason: why.
        in_a_row: failures since the last checkpoint.
        delay: seconds until the next attempt.
    """

    step: int
    reason: str
    in_a_row: int
    delay: float


class Checkpoints:
    """Keeps the books of a run's checkpoints.

    Args:
        every: steps between two checkpoints; None has them on request alone.
        retention: which are kept.
        max_failures: failures in a row after which the run is to end; None has it go on for ever.
        there: the checkpoints that there are.
        step: the step at which the run starts or goes on; it needs no checkpoint.

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
        self._number = 0
        self._attempt: Attempt | None = None
        self._returned: dict[str, Any] = {}
        self._asked = False
        self._retry_at: float | None = None
        self._failures: list[str] = []

    @property
    def under_way(self) -> Attempt | None:
        """The attempt that has begun and not ended."""
        return self._attempt

    @property
    def kept(self) -> list[Kept]:
        """The checkpoints that there are, newest first."""
        return sorted(self._kept.values(), key=lambda one: one.step, reverse=True)

    @property
    def fatal(self) -> str | None:
        """Why the run is to end: no checkpoint for too many attempts. None while it need not."""
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

    def begin(self, step: int, workers: Sequence[str]) -> Attempt:
        """All workers have taken a snapshot; each now owes a share.

        Args:
            step: after which.
            workers: their names; the place in the sequence is the number of the share.
        """
        assert self._attempt is None, "there is one attempt at a time"
        self._number += 1
        self._attempt = Attempt(self._number, step, tuple(workers))
        self._returned = {}
        self._asked = False  # whoever asks from now on wants a newer one
        return self._attempt

    def returned(self, number: int, worker: str, share: Any) -> Shares | None:
        """Take in a share that is written; returns all of them when this was the last.

        What belongs to an attempt that was given up is left out.
        """
        attempt = self._attempt
        if attempt is None or attempt.number != number or worker not in attempt.workers:
            return None
        new = worker not in self._returned
        self._returned[worker] = share
        if not new or len(self._returned) < len(attempt.workers):
            return None
        return Shares(attempt, tuple(self._returned[name] for name in attempt.workers))

    def lost(self, worker: str, now: float) -> bool:
        """A worker has gone; returns whether that ends the attempt, which is then due again."""
        owes = self._attempt is not None and worker in self._attempt.workers
        if not owes or worker in self._returned:
            return False
        self._attempt, self._retry_at = None, now
        return True

    def give_up(self) -> None:
        """Let the attempt under way come to nothing: its state is wrong."""
        self._attempt = None
        self._last = max((one.step for one in self._kept.values()), default=0)

    def failed(self, number: int, reason: str, now: float) -> Failure | None:
        """A share or the commit has failed; it is due again after a delay that doubles.

        Returns:
            What to tell, or None if the attempt had been given up before.
        """
        attempt = self._attempt
        if attempt is None or attempt.number != number:
            return None
        self._failures.append(reason)
        delay = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(60, len(self._failures) - 1))
        self._attempt, self._retry_at = None, now + delay
        return Failure(attempt.step, reason, len(self._failures), delay)

    def committed(self, number: int, name: str, metrics: Mapping[str, Any]) -> list[str]:
        """The checkpoint is there; returns those that are to be deleted now.

        Each is returned again the next time, unless `removed` has been told that it is gone.

        Args:
            number: of the attempt.
            name: of the checkpoint.
            metrics: of the last evaluation at or before its step.
        """
        attempt = self._attempt
        assert attempt is not None, "nothing is committed that was not begun"
        assert attempt.number == number, "nothing is committed that was given up"
        self._kept[name] = Kept(name, attempt.step, dict(metrics))
        self._attempt, self._retry_at = None, None
        self._failures.clear()
        self._last = attempt.step
        return surplus(self.kept, self._retention)

    def add(self, name: str, step: int, metrics: Mapping[str, Any]) -> list[str]:
        """Somebody has written a checkpoint alone; returns those that are to be deleted now."""
        self._kept[name] = Kept(name, step, dict(metrics))
        self._last = max(self._last, step)
        return surplus(self.kept, self._retention)

    def removed(self, name: str) -> None:
        """A checkpoint is deleted."""
        self._kept.pop(name, None)
