"""The step header: what the workers send each other in addition to the gradient."""

import threading

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
    second = step_of(network, loops)
    tasks[1].gate = None
    third = step_of(network, loops)
    for results in (first, second, third):
        assert len({r.compute_seconds for r in results}) == 1
    assert first[0].compute_seconds == (0.0, 0.0, 0.0)  # not known yet
    assert all(seconds > 0 for seconds in second[0].compute_seconds)
    seconds = third[0].compute_seconds
    # It slept for 0.6 seconds, which CPU time does not show; the others waited at least as long.
    assert seconds[1] >= 0.6
    assert seconds[1] > max(seconds[0], seconds[2])
    for loop, wire in zip(loops, map(network.wire, range(3)), strict=True):
        loop.begin_generation(RANGES, wire)
    assert step_of(network, loops)[0].compute_seconds == (0.0, 0.0, 0.0)


def test_seconds_of_the_exchange_are_those_of_the_slowest_worker():
    """Two workers wait for the third, which computes for a long time and then hardly waits."""
    tasks = [Plain(), Plain(), Held()]
    network, loops = loops_of(tasks)
    assert step_of(network, loops)[0].exchange_seconds == (0.0, 0.0)  # not known yet
    tasks[2].gate = gate_behind(loops[:2], 0.6)
    step_of(network, loops)
    others = [loop._exchange_seconds[0] for loop in loops[:2]]
    tasks[2].gate = None
    results = step_of(network, loops)
    assert len({r.exchange_seconds for r in results}) == 1
    seen, _ = results[0].exchange_seconds
    assert 0 < seen < 0.3
    assert all(waited >= 0.6 for waited in others)  # the negative control
    for loop, wire in zip(loops, map(network.wire, range(3)), strict=True):
        loop.begin_generation(RANGES, wire)
    assert step_of(network, loops)[0].exchange_seconds == (0.0, 0.0)
