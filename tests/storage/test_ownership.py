"""A run has one owner: a dead owner can be replaced at once, a live one cannot be replaced."""

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain_plus.storage import ownership
from raytrain_plus.storage.errors import ExistsError
from raytrain_plus.storage.fencing import Fence, FencedError
from raytrain_plus.storage.ownership import OwnedError, Owner, OwnerProcess, Owners
from raytrain_plus.storage.store import Store, store_of

NOWHERE = "127.0.0.1:9"
ELSEWHERE = OwnerProcess(host="elsewhere", kernel="another", pid=1, began=1)


@pytest.fixture
def listening():
    """Return the address of a listening socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def impatient(monkeypatch):
    """Make all waiting times short."""
    monkeypatch.setattr(ownership, "_GRACE", 0.3)
    monkeypatch.setattr(ownership, "_BEAT", 0.05)
    monkeypatch.setattr(ownership, "_LOOK", 0.02)


def own(folder, address=NOWHERE, process=None):
    """Write a record and a sign of life, as a process would."""
    owner = Owner.this("claim", "id", "coordinator", address, folder)
    owner = owner if process is None else replace(owner, process=process)
    last = Owners(store_of(folder)).latest()
    numbered = Owners(store_of(folder)).follow(owner, last.number if last else 0)
    store_of(folder).inside("owners").touch(f"{numbered.number:08d}.alive")
    return numbered


def ended_process():
    """Return a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        began = ownership._began(child.pid)
    assert began > 0
    return replace(OwnerProcess.this(), pid=child.pid, began=began)


def age(folder, owner, seconds):
    path = folder / "owners" / f"{owner.number:08d}.alive"
    past = time.time() - seconds
    os.utime(path, (past, past))


def test_a_run_that_never_had_an_owner_is_free(tmp_path):
    assert ownership.look(tmp_path) == 0


@pytest.mark.usefixtures("impatient")
def test_an_owner_that_lives_refuses_every_other_one_and_says_who_it_is(tmp_path, listening):
    own(tmp_path, listening)
    with pytest.raises(OwnedError) as told:
        ownership.look(tmp_path)
    for said in (str(os.getpid()), socket.gethostname(), listening, "attach", "stop", "15 s"):
        assert said in str(told.value)
    with pytest.raises(OwnedError):
        ownership.acquire(tmp_path, "id", "", 1)
    assert Owners(Store(tmp_path)).latest().number == 1


@pytest.mark.usefixtures("impatient")
def test_a_local_run_that_lives_is_no_cluster_to_be_asked(tmp_path):
    own(tmp_path, ownership.LOCAL)
    with pytest.raises(OwnedError, match="it is a local run in process") as told:
        ownership.look(tmp_path)
    assert "attach" not in str(told.value)


def test_a_local_run_that_was_killed_is_replaced_at_once(tmp_path):
    own(tmp_path, ownership.LOCAL, ended_process())
    assert ownership.look(tmp_path) == 1


def test_an_owner_that_was_killed_with_its_cluster_is_replaced_at_once(tmp_path):
    own(tmp_path, NOWHERE, ended_process())
    assert ownership.look(tmp_path) == 1


@pytest.mark.usefixtures("impatient")
def test_an_owner_that_was_killed_while_its_cluster_lives_may_be_started_again(
    tmp_path, listening, monkeypatch
):
    owner = own(tmp_path, listening, ended_process())
    assert ownership.is_gone(tmp_path, owner) is None
    age(tmp_path, owner, ownership.STALE + 1)
    assert ownership.is_gone(tmp_path, owner) is True
    age(tmp_path, owner, 0)
    ownership.await_gone(tmp_path, owner, lambda _: True)  # its cluster says that it has ended
    monkeypatch.setattr(ownership, "STALE", 0.2)
    threading.Thread(target=touch, args=(tmp_path, owner), daemon=True).start()
    with pytest.raises(OwnedError):
        ownership.await_gone(tmp_path, owner)


def touch(folder, owner):
    for _ in range(100):
        age(folder, owner, 0)
        time.sleep(0.01)


def test_a_reused_process_id_is_another_process():
    this = OwnerProcess.this()
    assert this.lives() is True
    assert replace(this, began=this.began - 1).lives() is False
    assert replace(this, kernel="another").lives() is None


def test_a_zombie_process_counts_as_dead():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = replace(OwnerProcess.this(), pid=child.pid, began=ownership._began(child.pid))
    assert process.lives() is True
    child.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is left as a zombie
    assert process.lives() is False
    child.communicate()


def test_on_another_host_the_signs_of_life_decide(tmp_path, listening):
    owner = own(tmp_path, listening, ELSEWHERE)
    assert ownership.is_gone(tmp_path, owner) is False
    age(tmp_path, owner, ownership.STALE + 1)
    assert ownership.is_gone(tmp_path, owner) is True


def test_a_local_process_without_signs_of_life_counts_as_alive(tmp_path, listening):
    owner = own(tmp_path, listening)  # stopped, or without a disk
    age(tmp_path, owner, 100 * ownership.STALE)
    assert ownership.is_gone(tmp_path, owner) is False


def test_an_owner_that_has_ended_is_replaced_at_once(tmp_path, listening):
    with ownership.acquire(tmp_path, "id", listening, 0) as held:
        assert ownership.is_gone(tmp_path, held.owner) is False
    assert ownership.look(tmp_path) == 1
    with ownership.acquire(tmp_path, "id", listening, 1) as held:
        assert held.owner.number == 2
        follower = own(tmp_path, listening)
        held.retire()  # which has another claim, and is not ended
        assert ownership.is_gone(tmp_path, follower) is False


