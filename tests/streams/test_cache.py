"""The cache: its bound, what it evicts, and its state when its users die."""

import errno
import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.storage.store import InterruptedReadError
from raytrain_plus.streams.cache import ENTRY_OVERHEAD, Cache, CacheFullError
from raytrain_plus.streams.columns import DataError

SIZE = 1000
ROOM = SIZE + ENTRY_OVERHEAD
FORK = multiprocessing.get_context("fork")


def content(key):
    return key.encode().ljust(SIZE, b".")


def put(cache, key):
    entry = cache.get(key, SIZE, lambda: content(key))
    assert entry.buffer().to_pybytes() == content(key)
    return entry


def refuse():
    raise AssertionError("it was there already")


def test_a_cached_file_is_found_by_others(tmp_path):
    put(Cache(tmp_path, 10 * ROOM), "a").close()
    for cache in (Cache(tmp_path, 10 * ROOM), Cache(tmp_path, 10 * ROOM)):
        entry = cache.get("a", SIZE, refuse)
        assert entry.buffer().to_pybytes() == content("a")
        entry.close()


@settings(max_examples=30)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=40), st.integers(2, 5))
def test_the_bound_is_kept_at_all_times(tmp_path_factory, keys, room):
    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(folder, room * ROOM)

    def watched(key):
        assert cache.bytes_used() <= cache.limit  # while it is filled, too
        return content(key)

    for key in keys:
        cache.get(key, SIZE, lambda key=key: watched(key)).close()
        assert cache.bytes_used() <= cache.limit
        assert cache.bytes_used() == sum(f.stat().st_size for f in folder.glob("*.*"))


def test_entries_without_a_known_use_are_evicted_first_then_the_one_needed_last(tmp_path):
    cache = Cache(tmp_path, 3 * ROOM)
    cache.foresee(self := object(), lambda: {"a": 5.0, "b": 50.0, "c": 10.0})
    for key in "abc":
        put(cache, key).close()
    put(cache, "unknown").close()
    assert kept(tmp_path) == {"a", "c", "unknown"}
    put(cache, "b").close()
    assert kept(tmp_path) == {"a", "b", "c"}
    cache.forget(self)
    for key in "cab":
        put(cache, key).close()
        os.utime(tmp_path / f"{key}.cached", ns=(0, "cab".index(key)))
    put(cache, "d").close()
    assert kept(tmp_path) == {
        "a",
        "b",
        "d",
    }  # the control: the oldest file is evicted


def kept(folder):
    return {path.stem for path in folder.glob("*.cached")}


def test_a_file_that_is_being_read_is_not_evicted(tmp_path):
    cache = Cache(tmp_path, 2 * ROOM)
    a, b = put(cache, "a"), put(cache, "b")
    with pytest.raises(CacheFullError, match="cache_limit"):
        put(cache, "c")
    with pytest.raises(CacheFullError):
        put(Cache(tmp_path, 2 * ROOM), "c")  # nor by others
    mapped = a.buffer()
    a.close()
    with pytest.raises(CacheFullError):
        put(cache, "c")
    del mapped
    put(cache, "c").close()
    assert kept(tmp_path) == {"b", "c"}
    b.close()


def test_prefetching_evicts_no_file_that_is_needed_sooner(tmp_path):
    cache = Cache(tmp_path, 2 * ROOM)
    cache.foresee(object(), lambda: {"a": 5.0, "b": 50.0, "later": 20.0, "last": 60.0})
    for key in "ab":
        put(cache, key).close()
    with pytest.raises(CacheFullError):
        cache.get("last", SIZE, refuse, ahead=True)
    assert kept(tmp_path) == {"a", "b"}
    cache.get("later", SIZE, lambda: content("later"), ahead=True).close()
    assert kept(tmp_path) == {"a", "later"}
    with pytest.raises(CacheFullError):
        cache.get("b", SIZE, refuse, ahead=True)
    put(cache, "last").close()  # a file that is needed now evicts one
    assert kept(tmp_path) == {"a", "last"}


def test_a_file_larger_than_the_cache_is_refused(tmp_path):
    with pytest.raises(CacheFullError, match="limited to 10"):
        Cache(tmp_path, 10).get("a", SIZE, refuse)


