"""A journal of many steps is read in memory that does not grow with it."""

import tracemalloc

import pytest

from raytrain_plus.elastic.client import control
from raytrain_plus.elastic.coordinator.run_log import RunLog
from raytrain_plus.observe import journal
from raytrain_plus.observe.gauges import LiveRun
from raytrain_plus.observe.journal import FILE_NAME, Journal
from raytrain_plus.observe.report.history import read_history
from raytrain_plus.observe.verify import compare
from raytrain_plus.resume import last_checkpoint

STEPS = 30_000  # 200 bytes each
BYTES_PER_STEP = 60  # numbers in arrays; as events they take some 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    opened = Journal(folder)
    opened.write("run", run="long", identity={}, total_steps=STEPS, batch_size=8, batch_tokens=0)
    steps = [
        {
            "event": "step",
            "time": 1e9 + step,
            "step": step,
            "loss": 1 / step,
            "loss_hex": (1 / step).hex(),
            "busy_seconds": 0.1,
            "generation": 1,
            "workers": 1,
        }
        for step in range(1, STEPS + 1)
    ]
    opened.write_all(steps)
    opened.write("end", state="stopped", step=STEPS, digest="d")
    opened.close()
    return folder


def peak(work):
    """Return the most bytes that a function holds at once, and its result."""
    tracemalloc.start()
    try:
        done = work()
        return tracemalloc.get_traced_memory()[1], done
    finally:
        tracemalloc.stop()


def test_events_in_a_list_take_ten_times_as_much(folder):
    """The negative control."""
    assert peak(lambda: journal.read(folder))[0] > 500 * STEPS


def test_a_status_is_read_from_the_end(folder, monkeypatch):
    monkeypatch.setattr(journal, "AT_ONCE", 1 << 16)
    most, status = peak(lambda: control.status(str(folder), "."))
    assert most < 1 << 20
    assert (status["step"], status["state"], status["digest"]) == (STEPS, "stopped", "d")


def test_a_restarted_coordinator_keeps_numbers_and_rare_events(folder):
    def recall():
        rare, live = [], LiveRun(8, STEPS, 0.0)
        events = live.passing(journal.each(folder / FILE_NAME), rare)
        return RunLog(Journal(folder), events), live, rare

    most, (run_log, live, rare) = peak(recall)
    assert most < BYTES_PER_STEP * STEPS
    assert (run_log.step, run_log.loss) == (STEPS, 1 / STEPS)
    assert run_log.device_seconds == pytest.approx(0.1 * STEPS)
    assert [event["event"] for event in rare] == ["run", "end"]
    readings = {reading.metric.name: reading.value for reading in live.readings(1e9)}
    assert readings["raytrain_plus_step"] == STEPS


def test_a_resume_verify_and_report_do_not_hold_the_events(folder):
    path = folder / FILE_NAME
    assert peak(lambda: last_checkpoint(folder, {}))[0] < 1 << 20
    most, found = peak(lambda: compare(journal.each(path), journal.each(path)))
    assert most < 3 * BYTES_PER_STEP * STEPS
    assert (found.equal, found.steps) == (True, STEPS)
    most, history = peak(lambda: read_history(journal.each(path)))
    assert most < BYTES_PER_STEP * STEPS
    assert len(history.steps) == STEPS


def test_a_journal_that_jumps_far_ahead_does_not_fill_the_memory(tmp_path):
    opened = Journal(tmp_path)
    opened.write("step", step=10**14, loss=0.5)
    with pytest.raises(journal.JournalError, match="lacks the"):
        RunLog(opened, journal.read(tmp_path))
    assert compare(journal.read(tmp_path), journal.read(tmp_path)).steps == 1
