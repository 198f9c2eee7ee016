"""Whoever opens a source closes it, and then it steers nothing any more."""

import gc
import multiprocessing
import os
import signal

import pytest

from raytrain_plus.streams.cache import Cache
from raytrain_plus.streams.check import inspect_stream
from raytrain_plus.streams.loader import Loader
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.prefetch import Prefetcher
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.traffic import TRAFFIC
from raytrain_plus.streams.writer import StreamWriter

ROWS, LANES, PART = 600, 2, 10
STEPS = ROWS // LANES // PART


@pytest.fixture
def two_runs(tmp_path):
    """Two streams that share a cache, which holds all files of either, and not of both."""
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


def test_a_finished_run_does_not_steer_the_cache_of_the_next(two_runs):
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


def test_the_control_an_open_source_does(two_runs):
    first, second = two_runs
    unclosed, _ = train(first, 1)
    source, fetched = train(second, 4)
    assert min(fetched[2:]) > 0
    source.close()
    unclosed.close()


def test_a_source_that_nobody_holds_is_forgotten(two_runs):
    source, _ = train(two_runs[0], 1)
    cache = source.shards[0].cache
    assert cache._foresight
    del source
    gc.collect()
    assert not cache._foresight


def test_the_future_of_a_killed_process_dies_with_it(tmp_path):
    """What is known of the future is in no file: another process asks only its own runs."""
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


def test_a_prefetcher_that_is_closed_ends_its_threads(two_runs):
    source = open_source(two_runs[0])
    order = source.order(LANES, 17, PART)
    source.lookahead.expect(order, 0, range(LANES), 0, source.cancelled)
    source.close()
    assert isinstance(source.lookahead, Prefetcher)
    assert source.lookahead._next(iter(()), source.cancelled) is None
