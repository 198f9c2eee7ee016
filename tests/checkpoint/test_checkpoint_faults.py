"""Whatever happens to a store, a checkpoint is complete or invisible; the previous one stays."""

import errno
import json
import os
import re
import resource
import threading
import time
from pathlib import Path

import pytest

from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.checkpointer import CheckpointError, Snapshot, commit, newest_whole
from raytrain_plus.checkpoint.files import INDEX, MODEL, Limits
from raytrain_plus.checkpoint.manifest import MANIFEST
from raytrain_plus.checkpoint.snapshot import layout_of
from raytrain_plus.storage import store as stores
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.store import InterruptedReadError, Store
from tests.streams.s3_server import Fault
from tests.training.small_tasks import Normed, Plain, loop_alone, run

TINY = Limits(least_bytes=1)  # so that several workers write
REST = "rest-00001-of-00002.safetensors"


def snapshot(step, task=Normed):
    loop = loop_alone(task("AdamW"))
    run(loop, step)
    return Snapshot.of(loop.replica)


TAKEN = {step: snapshot(step) for step in (2, 4)}


def write_shares(place, taken, shares):
    layout = layout_of(taken, shares, TINY)
    writers = range(len(layout.shares))
    return [p for i in writers for p in checkpointer.write_share(place, taken, layout, i)]


def write(store, step, run="run", shares=3, taken=None):
    taken = taken or TAKEN[step]
    place = store.inside(checkpointer.name_of(step))
    files = write_shares(place, taken, shares)
    commit(place, {"run": run, **checkpointer.describe_state(taken)}, files)
    return place


def loaded(place, task=Normed):
    replica = loop_alone(task("AdamW")).replica
    checkpointer.load(place, replica)
    return replica.digest()


def filled(store):
    """Return the folders that are not empty; some servers keep empty ones for a while."""
    return [name for name in store.folders() if store.inside(name).sizes()]


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    if request.param == "local":
        return Store(tmp_path / "run")
    server = request.getfixturevalue("server")
    return Store(f"s3://{server.fresh_bucket()}/run", server.options())


def test_two_checkpoints_are_written_found_loaded_and_removed(store):
    assert newest_whole(store) == (None, {})
    assert checkpointer.kept(store) == []
    for step in (2, 4):
        assert loaded(write(store, step)) == TAKEN[step].digest()
    assert newest_whole(store, "run") == ("checkpoint_00000004", {})
    assert [one.step for one in checkpointer.kept(store)] == [4, 2]
    assert checkpointer.step_of(store.inside("checkpoint_00000002")) == 2

    checkpointer.remove(store.inside("checkpoint_00000004"))
    assert newest_whole(store) == ("checkpoint_00000002", {})
    assert filled(store) == ["checkpoint_00000002"]


