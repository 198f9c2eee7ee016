"""Writing a stream: what is read later, and that a data set is complete or not there at all."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raytrain_plus.storage.errors import StoreError
from raytrain_plus.streams.check import verify_stream
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.format import MANIFEST, StreamManifest, order_digest
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream, parse_bytes
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.arrow_data import N, every_type, table_of
from tests.streams.test_plain import read_all as rows_in

ROWS = [
    {
        "image": np.full((2, 3), i, np.float32),
        "tensor": torch.full((2,), i),
        "label": i,
        "text": f"row {i}",
        "raw": bytes([i]),
        "ids": list(range(i % 4)),
    }
    for i in range(50)
]


def read_all(url, **settings):
    source = open_source(Stream(url, shuffle=False, **settings))
    return load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)


@pytest.fixture
def cache(tmp_path):
    return {"cache": tmp_path / "cache", "cache_limit": "10MB"}


@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_rows_come_back_as_they_were_given(compression, tmp_path, cache):
    with StreamWriter(tmp_path / "s", compression=compression, file_size=500) as writer:
        writer.write(iter(ROWS))
    batch = read_all(tmp_path / "s", **cache)
    assert batch["image"].tolist() == [row["image"].tolist() for row in ROWS]
    assert batch["image"].dtype == torch.float32
    assert batch["tensor"].tolist() == [row["tensor"].tolist() for row in ROWS]
    for name in ("text", "raw"):
        assert batch[name] == [row[name] for row in ROWS]
    assert batch["label"].tolist() == list(range(50))
    assert [ids.tolist() for ids in batch["ids"]] == [row["ids"] for row in ROWS]
    assert len(list((tmp_path / "s").glob("*.arrow"))) > 3
    assert verify_stream(tmp_path / "s")["problems"] == []


def test_every_type_of_column_comes_back(tmp_path, cache):
    columns = every_type()
    with StreamWriter(tmp_path / "s") as writer:
        for batch in table_of(columns).to_batches(max_chunksize=3):
            writer.write(batch)
    source = open_source(Stream(tmp_path / "s", **cache))
    files = np.zeros(N, np.int64)
    for name, (_, values) in columns.items():
        out = np.empty(values.shape, values.dtype)
        source.gather(files, np.arange(N), name, out)
        np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("parallel", [1, 4])
def test_files_do_not_depend_on_the_number_written_at_the_same_time(parallel, tmp_path):
    table = pa.table({"x": np.arange(10_000)})
    for folder, batches in (("one", [1]), ("many", [3, 5000, 77])):
        with StreamWriter(tmp_path / folder, file_size="10KB", parallel=parallel) as writer:
            start = 0
            for rows in [*batches, 10_000]:
                writer.write(table.slice(start, rows))
                start += rows
    one, many = (
        StreamManifest.parse((tmp_path / f / MANIFEST).read_bytes(), f) for f in ("one", "many")
    )
    assert one == many
    assert max(file.raw_bytes for file in one.files) < 12_000
    assert len(one.files) == 8


def test_files_keep_their_size_limit(tmp_path):
    rows = ({"x": np.zeros(1000, np.uint8)} for _ in range(2000))
    with StreamWriter(tmp_path / "s", file_size="100KB", compression="none") as writer:
        writer.write(rows)
    sizes = [f.stat().st_size for f in (tmp_path / "s").glob("*.arrow")]
    assert len(sizes) == 20
    assert max(sizes) < 110_000


def test_an_error_in_the_block_publishes_nothing(tmp_path):
    def fail():
        with StreamWriter(tmp_path / "s", file_size=100) as writer:
            writer.write(ROWS)
            raise KeyError("the data ended badly")

    with pytest.raises(KeyError):
        fail()
    assert not (tmp_path / "s" / MANIFEST).exists()
    with pytest.raises(DataError, match="not a complete stream"):
        open_source(Stream(tmp_path / "s", cache=tmp_path / "c"))
    with StreamWriter(tmp_path / "s") as writer:  # and blocks no other writer
        writer.write(ROWS)
    assert read_all(tmp_path / "s", cache=tmp_path / "c")["label"].tolist() == list(range(50))


def test_a_writer_that_is_killed_publishes_nothing(tmp_path):
    script = """
import signal, sys
from raytrain_plus import StreamWriter
with StreamWriter(sys.argv[1], file_size=500) as writer:
    for number in range(1000):
        writer.write({"x": number})
    print("written", flush=True)
    signal.pause()
