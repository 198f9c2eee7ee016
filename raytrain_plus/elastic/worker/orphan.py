"""A worker that has lost its coordinator waits for the next one, and ends itself if none comes.

Workers are detached, so that they outlive their coordinator; no other process would end them.
"""

import time

import ray

from raytrain_plus.elastic.liveness.lifeline import LifelineServer
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.exits import leave_at_once
from raytrain_plus.names import NAMESPACE

_LOOK = 0.2  # seconds


def wait_or_end(spec: RunSpec, lifeline: LifelineServer) -> None:
    """Return when a coordinator holds the lifeline again; else end this process.

    Ray knows whether the coordinator will be restarted. If Ray cannot be asked, since this host may
    be cut off, there is a time limit.
    """
    until = time.monotonic() + spec.elastic.orphan_seconds
    while not lifeline.is_held:
        if time.monotonic() > until or not _is_expected(spec.name):
            leave_at_once(1)  # at once: no other process needs anything of this one
        time.sleep(_LOOK)


def _is_expected(run: str) -> bool:
    try:
        ray.get_actor(run, namespace=NAMESPACE)
    except ValueError:  # it will not be restarted
        return False
    except Exception:  # noqa: BLE001 - Ray cannot be reached: it may be again
        return True
    return True