def flip(place, file):
    content = bytearray(place.read(file))
    content[len(content) // 2] ^= 1
    place.write(file, bytes(content))


BROKEN = {
    "flipped model": (lambda place: flip(place, MODEL), f"{MODEL} is damaged"),
    "flipped rest": (lambda place: flip(place, REST), f"{REST} is damaged"),
    "flipped manifest": (lambda place: flip(place, MANIFEST), f"{MANIFEST} is damaged"),
    "truncated": (lambda place: place.write(MODEL, place.read(MODEL)[:-1]), "is incomplete"),
    "missing file": (lambda place: place.delete(REST), f"{REST} is missing"),
    "missing manifest": (lambda place: place.delete(MANIFEST), f"it has no {MANIFEST}"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_checkpoint_is_refused_with_the_reason_and_the_previous_one_is_used(store, broken):
    breaks, words = BROKEN[broken]
    write(store, 2)
    place = write(store, 4)
    breaks(place)
    name, refused = newest_whole(store, "run")
    assert name == "checkpoint_00000002"
    assert list(refused) == ["checkpoint_00000004"]
    assert words in refused["checkpoint_00000004"]
    with pytest.raises(CheckpointError, match="checkpoint_00000004"):
        loaded(place)
    assert loaded(store.inside(name)) == TAKEN[2].digest()


SHARDS = Limits(model_bytes=200, least_bytes=1)
LAST = "model-00003-of-00003.safetensors"


def write_in_shards(store, step, run="run"):
    place = store.inside(checkpointer.name_of(step))
    layout = layout_of(TAKEN[step], 9, SHARDS)
    writers = range(len(layout.shares))
    files = [p for i in writers for p in checkpointer.write_share(place, TAKEN[step], layout, i)]
    commit(place, {"run": run, **checkpointer.describe_state(TAKEN[step])}, files)
    return place


def without(place):
    """Write an index that names another file for a tensor, as a program of another kind could."""
    index = json.loads(place.read(INDEX))
    index["weight_map"] = dict.fromkeys(index["weight_map"], LAST)
    place.write(INDEX, json.dumps(index, indent=2).encode() + b"\n")


BROKEN_SHARDS = {
    "flipped shard": (lambda place: flip(place, LAST), f"{LAST} is damaged"),
    "missing shard": (lambda place: place.delete(LAST), f"{LAST} is missing"),
    "flipped index": (lambda place: flip(place, INDEX), f"{INDEX} is damaged"),
    "another index": (without, f"{INDEX} is damaged"),
    "missing index": (lambda place: place.delete(INDEX), f"{INDEX} is missing"),
}


def test_a_model_in_several_files_is_read_like_one_in_one_file(store):
    write(store, 2)
    place = write_in_shards(store, 4)
    names = place.names()
    assert {INDEX, LAST} < {*names}
    assert MODEL not in names
    assert loaded(place) == TAKEN[4].digest()
    assert newest_whole(store, "run") == ("checkpoint_00000004", {})
    assert [one.step for one in checkpointer.kept(store)] == [4, 2]
    write(store, 4)  # the same state in one file: the first checkpoint stays
    assert place.names() == names
    assert loaded(place) == TAKEN[4].digest()
    checkpointer.remove(place)
    assert newest_whole(store) == ("checkpoint_00000002", {})


@pytest.mark.parametrize("broken", BROKEN_SHARDS)
def test_a_broken_shard_or_index_is_named(tmp_path, broken):
    store = Store(tmp_path)
    breaks, words = BROKEN_SHARDS[broken]
    write(store, 2)
    place = write_in_shards(store, 4)
    assert checkpointer.verify(place).step == 4  # the control
    breaks(place)
    name, refused = newest_whole(store, "run")
    assert name == "checkpoint_00000002"
    assert words in refused["checkpoint_00000004"]
    with pytest.raises(CheckpointError, match=re.escape(words)):
        loaded(place)


def test_a_checkpoint_of_another_run_or_model_is_refused(store):
    write(store, 2)
    write(store, 4, run="other")
    refused = {"checkpoint_00000004": "it is of the run 'other'"}
    assert newest_whole(store, "run") == ("checkpoint_00000002", refused)
    assert newest_whole(store) == ("checkpoint_00000004", {})
    with pytest.raises(CheckpointError, match=r"does not fit.*another model"):
        loaded(store.inside("checkpoint_00000004"), Plain)


def test_of_two_commits_at_the_same_time_one_wins(store):
    place = store.inside("checkpoint_00000004")
    header = {"run": "run", **checkpointer.describe_state(TAKEN[4])}
    files = write_shares(place, TAKEN[4], 3)
    commit(place, header, files)
    commit(place, header, files)  # again: its first answer was lost
    with pytest.raises(CheckpointError, match=r"another writer.*another state"):
        commit(place, {**header, "digest": "0" * 64}, files)
    assert loaded(place) == TAKEN[4].digest()


def test_the_same_state_in_other_shares_does_not_damage_the_first_checkpoint(store):
    write(store, 4, shares=3)
    place = write(store, 4, shares=4)
    assert [entry.file for entry in checkpointer.read_header(place).files][1] == REST
    assert loaded(place) == TAKEN[4].digest()
    assert len(place.names()) == 4  # the third share's files are gone


def test_a_damaged_checkpoint_of_the_same_name_is_replaced(store):
    place = write(store, 4)
    flip(place, REST)
    write(store, 4)
    assert loaded(place) == TAKEN[4].digest()
    flip(place, MANIFEST)
    write(store, 4)
    assert loaded(place) == TAKEN[4].digest()


def test_leftovers_are_removed_but_not_a_running_attempt(store):
    write(store, 2)
    for step in (3, 4):
        layout = layout_of(TAKEN[4], 3, TINY)
        checkpointer.write_share(store.inside(checkpointer.name_of(step)), TAKEN[4], layout)
    store.inside("checkpoint_mine").write("notes.txt", b"not ours")
    assert checkpointer.remove_leftovers(store, ["checkpoint_00000004"]) == ["checkpoint_00000003"]
    left = ["checkpoint_00000002", "checkpoint_00000004", "checkpoint_mine"]
    assert filled(store) == left
    assert checkpointer.remove_leftovers(store) == ["checkpoint_00000004"]
    assert newest_whole(store) == ("checkpoint_00000002", {})


def test_a_commit_removes_the_files_of_earlier_attempts(store):
    place = store.inside("checkpoint_00000004")
    checkpointer.write_share(place, TAKEN[4], layout_of(TAKEN[4], 4, TINY), 2)
    assert place.names() == ["rest-00002-of-00003.safetensors"]  # of three
    write(store, 4)
    assert place.names() == [MANIFEST, MODEL, REST, REST.replace("1-of", "2-of")]


def test_removing_starts_with_the_manifest(store, monkeypatch):
    place = write(store, 4)

    def fails(_):
        raise StoreError("gone")

    monkeypatch.setattr(Store, "clear", fails)
    with pytest.raises(StoreError, match="gone"):
        checkpointer.remove(place)
    assert newest_whole(store)[0] is None
    monkeypatch.undo()
    assert checkpointer.remove_leftovers(store) == ["checkpoint_00000004"]
    assert filled(store) == []


# -- stores that fail


def test_an_unreachable_store_is_an_error_and_not_an_empty_folder(server):
    options = server.options("http://127.0.0.1:9")  # the discard port, on which no server listens
    store = Store("s3://bucket/run", options, deadline=0.3, stall=0.3)
    for ask in (
        lambda: newest_whole(store),
        lambda: checkpointer.remove_leftovers(store),
        lambda: write(store, 4),
    ):
        with pytest.raises(StoreError, match="could not be reached"):
            ask()


def test_a_store_that_fails_in_the_middle_leaves_nothing_visible(server, proxy):
    url = f"s3://{server.fresh_bucket()}/run"
    reached = Store(url, server.options())
    store = Store(url, server.options(proxy.url), deadline=6.0, stall=3.0)
    write(reached, 2)
    down = Fault("status", times=None, pattern="rest-00002", method="PUT")
    proxy.faults.append(down)
    with pytest.raises(StoreError, match=r"rest-00002.*could not be reached"):
        write(store, 4)
    assert down.struck
    assert reached.inside("checkpoint_00000004").names() == [MODEL, REST]
    assert newest_whole(reached)[0] == "checkpoint_00000002"

    proxy.faults.clear()  # the store answers again
    write(store, 4)
    assert newest_whole(reached) == ("checkpoint_00000004", {})


def test_a_temporary_fault_of_the_store_is_not_noticed(server, proxy):
    store = Store(f"s3://{server.fresh_bucket()}/run", server.options(proxy.url), stall=3.0)
    flips = Fault("flip", pattern=MODEL)
    puts = Fault("reset", times=2, pattern="rest", method="PUT")
    proxy.faults += [flips, puts]
    assert loaded(write(store, 4)) == TAKEN[4].digest()
    assert (flips.struck, puts.struck) == (1, 2)


def test_a_cancelled_write_ends_before_the_deadline(server):
    options = server.options("http://127.0.0.1:9")
    store = Store("s3://bucket/run", options, deadline=300.0, stall=100.0)
    given_up = threading.Event()
    threading.Timer(0.3, given_up.set).start()
    began = time.monotonic()
    with pytest.raises(InterruptedReadError):
        checkpointer.write_share(store, TAKEN[4], layout_of(TAKEN[4], 1), 0, given_up)
    assert time.monotonic() - began < 60


class Full:
    """A disk on which files can have only a limited size, within the context."""

    def __init__(self, most):
        self.most = most

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def test_a_full_disk_is_an_error_that_leaves_no_part_of_a_file(tmp_path):
    store = Store(tmp_path)
    write(store, 2)
    with Full(100), pytest.raises(StoreError, match=rf"{MODEL} cannot be written"):
        write(store, 4)
    assert list((tmp_path / "checkpoint_00000004").iterdir()) == []
    assert newest_whole(store)[0] == "checkpoint_00000002"
    assert checkpointer.remove_leftovers(store) == []
    assert store.folders() == ["checkpoint_00000002"]
    assert loaded(write(store, 4)) == TAKEN[4].digest()


def test_a_disk_that_fills_up_before_the_manifest_leaves_nothing_visible(tmp_path, monkeypatch):
    store, real = Store(tmp_path), os.link

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreError, match=rf"{MANIFEST} cannot be written.*No space left"):
        write(store, 4)
    assert newest_whole(store)[0] is None
    monkeypatch.setattr(os, "link", real)
    assert loaded(write(store, 4)) == TAKEN[4].digest()


def test_a_lost_permission_is_reported(tmp_path, monkeypatch):
    store, real = Store(tmp_path), Path.open
    write(store, 2)

    def denied(self, mode="r", *rest):  # a mode that does not bind root
        if "x" in mode:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return real(self, mode, *rest)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(StoreError, match=r"cannot be written.*Permission denied"):
        write(store, 4)
    monkeypatch.undo()
    assert newest_whole(store)[0] == "checkpoint_00000002"


def test_a_file_that_this_user_may_not_read_is_refused_with_the_reason(tmp_path, monkeypatch):
    store, real = Store(tmp_path), stores.Store._cat
    write(store, 2)
    write(store, 4)

    def denied(self, name, *rest):
        if name == MODEL and "00000004" in self.url:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(self, name, *rest)

    monkeypatch.setattr(stores.Store, "_cat", denied)
    name, refused = newest_whole(store)
    assert name == "checkpoint_00000002"
    assert "Permission denied" in refused["checkpoint_00000004"]
