"""One call per phase moves the heartbeat, notices an abort, and injects a fault that is due."""

import threading
import time

import pytest

from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.elastic.protocol.messages import Assignment, Plan
from raytrain_plus.elastic.worker.progress import AbortedError, Progress


def plan(generation, step=0):
    return Plan(
        generation=generation,
        step=step,
        assignments=(Assignment("w0", 0, 1),),
        healed_by={},
        endpoints=(("127.0.0.1", 1, "00"),),
        pause_at=None,
        evaluated=False,
    )


def begun(generation=3, step=0, faults=()):
    """Return a progress in a generation, and the list of calls."""
    progress, called = Progress(), []
    progress.start_generation(plan(generation, step), faults, called.append, called.append)
    return progress, called


def test_every_phase_moves_the_heartbeat():
    progress, _ = begun(step=7)
    assert (progress.generation, progress.step, progress.moves) == (3, 7, 0)
    for moves, phase in enumerate(["fetch", "forward", "exchange"], 1):
        progress.enter(phase)
        assert progress.moves == moves
        assert progress.status().phase == phase


@pytest.mark.parametrize(
    ("phase", "waiting"),
    [
        ("meet", True),
        ("heal", True),
        ("exchange", True),
        ("finish", True),
        ("slice", True),
        ("gather", True),
        ("fetch", False),
        ("forward", False),
        ("backward", False),
        ("update", False),
        ("evaluate", False),
    ],
)
def test_a_worker_that_waits_for_others_says_so(phase, waiting):
    progress, _ = begun()
    progress.enter(phase)
    assert progress.status().waiting == waiting
    assert progress.status(waits_for=2).waits_for == (2 if waiting else None)


def test_the_age_of_a_phase_counts_from_its_start(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress, _ = begun()
    progress.enter("forward")
    now = 107.5
    assert progress.status().age == 7.5
    progress.enter("forward")
    assert progress.status().age == 0.0


def test_a_worker_without_a_generation_is_idle_and_not_blamed():
    progress, _ = begun()
    progress.enter("forward")
    progress.end()
    assert progress.status().phase == "idle"
    assert progress.status().waiting
    assert progress.status(waits_for=2).waits_for is None  # what a past generation waited for


def test_an_abort_interrupts_and_ends_the_next_phase():
    progress, called = begun(3)
    progress.enter("forward")
    progress.abort(3, "w1 was lost")
    assert called == ["w1 was lost"]
    assert progress.is_aborted
    with pytest.raises(AbortedError, match="w1 was lost"):
        progress.enter("backward")
    assert progress.moves == 2  # it moved, and it reports its phase
    assert progress.status().phase == "backward"


def test_an_abort_of_a_past_generation_is_ignored():
    progress, called = begun(3)
    progress.abort(2, "too late")
    progress.enter("forward")
    assert called == []
    assert not progress.is_aborted
    progress.abort(3, "in time")
    progress.abort(2, "too late")  # nor does it cancel another one
    assert progress.is_aborted


def test_an_abort_of_a_future_generation_waits_for_it():
    progress, called = begun(3)
    progress.abort(4, "too early")
    progress.enter("forward")
    assert called == []
    progress.end()
    progress.start_generation(plan(4), (), called.append, called.append)
    assert called == ["too early"]
    with pytest.raises(AbortedError, match="too early"):
        progress.enter("meet")
    progress.end()
    progress.start_generation(plan(5), (), called.append, called.append)
    progress.enter("meet")  # the next one is new


def test_an_abort_after_the_end_interrupts_nothing():
    progress, called = begun(3)
    progress.end()
    progress.abort(3, "over")
    assert called == []


def test_an_abort_from_another_thread_is_seen():
    progress, called = begun(3)
    entered = threading.Event()
    seen = []

    def train():
        try:
            while True:
                progress.enter("forward")
                entered.set()
        except AbortedError as error:
            seen.append(str(error))

    thread = threading.Thread(target=train)
    thread.start()
    assert entered.wait(10)
    progress.abort(3, "stop")
    thread.join(10)
    assert seen == called == ["stop"]


def test_a_pause_request_is_for_one_generation():
    progress, _ = begun(3)
    assert not progress.pause_asked
    progress.ask_pause(2)
    assert not progress.pause_asked
    progress.ask_pause(3)
    assert progress.pause_asked
    progress.end()
    progress.start_generation(plan(4), (), print, print)
    assert not progress.pause_asked


def test_a_fault_strikes_in_its_phase_and_step():
    fault = Fault(step=5, action="kill", phase="exchange")
    progress, struck = begun(step=3, faults=[fault])
    seen = []
    for step in (3, 4, 5):
        progress.step = step
        for phase in ("forward", "exchange", "update"):
            progress.enter(phase)
            seen.append(len(struck))
    assert seen == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert struck == [fault]


def test_a_newcomers_fault_happens_at_the_step_of_the_group_that_it_joins():
    fault = Fault(step=5, action="kill", phase="heal")
    progress, struck = begun(step=4, faults=[fault])
    progress.enter("heal")
    assert struck == [fault]
    progress, struck = begun(step=3, faults=[fault])  # the control: a step earlier it is not due
    progress.enter("heal")
    assert struck == []
