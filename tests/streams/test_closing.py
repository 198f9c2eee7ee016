"""The code that opens a source closes it. A closed source no longer affects evictions."""

import contextlib
import gc
import multiprocessing
import os
import signal
from dataclasses import replace

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.train import RunConfig

from raytrain_plus import ElasticTrainer, configure
from raytrain_plus.clock import DurationError
from raytrain_plus.elastic.worker.data import open_data, open_evaluations
from raytrain_plus.streams import source as sources
from raytrain_plus.streams.cache import TRAFFIC, Cache, Prefetcher, node_cache
from raytrain_plus.streams.check import inspect_stream
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import Loader
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream, parse_bytes
from raytrain_plus.streams.writer import StreamWriter
from raytrain_plus.task import Task, TaskError
from tests.elastic.scripted_pool import make_spec
from tests.test_resume import Fitted

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


def test_data_that_does_not_fit_the_task_is_closed(two_runs):
    class Shaped(Task):
        columns = {"y": (3,)}  # noqa: RUF012

    class WithoutInput(Task):
        target = "y"

    first, _ = two_runs
    with pytest.raises(DataError, match="rows of shape") as caught:
        configure.open_for(Shaped(), first, "training data")
    assert caught.tb is not None
    with pytest.raises(DataError, match=r"default forward\(\) needs one") as caught:
        configure.open_for(WithoutInput(), first, "training data")
    assert caught.tb is not None
    assert told(first) == {}
    source = configure.open_for(Task(), first, "training data")
    assert len(told(first)) == 1  # the control: it is the caller's
    source.close()


def evaluation_alone(spec, task):
    return open_evaluations(spec, task, contextlib.ExitStack())[""]


@pytest.mark.parametrize("opens", [open_data, evaluation_alone])
def test_a_worker_closes_data_that_is_not_the_drivers(two_runs, tmp_path, opens):
    first, _ = two_runs
    other = {"data content": "another", "evaluation data": "another"}
    spec = make_spec(tmp_path, data=first, evaluation_data=first, identity=other)
    with pytest.raises(DataError, match="is other data") as caught:
        opens(spec, Task())
    assert caught.tb is not None
    assert told(first) == {}
    opened = opens(make_spec(tmp_path, data=first, evaluation_data=first, identity={}), Task())
    assert len(told(first)) == 1  # the control: it is the caller's
    (opened[0] if isinstance(opened, tuple) else opened.source).close()


def test_a_worker_closes_evaluation_data_whose_metrics_cannot_be_used(two_runs, tmp_path):
    class Unusable(Task):
        def metrics(self):
            return {"accuracy": 7}

    first, _ = two_runs
    spec = make_spec(tmp_path, data=first, evaluation_data=first, identity={})
    with pytest.raises(TaskError) as caught:
        open_evaluations(spec, Unusable(), contextlib.ExitStack())
    assert caught.tb is not None
    assert told(first) == {}


def test_a_trainer_closes_its_data_whether_its_settings_are_right_or_wrong(tmp_path):
    x = pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 16, pa.float32()), 2)
    with StreamWriter(tmp_path / "data") as writer:
        writer.write(pa.table({"x": x, "y": pa.array([1.0] * 8, pa.float32())}))
    stream = Stream(tmp_path / "data", cache=tmp_path / "cache")

    def trainer(duration):
        run = RunConfig(name="run", storage_path=str(tmp_path))
        return ElasticTrainer(
            task=Fitted(), data=stream, batch_size=8, duration=duration, run_config=run
        )

    with pytest.raises(DurationError) as caught:
        trainer("a while")
    assert caught.tb is not None
    assert told(stream) == {}
    assert trainer("1ep").spec.clock.total_steps == 1
    assert told(stream) == {}
