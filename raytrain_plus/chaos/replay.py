"""Doing to a live run what a trace says happened to a cluster."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import ray

from raytrain_plus.chaos.trace import Change
from raytrain_plus.names import NAMESPACE
from raytrain_plus.observe.journal import Event


class Live(Protocol):
    """A run that can be given workers, and be robbed of some."""

    def lose(self, workers: int, target: int) -> None:
        """Kill workers without notice, and want `target` from then on."""

    def scale(self, workers: int) -> None:
        """Want so many workers."""


class Replay:
    """A watcher of a run that applies the changes of a trace, each when its time has come.

    What the trace takes is killed, without notice; what it gives is asked for. The clock starts
    with the first generation, which consists of whom the trace has at its beginning.

    Args:
        changes: in order of time; the numbers that they lead to may leave `workers`, and the run
            then has as many as it is allowed to.
        live: the run.
        workers: the least and the most that it may have.
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
        """Take in new events of the journal, and apply what is due."""
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
    """A run on the Ray cluster of this process, by its name.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def lose(self, workers: int, target: int) -> None:
        """Kill workers without notice, and want `target` from then on."""
        ray.get(self._coordinator().lose.remote(workers, target))

    def scale(self, workers: int) -> None:
        """Want so many workers."""
        ray.get(self._coordinator().scale.remote(workers))

    def _coordinator(self) -> Any:
        return ray.get_actor(self._name, namespace=NAMESPACE)
