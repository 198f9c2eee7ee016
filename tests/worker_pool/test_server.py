"""Which of its processes the pool gives to a run, and where it starts new ones. No Ray runs."""

import asyncio
from types import SimpleNamespace

import pytest

from raytrain_plus.worker_pool.server import PoolProcess, RunShare, WorkerPool


class Handle:
    """A worker's process; its `live` never fails."""

    def __init__(self, node):
        self.node = node
        self.warm = self.answering(node)
        self.start_run = self.answering(None)
        self.live = SimpleNamespace(remote=lambda: asyncio.Event().wait())

    def answering(self, value):
        async def answer(*_):
            return value

        return SimpleNamespace(remote=answer)


class Actor:
    """Starts processes on a node, and records what they asked Ray for."""

    def __init__(self, node):
        self.node = node
        self.asked = []

    def options(self, **asked):
        self.asked.append(asked)
        return SimpleNamespace(remote=lambda: Handle(self.node))


def pool_with(*nodes, starts_on=""):
    """Return a pool with a run, and a free process on each node."""
    pool = object.__new__(WorkerPool)
    pool._options, pool._workers, pool._elastic = {"num_cpus": 1}, 4, True
    pool._free = [PoolProcess(Handle(node), node) for node in nodes]
    pool._in_use, pool._tasks = [], set()
    pool._changed = asyncio.Event()
    pool._coordinators = [SimpleNamespace(call=SimpleNamespace(remote=lambda *_: None))]
    request = SimpleNamespace(least=1, most=4, samples=8)
    pool._runs = {"run": RunShare(request, (), slot=0, target=4)}
    pool._worker_actor = Actor(starts_on)
    return pool


@pytest.mark.parametrize(
    ("free", "avoid", "given"),
    [
        (["a", "b"], "", "a"),  # the control: the first that is free
        (["a", "b"], "a", "b"),
        (["a", "a"], "a", "a"),  # no other is free
    ],
)
def test_a_run_gets_a_process_of_another_node_if_one_is_free(free, avoid, given):
    async def ask():
        pool = pool_with(*free)
        return await pool.request_worker("run", "w1", avoid), len(pool._free)

    handle, left = asyncio.run(ask())
    assert (handle.node, left) == (given, 1)


@pytest.mark.parametrize("avoid", ["a", ""])
def test_a_process_that_is_awaited_starts_on_another_node_if_one_has_room(avoid):
    async def start():
        pool = pool_with(starts_on="b")
        waiting = asyncio.create_task(pool.request_worker("run", "w1", avoid))
        await asyncio.sleep(0)
        await pool._start_worker()
        handle = await waiting
        for task in pool._tasks:
            task.cancel()
        return handle, pool._worker_actor.asked

    handle, (asked,) = asyncio.run(start())
    assert handle.node == "b"
    assert asked.pop("num_cpus") == 1
    strategies = list(asked.values())
    assert [one.hard for one in strategies] == [[]] * bool(avoid)
    (rules,) = [one.soft for one in strategies] or [[]]
    assert [one.operator.values for one in rules] == [[avoid]] * bool(avoid)
