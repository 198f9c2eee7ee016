"""Each second of the training thread belongs to one part, and is final once a step commits."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.elastic.worker.phase_timer import PART_OF, PhaseTimer
from raytrain_plus.elastic.worker.progress import Progress
from tests.elastic.worker.test_progress import plan

PHASES = [*PART_OF, "something new"]


class Clock:
    """Seconds that pass when a test says so."""

    now = 100.0

    def __call__(self):
        return self.now


def spent(told):
    """Return a phase timer after some (phase, seconds), and its clock."""
    clock = Clock()
    sheet = PhaseTimer(clock)
    for phase, seconds in told:
        sheet.enter(phase)
        clock.now += seconds
    return sheet, clock


@given(st.lists(st.tuples(st.sampled_from(PHASES), st.integers(0, 50).map(lambda n: n / 8))))
def test_the_parts_sum_to_all_that_has_passed(told):
    sheet, _ = spent(told)
    sheet.settle()
    assert sum(sheet.parts().values()) == sum(seconds for _, seconds in told)


def test_time_after_the_last_commit_does_not_count():
    sheet, clock = spent([("fetch", 1.0), ("forward", 2.0), ("exchange", 0.5), ("update", 0.25)])
    assert (sheet.parts(), sheet.settled_at) == ({}, 0.0)
    sheet.settle()
    stands = {"data": 1.0, "compute": 2.25, "exchange": 0.5}
    assert sheet.parts() == stands
    assert sheet.settled_at == pytest.approx(time.time(), abs=60)
    sheet.enter("backward")
    clock.now += 7.0  # and then the generation is lost
    assert sheet.parts() == stands
    sheet.settle()  # the control: after a commit it would count
    assert sheet.parts() == {**stands, "compute": 9.25}
    sheet.start()
    assert sheet.parts() == {}


def test_waiting_between_generations_is_not_counted():
    sheet, clock = spent([])
    clock.now += 5.0
    sheet.enter("meet")
    clock.now += 1.0
    sheet.settle()
    assert sheet.parts() == {"forming": 1.0}


def test_entering_phases_fills_the_phase_timer_of_the_generation():
    progress = Progress()
    progress.enter("forward")
    progress.start_generation(plan(1), (), print, print)
    progress.phase_timer.settle()
    assert progress.phase_timer.parts() == {}
    progress.enter("fetch")
    progress.phase_timer.settle()
    assert set(progress.phase_timer.parts()) == {"data"}


def test_it_costs_a_step_only_microseconds():
    """About ten phases and one commit; the best of some tries, because the machine is shared."""
    sheet = PhaseTimer()

    def seconds_per_step(steps=200):
        began = time.perf_counter()
        for _ in range(steps):
            for phase in PHASES[:10]:
                sheet.enter(phase)
            sheet.settle()
        return (time.perf_counter() - began) / steps

    assert min(seconds_per_step() for _ in range(20)) < 10e-6
