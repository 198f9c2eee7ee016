"""A trace is replayed at its own times: losses kill, gains scale. (On a made-up run, no Ray.)"""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.chaos.replay import Replay

GENERATION = [{"event": "generation"}]
STEP = [{"event": "step"}]


@dataclass
class Change:
    seconds: float
    delta: int


class Run:
    """Records the changes that it gets, with their times."""

    def __init__(self, changes, workers=(1, 4)):
        self.time, self.done = 100.0, []
        self.replay = Replay(changes, self, workers, now=lambda: self.time)

    def lose(self, workers, target):
        self.done.append((self.time - 100.0, "lose", workers, target))

    def scale(self, workers):
        self.done.append((self.time - 100.0, "scale", workers))


TRACE = [Change(0, 2), Change(0, 1), Change(10, -2), Change(20, 3), Change(20, -1)]


def test_changes_are_applied_when_their_time_has_come():
    run = Run(TRACE)
    run.replay([{"event": "run"}])
    assert run.done == [(0, "scale", 3)]  # before any worker has arrived
    run.time += 50
    run.replay([])  # workers start; the trace waits for them
    run.done.clear()
    run.replay(GENERATION)
    assert run.done == []
    for seconds in (9.9, 10.0, 19.0, 20.5, 99.0):
        run.time = 150 + seconds
        run.replay(STEP)
    assert run.done == [(60, "lose", 2, 1), (70.5, "scale", 4), (70.5, "lose", 1, 3)]


def test_late_changes_are_applied_at_once_and_in_order():
    run = Run(TRACE)
    run.replay(GENERATION)
    run.time += 1000
    run.replay(GENERATION)
    assert [what for _, *what in run.done] == [
        ["scale", 3],
        ["lose", 2, 1],
        ["scale", 4],
        ["lose", 1, 3],
    ]


@pytest.mark.parametrize(
    ("deltas", "done"),
    [
        # No worker is offered: one stays.
        ([3, -3, 2], [["scale", 3], ["lose", 3, 1], ["scale", 2]]),
        ([3, 5, -4], [["scale", 3], ["scale", 4], ["lose", 4, 4]]),  # more than the run may have
    ],
)
def test_a_run_never_has_fewer_or_more_workers_than_allowed(deltas, done):
    run = Run([Change(n, delta) for n, delta in enumerate(deltas)])
    run.replay(GENERATION)
    run.time += 10
    run.replay(STEP)
    assert [what for _, *what in run.done] == done


def test_an_ended_run_gets_no_changes():
    run = Run(TRACE)
    run.replay(GENERATION)
    run.time += 1000
    run.replay([{"event": "end"}])
    run.replay([])
    assert run.done == [(0, "scale", 3)]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(-3, 3)), max_size=20))
def test_every_change_is_applied_once(changes):
    trace = [Change(seconds, delta) for seconds, delta in sorted(changes)]
    run = Run(trace, workers=(1, 1000))
    run.replay(GENERATION)
    while run.time < 155:
        run.time += 1
        run.replay(STEP)
    lost = sum(what[2] for what in run.done if what[1] == "lose")
    assert lost == -sum(c.delta for c in trace if c.delta < 0 < c.seconds)
    assert run.done[-1][-1] == max(1, sum(c.delta for c in trace))
