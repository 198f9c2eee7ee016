"""Fetched files and cache hits are counted, each file once."""

import threading

import pyarrow as pa
import pytest

from raytrain_plus.streams import cache as caching
from raytrain_plus.streams import stream as streams
from raytrain_plus.streams.cache import ENTRY_OVERHEAD, Cache, CacheFullError, Traffic
from raytrain_plus.streams.stream import Stream, open_stream
from raytrain_plus.streams.writer import StreamWriter

NONE = {"hits": 0, "misses": 0, "fetched_files": 0, "fetched_bytes": 0}


@pytest.fixture
def traffic(monkeypatch):
    """A count of this test only."""
    counted = Traffic()
    monkeypatch.setattr(caching, "TRAFFIC", counted)
    monkeypatch.setattr(streams, "TRAFFIC", counted)
    return counted


@pytest.fixture
def files(tmp_path):
    """Two compressed files, which are read through the cache, although they are local."""
    with StreamWriter(tmp_path / "data", file_size="4KB", compression="zstd") as writer:
        writer.write(pa.table({"x": list(range(1000))}))
    shards = open_stream(Stream(tmp_path / "data", cache=tmp_path / "cache")).shards
    assert len(shards) >= 2
    return shards


def test_a_prefetched_file_is_a_hit_and_one_that_is_waited_for_is_a_miss(files, traffic):
    go_on = threading.Event()
    assert traffic.counts() == NONE
    files[0].fetch(go_on, ahead=True).close()
    first = files[0].entry.stored_bytes
    assert traffic.counts() == {**NONE, "fetched_files": 1, "fetched_bytes": first}
    files[0].fetch(go_on).close()
    assert (traffic.hits, traffic.misses) == (1, 0)
    files[1].fetch(go_on).close()
    both = first + files[1].entry.stored_bytes
    counted = {"hits": 1, "misses": 1, "fetched_files": 2, "fetched_bytes": both}
    assert traffic.counts() == counted
    files[1].fetch(go_on, ahead=True).close()  # there is nothing to fetch, and no reader
    assert traffic.counts() == counted


def test_a_file_without_room_in_the_cache_does_not_count_as_read(tmp_path, traffic):
    cache = Cache(tmp_path, 100 + ENTRY_OVERHEAD)
    held = cache.get("a", 100, lambda: b"a" * 100)
    for _ in range(3):
        with pytest.raises(CacheFullError):
            cache.get("b", 100, lambda: b"b" * 100)
    assert (traffic.hits, traffic.misses) == (0, 1)
    held.close()
    cache.get("b", 100, lambda: b"b" * 100).close()
    assert (traffic.hits, traffic.misses) == (0, 2)
