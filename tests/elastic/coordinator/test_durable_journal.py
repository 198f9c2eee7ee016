"""A journal that cannot be written for a while loses nothing."""

import errno
import gc
import os
import shutil
from pathlib import Path

import pytest

from raytrain_plus.elastic.coordinator.durable_journal import DurableJournal
from raytrain_plus.observe.journal import Journal, read
from raytrain_plus.storage.fencing import FencedError


class Disk:
    """Opens journals on a disk that may be full."""

    def __init__(self):
        self.error = None
        self.now = 0.0

    def open(self, folder):
        disk, journal = self, Journal(folder)
        write = journal.write_all

        def write_all(events):
            if disk.error is not None and folder == disk.folder:
                raise OSError(disk.error, os.strerror(disk.error))
            return write(events)

        journal.write_all = write_all
        return journal

    def journal(self, folder, **more):
        self.folder = folder
        return DurableJournal(folder, self.open, clock=lambda: self.now, **more)


def step(number):
    return {"event": "step", "time": 1.0, "step": number, "loss": 1.0 / number}


def steps_in(folder):
    return [event["step"] for event in read(folder)]


def kinds_in(folder):
    return [event.get("step", event["event"]) for event in read(folder)]


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_what_cannot_be_written_is_written_later_in_order(tmp_path, error):
    disk = Disk()
    journal = disk.journal(tmp_path)
    journal.write_all([step(1)])
    disk.error = error
    journal.write_all([step(2)])
    journal.write_all([step(3)])
    assert steps_in(tmp_path) == [1]
    assert journal.trouble == os.strerror(error)
    assert [event["step"] for event in journal.waiting()] == [2, 3]
    disk.error = None
    journal.flush()
    assert steps_in(tmp_path) == [1]  # not at each call: a second has to pass
    disk.now += 1.0
    journal.flush()
    assert steps_in(tmp_path) == [1, 2, 3]
    assert (journal.trouble, journal.waiting(), journal.fatal) == ("", [], None)


def test_lines_that_had_to_wait_are_written_by_the_coordinator_that_leads_only(tmp_path):
    disk, replaced = Disk(), []

    def allowed():
        if replaced:
            raise FencedError(None, replaced=True)

    journal = disk.journal(tmp_path, allowed=allowed)
    disk.error = errno.ENOSPC
    journal.write_all([step(1)])
    disk.error, disk.now = None, disk.now + 1.0
    replaced.append("by another one")
    with pytest.raises(FencedError):
        journal.flush()
    assert steps_in(tmp_path) == []
    replaced.clear()  # the control
    journal.flush()
    assert steps_in(tmp_path) == [1]


def test_there_is_a_limit_to_what_is_kept(tmp_path):
    disk = Disk()
    journal = disk.journal(tmp_path, most=2)
    disk.error = errno.ENOSPC
    journal.write_all([step(1), step(2)])
    assert journal.fatal is None
    journal.write_all([step(3)])
    assert "No space left on device" in journal.fatal
    assert "3 of its lines" in journal.fatal


@pytest.mark.parametrize("renamed", [False, True])
def test_a_folder_that_is_removed_is_written_again(tmp_path, renamed):
    folder = tmp_path / "run"
    folder.mkdir()
    journal = Disk().journal(folder)
    journal.write_all([step(1), step(2)])
    if renamed:
        folder.rename(tmp_path / "other")
    else:
        shutil.rmtree(folder)
    journal.write_all([step(3)])
    assert kinds_in(folder) == [1, 2, "warning", 3]
    assert [path.name for path in folder.iterdir()] == ["journal.jsonl"]
    (warned,) = [event for event in read(folder) if event["event"] == "warning"]
    assert f"{folder} was removed or renamed" in warned["text"]
    shutil.rmtree(folder)  # and once more
    journal.write_all([step(4)])
    assert kinds_in(folder) == [1, 2, "warning", 3, "warning", 4]
    journal.write_all([step(5)])
    assert kinds_in(folder)[-2:] == [4, 5]


def test_another_runs_journal_in_our_folder_is_left_unchanged(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    disk = Disk()
    journal = disk.journal(folder)
    journal.write_all([step(1)])
    (folder / "journal.jsonl").unlink()
    Journal(folder).write_all([step(9)])
    journal.write_all([step(2)])
    assert steps_in(folder) == [9]
    assert "another file is in the place" in journal.trouble
    assert [event["step"] for event in journal.waiting()] == [2]


def test_what_is_not_written_at_the_end_is_kept_in_a_local_file(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    disk = Disk()
    journal = disk.journal(tmp_path)
    disk.error = errno.ENOSPC
    journal.write_all([step(1)])

    def sleep(seconds):
        disk.now += seconds

    journal.settle(10.0, sleep)
    assert disk.now >= 10.0
    (kept,) = (tmp_path / "temporary").glob("*/journal.jsonl")
    assert str(kept) in journal.trouble
    assert steps_in(kept) == [1]


def test_there_is_no_wait_if_all_lines_are_written(tmp_path):
    journal = Disk().journal(tmp_path)
    journal.write_all([step(1)])
    journal.settle(10.0, pytest.fail)
    assert journal.trouble == ""


def test_a_journal_that_is_dropped_leaves_no_file_open(tmp_path):
    def open_files():
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    kept = DurableJournal(tmp_path)
    before = open_files()
    for _ in range(3):
        DurableJournal(tmp_path).write_all([step(1)])
    assert open_files() == before
    again = DurableJournal(tmp_path)  # the control
    assert open_files() > before
    del again, kept