def test_a_damaged_entry_is_fetched_again(tmp_path):
    put(Cache(tmp_path, 10 * ROOM), "a").close()
    path = tmp_path / "a.cached"
    for damage in (lambda b: b[:500] + b"X" + b[501:], lambda b: b[:-40], lambda _: b""):
        path.write_bytes(damage(path.read_bytes()))
        put(Cache(tmp_path, 10 * ROOM), "a").close()  # asserts the bytes
        assert len(path.read_bytes()) == ROOM
    path.write_bytes(b"X" * ROOM)
    broken = Cache(tmp_path, 10 * ROOM)
    broken._is_whole = lambda *_: True
    entry = broken.get("a", SIZE, refuse)  # the control: only the check notices it
    assert entry.buffer().to_pybytes() != content("a")
    entry.close()


def test_simultaneous_requests_wait_for_one_fetch(tmp_path):
    made = FORK.Value("i", 0)
    begun = FORK.Barrier(4)

    def ask():
        def make():
            with made.get_lock():
                made.value += 1
            return content("a")

        cache = Cache(tmp_path, 10 * ROOM)
        begun.wait()
        entry = cache.get("a", SIZE, make)
        assert entry.buffer().to_pybytes() == content("a")

    asking = [FORK.Process(target=ask) for _ in range(4)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
        assert one.exitcode == 0
    assert made.value == 1


def test_a_process_killed_while_it_fills_the_cache_does_not_block_others(tmp_path):
    filling, never = FORK.Event(), FORK.Event()

    def make():
        filling.set()
        never.wait()

    victim = FORK.Process(target=lambda: Cache(tmp_path, 2 * ROOM).get("a", SIZE, make))
    victim.start()
    filling.wait()
    cache = Cache(tmp_path, 2 * ROOM)
    put(cache, "b").close()
    with pytest.raises(CacheFullError):  # its reservation counts while it lives
        cache.get("x", 2 * SIZE, refuse)
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    assert (tmp_path / "a.part").exists()
    put(cache, "a").close()
    assert kept(tmp_path) == {"a"}
    assert not list(tmp_path.glob("*.part"))


def test_the_leftovers_of_a_dead_process_are_removed(tmp_path):
    (tmp_path / "dead.part").write_bytes(b"." * (2 * ROOM))
    put(Cache(tmp_path, 2 * ROOM), "a").close()
    assert not list(tmp_path.glob("*.part"))


def test_waiting_for_another_process_that_fills_can_be_cancelled(tmp_path):
    filling, over, cancelled = threading.Event(), threading.Event(), threading.Event()

    def make():
        filling.set()
        over.wait()
        return content("a")

    other = threading.Thread(target=lambda: Cache(tmp_path, 10 * ROOM).get("a", SIZE, make).close())
    other.start()
    filling.wait()
    cancelled.set()
    with pytest.raises(InterruptedReadError):
        Cache(tmp_path, 10 * ROOM).get("a", SIZE, refuse, cancelled)
    over.set()
    other.join()


def test_a_failed_fetch_leaves_no_file(tmp_path):
    cache = Cache(tmp_path, 10 * ROOM)
    with pytest.raises(ZeroDivisionError):
        cache.get("a", SIZE, lambda: 1 // 0)
    assert cache.bytes_used() == 0
    put(cache, "a").close()


def test_on_a_full_disk_it_evicts_and_then_reports_the_error(tmp_path, monkeypatch):
    cache = Cache(tmp_path, 10 * ROOM)
    put(cache, "a").close()
    held = put(cache, "b")
    allocate = os.posix_fallocate

    def full(handle, offset, length):
        if (tmp_path / "a.cached").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        allocate(handle, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    put(cache, "c").close()
    assert kept(tmp_path) == {"b", "c"}

    def never(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", never)
    with pytest.raises(DataError, match=r"disk of the cache .* is full"):
        put(cache, "d")
    assert kept(tmp_path) == {"b"}
    assert not list(tmp_path.glob("*.part"))
    held.close()


def test_a_folder_that_cannot_be_made_is_named():
    with pytest.raises(DataError, match=r"/proc/none.*cannot be written"):
        Cache(Path("/proc/none"), 1)
