"""A full disk keeps the journal's lines in memory for a while, and loses none."""

import pytest

from raytrain_plus.elastic.coordinator import fault_injection
from raytrain_plus.elastic.coordinator.durable_journal import DurableJournal
from raytrain_plus.elastic.coordinator.fault_injection import CoordinatorFaults
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.elastic.protocol.faults import Fault
from raytrain_plus.observe import journal
from tests.elastic.scripted_pool import FakeTime, make_spec


@pytest.fixture
def time(monkeypatch):
    fake = FakeTime()
    monkeypatch.setattr(fault_injection, "time", fake)
    return fake


def test_lines_wait_while_the_disk_is_full_and_are_written_in_order_afterwards(tmp_path, time):
    kept = DurableJournal(tmp_path, clock=time.monotonic)
    run_log = RunLog(kept)
    faults = [Fault(step=4, action="fill_disk", seconds=5.0)]
    disturbances = CoordinatorFaults(make_spec(tmp_path, faults=faults), run_log, kept, [])
    disturbances.apply_planned(3, (), None)
    run_log.note("warning", text="before")
    assert (kept.waiting(), kept.trouble) == ([], "")
    disturbances.apply_planned(4, (), None)
    assert disturbances.left == []
    run_log.note("warning", text="first")
    run_log.note("warning", text="second")
    assert kept.trouble == "No space left on device"
    assert [event["text"] for event in kept.waiting()] == ["first", "second"]
    on_disk = journal.read(tmp_path)
    # The fault is noted before it happens.
    assert [event["event"] for event in on_disk] == ["warning", "fault"]
    assert (on_disk[1]["action"], on_disk[1]["step"]) == ("fill_disk", 4)
    time.sleep(4.9)
    kept.flush()
    assert len(kept.waiting()) == 2
    time.sleep(1.2)
    kept.flush()
    assert (kept.waiting(), kept.trouble) == ([], "")
    run_log.note("warning", text="third")
    told = [event["text"] for event in journal.read(tmp_path) if event["event"] == "warning"]
    assert told == ["before", "first", "second", "third"]


def test_a_journal_that_is_removed_while_the_disk_is_full_is_whole_again(tmp_path, time):
    kept = DurableJournal(tmp_path, clock=time.monotonic)
    kept.write_all([{"event": "warning", "time": 0.0, "text": "before"}])
    kept.write_through(lambda written: fault_injection.FullDisk(written, 5.0))
    kept.write_all([{"event": "warning", "time": 0.0, "text": "meanwhile"}])
    kept.file.unlink()
    time.sleep(6.0)
    kept.flush()
    kept.sync()
    before, removed, meanwhile = [event["text"] for event in journal.read(tmp_path)]
    assert (before, meanwhile) == ("before", "meanwhile")
    assert "was removed" in removed
