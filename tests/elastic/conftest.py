"""A coordinator that leads scripted workers."""

import threading
from types import SimpleNamespace

import pytest

from raytrain_plus.elastic.coordinator import (
    checkpoint_coordinator,
    membership,
    restart,
)
from raytrain_plus.elastic.coordinator import coordinator as module
from tests.elastic.scripted_pool import AtOnce, FakeTime, ScriptedPool, comes, make_spec


@pytest.fixture
def lead(tmp_path, monkeypatch):
    """Return a function that leads a run through a script; it returns the outcome and the pool.

    `left` is the state of the workers of an earlier coordinator, by name; `prepare` is called
    first, with the pool.
    """
    time = FakeTime()
    for one in (module, membership, restart):
        monkeypatch.setattr(one, "time", time)
    monkeypatch.setattr(membership, "missing_resources", lambda _, n, __: f"CPU: {n} needed")
    monkeypatch.setattr(
        checkpoint_coordinator, "threading", SimpleNamespace(Thread=AtOnce, Lock=threading.Lock)
    )

    def run(script=(), arrive=comes, *, left=None, prepare=lambda _: None, **spec):
        pool = ScriptedPool(time, arrive, script)
        pool.left = dict(left or {})
        pool.steps = {worker: found.step for worker, found in pool.left.items() if found}
        prepare(pool)
        described = make_spec(tmp_path, **spec)
        pool.coordinator = module.Coordinator(described, pool, returns=left is not None)
        return pool.coordinator.run(), pool

    return run
