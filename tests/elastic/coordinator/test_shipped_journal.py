"""A coordinator does not wait for the store that holds its journal, and loses no line in order."""

import threading
import time

import pytest

from raytrain_plus.elastic.coordinator.fault_injection import FullDisk
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.coordinator.shipped_journal import ShippedJournal, open_for_coordinator
from raytrain_plus.elastic.protocol.records import Record
from raytrain_plus.observe import journal
from raytrain_plus.observe.stored_journal import StoredJournal, journal_of, open_journal
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.fencing import FencedError
from raytrain_plus.storage.store import Store

PATIENCE = 20.0


def step(number):
    return {"event": "step", "time": 1.0, "step": number, "loss": 1.0 / number}


def steps_of(events):
    return [event["step"] for event in events if event["event"] == "step"]


class Kept(journal.Journal):
    """A journal in memory whose store may be down, or slow."""

    def __init__(self):
        self.file = "memory"
        self.batches, self.tries = [], 0
        self.is_up = threading.Event()
        self.is_up.set()
        self.answers = threading.Event()
        self.answers.set()

    def write_all(self, events):
        self.tries += 1
        self.answers.wait(PATIENCE)
        if not self.is_up.is_set():
            raise StoreError("no answer")
        self.batches.append([event.get("step", event["event"]) for event in events])

    @property
    def lines(self):
        return [line for batch in self.batches for line in batch]


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr("raytrain_plus.elastic.coordinator.shipped_journal._RETRY", 0.01)


def until(holds):
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_steps_are_stored_together_and_other_events_at_once():
    kept = Kept()
    shipped = ShippedJournal(kept, interval=PATIENCE)
    shipped.write_all([{"event": "warning", "time": 1.0, "text": ""}])
    until(lambda: kept.lines == ["warning"])
    for number in range(1, 6):
        shipped.write_all([step(number)])
    assert steps_of(shipped.waiting()) == [1, 2, 3, 4, 5]
    shipped.write_all([{"event": "stop", "time": 1.0}])
    until(lambda: kept.batches == [["warning"], [1, 2, 3, 4, 5, "stop"]])
    shipped.write_all([step(6)])
    shipped.sync()
    assert kept.batches[-1] == [6]


def test_a_store_that_does_not_answer_delays_nobody_and_loses_nothing():
    kept = Kept()
    kept.answers.clear()
    shipped = ShippedJournal(kept, interval=0.0, most=3)
    for number in range(1, 4):
        shipped.write_all([step(number)])  # returns at once, or this test hangs
    assert shipped.fatal is None
    shipped.write_all([step(4)])
    assert "4 of its lines wait in memory, which is more than the 3" in shipped.fatal
    kept.is_up.clear()
    kept.answers.set()
    until(lambda: kept.tries > 2)
    assert shipped.trouble == "no answer"
    with pytest.raises(StoreError, match=r"could not be stored within 0\.05 s: no answer"):
        shipped.sync(0.05)
    kept.is_up.set()
    shipped.sync()
    assert kept.lines == [1, 2, 3, 4]
    assert (shipped.trouble, shipped.fatal, shipped.waiting()) == ("", None, [])


def test_what_the_store_lacks_at_the_end_is_in_a_local_file():
    kept = Kept()
    kept.is_up.clear()
    shipped = ShippedJournal(kept, interval=0.0)
    shipped.write_all([step(1)])
    shipped.settle(0.05)
    assert "the 1 lines that it lacks are in" in shipped.trouble


def test_a_withdrawal_is_stored_before_anything_is_computed_again():
    kept = Kept()
    shipped = ShippedJournal(kept, interval=PATIENCE)
    shipped.write_all([step(1)])
    shipped.write_all([{"event": "withdrawn", "time": 1.0, "step": 0, "reason": "a flip"}])
    assert kept.lines == [1, 0]


def test_an_injected_full_disk_delays_the_lines():
    kept = Kept()
    shipped = ShippedJournal(kept, interval=0.0)
    shipped.write_through(lambda written: FullDisk(written, 0.3))
    shipped.write_all([step(1)])
    until(lambda: shipped.trouble == "No space left on device")
    shipped.sync()
    assert kept.lines == [1]


def test_a_coordinator_that_has_lost_its_run_cannot_append(tmp_path):
    store = Store(tmp_path)
    earlier = open_for_coordinator(tmp_path, "")  # a folder: the file, as ever
    assert earlier.file == tmp_path / journal.FILE_NAME
    opened = StoredJournal(store, "mine")
    first = ShippedJournal(opened, interval=0.0)
    first.write_all([step(1)])
    first.sync()
    second = open_for_coordinator(store, "mine")
    second.write_all([step(2)])
    second.sync()
    first.write_all([step(3)])
    with pytest.raises(FencedError):
        first.sync()
    with pytest.raises(FencedError):
        first.write_all([step(4)])
    with pytest.raises(FencedError):
        first.flush()
    second.write_all([step(3)])
    second.sync()
    assert steps_of(journal.each(journal_of(store))) == [1, 2, 3]
    assert steps_of(journal.newest(journal_of(store), {"step"}).values()) == [3]
    events, offset = journal.follow(journal_of(store))
    assert (len(events), offset) == (3, journal.size_of(journal_of(store)))


@pytest.mark.parametrize("stored", [0, 1, 4, 6])
def test_steps_that_were_not_stored_are_in_the_journal_once_after_a_crash(tmp_path, stored):
    """The workers, or a resume, compute or tell them again."""
    store = Store(tmp_path)
    kept = Kept()
    records = [Record(n, 1, float(n), 1.0 / n, 0.1) for n in range(1, 10)]
    lost = RunLog(ShippedJournal(kept, interval=0.0))
    lost.add(records[:6], 1)  # none of these was stored, but
    before = open_journal(store)
    before.write_all([step(n) for n in range(1, stored + 1)])
    after = open_for_coordinator(store, "")
    run_log = RunLog(after, journal.each(after.file))
    assert run_log.step == stored
    run_log.add(records[2:], 1) if stored > 1 else run_log.add(records, 1)
    after.sync()
    assert steps_of(journal.each(journal_of(store))) == list(range(1, 10))
