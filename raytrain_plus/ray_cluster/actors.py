"""Facts about actors that Ray's public API does not give."""

from dataclasses import dataclass
from typing import Any

import ray


@dataclass(frozen=True, kw_only=True)
class ActorState:
    """An actor's state, as Ray's head has it.

    Attributes:
        state: as Ray names it, such as ALIVE or RESTARTING.
        pid: of its process.
        here: whether that is on this node.
        starts: how often it was started.
    """

    state: str
    pid: int
    here: bool
    starts: int


def state_of(handle: Any) -> ActorState:
    """Ask Ray's head for an actor's state.

    Args:
        handle: of the actor.
    """
    told = ray._private.state.state.actor_table(handle._actor_id.hex())  # noqa: SLF001
    here = ray.get_runtime_context().get_node_id()
    return ActorState(
        state=told["State"],
        pid=told["Pid"],
        here=told["Address"]["NodeID"] == here,
        starts=1 + told["NumRestarts"],
    )


def actors_here() -> list[Any]:
    """Return the actors that live in this process."""
    return list(getattr(ray._private.worker.global_worker, "actors", {}).values())  # noqa: SLF001
