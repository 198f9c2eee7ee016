"""The step header: what the workers send each other in addition to the gradient."""

import threading
import time

import pytest

from tests.training.small_tasks import Plain, make_loop, part
from tests.training.wires import Network

RANGES = [range(1), range(1, 3), range(3, 4)]


def loops_of(tasks):
    network = Network(len(RANGES))
    return network, [make_loop(t, RANGES, network.wire(i)) for i, t in enumerate(tasks)]


def step_of(network, loops, **options):
    """Run one step on all workers; options are functions of the worker's index."""

    def step(wire):
        batches = [part(loops[wire.index].replica.step, r) for r in RANGES[wire.index]]
        own = {name: value(wire.index) for name, value in options.items()}
        return loops[wire.index].run_step(batches, **own)

    return network.run(step)


def timed(loop, durations):
    """Let a loop append how long each of its steps takes."""
    run_step = loop.run_step

    def step(*batches, **options):
        began = time.perf_counter()
        result = run_step(*batches, **options)
        durations.append(time.perf_counter() - began)
        return result

    loop.run_step = step


@pytest.mark.parametrize("flag", ["pause", "checkpoint"])
def test_only_the_flags_that_a_worker_sets_are_seen_by_all(flag):
    network, loops = loops_of([Plain()] * 3)
    for asks in ((), (1,), (), (0, 2)):
        results = step_of(network, loops, **{"ask_" + flag: lambda i, asks=asks: i in asks})
        assert [getattr(r, flag) for r in results] == [bool(asks)] * 3
        other = {"pause": "checkpoint", "checkpoint": "pause"}[flag]
        assert not any(getattr(r, other) for r in results)


class Held(Plain):
    """A forward that waits, once it is armed, for other workers."""

    def __init__(self):
        super().__init__()
        self.gate = None

    def forward(self, model, batch):
        if self.gate is not None:
            self.gate.wait(20)
        return model(batch["x"])


def gate_behind(loops, seconds):
    """Return a gate that opens some seconds after all these loops have started to wait."""
    arrived = [threading.Event() for _ in loops]
    for loop, event in zip(loops, arrived, strict=True):
        loop._enter = lambda phase, event=event: phase == "exchange" and event.set()

    class Gate:
        def wait(self, timeout):
            assert all(event.wait(timeout) for event in arrived)
            threading.Event().wait(seconds)

    return Gate()


def test_seconds_of_computing_are_wall_time_without_the_wait_for_others():
    """One worker's forward lasts until both others wait for it: their time must be shorter."""
    tasks = [Plain(), Held(), Plain()]
    network, loops = loops_of(tasks)
    gate = gate_behind([loops[0], loops[2]], 0.3)
    first = step_of(network, loops)
    tasks[1].gate = gate
    durations = []
    timed(loops[0], durations)
    second = step_of(network, loops)
    computed = tuple(loop._compute_seconds for loop in loops)
    waited = loops[0]._exchange_seconds[0]
    tasks[1].gate = None
    third = step_of(network, loops)
    for results in (first, second, third):
        assert len({r.compute_seconds for r in results}) == 1
    assert first[0].compute_seconds == (0.0, 0.0, 0.0)  # not known yet
    assert all(seconds > 0 for seconds in second[0].compute_seconds)
    assert third[0].compute_seconds == computed
    # It slept for 0.6 seconds, which CPU time does not show; the others waited at least as long.
    assert computed[1] >= 0.6
    assert waited >= 0.6
    assert computed[0] + waited <= durations[0]  # the wait is not in the time of computing
    for loop, wire in zip(loops, map(network.wire, range(3)), strict=True):
        loop.begin_generation(RANGES, wire)
    assert step_of(network, loops)[0].compute_seconds == (0.0, 0.0, 0.0)


def test_seconds_of_the_exchange_are_those_of_the_slowest_worker():
    """Two workers wait for the third, which computes for a long time and waits the least."""
    tasks = [Plain(), Plain(), Held()]
    network, loops = loops_of(tasks)
    assert step_of(network, loops)[0].exchange_seconds == (0.0, 0.0)  # not known yet
    tasks[2].gate = gate_behind(loops[:2], 0.6)
    step_of(network, loops)
    assert all(loop._exchange_seconds[0] >= 0.6 for loop in loops[:2])
    measured = [loop._exchange_seconds for loop in loops]
    tasks[2].gate = None
    least = min(measured, key=lambda times: times[0])
    assert [r.exchange_seconds for r in step_of(network, loops)] == [least] * 3
    known = [(0.7, 0.1), (0.8, 0.0), (0.2, 0.3)]  # as without load
    for order in (known, known[::-1], known[1:] + known[:1]):
        for loop, times in zip(loops, order, strict=True):
            loop._exchange_seconds = times
        assert [r.exchange_seconds for r in step_of(network, loops)] == [(0.2, 0.3)] * 3
    for loop, wire in zip(loops, map(network.wire, range(3)), strict=True):
        loop.begin_generation(RANGES, wire)
    assert step_of(network, loops)[0].exchange_seconds == (0.0, 0.0)
