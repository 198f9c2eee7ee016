"""Reading a stream: all readers get the same rows in the same places, and no row comes twice."""

import itertools
import threading
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raytrain_plus.storage.errors import StorageError
from raytrain_plus.streams import parquet_footer
from raytrain_plus.streams.cache import ENTRY_OVERHEAD, TRAFFIC, Cache
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import Loader, evaluation_parts, load_part, steps_per_epoch
from raytrain_plus.streams.mixture import Mixture
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.s3_server import Fault

ROWS, LANES, PART = 3000, 4, 8
SEED = 17


@pytest.fixture(scope="module")
def bucket(server):
    name = server.fresh_bucket()
    for folder, first in (("train", 0), ("other", 10_000)):
        with StreamWriter(
            f"s3://{name}/{folder}", file_size=1300, storage_options=server.options()
        ) as writer:
            rows = np.arange(first, first + ROWS)
            values = np.stack([rows] * 4, axis=1).astype(np.float32)
            writer.write(
                pa.table({"y": rows, "x": pa.FixedShapeTensorArray.from_numpy_ndarray(values)})
            )
    return name


@pytest.fixture
def stream(bucket, proxy, server, tmp_path):
    def make(folder="train", cache="cache", **settings):
        settings = {"window": 3, "cache_limit": "300KB", "deadline": 300.0, **settings}
        options = server.options(proxy.url)
        return Stream(
            f"s3://{bucket}/{folder}", cache=tmp_path / cache, storage_options=options, **settings
        )

    return make


