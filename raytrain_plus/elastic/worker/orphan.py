"""A worker whose coordinator has gone waits for it to come back, and ends itself if it does not.

Workers are detached, so that they outlive their coordinator; nobody else would end them.
"""

import time

import ray

from raytrain_plus.elastic.liveness.lifeline import LifelineServer
from raytrain_plus.elastic.protocol.messages import RunSpec
from raytrain_plus.exits import leave_at_once
from raytrain_plus.names import NAMESPACE

_LOOK = 0.2  # seconds


def wait_or_end(spec: RunSpec, lifeline: LifelineServer) -> None:
    """Return when a coordinator has taken up the lifeline again; else end this process.

    Ray knows whether the coordinator is about to be started again; where Ray cannot be asked (this
    host may be cut off), there is a limit.
    """
    until = time.monotonic() + spec.elastic.orphan_seconds
    while not lifeline.is_held:
        if time.monotonic() > until or not _is_expected(spec.name):
            leave_at_once(1)  # at once: nobody waits for anything that this process still has
        time.sleep(_LOOK)


def _is_expected(run: str) -> bool:
    try:
        ray.get_actor(run, namespace=NAMESPACE)
    except ValueError:  # it has ended for good
        return False
    except Exception:  # noqa: BLE001 - Ray cannot be reached: it may be again
        return True
    return True
