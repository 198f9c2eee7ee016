"""A driver that is a trial of Ray Tune: Tune ends its process, and the run must end with it.

The run of another driver goes on without it. The run of a trial that a scheduler, a time limit or
Ctrl-C has ended would only hold CPUs for a result that is not wanted any more.
"""

import contextlib
import sys
from collections.abc import Iterator

import ray

from raytrain_plus.elastic.liveness.lifeline import Address, LifelineServer
from raytrain_plus.ray_cluster.actors import actors_here


def in_trial() -> bool:
    """Return whether this process is a trial of Ray Tune."""
    tune = sys.modules.get("ray.tune")  # a trial has imported it
    if tune is None or not ray.is_initialized():
        return False
    if tune.get_context().get_trial_id() is not None:  # of a function
        return True
    return any(isinstance(actor, tune.Trainable) for actor in actors_here())


@contextlib.contextmanager
def lifeline_of_trial() -> Iterator[Address | None]:
    """Offer a lifeline while this process is a trial; yields its address, or None in no trial."""
    if not in_trial():
        yield None
        return
    lifeline = LifelineServer(ray.util.get_node_ip_address(), lambda: None)
    try:
        yield lifeline.address
    finally:
        lifeline.close()
