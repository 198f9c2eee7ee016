"""Each worker knows recent steps, so that nothing is lost with the worker that reports them."""

import threading
import tracemalloc
from types import SimpleNamespace

import pytest

from raytrain_plus.elastic.worker import reporter
from raytrain_plus.elastic.worker.progress import Progress
from raytrain_plus.elastic.worker.reporter import Records, Reporter
from raytrain_plus.training.loop import StepResult


def result(step):
    return StepResult(step, loss=1.0 / step, pause=False, busy_seconds=0.5)


def filled(steps, evaluated=()):
    records = Records()
    for step in steps:
        records.add_step(1, result(step))
        if step in evaluated:
            records.add_evaluation(1, step, {"accuracy": 0.5})
    return records


def test_steps_after_a_given_one_are_known_with_the_evaluation_at_it():
    records = filled([1, 2, 3], evaluated=[2, 3])
    told = [(record.step, record.metrics is not None) for record in records.after(2)]
    assert told == [(2, True), (3, False), (3, True)]
    assert records.after(3) == records.after(2)[2:]
    assert records.after(4) == []


def test_records_hold_the_step_as_it_was():
    (record,) = filled([4]).after(0)
    assert (record.step, record.generation, record.loss) == (4, 1, 0.25)
    assert record.busy_seconds == 0.5
    assert record.time > 1.7e9


def test_every_record_is_new_once():
    records = filled([1, 2])
    new, count = records.since(0)
    assert [record.step for record in new] == [1, 2]
    assert records.since(count) == ([], 2)
    records.add_evaluation(1, 2, {"accuracy": 0.5})
    new, count = records.since(count)
    assert [record.metrics for record in new] == [{"accuracy": 0.5}]
    assert count == 3


def test_a_long_run_keeps_the_latest(monkeypatch):
    monkeypatch.setattr("raytrain_plus.elastic.worker.reporter._KEPT", 5)
    records = filled(range(1, 13))
    assert [record.step for record in records.after(0)] == [8, 9, 10, 11, 12]
    new, count = records.since(2)
    assert [record.step for record in new] == [8, 9, 10, 11, 12]  # what is gone is gone
    assert count == 12


def memory_of(workers, steps):
    """Return the bytes of the records of some steps of a group."""
    tracemalloc.start()
    try:
        records = Records()
        for step in range(1, steps + 1):
            times = tuple(step + worker / 7 for worker in range(workers))
            records.add_step(1, result(step)._replace(compute_seconds=times))
        del times
        return records, tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_a_large_group_takes_no_more_memory_than_a_small_one():
    records, large = memory_of(workers=2000, steps=1000)
    _, small = memory_of(workers=1, steps=1000)
    assert large < small + (10 << 20)  # all times would take 64 MB
    assert small / 1000 * reporter._KEPT < 40 << 20
    times = [len(record.compute_seconds) for record in records.after(0)]
    assert len(times) == 1000
    assert times == [0] * (1000 - times.count(2000)) + [2000] * times.count(2000)
    assert times.count(2000) > 100  # the latest


class Coordinator:
    """Replaces the handle: keeps the reports while it listens."""

    def __init__(self):
        self.listens = threading.Event()
        self.steps = []
        self.report_steps = self

    def remote(self, *told):
        def listen(timeout):
            assert self.listens.wait(timeout)
            self.steps += [record.step for record in told[-1]]

        answer = SimpleNamespace(result=listen)
        return SimpleNamespace(future=lambda: answer)


@pytest.mark.timeout(20)
def test_a_group_does_not_wait_for_a_coordinator_that_does_not_listen():
    coordinator = Coordinator()
    records = Records()
    reporter = Reporter(coordinator, "w0", Progress(), records)
    records.add_step(1, StepResult(1, loss=1.0, pause=False, busy_seconds=0.5))
    reporter.start(1, sends=True)
    reporter.stop()
    assert coordinator.steps == []
    coordinator.listens.set()
    reporter._thread.join()
    assert coordinator.steps == [1]  # a late report is better than none


def test_the_remaining_records_are_sent_before_a_generation_ends(monkeypatch):
    coordinator = Coordinator()
    coordinator.listens.set()
    monkeypatch.setattr("raytrain_plus.elastic.worker.reporter._PARTING", 20.0)
    records = Records()
    reporter = Reporter(coordinator, "w0", Progress(), records)
    reporter.start(1, sends=True)
    records.add_step(1, StepResult(1, loss=1.0, pause=False, busy_seconds=0.5))
    reporter.stop()
    assert coordinator.steps == [1]
