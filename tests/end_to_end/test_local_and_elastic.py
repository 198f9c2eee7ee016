"""A run that begins in one process, goes on with workers, and ends in one process again."""

import os
import signal

import pytest

from raytrain_plus.interrupts import RunInterrupted
from tests.end_to_end.runs import Script, at_step, differences, train, undisturbed
from tests.end_to_end.tasks import Momentum

LOCAL = {"workers": 0, "elsewhere": True}  # its process is this one, which does not end


def interrupted_at(step):
    return Script((at_step(step), lambda _: os.kill(os.getpid(), signal.SIGINT)))


@pytest.mark.timeout(180)
def test_a_run_that_moves_between_one_process_and_workers_has_the_bits_of_one_worker(storage):
    run = {"storage": storage, "logical_ranks": 4, "name": "moves"}
    with pytest.raises(RunInterrupted, match="its state is kept"):
        train(Momentum(), **run, **LOCAL, director=interrupted_at(25))
    with pytest.raises(RunInterrupted, match="its state is kept"):
        train(Momentum(), **run, workers=(2, 2), resume=True, director=interrupted_at(60))
    moved = train(Momentum(), **run, **LOCAL, resume=True)
    assert differences(moved, undisturbed(Momentum, 4)) == []
    sessions = moved.of("run")
    assert [event.get("local", False) for event in sessions] == [True, False, True]
    assert moved.sizes == {1, 2}
    assert all(event["resumed_step"] >= 25 for event in sessions[1:])
