"""A read gives the right bytes or one clear error within the deadline, whatever the store does."""

import errno
import hashlib
import itertools
import os
import re
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from raytrain_plus.storage.errors import ExistsError, StorageError, StoreError
from raytrain_plus.storage.store import InterruptedReadError, Store
from tests.streams.s3_server import Fault

CONTENT = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
NAME = "part.arrow"

PASSING = [
    Fault("status", status=404, times=2),
    Fault("status", status=503, times=4),
    Fault("stall", times=1),
    Fault("truncate", times=2),
    Fault("flip", times=2),
    Fault("reset", times=3),
    Fault("slow", times=None),
]
LASTING = [
    (Fault("status", status=404, times=None), "no such"),
    (Fault("status", status=503, times=None), "Check the network"),
    (Fault("stall", times=None), "no answer within"),
    (Fault("truncate", times=None), "Check the network"),
    (Fault("flip", times=None), "other bytes than its manifest names"),
    (Fault("reset", times=None), "Check the network"),
]


def kind(value):
    if isinstance(value, str):
        return ""
    return f"{value.kind}{value.status if value.kind == 'status' else ''}"


@pytest.fixture
def bucket(server):
    name = server.fresh_bucket()
    server.files().pipe_file(f"{name}/{NAME}", CONTENT)
    return name


def through(proxy, server, bucket, **settings):
    """Return a store with deadlines that are long enough for a busy machine."""
    settings = {"deadline": 300.0, "stall": 120.0, **settings}
    return Store(f"s3://{bucket}", server.options(proxy.url), **settings)


@pytest.mark.parametrize("fault", PASSING, ids=kind)
def test_a_temporary_fault_is_not_noticed(fault, proxy, server, bucket):
    fault.struck = 0
    proxy.faults.append(fault)
    stall = 1.0 if fault.kind == "stall" else 120.0
    store = through(proxy, server, bucket, stall=stall)
    assert store.read(NAME, len(CONTENT), SHA) == CONTENT
    assert fault.struck >= (fault.times or 1)  # the fault did happen


@pytest.mark.parametrize(("fault", "words"), LASTING, ids=kind)
def test_a_lasting_fault_is_one_clear_error_within_the_deadline(
    fault, words, proxy, server, bucket, monkeypatch
):
    proxy.faults.append(fault)
    looks = itertools.count(step=50)  # seconds of a clock that a busy machine cannot change
    clock = SimpleNamespace(monotonic=lambda: next(looks))
    monkeypatch.setattr("raytrain_plus.storage.store.time", clock)
    # If the library retries, the error may be that no answer came in time.
    stall = 120.0 if words.startswith(("no such", "other bytes")) else 0.5
    with pytest.raises(StoreError, match=words) as caught:
        through(proxy, server, bucket, deadline=300.0, stall=stall).read(NAME, len(CONTENT), SHA)
    assert f"s3://{bucket}/{NAME}" in str(caught.value)
    if fault.kind != "flip":  # all of its bytes arrive
        assert re.search(r"reached [2-6] times within 300 s", str(caught.value))


def test_without_the_hash_a_flipped_bit_would_pass(proxy, server, bucket):
    proxy.faults.append(Fault("flip", times=None))
    assert through(proxy, server, bucket).read(NAME, len(CONTENT)) != CONTENT


def test_wrong_credentials_and_a_missing_bucket_are_reported_at_once(server, bucket):
    for url, options, words in (
        (f"s3://{bucket}", server.options(secret="wrong"), "Check the credentials"),
        ("s3://no-such-bucket", server.options(), "no such bucket"),
    ):
        with pytest.raises(StoreError, match=words) as caught:
            Store(url, options, stall=60.0).names()
        assert "times within" not in str(caught.value)  # it was not asked again


def test_a_cancelled_read_ends_at_once(proxy, server, bucket):
    proxy.faults.append(Fault("stall", times=None))
    cancelled = threading.Event()
    proxy.on_get = lambda _: cancelled.set()
    store = through(proxy, server, bucket)
    with pytest.raises(InterruptedReadError):
        store.read(NAME, len(CONTENT), SHA, cancelled=cancelled)


