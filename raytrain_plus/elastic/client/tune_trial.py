"""A driver that is a trial of Ray Tune: Tune ends its process, and the run must end with it.

The run of another driver goes on without it. The run of a trial that a scheduler, a time limit or
Ctrl-C has ended would only hold CPUs for a result that is not wanted any more.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

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


def placement_in_trial() -> dict[str, Any]:
    """Return the options that place workers in this trial's placement group.

    Empty if this is no trial, or if its group has no bundle beyond that of the trial itself.
    """
    group = ray.util.get_current_placement_group() if in_trial() else None
    if group is None or len(group.bundle_specs) < 2:
        return {}
    return {
        "scheduling_strategy": ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(
            group, placement_group_capture_child_tasks=False
        )
    }


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