def shares(workers):
    bounds = [LANES * w // workers for w in range(workers + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]


def read(stream, lanes, first_step, steps, column="y"):
    """Return the rows that some lanes read: an array of shape (steps, lanes, rows of a part)."""
    source = open_source(stream)
    order = source.order(LANES, SEED, PART)
    loader = Loader(source, order, part_rows=PART, lanes=lanes, first_step=first_step)
    try:
        return np.array([[p[column].tolist() for p in loader.next()] for _ in range(steps)])
    finally:
        loader.close()
        source.release()


def enough(stream):
    """Return the smallest limit of a cache: a window and three files per lane, and one file."""
    source = open_source(stream())
    files = LANES * (source.window + 3) + 1
    assert files < len(source.rows) / 2
    return files * (source.lookahead.largest + ENTRY_OVERHEAD)


def epoch_steps(stream):
    return steps_per_epoch(open_source(stream).order(LANES, SEED, PART), PART)


def test_every_number_of_workers_reads_the_same_rows_in_the_same_places(stream):
    steps = epoch_steps(stream())
    alone = read(stream(), range(LANES), 0, 2 * steps)
    for epoch in range(2):
        rows = alone[epoch * steps : (epoch + 1) * steps].ravel()
        assert len(set(rows.tolist())) == len(rows) == steps * LANES * PART
    assert (alone[:steps] != alone[steps:]).any()
    for workers in (2, 3, 4):
        parts = [read(stream(), lanes, 0, 2 * steps) for lanes in shares(workers)]
        assert (np.concatenate(parts, axis=1) == alone).all()
    for step in (1, steps - 1, steps + 5):  # after a resize, or a resume
        assert (read(stream(), range(LANES), step, 3) == alone[step : step + 3]).all()


def test_each_file_is_fetched_once_while_the_cache_holds_it(stream, proxy):
    plenty = stream(cache_limit="10MB")
    steps = epoch_steps(plenty)
    files = len(open_source(plenty).rows)
    proxy.gets.clear()
    for lanes in shares(2):
        read(plenty, lanes, 0, steps)
    fetched = Counter({k: v for k, v in proxy.gets.items() if k.endswith(".arrow")})
    assert len(fetched) == files
    assert set(fetched.values()) == {1}
    read(plenty, range(LANES), steps, steps)
    assert sum(v for k, v in proxy.gets.items() if k.endswith(".arrow")) == files
    read(stream(cache="another"), range(LANES), 0, 3)  # the control: a cold cache fetches
    assert sum(v for k, v in proxy.gets.items() if k.endswith(".arrow")) > files


def test_after_a_resize_only_the_windows_of_lanes_that_moved_are_fetched(stream):
    """Two workers on one node each become three; the third lane moves, the others stay."""
    before, after = {"a": range(2), "b": range(2, 4)}, {"a": range(2), "b": range(3, 4)}
    for node, lanes in before.items():
        read(stream(cache=node), lanes, 0, 11)

    def fetched(node, lanes):
        # Requests are not counted: an earlier prefetch may still be running.
        before = TRAFFIC.counts()["misses"]
        source = open_source(stream(cache=node))
        order = source.order(LANES, SEED, PART)
        for lane in lanes:
            load_part(source, order, 0, lane, 10 * PART, 11 * PART)
        return TRAFFIC.counts()["misses"] - before

    assert sum(fetched(node, lanes) for node, lanes in after.items()) == 0
    assert 1 <= fetched("c", range(2, 3)) <= open_source(stream()).window


def test_the_cache_keeps_its_bound_while_workers_share_it(stream, tmp_path):
    limit = enough(stream)
    small = stream(cache_limit=limit)
    steps = epoch_steps(small)
    alone = read(stream(cache="other", cache_limit="10MB"), range(LANES), 0, steps)
    largest, over = [0], threading.Event()

    def watch():
        cache = Cache(tmp_path / "cache", limit)
        while not over.is_set():
            largest[0] = max(largest[0], cache.bytes_used())

    watcher = threading.Thread(target=watch)
    watcher.start()
    found: dict = {}

    def work(lanes):
        found[lanes] = read(small, lanes, 0, steps)

    workers = [threading.Thread(target=work, args=(lanes,)) for lanes in shares(2)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    over.set()
    watcher.join()
    assert (np.concatenate([found[lanes] for lanes in shares(2)], axis=1) == alone).all()
    assert limit / 2 < largest[0] <= limit


def test_a_cache_too_small_for_the_files_read_together_is_refused(stream):
    limit = enough(stream)
    with pytest.raises(DataError, match=r"cache_limit.*window.*smaller files"):
        open_source(stream(cache_limit=limit - 1)).check_room(LANES)
    open_source(stream(cache_limit=limit)).check_room(LANES)


FAULTS = [
    Fault("status", status=404, times=3),
    Fault("status", status=503, times=8),
    Fault("truncate", times=5),
    Fault("flip", times=3),
    Fault("reset", times=5),
    Fault("slow", times=6),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.kind}{f.status}")
def test_faults_of_the_store_change_no_row(fault, stream, proxy):
    steps = epoch_steps(stream())
    expected = read(stream(cache="clean"), range(LANES), 0, steps)
    fault.struck = 0
    proxy.faults.append(fault)
    assert (read(stream(), range(LANES), 0, steps) == expected).all()
    assert fault.struck == fault.times


def test_a_lasting_fault_ends_the_loader_with_one_clear_error(stream, proxy):
    proxy.faults.append(Fault("flip", times=None, pattern="part-000005"))
    with pytest.raises(StorageError, match=r"part-000005.*other bytes than its manifest"):
        read(stream(), range(LANES), 0, epoch_steps(stream()))


def test_a_file_damaged_in_the_cache_is_fetched_again(stream, proxy, tmp_path):
    steps = epoch_steps(stream())
    expected = read(stream(cache_limit="10MB"), range(LANES), 0, steps)
    for path in (tmp_path / "cache").glob("*.cached"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    proxy.gets.clear()
    source = open_source(stream(cache_limit="10000001"))  # a process that has not verified it yet
    order = source.order(LANES, SEED, PART)
    again = [load_part(source, order, 0, 0, t * PART, (t + 1) * PART) for t in range(steps)]
    assert [part["y"].tolist() for part in again] == expected[:, 0].tolist()
    assert sum(proxy.gets.values()) > 3


def test_evaluation_reads_each_row_once_on_any_number_of_workers(stream):
    source = open_source(stream())
    order = source.plain_order(LANES)
    rows = [
        part["y"].tolist()
        for lane in range(LANES)
        for part in evaluation_parts(source, order, 64, lane)
    ]
    assert list(itertools.chain(*rows)) == list(range(ROWS))


def test_a_closed_loader_does_not_wait_for_the_store(stream, proxy):
    proxy.faults.append(Fault("stall", times=None))
    asked = threading.Event()
    proxy.on_get = lambda path: asked.set() if path.endswith(".arrow") else None
    source = open_source(stream())
    loader = Loader(
        source, source.order(LANES, SEED, PART), part_rows=PART, lanes=range(2), first_step=0
    )
    asked.wait()
    loader.close()
    assert not loader._thread.is_alive()


def test_waiting_for_the_store_is_reported(stream, proxy, monkeypatch):
    monkeypatch.setattr("raytrain_plus.streams.loader._BEAT", 0.01)
    proxy.faults.append(Fault("stall", times=None))
    source = open_source(stream())
    loader = Loader(
        source, source.order(LANES, SEED, PART), part_rows=PART, lanes=range(2), first_step=0
    )
    told = threading.Event()

    def waiting():
        told.set()
        proxy.faults.clear()
        proxy.released.set()

    assert len(loader.next(waiting)) == 2
    assert told.is_set()
    loader.close()


# -- transforms


def jitter(sample, generator):
    noise = torch.rand(4, generator=generator)
    return {"y": sample["y"], "x": sample["x"] + noise, "name": f"row {sample['y']}"}


def jitter_batch(batch, generator):
    return {**batch, "x": batch["x"] + torch.rand(batch["x"].shape, generator=generator)}


@pytest.mark.parametrize(("function", "per"), [(jitter, "sample"), (jitter_batch, "batch")])
def test_a_transform_draws_the_same_on_any_worker(function, per, stream):
    mapped = stream(transform=function, per=per)
    alone = read(mapped, range(LANES), 0, 20, "x")
    halves = [read(mapped, lanes, 0, 20, "x") for lanes in shares(3)]
    assert (np.concatenate(halves, axis=1) == alone).all()
    assert (read(mapped, range(LANES), 13, 7, "x") == alone[13:]).all()
    plain = read(stream(), range(LANES), 0, 20, "x")
    noise = alone - plain
    assert ((noise >= 0) & (noise <= 1)).all()
    assert len(np.unique(noise)) > 0.9 * noise.size or plain.max() > 1000  # each draws its own


def test_a_transforms_result_may_be_of_other_columns(stream):
    source = open_source(stream(transform=jitter))
    batch = load_part(source, source.order(LANES, SEED, PART), 0, 0, 0, 3)
    assert batch["name"] == [f"row {y}" for y in batch["y"].tolist()]
    assert batch["x"].shape == (3, 4)


# -- other kinds of data


def test_parquet_without_a_manifest_is_read_and_its_footers_once(server, proxy, tmp_path):
    bucket, files = server.fresh_bucket(), server.files()
    for number in range(6):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"y": np.arange(100) + 100 * number}), sink)
        files.pipe_file(f"{bucket}/{number}.parquet", sink.getvalue().to_pybytes())

    def opened():
        return open_source(
            Stream(
                f"s3://{bucket}",
                storage_options=server.options(proxy.url),
                cache=tmp_path / "c",
                shuffle=False,
            )
        )

    source = opened()
    batch = load_part(source, source.plain_order(1), 0, 0, 0, 600)
    assert batch["y"].tolist() == list(range(600))
    proxy.gets.clear()
    again = opened()
    assert not [path for path in proxy.gets if path.endswith(".parquet")]
    assert again.identity == source.identity
    files.pipe_file(f"{bucket}/6.parquet", b"PAR1 not really PAR1")
    with pytest.raises(DataError, match=r"6\.parquet"):
        opened()