def test_a_run_whose_owner_has_changed_since_the_check_is_refused(tmp_path):
    with ownership.acquire(tmp_path, "id", NOWHERE, 0):
        pass
    with pytest.raises(OwnedError, match="a moment ago"):
        ownership.acquire(tmp_path, "id", NOWHERE, 0)


def test_the_owner_of_a_runs_checkpoints_is_found_in_its_folder(tmp_path, listening, impatient):
    del impatient
    folder, storage = tmp_path / "run", Store(tmp_path / "kept")
    assert ownership.look_from_storage(None) == ownership.look_from_storage(storage) == 0
    with ownership.acquire(folder, "id", listening, 0) as held:
        ownership.acquire_storage(storage, held, 0)
        with pytest.raises(OwnedError, match="attach"):
            ownership.look_from_storage(storage)
        with pytest.raises(OwnedError, match="a moment ago"):
            ownership.acquire_storage(storage, held, 0)
    assert ownership.look_from_storage(storage) == 1
    shutil.rmtree(folder)  # and now only Ray's answer shows whether it has ended
    with pytest.raises(OwnedError, match="Ray at"):
        ownership.look_from_storage(storage)
    assert ownership.look_from_storage(storage, lambda _: True) == 1


def test_checkpoints_are_free_once_the_runs_folder_is_lost_with_its_machine(tmp_path):
    folder, storage = tmp_path / "run", Store(tmp_path / "kept")
    with ownership.acquire(folder, "id", NOWHERE, 0) as held:
        ownership.acquire_storage(storage, held, 0)
    shutil.rmtree(folder)
    assert ownership.look_from_storage(storage) == 1


def _try(folder, number, results):
    try:
        with ownership.acquire(folder, "id", NOWHERE, 0):
            results.put(number)
            time.sleep(1.0)
    except OwnedError:
        results.put(None)


def test_of_many_attempts_at_the_same_time_one_owns_the_run(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    tries = [context.Process(target=_try, args=(tmp_path, i, results)) for i in range(6)]
    for one in tries:
        one.start()
    for one in tries:
        one.join()
    won = [number for _ in tries if (number := results.get()) is not None]
    assert len(won) == 1


def test_records_follow_each_other_in_object_storage_too(server):
    store = Store(f"s3://{server.fresh_bucket()}/run", server.options())
    owners = Owners(store)
    assert owners.latest() is None
    first = owners.follow(Owner.this("a", "id", "driver", NOWHERE, "x"), 0)
    assert owners.is_last(first)
    with pytest.raises(ExistsError):
        owners.follow(Owner.this("b", "id", "driver", NOWHERE, "x"), 0)
    second = owners.follow(Owner.this("b", "id", "driver", NOWHERE, "x"), 1)
    assert not owners.is_last(first)
    assert owners.latest() == second


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: st.dictionaries(
        st.sampled_from(["claim", "process", "pid", "host", "kernel", "began", "since", "x"]), inner
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_a_damaged_record_names_no_owner_and_raises_no_error(content):
    owner = Owner.parse(3, content)
    assert owner.number == 3
    assert owner.process.lives() is None
    assert str(owner)


# -- in an object store


@pytest.fixture
def in_store(monkeypatch):
    monkeypatch.setattr(ownership, "_BEAT_IN_STORE", 0.01)
    return Store(f"memory://{uuid.uuid4().hex}/run")


def test_in_an_object_store_the_signs_of_life_decide_as_well(in_store, listening, monkeypatch):
    with ownership.acquire(in_store, "id", listening, 0) as held:
        elsewhere = replace(held.owner, process=ELSEWHERE)
        assert ownership.is_gone(in_store, elsewhere) is False
        monkeypatch.setattr(ownership, "_GRACE", 0.05)
        with pytest.raises(OwnedError, match=r"the run in memory://.*/run lives.*60 s"):
            ownership.look(in_store)
    assert ownership.look(in_store) == 1  # it has ended
    with pytest.raises(OwnedError, match="a moment ago"):
        ownership.acquire(in_store, "id", listening, 0)
    owner = own(in_store, listening, ELSEWHERE)
    assert ownership.is_gone(in_store, owner) is False
    monkeypatch.setattr(ownership, "STALE_IN_STORE", 0.0)
    assert ownership.is_gone(in_store, owner) is True


def test_in_an_object_store_the_earlier_coordinator_notices_the_later_one(in_store):
    first, second = Fence(in_store, "mine"), Fence(in_store, "mine")
    first.acquire()
    first.check()
    second.acquire()
    seen = threading.Event()
    look = first._look_there

    def looked():
        look()
        seen.set()

    first._life._each_time = looked
    seen.wait(20.0)
    with pytest.raises(FencedError, match="another coordinator leads"):
        first.check()
    second.check()
    first.release()
    second.release()


def test_the_owner_of_checkpoints_is_found_in_the_runs_folder_in_a_store(
    tmp_path, in_store, listening, impatient
):
    del impatient
    kept = Store(tmp_path / "kept")
    with ownership.acquire(in_store, "id", listening, 0) as held:
        ownership.acquire_storage(kept, held, 0)
        with pytest.raises(OwnedError, match="attach memory://"):
            ownership.look_from_storage(kept)
    assert ownership.look_from_storage(kept) == 1
