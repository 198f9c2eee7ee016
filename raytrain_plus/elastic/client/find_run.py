"""Finding the coordinator of a live run, by the run's journal."""

from collections.abc import Sequence

import ray

from raytrain_plus.elastic.protocol.handles import CoordinatorHandle, LenderHandle
from raytrain_plus.names import NAMESPACE
from raytrain_plus.observe.journal import Event


def find_coordinator(run: str, events: Sequence[Event]) -> CoordinatorHandle:
    """Return the handle of a run's coordinator.

    Args:
        run: its name.
        events: of its journal, which names the actor that lends its processes, if there is one.

    Raises:
        ValueError: there is none.
        RayActorError: Ray is starting it again.
    """
    name = next((e.get("lender") for e in reversed(events) if e["event"] == "run"), None)
    if name is None:
        found: CoordinatorHandle = ray.get_actor(run, namespace=NAMESPACE)
        return found
    lender: LenderHandle = ray.get_actor(name, namespace=NAMESPACE)
    lent: CoordinatorHandle | None = ray.get(lender.leader_of.remote(run))
    if lent is None:
        raise ValueError(f"Failed to look up actor: lender {name} has lent nothing to run {run}")
    return lent
