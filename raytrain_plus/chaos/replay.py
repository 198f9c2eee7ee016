"""Applies the changes of a cluster's trace to a live run."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray

from raytrain_plus.chaos.trace import Change
from raytrain_plus.names import NAMESPACE
from raytrain_plus.observe.journal import Event


class Live(Protocol):
    """A run whose workers can be added and killed."""

    def lose(self, workers: int, target: int) -> None:
        """Kill workers without notice, and set the target to `target` workers."""

    def scale(self, workers: int) -> None:
        """Set the target number of workers."""


class Replay:
    """A watcher of a run that applies the changes of a trace, each when its time has come.

    Workers that the trace removes are killed without notice; workers that it adds are requested.
    The clock starts with the first generation, which has the workers of the trace's beginning.

    Args:
        changes: changes in order of time. If they lead outside of the range `workers`, the run has
            the nearest allowed number.
        live: the run.
        workers: the least and the most workers that the run may have.
        now: monotonic seconds.
    """

    def __init__(
        self,
        changes: Sequence[Change],
        live: Live,
        workers: tuple[int, int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left = deque(changes)
        self._live = live
        self._workers = workers
        self._now = now
        self._offered = 0
        self._began: float | None = None
        self._asked = self._ended = False

    def __call__(self, events: Sequence[Event]) -> None:
        """Read new events of the journal, and apply the changes that are due."""
        kinds = {event["event"] for event in events}
        self._ended |= "end" in kinds
        if self._ended:
            return
        if not self._asked:
            self._asked = True
            while self._left and self._left[0].seconds <= 0:
                self._offered += self._left.popleft().delta
            self._live.scale(self._target)
        if self._began is None and "generation" in kinds:
            self._began = self._now()
        while self._began is not None and self._is_due(self._now() - self._began):
            self._apply(self._left.popleft().delta)

    @property
    def _target(self) -> int:
        least, most = self._workers
        return min(most, max(least, self._offered))

    def _is_due(self, seconds: float) -> bool:
        return bool(self._left) and self._left[0].seconds <= seconds

    def _apply(self, delta: int) -> None:
        self._offered += delta
        if delta < 0:
            self._live.lose(-delta, self._target)
        else:
            self._live.scale(self._target)


class NamedRun:
    """A live run on the Ray cluster of this process.

    Args:
        name: name of the run.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def lose(self, workers: int, target: int) -> None:
        """Kill workers without notice, and set the target to `target` workers."""
        ray.get(self._coordinator().lose.remote(workers, target))

    def scale(self, workers: int) -> None:
        """Set the target number of workers."""
        ray.get(self._coordinator().scale.remote(workers))

    def _coordinator(self) -> Any:
        return ray.get_actor(self._name, namespace=NAMESPACE)
