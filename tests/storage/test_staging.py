"""What a process writes for a run in an object store gets there, also if the process is killed."""

import os
import tempfile
import time
import uuid

import pytest

from raytrain_plus.storage import staging
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.staging import StoredFile, finish, staged
from raytrain_plus.storage.store import Store


@pytest.fixture
def store():
    return Store(f"memory://{uuid.uuid4().hex}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(staging, "_LOOK", 0.01)


def until(holds):
    end = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_files_are_copied_meanwhile_and_at_the_end_and_nothing_is_left_here(tmp_path, store):
    run = tmp_path / "run"
    with staged(store, run / "w0"):
        (run / "w0" / "logs").mkdir()
        (run / "w0" / "logs" / "w0.log").write_text("a line\n")
        (run / "w0" / ".hidden").write_text("not for others")
        until(lambda: store.find("logs/w0.log") == b"a line\n")
        (run / "w0" / "trace.json").write_text("{}")
    assert store.find("trace.json") == b"{}"
    assert store.paths() == ["logs/w0.log", "trace.json"]
    assert not run.exists()


def test_a_local_run_has_its_files_in_its_folder(tmp_path):
    with staged(tmp_path, tmp_path):
        finish(tmp_path, tmp_path)
        assert not list(tmp_path.iterdir())


def test_the_files_of_a_killed_process_are_copied_by_another_one(tmp_path, store):
    killed = tmp_path / "run" / "w1" / "logs"
    killed.mkdir(parents=True)
    (killed / "w1.log").write_text("its last line\n")
    (killed.parent / ".lock").touch()
    with staged(store, tmp_path / "run" / "w0"):
        until(lambda: not killed.exists())
        assert store.find("logs/w1.log") == b"its last line\n"


def test_a_living_process_keeps_its_folder(tmp_path, store):
    """The control."""
    with staged(store, tmp_path / "run" / "w0"):
        finish(store, tmp_path / "run", 0.05)
        assert (tmp_path / "run" / "w0").exists()


def test_a_later_process_of_the_same_name_leaves_the_earlier_logs_alone(tmp_path, store):
    store.write("logs/w0.log", b"before\n")
    store.write("logs/w0.2.log", b"before\n")
    store.write("logs/w01.7.log", b"of another worker\n")
    with staged(store, tmp_path / "run" / "w0"):
        assert [p.name for p in (tmp_path / "run" / "w0" / "logs").iterdir()] == ["w0.3.log"]


def test_files_stay_here_while_the_store_does_not_take_them(tmp_path, store, monkeypatch):
    def fails(*_):
        raise StoreError("no answer")

    monkeypatch.setattr(Store, "write", fails)
    with staged(store, tmp_path / "run" / "w0"):
        (tmp_path / "run" / "w0" / "x").write_text("x")
    assert (tmp_path / "run" / "w0" / "x").exists()
    monkeypatch.undo()
    finish(store, tmp_path / "run")
    assert store.find("x") == b"x"
    assert not (tmp_path / "run").exists()


def test_what_no_run_has_fetched_for_a_week_is_removed(tmp_path, store):
    for name, days in {"old": 8, "new": 6}.items():
        (tmp_path / name / "w0").mkdir(parents=True)
        (tmp_path / name / "w0" / ".lock").touch()
        at = time.time() - days * 86400
        for path in (tmp_path / name / "w0" / ".lock", tmp_path / name / "w0", tmp_path / name):
            os.utime(path, (at, at))
    with staged(store, tmp_path / "run" / "w0"):
        assert {path.name for path in tmp_path.iterdir()} == {"run", "new"}


def test_a_file_for_all_nodes_is_copied_once(monkeypatch, tmp_path, store):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store.write("train.arrow", b"rows")
    kept = StoredFile(store, "train.arrow", "id")
    assert kept.fetch().read_bytes() == b"rows"
    store.write("train.arrow", b"other")
    assert kept.fetch().read_bytes() == b"rows"
