"""Computes units of work in any number of processes that may come, go and be killed.

A unit is computed whole by one process, and its result depends on the unit alone. So the results
are the same on any number of workers. A unit whose worker is lost is computed again by another.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import ray
from ray import cloudpickle

from raytrain_plus.configure import ConfigError
from raytrain_plus.elastic.client.control import RunFailedError
from raytrain_plus.elastic.protocol.messages import import_first
from raytrain_plus.elastic.worker.process import USERS, users_traceback
from raytrain_plus.trainer import cluster

_MOST_LOSSES = 4  # of a unit, after which it is what ends its workers


class InferenceError(RunFailedError):
    """The task has failed on a worker, or ends each worker; the text is the user's traceback."""


class Work(Protocol):
    """What a worker does."""

    def opened(self) -> AbstractContextManager[Callable[[Any], Any]]:
        """Load what is needed, and return the function that computes a unit."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many processes compute, and what each of them holds.

    Attributes:
        number: of processes; 0 for this one alone, without Ray.
        cpus: that each holds.
        gpu: whether each holds a GPU.
        import_paths: folders in which they search modules first.
    """

    number: int
    cpus: float
    gpu: bool
    import_paths: Sequence[str]

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ConfigError(f"workers is {self.number}; it must be at least 0 (in this process)")


def computed(work: Work, units: Sequence[Any], workers: Workers) -> Iterator[tuple[int, Any]]:
    """Yield the place of each unit and its result, as they get done.

    Args:
        work: what to do; it is pickled.
        units: what to do it with.
        workers: which processes do it.

    Raises:
        InferenceError: the task has failed on a worker, or a unit ends each worker.
        Exception: what the task raises in this process.
    """
    if not workers.number:
        with work.opened() as compute:
            for i, unit in enumerate(units):
                yield i, compute(unit)
        return
    number = min(workers.number, len(units))
    with cluster(max(1, round(number * workers.cpus))):
        yield from _Crew(work, units, workers).computed(number)


class _Crew:
    """The workers of one command, which end with it."""

    def __init__(self, work: Work, units: Sequence[Any], workers: Workers) -> None:
        self._units = units
        self._workers = workers
        # By reference: it may hold a table.
        self._work = ray.put(cloudpickle.dumps(work))
        self._left = list(reversed(range(len(units))))
        self._losses = [0] * len(units)
        self._running: dict[Any, tuple[Any, int]] = {}

    def computed(self, number: int) -> Iterator[tuple[int, Any]]:
        """Yield as the function above."""
        try:
            for _ in range(number):
                self._give(self._started())
            while self._running:
                done, _ = ray.wait(list(self._running), num_returns=1)
                actor, place = self._running.pop(done[0])
                try:
                    text, result = ray.get(done[0])
                except ray.exceptions.RayActorError as error:
                    self._lose(place, error)
                    continue
                if text:
                    raise InferenceError(text)
                self._give(actor)
                yield place, result
        finally:
            for actor, _ in self._running.values():
                with contextlib.suppress(Exception):
                    ray.kill(actor)

    def _started(self) -> Any:
        workers = self._workers
        return (
            ray.remote(_Worker)
            .options(num_cpus=workers.cpus, num_gpus=int(workers.gpu))
            .remote(workers.import_paths, self._work)
        )

    def _give(self, actor: Any) -> None:
        if self._left:
            place = self._left.pop()
            self._running[actor.compute.remote(self._units[place])] = actor, place
        else:
            ray.kill(actor)

    def _lose(self, place: int, error: Exception) -> None:
        self._losses[place] += 1
        if self._losses[place] == _MOST_LOSSES:
            raise InferenceError(
                f"{_MOST_LOSSES} workers have ended while they computed {self._units[place]}: it "
                f"may need more memory than a worker has. The last one: {error}"
            ) from error
        self._left.append(place)
        self._give(self._started())


class _Worker:
    """A process that computes units, one after another."""

    def __init__(self, import_paths: Sequence[str], pickled: bytes) -> None:
        import_first(import_paths)
        self._pickled = pickled
        self._closing = contextlib.ExitStack()
        self._compute: Callable[[Any], Any] | None = None

    def compute(self, unit: Any) -> tuple[str, Any]:
        """Return the text of an error and nothing, or an empty text and the result."""
        try:
            if self._compute is None:
                work: Work = cloudpickle.loads(self._pickled)
                self._compute = self._closing.enter_context(work.opened())
            return "", self._compute(unit)
        except USERS as error:
            return users_traceback(error), None
