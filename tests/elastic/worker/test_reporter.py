"""Each worker knows recent steps, so that nothing is lost with the worker that reports them."""

import threading
import tracemalloc
from itertools import chain

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
    """Keeps the reports that it is sent. It says that it has them while it listens."""

    def __init__(self):
        self.listens = True
        self.reporter = None
        self.told = []
        self.came = threading.Condition()

    def send(self, message):
        with self.came:
            self.told.append([record.step for record in message.records])
            self.came.notify_all()
        if self.listens:
            self.reporter.received(message.number)
        return True

    def await_reports(self, count):
        with self.came:
            assert self.came.wait_for(lambda: len(self.told) >= count, 20.0)


def reporting(coordinator):
    records = Records()
    coordinator.reporter = Reporter(coordinator.send, Progress(), records)
    return coordinator.reporter, records


def add(records, step):
    records.add_step(1, StepResult(step, loss=1.0, pause=False, busy_seconds=0.5))


@pytest.mark.timeout(20)
def test_a_coordinator_that_does_not_listen_is_sent_one_report_and_the_rest_at_the_end():
    coordinator = Coordinator()
    coordinator.listens = False
    reporter, records = reporting(coordinator)
    add(records, 1)
    reporter.start(1, sends=True)
    coordinator.await_reports(1)
    add(records, 2)
    reporter.stop()
    reporter._thread.join()
    assert coordinator.told[0] in ([], [1])
    assert coordinator.told[1:] == [[1, 2]]  # what it may not have, too


@pytest.mark.timeout(20)
def test_a_coordinator_that_listens_is_told_each_step_once():
    coordinator = Coordinator()
    reporter, records = reporting(coordinator)
    reporter.start(1, sends=True)
    for step in (1, 2):
        add(records, step)
        coordinator.await_reports(len(coordinator.told) + 2)
    reporter.stop()
    reporter._thread.join()
    assert list(chain(*coordinator.told)) == [1, 2]


@pytest.mark.timeout(20)
def test_what_is_sent_to_no_coordinator_is_sent_again():
    coordinator = Coordinator()
    reporter, records = reporting(coordinator)
    held = threading.Event()
    reporter._send = lambda message: held.is_set() and coordinator.send(message)
    add(records, 1)
    reporter.start(1, sends=True)
    assert coordinator.told == []
    held.set()
    reporter.stop()
    reporter._thread.join()
    assert [1] in coordinator.told


def test_the_remaining_records_are_sent_before_a_generation_ends(monkeypatch):
    coordinator = Coordinator()
    monkeypatch.setattr("raytrain_plus.elastic.worker.reporter._PARTING", 20.0)
    reporter, records = reporting(coordinator)
    reporter.start(1, sends=True)
    add(records, 1)
    reporter.stop()
    assert list(chain(*coordinator.told)) == [1]
