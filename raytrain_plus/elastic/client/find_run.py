"""Finding the coordinator of a live run, by the run's journal."""

from collections.abc import Sequence

import ray

from raytrain_plus.elastic.protocol.handles import CoordinatorHandle, WorkerPoolHandle
from raytrain_plus.names import NAMESPACE
from raytrain_plus.observe.journal import Event


def find_coordinator(run: str, events: Sequence[Event]) -> CoordinatorHandle:
    """Return the handle of a run's coordinator.

    Args:
        run: its name.
        events: of its journal, which names its worker pool, if it has one.

    Raises:
        ValueError: there is none.
        RayActorError: Ray is starting it again.
    """
    name = next((e.get("worker_pool") for e in reversed(events) if e["event"] == "run"), None)
    if name is None:
        found: CoordinatorHandle = ray.get_actor(run, namespace=NAMESPACE)
        return found
    pool: WorkerPoolHandle = ray.get_actor(name, namespace=NAMESPACE)
    reused: CoordinatorHandle | None = ray.get(pool.coordinator_of.remote(run))
    if reused is None:
        raise ValueError(f"Failed to look up actor: worker pool {name} has no live run {run}")
    return reused
