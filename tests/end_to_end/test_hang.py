"""A live worker without progress is found within the deadline, ended and replaced."""

import itertools
import os
import signal
import time

import pytest

from raytrain_plus import Fault
from tests.end_to_end.runs import Script, at_step, differences, flaws, train, undisturbed
from tests.end_to_end.tasks import Momentum, Plain, Stuck, StuckBackward

DEADLINE = 4.0
LATENESS = 20.0  # seconds, for a busy machine


class Moment:
    """Stops a worker for a moment that is shorter than the deadline."""

    def __init__(self):
        self.worker = ""
        self._pid = 0
        self._until = 0.0

    def begin(self, events):
        members = [e for e in events if e["event"] == "generation"][-1]["members"]
        ready = {e["worker"]: e["pid"] for e in events if e.get("state") == "ready"}
        self.worker = members[-1]
        self._pid, self._until = ready[self.worker], time.monotonic() + DEADLINE / 2
        os.kill(self._pid, signal.SIGSTOP)
        return True

    def is_over(self, _events):
        return time.monotonic() > self._until

    def end(self, _name):
        os.kill(self._pid, signal.SIGCONT)


@pytest.mark.timeout(400)
def test_waiting_spinning_and_stopped_workers_are_replaced_but_not_slow_ones(storage):
    moment = Moment()
    script = Script(
        (lambda events: at_step(60)(events) and moment.begin(events), lambda _: None),
        (moment.is_over, moment.end),
    )
    stop = Fault(step=31, action="stop", phase="forward", victim=0)
    run = train(
        Stuck(storage, waits=10, spins=20),
        storage,
        logical_ranks=6,
        workers=(1, 3),
        faults=[stop],
        wanted={1: 3, 60: 1},
        patience=1.5,
        director=script,
        hang_deadline=DEADLINE,
    )
    assert differences(run, undisturbed(Plain, 6)) == []
    lost = run.of("worker", state="lost")
    assert [("did not answer" in e["reason"], "in forward" in e["reason"]) for e in lost] == [
        (False, True),  # waits
        (True, False),  # spins
        (True, False),  # stopped
    ]
    # Each is reported with the workers that waited for it, and with its stack.
    hangs = run.of("hang")
    assert [list(e["culprits"]) for e in hangs] == [[e["worker"]] for e in lost]
    assert all(e["waited"] and not set(e["waited"]) & e["culprits"].keys() for e in hangs)
    told = [e["stacks"][event["worker"]] for e, event in zip(hangs, lost, strict=True)]
    assert "tasks.py" in told[0]
    assert "in forward" in told[0]
    assert "tasks.py" in told[1]
    assert "in forward" in told[1]
    assert "stopped" in told[2]
    for event in lost:
        before = [e for e in run.of("step") if e["time"] < event["time"]][-1]
        assert DEADLINE - 1 < event["time"] - before["time"] < DEADLINE + LATENESS
    assert [event["workers"] for event in run.of("step", step=59)] == [3]
    # A worker that is stopped for half of the deadline only makes the others wait.
    assert script.is_over
    assert moment.worker not in {event["worker"] for event in lost}
    steps = [event["time"] for event in run.of("step")]
    assert max(b - a for a, b in itertools.pairwise(steps[59:])) > DEADLINE / 4
    problems = flaws(run, [stop])
    victims = sorted(e["worker"] for e in lost if e["worker"] not in run.of("fault")[0]["hit"])
    assert problems == [f"workers were lost that no fault had hit: {victims}"]


def test_a_worker_stuck_in_its_backward_is_found_although_its_exchange_goes_on(storage):
    run = train(
        StuckBackward(storage, steps=5),
        storage,
        logical_ranks=4,
        workers=(2, 2),
        steps=10,
        hang_deadline=DEADLINE,
    )
    (lost,) = run.of("worker", state="lost")
    assert "in backward" in lost["reason"]
    assert [event["step"] for event in run.of("step")] == list(range(1, 11))


@pytest.mark.slow
def test_a_data_source_that_never_answers_and_an_evaluation_that_stalls_are_found(storage):
    faults = [
        Fault(step=20, action="stall", phase="evaluate", victim=0),
        Fault(step=50, action="stall", phase="fetch", victim=1),
    ]
    run = train(
        Momentum(),
        storage,
        logical_ranks=4,
        workers=(1, 2),
        faults=faults,
        wanted={1: 2},
        patience=1.5,
        hang_deadline=DEADLINE,
    )
    assert differences(run, undisturbed(Momentum, 4)) == []
    assert flaws(run, faults) == []
    reasons = [event["reason"] for event in run.of("worker", state="lost")]
    assert ["in evaluate" in reason for reason in reasons] == [True, False]
    assert ["in fetch" in reason for reason in reasons] == [False, True]
    stacks = ["".join(event["stacks"].values()) for event in run.of("hang")]
    assert all("in stall" in stack for stack in stacks)
