"""A reused actor forwards the methods of a Worker or Coordinator in the same concurrency groups."""

import inspect

import pytest
import ray

from raytrain_plus.elastic.coordinator.coordinator import Coordinator
from raytrain_plus.elastic.worker.worker import Worker
from raytrain_plus.worker_pool.reused_actors import ReusedCoordinator, ReusedWorker, forwards

PAIRS = [(ReusedWorker, Worker), (ReusedCoordinator, Coordinator)]


class Served:
    def __init__(self, name):
        self.name = name

    def add(self, one, *, more=0):
        """Add to a name."""
        return f"{self.name} {one + more}"

    @ray.method(concurrency_group="control")
    def say(self):
        return self.name


@forwards(Served)
class Reused:
    served: Served | None = None

    def _served(self):
        return self.served


def groups(cls):
    return {
        name: getattr(method, "__ray_concurrency_group__", None)
        for name, method in vars(cls).items()
        if callable(method) and not name.startswith("_")
    }


@pytest.mark.parametrize(("reused", "served"), PAIRS, ids=["worker", "coordinator"])
def test_a_reused_actor_has_all_methods_in_the_same_groups(reused, served):
    assert not issubclass(reused, served)
    assert groups(served).items() <= groups(reused).items()
    assert {None, "control"} <= set(groups(served).values())  # the control
    for name in groups(served):
        assert inspect.signature(getattr(reused, name)) == inspect.signature(getattr(served, name))


def test_a_call_reaches_the_object_that_the_actor_has_now():
    actor = Reused()
    for name in ("first", "second"):
        actor.served = Served(name)
        assert actor.add(1, more=2) == f"{name} 3"
        assert actor.say() == name


def test_the_actors_own_methods_are_not_replaced():
    class Same:
        def say(self):
            return "own"

    with pytest.raises(AssertionError, match="would be replaced"):
        forwards(Served)(Same)


def test_a_worker_process_without_a_run_says_so():
    idle = object.__new__(ReusedWorker)
    idle._worker = None
    with pytest.raises(RuntimeError, match="serves no run"):
        idle.status()
