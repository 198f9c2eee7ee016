"""The largest worker of a node ends itself before Ray's memory monitor would act."""

import queue

import pytest

from raytrain_plus.elastic.worker.memory_watch import MemoryPressure, MemoryWatch
from raytrain_plus.ray_cluster.memory_monitor import NodeMemory

GIB = 2**30
PATIENCE = 30.0


def memory(gib):
    return NodeMemory(gib * GIB, 24 * GIB, 22 * GIB)


def first_high(uses, every=0.05):
    """Return the index of the look at which a process has to free memory, or None."""
    pressure = MemoryPressure()
    for look, gib in enumerate(uses):
        if pressure.is_high(memory(gib), look * every):
            return look
    return None


def test_memory_that_grows_is_noticed_before_the_threshold_is_reached():
    uses = [20.0 + 0.1 * look for look in range(40)]  # 2 GiB in a second
    found = first_high(uses)
    assert found is not None
    assert uses[found] < 22.0
    assert uses[found] > 21.5  # and not long before


@pytest.mark.parametrize(
    "uses",
    [
        [21.9] * 100,
        [20.0 + 0.001 * look for look in range(100)],
    ],
    ids=["steady", "slow"],
)
def test_memory_below_the_threshold_ends_no_process(uses):
    assert first_high(uses) is None


def test_a_worker_waits_if_another_one_frees_memory():
    grown, freed = [21.0, 21.5, 22.1], [22.5, *(22.5 - 0.4 * look for look in range(1, 6))]
    assert first_high(grown) == 1
    assert first_high(freed) is None


def test_a_node_that_stays_above_the_threshold():
    assert first_high([22.5] * 3) == 1


def test_checks_are_rare_with_free_memory_and_frequent_without():
    seconds = [MemoryPressure.seconds_to_next_look(memory(gib)) for gib in (4, 16, 20, 21.9, 23)]
    assert seconds[0] == 1.0
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[-1] == 0.05


def watched(looks, *, largest):
    """Watch until all looks are used; returns why the process ended, None if it did not.

    Args:
        looks: the GiB that the node uses.
        largest: for each comparison of sizes, whether this process is the largest.
    """
    ended: queue.Queue = queue.Queue()
    rest, sizes = iter(looks), iter(largest)

    def look():
        gib = next(rest, None)
        if gib is None:
            ended.put(None)
            return None
        return memory(gib)

    MemoryWatch(ended.put, look, lambda: (next(sizes), 12 * GIB))
    return ended.get(timeout=PATIENCE)


def test_the_largest_worker_ends_itself_and_says_how_large_it_and_its_node_are():
    assert watched([22.5] * 3, largest=[True] * 2) == (
        "it ended itself for want of memory: it used 12.0 GiB, more than any other process of "
        "Ray's on its node. Its node used 22.5 of 24.0 GiB of memory, and Ray allows 22.0 GiB "
        "(RAY_memory_usage_threshold)"
    )


def test_a_worker_that_is_not_the_largest_stays():
    assert watched([22.5] * 4, largest=[False] * 3) is None


def test_a_worker_that_became_the_largest_when_a_larger_one_ended_stays():
    assert watched([22.3, 22.4, 22.5, 18.0], largest=[False, True]) is None
    assert watched([22.3, 22.4, 22.5, 22.6], largest=[False, True, True]) is not None


@pytest.mark.parametrize(
    "looks",
    [[21.5] * 4, [10.0, *[20.0] * 5], [21.0, 21.9, 21.0, 21.9, 21.0]],
    ids=["steady", "one large step", "back and forth"],
)
def test_a_worker_whose_node_has_enough_stays(looks):
    assert watched(looks, largest=[True] * 5) is None


def test_a_watch_that_was_closed_ends_nothing():
    ended: queue.Queue = queue.Queue()
    looks: queue.Queue = queue.Queue()

    def look():
        ended.put("looked")
        return memory(looks.get(timeout=PATIENCE))

    watch = MemoryWatch(ended.put, look, lambda: (True, 12 * GIB))
    assert ended.get(timeout=PATIENCE) == "looked"
    watch.close()
    looks.put(22.5)
    with pytest.raises(queue.Empty):
        ended.get(timeout=0.2)