def test_one_of_two_creations_of_the_same_object_wins(server, bucket, tmp_path):
    for store in (Store(f"s3://{bucket}", server.options()), Store(tmp_path)):
        assert store.creates_conditionally()
        won = []

        def create(number, store=store, won=won):
            try:
                store.create("index.json", b"%d" % number)
            except ExistsError:
                return
            won.append(number)

        racers = [threading.Thread(target=create, args=(n,)) for n in range(8)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert len(won) == 1
        assert store.read("index.json") == b"%d" % won[0]


def test_a_store_that_ignores_the_condition_is_detected(server, bucket, monkeypatch):
    store = Store(f"s3://{bucket}", server.options())
    monkeypatch.setattr(
        store, "_put_new", lambda name, content: store._fs.pipe_file(store._path(name), content)
    )
    assert not store.creates_conditionally()
    assert store.names() == [NAME]  # the test object is removed


def test_a_url_of_no_known_kind_is_refused():
    with pytest.raises(StorageError, match="nokind"):
        Store("nokind://bucket/x")


@pytest.fixture(params=["local", "s3"])
def empty(request, tmp_path):
    if request.param == "local":
        return Store(tmp_path / "a folder # 100%20 [x]")
    server = request.getfixturevalue("server")
    return Store(f"s3://{server.fresh_bucket()}/folder", server.options())


def test_objects_in_a_folder_are_listed_with_their_sizes_and_deleted(empty):
    assert empty.sizes() == {}
    assert empty.folders() == []
    empty.clear()  # a missing object is no error
    empty.delete("absent")
    empty.write("b", b"12")
    empty.write("a", [memoryview(b"123"), memoryview(b""), memoryview(b"45")])
    inside = empty.inside("deeper")
    inside.write("c", b"1")
    inside.inside("still").write("d", b"")
    assert empty.sizes() == {"a": 5, "b": 2}
    assert empty.names() == ["a", "b"]
    assert (empty.folders(), inside.folders()) == (["deeper"], ["still"])
    assert empty.read("a") == b"12345"

    empty.delete("a")
    assert empty.names() == ["b"]
    inside.clear()
    assert empty.names() == ["b"]
    assert empty.folders() == []
    empty.clear()
    assert empty.sizes() == {}
    with pytest.raises(StoreError, match="could not be reached"):
        empty.names()


def test_pyarrow_reads_the_store_with_our_options(empty):
    empty.write("inside/x", b"words")
    files, root = empty.for_arrow()
    assert files.open_input_stream(f"{root}/inside/x").read() == b"words"


def test_a_local_folder_is_where_its_path_says(tmp_path):
    folder = tmp_path / "my runs # 100%20 [x]"
    Store(folder).write("x", b"1")
    assert (folder / "x").read_bytes() == b"1"
    assert Store(folder.as_uri()).read("x") == b"1"


def test_a_missing_bucket_is_not_an_empty_folder(server):
    store = Store("s3://no-such-bucket/folder", server.options())
    for ask in (store.sizes, store.folders):
        with pytest.raises(StoreError, match="no such bucket"):
            ask()


@pytest.mark.parametrize("there", [False, True])
def test_a_file_is_created_also_without_hard_links(tmp_path, monkeypatch, there):
    def refuse(*_):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path)
    if there:
        store.write("index.json", b"first")
        with pytest.raises(ExistsError):
            store.create("index.json", b"second")
    else:
        store.create("index.json", b"first")
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]
    assert store.read("index.json") == b"first"


PART = 5 << 20  # the least that S3 allows


def test_a_large_object_is_written_in_parts_and_a_fault_is_not_noticed(proxy, server):
    """The views of its memory are never joined."""
    bucket = server.fresh_bucket()
    views = [memoryview(CONTENT)] * 40  # 12 MB
    faults = [
        Fault("reset", times=2, pattern="large", method="PUT"),
        Fault("reset", times=1, pattern="large", method="POST"),
    ]
    proxy.faults += faults
    store = through(proxy, server, bucket, part=PART)
    store.write("large", views)
    assert [fault.struck for fault in faults] == [2, 1]
    content = b"".join(store.read_parts("large", len(CONTENT) * 40))
    assert content == CONTENT * 40
    store.write("small", views[:2])  # the control: in one part
    assert store.read("small") == CONTENT * 2


def test_a_large_object_whose_parts_are_denied_is_absent(proxy, server):
    bucket = server.fresh_bucket()
    store = through(proxy, server, bucket, part=PART)
    proxy.faults.append(Fault("status", times=None, status=403, pattern="large", method="PUT"))
    with pytest.raises(StoreError, match=r"large could not be reached"):
        store.write("large", [memoryview(CONTENT)] * 40)
    assert store.names() == []
    proxy.faults.clear()
    store.write("large", [memoryview(CONTENT)] * 40)
    assert store.sizes() == {"large": 40 * len(CONTENT)}


def test_an_abandoned_write_does_not_end_later(monkeypatch, tmp_path):
    """Its memory may hold another state by then."""
    store = Store(f"memory://{tmp_path}", deadline=0.2, stall=0.2, part=10)
    begun, go_on, closed = threading.Event(), threading.Event(), []
    before = set(threading.enumerate())

    class Slow:
        def write(self, _):
            begun.set()
            go_on.wait(60.0)

        def close(self):
            closed.append(True)

    monkeypatch.setattr(store._fs, "open", lambda *_, **__: Slow())
    with pytest.raises(StoreError, match="no answer within"):
        store.write("large", [memoryview(CONTENT)])
    assert begun.is_set()
    go_on.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(60.0)
    assert closed == []


def test_the_absence_of_an_object_is_an_answer_to_stat(server, bucket):
    store = Store(f"s3://{bucket}", server.options(), deadline=300.0)
    assert store.stat(NAME).size == len(CONTENT)
    with pytest.raises(StoreError, match=r"gone could not be reached: .*gone"):
        store.stat("gone")
