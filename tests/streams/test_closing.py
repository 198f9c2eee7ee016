"""The code that opens a source closes it. A closed source no longer affects evictions."""

import gc
import multiprocessing
import os
import signal
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.streams import source as sources
from raytrain_plus.streams.cache import TRAFFIC, Cache, Prefetcher, node_cache
from raytrain_plus.streams.check import inspect_stream
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import Loader
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream, parse_bytes
from raytrain_plus.streams.writer import StreamWriter

ROWS, LANES, PART = 600, 2, 10
STEPS = ROWS // LANES // PART


@pytest.fixture
def two_runs(tmp_path):
    """Two streams that share a cache, which has room for the files of one, but not of both."""
    streams = []
    for name, start in (("first", 0), ("second", ROWS)):
        with StreamWriter(tmp_path / name, file_size=400) as writer:
            writer.write({"y": start + i} for i in range(ROWS))
        described = inspect_stream(str(tmp_path / name))
        size = described["raw_bytes"] + 32 * described["files"]
        limit = size + size // 2
        streams.append(
            Stream(tmp_path / name, cache=tmp_path / "cache", cache_limit=limit, window=2)
        )
    return streams


def train(stream, epochs):
    """Read some epochs; returns the open source, and the files that each epoch fetched."""
    source = open_source(stream)
    order = source.order(LANES, 17, PART)
    loader = Loader(source, order, part_rows=PART, lanes=range(LANES), first_step=0)
    fetched = []
    for _ in range(epochs):
        before = TRAFFIC.counts()["fetched_files"]
        for _ in range(STEPS):
            loader.next()
        fetched.append(TRAFFIC.counts()["fetched_files"] - before)
    loader.close()
    return source, fetched


def test_a_finished_run_does_not_affect_the_next_runs_cache(two_runs):
    first, second = two_runs
    finished, _ = train(first, 1)
    files = len(finished.shards)
    finished.close()
    finished.close()
    source, fetched = train(second, 4)
    assert fetched[0] > files / 2
    assert fetched[2:] == [0, 0]
    source.close()
    assert not source.shards[0].cache._foresight


def test_an_open_source_affects_the_cache_as_a_control(two_runs):
    first, second = two_runs
    unclosed, _ = train(first, 1)
    source, fetched = train(second, 4)
    assert min(fetched[2:]) > 0
    source.close()
    unclosed.close()


def test_an_unreferenced_source_is_forgotten(two_runs):
    source, _ = train(two_runs[0], 1)
    cache = source.shards[0].cache
    assert cache._foresight
    del source
    gc.collect()
    assert not cache._foresight


def test_the_planned_reads_of_a_killed_process_are_forgotten(tmp_path):
    """Future reads are not in a file: another process knows only those of its own runs."""
    ready = multiprocessing.get_context("fork").Event()

    def foresees():
        Cache(tmp_path, 1000).foresee("run", lambda: {"a": 0.0})
        ready.set()
        signal.pause()

    process = multiprocessing.get_context("fork").Process(target=foresees)
    process.start()
    ready.wait()
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    ours = Cache(tmp_path, 1000)
    assert ours._known() == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock"]


def test_closing_a_prefetcher_ends_its_threads(two_runs):
    source = open_source(two_runs[0])
    order = source.order(LANES, 17, PART)
    source.lookahead.expect(order, 0, range(LANES), 0, source.cancelled)
    source.close()
    assert isinstance(source.lookahead, Prefetcher)
    assert source.lookahead._next(iter(()), source.cancelled) is None


def told(stream):
    """Return the future reads that sources have announced to a stream's cache."""
    return node_cache(stream.cache_folder, parse_bytes(stream.cache_limit))._foresight


def test_a_refused_mixture_leaves_no_source_open(two_runs, tmp_path):
    first, _ = two_runs
    with StreamWriter(tmp_path / "other") as writer:
        writer.write({"z": 1})
    other = replace(first, url=tmp_path / "other")
    with pytest.raises(DataError, match="same columns") as caught:
        open_source(Mixture({"first": first, "other": other}))
    assert caught.tb is not None  # it still holds all sources that were open
    assert told(first) == {}
    source = open_source(Mixture({"first": first, "again": first}))
    assert len(told(first)) == 1  # the control: the mixture's own
    source.close()
    assert told(first) == {}


def test_a_stream_refused_for_its_memory_leaves_no_source_open(two_runs, monkeypatch):
    def refuse(*_):
        raise DataError("no memory")

    first, _ = two_runs
    monkeypatch.setattr(sources, "check_order_memory", refuse)
    for data in (first, Mixture({"first": first})):
        with pytest.raises(DataError, match="no memory") as caught:
            open_source(data)
        assert caught.tb is not None
        assert told(first) == {}


def test_measuring_a_single_file_leaves_no_source_open(tmp_path):
    files = fsspec.filesystem("memory")
    with files.open("/closing/a.parquet", "wb") as file:
        pq.write_table(pa.table({"x": [1, 2]}), file)
    stream = Stream("memory://closing/a.parquet", cache=tmp_path / "cache")
    source = open_source(stream)
    assert source.total_rows == 2
    assert told(stream) == {}
    source.close()