def test_a_local_stream_that_is_not_compressed_is_read_where_it_is(tmp_path):
    with StreamWriter(tmp_path / "s", compression="none", file_size="1KB") as writer:
        writer.write({"y": i} for i in range(500))
    source = open_source(tmp_path / "s")
    assert source.lookahead is None
    batch = load_part(source, source.plain_order(1), 0, 0, 0, 500)
    assert batch["y"].tolist() == list(range(500))
    path = min((tmp_path / "s").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-1] + b"X")
    with pytest.raises(DataError, match=path.name):
        load_part(open_source(tmp_path / "s"), source.plain_order(1), 0, 0, 0, 1)


def test_the_source_is_never_evicted(tmp_path):
    with StreamWriter(tmp_path / "s", file_size="1KB") as writer:
        writer.write({"y": i} for i in range(2000))
    before = sorted(path.name for path in (tmp_path / "s").iterdir())
    local = Stream(tmp_path / "s", cache=tmp_path / "s", cache_limit="30KB", window=2)
    read(local, range(LANES), 0, 40)
    assert {path.name for path in (tmp_path / "s").iterdir()} >= set(before)


# -- mixtures


def test_a_mixture_reads_its_streams_in_their_shares(stream):
    mixture = Mixture(
        {"train": stream(), "other": stream("other")},
        {"train": 3, "other": 1},
        changes={30: {"train": 1, "other": 1}},
        block=PART * 2,
    )
    rows = read(mixture, range(LANES), 0, 60)
    other = (rows >= 10_000).reshape(60, LANES, PART)
    assert (other[:30].reshape(15, 2, LANES, PART).sum(axis=(1, 3)) == PART // 2).all()
    assert (other[30:].reshape(15, 2, LANES, PART).sum(axis=(1, 3)) == PART).all()
    halves = [read(mixture, lanes, 0, 60) for lanes in shares(2)]
    assert (np.concatenate(halves, axis=1) == rows).all()
    assert (read(mixture, range(LANES), 29, 5) == rows[29:34]).all()


def test_invalid_mixtures_are_refused(stream):
    one = stream()
    for settings, words in (
        ({"streams": {}}, "at least one"),
        ({"streams": {"a": one}, "weights": {"b": 1}}, "'b', but the streams are 'a'"),
        ({"streams": {"a": one}, "weights": {"a": -1}}, "none below 0"),
        ({"streams": {"a": one}, "changes": {0: {"a": 1}}}, "step 0"),
        ({"streams": {"a": one, "b": one}, "weights": {"a": 1, "b": 1e-9}}, "raise `block`"),
    ):
        with pytest.raises(DataError, match=words):
            Mixture(**settings)


def test_a_single_file_is_read_by_its_url_as_by_its_path(server, tmp_path):
    path = tmp_path / "a b.parquet"
    pq.write_table(pa.table({"y": np.arange(100)}), path)
    bucket = server.fresh_bucket()
    server.files().pipe_file(f"{bucket}/d/a b.parquet", path.read_bytes())
    options = {"storage_options": server.options(), "cache": tmp_path / "c"}
    sources = [
        open_source(path),
        open_source(path.as_uri()),
        open_source(Stream(path, cache=tmp_path / "c")),
        open_source(Stream(f"s3://{bucket}/d/a b.parquet", **options)),
    ]
    found = []
    for source in sources:
        order = source.order(LANES, SEED, PART)
        found.append(load_part(source, order, 0, 0, 0, PART)["y"].tolist())
        rows = load_part(source, source.plain_order(1), 0, 0, 0, 100)["y"]
        assert rows.tolist() == list(range(100))
        source.close()
    assert found[1:] == found[:1] * 3
    assert found[0] != list(range(PART))


@pytest.mark.parametrize("known", [True, False])
def test_a_cache_that_cannot_hold_one_decoded_file_is_refused_at_the_start(
    known, tmp_path, monkeypatch
):
    """Encoded pages hide the size of values; if no writer states it, a file is measured."""
    (tmp_path / "d").mkdir()
    for i in range(4):
        table = pa.table({"t": ["the same long sentence " * 20] * 5000, "x": np.arange(5000)})
        pq.write_table(table, tmp_path / "d" / f"{i}.parquet")
    if not known:
        chunk = parquet_footer._chunk

        def silent(leaf, said, rows):
            return chunk(leaf, {k: v for k, v in said.items() if k != 16}, rows)

        monkeypatch.setattr(parquet_footer, "_chunk", silent)

    def opened(limit, cache="c"):
        return open_source(
            Stream(tmp_path / "d", cache=tmp_path / cache, cache_limit=limit, window=1)
        )

    with pytest.raises(DataError, match="cache_limit"):
        opened("2MB").check_room(2)
    with pytest.raises(DataError, match="cache_limit"):
        opened("4MB").check_room(2)  # one file fits, but not those of two lanes
    opened("20MB").check_room(2)
    with pytest.raises(DataError, match="cache_limit"):  # nor is it waited for
        opened("2MB", "fresh").shards[0].open(threading.Event())


@pytest.mark.parametrize("change", ["order", "nullable", "large", "unselected"])
def test_files_of_a_stream_may_differ_except_in_the_types_of_values(change, tmp_path):
    i = pa.int64()
    first = pa.table({"x": [1], "y": ["a"]})
    second = {
        "order": first.select(["y", "x"]),
        "nullable": first.cast(pa.schema([pa.field("x", i, nullable=False), ("y", pa.string())])),
        "large": first.cast(pa.schema([("x", i), ("y", pa.large_string())])),
        "unselected": first.append_column("note", pa.array(["n"])),
    }[change]
    for number, table in enumerate((first, second)):
        pq.write_table(table, tmp_path / f"{number}.parquet")
    source = open_source(Stream(tmp_path, columns=["x", "y"], cache=tmp_path / ".c"))
    batch = load_part(source, source.plain_order(1), 0, 0, 0, 2)
    assert (batch["x"].tolist(), batch["y"]) == ([1, 1], ["a", "a"])
    pq.write_table(pa.table({"x": [1.5], "y": ["a"]}), tmp_path / "2.parquet")
    with pytest.raises(DataError, match=r"2\.parquet differ.*column 'x' is int64.*float64"):
        open_source(Stream(tmp_path, columns=["x", "y"], cache=tmp_path / ".c"))