"""
    command = [sys.executable, "-c", script, tmp_path / "s"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as victim:
        assert victim.stdout.readline() == b"written\n"
        victim.kill()
    assert list((tmp_path / "s").glob("*.arrow"))
    assert not (tmp_path / "s" / MANIFEST).exists()


def test_of_two_writers_to_one_folder_one_fails_and_the_others_data_is_complete(tmp_path, cache):
    one, two = (StreamWriter(tmp_path / "s", file_size=500) for _ in range(2))
    with one:
        one.write(ROWS)
        with two:
            two.write(ROWS[::-1])
        with pytest.raises(DataError, match="another writer has published"):
            one._publish()
        one._publish = lambda: None
    assert verify_stream(tmp_path / "s")["problems"] == []
    assert read_all(tmp_path / "s", **cache)["label"].tolist() == list(range(50))[::-1]
    with pytest.raises(DataError, match="there is a data set in"):
        StreamWriter(tmp_path / "s")


def test_a_store_that_cannot_keep_writers_apart_is_refused(server, monkeypatch):
    from raytrain_plus.storage.store import Store

    bucket, options = server.fresh_bucket(), server.options()
    monkeypatch.setattr(Store, "_put_new", lambda self, n, c: self._fs.pipe_file(self._path(n), c))
    with pytest.raises(DataError, match="only_writer"):
        StreamWriter(f"s3://{bucket}/s", storage_options=options)
    with StreamWriter(f"s3://{bucket}/s", storage_options=options, only_writer=True) as writer:
        writer.write(ROWS)
    assert verify_stream(f"s3://{bucket}/s", options)["problems"] == []


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"x": 1}, {"y": 1}], "row 2: its columns differ"),
        ([{"x": None}], "nulls|is of type null"),
        ([{"x": 1}, {"x": None}], "row 2: column 'x' holds nulls"),
        ([{"x": np.zeros(2)}, {"x": np.zeros(3)}], "different shapes"),
        ([{"x": 1}, {"x": "one"}], "row 2: column 'x': 'one' .text. does not go together"),
        ([{"x": {1: 1}}], "row 1: column 'x'"),
        ([], "nothing was written"),
    ],
)
def test_rows_that_could_not_be_read_are_refused(rows, words, tmp_path):
    def write():
        with StreamWriter(tmp_path / "s") as writer:
            writer.write(rows)

    with pytest.raises(DataError, match=words):
        write()
    assert not (tmp_path / "s" / MANIFEST).exists()


def test_rows_of_other_columns_later_on_are_refused(tmp_path):
    writer = StreamWriter(tmp_path / "s")
    writer.write({"x": 1})
    with pytest.raises(DataError, match="not go together"):
        writer.write(pa.table({"y": [1]}))
    with pytest.raises(DataError, match="not go together"):
        writer.write(pa.table({"x": ["text"]}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"compression": "rar"}, "zstd, lz4, none"),
        ({"parallel": 0}, "at least 1"),
        ({"file_size": "10 parsecs"}, "is not a size"),
        ({"file_size": "inf"}, "is not a size"),
        ({"file_size": "0 MB"}, "must be above zero"),
    ],
)
def test_wrong_settings_are_refused(settings, words, tmp_path):
    with pytest.raises(DataError, match=words):
        StreamWriter(tmp_path / "s", **settings)


@pytest.mark.parametrize(
    ("size", "count"),
    [(1000, 1000), ("64MB", 64_000_000), ("1.5 GiB", 3 << 29), (" 7 kb ", 7000), ("12", 12)],
)
def test_sizes_have_decimal_and_binary_units(size, count):
    assert parse_bytes(size) == count


# -- the manifest


def test_an_invalid_manifest_or_one_of_another_order_is_refused(tmp_path):
    with StreamWriter(tmp_path / "s") as writer:
        writer.write(ROWS)
    path = tmp_path / "s" / MANIFEST
    good = json.loads(path.read_bytes())

    def opened(**changes):
        path.write_text(json.dumps({**good, **changes}))
        return open_source(Stream(tmp_path / "s", cache=tmp_path / "c"))

    opened()
    for changes, words in (
        ({"version": 2}, "version"),
        ({"rows": 49}, "says that there are 49 rows, but its files have 50"),
        ({"order": "0" * 64}, "another order"),
        ({"files": [*good["files"], *good["files"]]}, "named twice"),
        ({"surprise": 1}, "surprise"),
    ):
        with pytest.raises(DataError, match=words):
            opened(**changes)
    path.write_text("{")
    with pytest.raises(DataError, match="not a manifest"):
        open_source(Stream(tmp_path / "s", cache=tmp_path / "c"))


def test_the_order_named_in_manifests_does_not_change():
    assert order_digest([100, 20, 0, 70, 300]) == GOLDEN_ORDER
    assert order_digest([100, 20, 70, 300]) != GOLDEN_ORDER


def test_verify_names_every_wrong_file(tmp_path):
    with StreamWriter(tmp_path / "s", file_size=500) as writer:
        writer.write(ROWS)
    damaged, gone, *_ = sorted((tmp_path / "s").glob("*.arrow"))
    damaged.write_bytes(damaged.read_bytes()[:-9] + b"X" + damaged.read_bytes()[-8:])
    gone.unlink()
    (tmp_path / "s" / "leftover.arrow").write_bytes(b"")
    found = verify_stream(tmp_path / "s")
    assert [problem.split(":")[0] for problem in found["problems"]] == [damaged.name, gone.name]
    assert found["extra"] == ["leftover.arrow"]


GOLDEN_ORDER = "5e5e3ec3d7b7a1ce9584686f82b2089062e0bf8c5a4647a76f6386c8c22a3c8d"


def test_a_warning_points_at_the_line_that_uses_the_writer(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with StreamWriter(tmp_path / "s") as writer:
            writer.write({"label": i // 500} for i in range(2000))
    assert [Path(one.filename) for one in caught] == [Path(__file__)]


class MixedFrame:
    """Fails as a DataFrame whose values have no Arrow type."""

    def __arrow_c_stream__(self, requested_schema=None):
        raise pa.ArrowInvalid("Could not convert 'a'", "column x")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"x": 1}, {}, {"x": 2}], "row 2: it has no column"),
        ([{}], "row 1: it has no column"),
        ([{"x": 1}, {"x": {3, 1}}], "row 2: column 'x': .*set, which has no order"),
        ([{"x": [1]}, {"x": frozenset()}], "row 2: column 'x': .*set, which has no order"),
        ([{"x": np.ma.array([1, 2], mask=[0, 1])}], "row 1: column 'x': .*masked"),
        ([{1: 2}], "row 1: a column is named 1 .*must be text"),
        ([{"x": np.datetime64("2020-01-01")}], "row 1: column 'x': .*datetime64"),
        ([None], "None .*holds no rows"),
        ([7], "7 .*holds no rows"),
        ([MixedFrame()], "MixedFrame cannot be stored: Could not convert 'a'; column x"),
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_rows_that_would_lose_something_are_refused(rows, words, together, tmp_path):
    if together and not isinstance(rows[0], dict):
        return

    def write():
        with StreamWriter(tmp_path / "s") as writer:
            for piece in [iter(rows)] if together else rows:
                writer.write(piece)

    with pytest.raises(DataError, match=words):
        write()
    assert not (tmp_path / "s" / "index.json").exists()


def test_an_array_without_masked_values_is_kept(tmp_path):
    with StreamWriter(tmp_path / "s") as writer:
        writer.write({"x": np.ma.array([1, 2], mask=[0, 0])})
    assert len(list((tmp_path / "s").glob("*.arrow"))) == 1


# -- rows that are filled again after they were written


def again(fill, value):
    for number in range(3):
        fill(number)
        yield {"x": value}


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "bytes", "dictionary"])
def test_a_generator_may_fill_one_buffer_with_row_after_row(tmp_path, kind):
    array, tensor, items, data = np.zeros(2), torch.zeros(2), [0], bytearray(b"0")
    row = {}

    def same_row():
        for number in range(3):
            row["x"] = number
            yield row

    rows, wanted = {
        "array": (again(array.fill, array), [[0, 0], [1, 1], [2, 2]]),
        "tensor": (again(tensor.fill_, tensor), [[0, 0], [1, 1], [2, 2]]),
        "list": (again(lambda n: items.__setitem__(0, n), items), [[0], [1], [2]]),
        "bytes": (again(lambda n: data.__setitem__(0, 48 + n), data), [b"0", b"1", b"2"]),
        "dictionary": (same_row(), [0, 1, 2]),
    }[kind]
    with StreamWriter(tmp_path) as writer:
        writer.write(rows)
    assert rows_in(tmp_path)["x"] == wanted


def test_tables_may_be_filled_again(tmp_path):
    pandas = pytest.importorskip("pandas")
    array, frame = np.zeros(2), pandas.DataFrame({"x": np.zeros(2)})
    with StreamWriter(tmp_path) as writer:
        for number in range(3):
            array.fill(number)
            writer.write(pa.table({"x": array}))
            frame.loc[:, "x"] = 10.0 + number
            writer.write(frame)
    assert rows_in(tmp_path)["x"] == [0, 0, 10, 10, 1, 1, 11, 11, 2, 2, 12, 12]


def test_rows_after_the_end_are_refused(tmp_path):
    with StreamWriter(tmp_path) as writer:
        writer.write({"x": 1})
    with pytest.raises(DataError, match="this writer has ended"):
        writer.write({"x": 2})
    assert rows_in(tmp_path) == {"x": [1]}


def test_a_view_of_numbers_is_numbers(tmp_path):
    with StreamWriter(tmp_path) as writer:
        writer.write({"x": memoryview(np.arange(3, dtype=np.int32)), "b": memoryview(b"ab")})
    assert rows_in(tmp_path) == {"x": [[0, 1, 2]], "b": [b"ab"]}


def test_tensors_without_values_are_refused_by_name(tmp_path):
    for value in (torch.ones(2, device="meta"), torch.eye(2).to_sparse()):
        with StreamWriter(tmp_path / "s") as writer:
            words = r"row 1: column 'x': tensor\((.|\n)*cannot be stored"
            with pytest.raises(DataError, match=words):
                writer.write({"x": value})
            writer.write({"x": 1})
        shutil.rmtree(tmp_path / "s")


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "s").write_text("a file")
    with pytest.raises(StoreError, match="not a folder"), StreamWriter(tmp_path / "s") as writer:
        writer.write({"x": 1})
