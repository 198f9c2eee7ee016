"""Data that cannot be read is refused, and the error says what is wrong with it."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.storage.errors import StorageError
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.convert import read_any
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.arrow_data import (
    N,
    as_compressed_batches,
    as_mapped_file,
    as_parquet,
    as_stream,
    gather,
    tensors,
    write_folder,
    write_ipc,
)

UNSUPPORTED = {
    "nothing": pa.nulls(1),
    "intervals": pa.array([(1, 2, 3)], pa.month_day_nano_interval()),
    "unions": pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1])]),
    "transposed": tensors(np.zeros((1, 2, 3)), permutation=[1, 0]),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_a_column_of_another_type_is_refused_by_name_and_may_be_left_out(name, tmp_path):
    table = pa.table({"fine": [1], name: UNSUPPORTED[name]})
    for data in (table, as_mapped_file(table, tmp_path)):
        with pytest.raises(DataError, match=f"{name!r}.*columns") as caught:
            open_source(data)
        assert str(table.schema.field(name).type) in str(caught.value)
        assert gather(open_source(data, ["fine"]), "fine").tolist() == [1]


NULLS = {
    "scalar": pa.array([1, None, 3]),
    "flag": pa.array([True, None, False]),
    "list": pa.array([[1], None, [3]], pa.list_(pa.int32(), 1)),
    "item": pa.array([[1], [None], [3]], pa.list_(pa.int32(), 1)),
}


@pytest.mark.parametrize("kind", NULLS)
def test_nulls_are_refused_before_rows_are_returned(kind, tmp_path):
    table = pa.table({"fine": [1, 2, 3], "holed": NULLS[kind]})
    pq.write_table(table, tmp_path / "blind.parquet", write_statistics=False)
    for data in (table, as_parquet(table, tmp_path)):
        with pytest.raises(DataError, match=r"'holed'.*nulls"):
            open_source(data)
        assert gather(open_source(data, ["fine"]), "fine").tolist() == [1, 2, 3]
    late = (tmp_path / "blind.parquet", as_mapped_file(table, tmp_path))
    for source in map(open_source, late):
        with pytest.raises(DataError, match=r"'holed'.*nulls"):
            gather(source, "holed", [0])
    without = table.slice(0, 1)
    assert gather(open_source(without), "holed").ravel().tolist() == [1]


def test_missing_and_doubled_columns_are_named():
    table = pa.table([[1], [2], [3]], names=["a", "b", "b"])
    with pytest.raises(DataError, match="no column 'c'; it has 'a', 'b'"):
        open_source(table, ["a", "c"])
    with pytest.raises(DataError, match="more than one column 'b'"):
        open_source(table)
    with pytest.raises(DataError, match=r"must be a list of names: \['a'\]"):
        open_source(table, "a")
    with pytest.raises(DataError, match="no column of the table is selected"):
        open_source(table, [])
    assert gather(open_source(table, ["a"]), "a").tolist() == [1]


def test_missing_data_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"has no data file.*\.parquet"):
        open_source(tmp_path)
    with pytest.raises(StorageError, match="file://elsewhere/train is not on this machine"):
        open_source("file://elsewhere/train")
    with pytest.raises(DataError, match=r"a list that holds a int; a list names files"):
        open_source([1, 2])
    with pytest.raises(DataError, match=r"data is a int, but must be a table or frame"):
        open_source(1)


def test_data_without_rows_is_refused(tmp_path):
    empty = pa.table({"x": pa.array([], pa.int32())})
    with pytest.raises(DataError, match="the table has no rows"):
        open_source(empty)
    with pytest.raises(DataError, match=r"a\.arrow has no rows"):
        open_source(as_mapped_file(empty, tmp_path))
    with pytest.raises(DataError, match="data has no rows"):
        open_source(write_folder(empty, tmp_path / "data", [0, 0]))


def test_files_with_different_columns_are_both_named(tmp_path):
    write_ipc(pa.table({"x": [1], "y": [1.0]}), tmp_path / "a.arrow")
    write_ipc(pa.table({"x": [True], "z": [1], "y": [2.0]}), tmp_path / "b.arrow")
    with pytest.raises(DataError, match=r"a\.arrow and .*b\.arrow differ") as caught:
        open_source(tmp_path)
    assert "column 'x' is int64 of shape () in the first and bool" in str(caught.value)
    assert "column 'z' is absent" in str(caught.value)
    assert "'y'" not in str(caught.value)
    assert gather(open_source(tmp_path, ["y"]), "y").tolist() == [1.0, 2.0]


@pytest.mark.parametrize("form", [as_mapped_file, as_compressed_batches, as_stream, as_parquet])
def test_a_file_truncated_anywhere_is_refused(form, tmp_path):
    table = pa.table({"x": np.arange(N)})
    form(table, tmp_path)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    assert gather(open_source(path), "x").tolist() == list(range(N))
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=path.name):
            open_source(path)


def test_a_damaged_file_is_named_when_it_is_read(tmp_path):
    path = tmp_path / "a.feather"
    as_compressed_batches(pa.table({"x": np.arange(5000)}), tmp_path)
    content = bytearray(path.read_bytes())
    magic = content.index(b"\x28\xb5\x2f\xfd")
    content[magic : magic + 4] = b"\0\0\0\0"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.feather cannot be read.*copy it again"):
        gather(open_source(path), "x")


def test_a_file_that_changes_during_a_run_is_noticed(tmp_path):
    source = open_source(as_mapped_file(pa.table({"x": [1, 2, 3]}), tmp_path))
    as_mapped_file(pa.table({"x": [1, 2]}), tmp_path)
    with pytest.raises(DataError, match=r"a\.arrow was replaced or overwritten"):
        gather(source, "x")


def test_a_text_file_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    path.write_text("label,pixel\n1,2\n")
    with pytest.raises(DataError, match=r"a\.arrow is neither an Arrow IPC file nor a Parquet"):
        open_source(path)


@pytest.mark.parametrize("read", [open_source, read_any])
def test_a_pipe_is_refused_without_waiting(read, tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    os.mkfifo(tmp_path / "b.parquet")
    for place in (tmp_path, tmp_path / "b.parquet"):
        with pytest.raises(DataError, match=r"b\.parquet is no regular file"):
            read(place)


@pytest.mark.parametrize("read", [open_source, read_any])
def test_an_empty_file_is_reported_as_empty(read, tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").touch()
    with pytest.raises(DataError, match=r"b\.parquet is empty \(0 bytes\)"):
        read(tmp_path)


@pytest.mark.parametrize("read", [open_source, read_any])
def test_columns_of_one_name_are_refused(read, tmp_path):
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has more than one column 'x'"):
        read(tmp_path)


def test_a_column_of_nulls_only_is_reported():
    with pytest.raises(DataError, match=r"column 'x' of the table .* nothing but nulls"):
        open_source(pa.table({"x": pa.nulls(2)}))


@pytest.mark.parametrize("name", [".", "..", "a\0b", "a\nb", "", "../a"])
def test_a_manifest_that_names_no_file_is_refused(name, tmp_path):
    with StreamWriter(tmp_path / "s") as writer:
        writer.write({"x": 1})
    path = tmp_path / "s" / MANIFEST
    described = json.loads(path.read_text())
    described["files"][0]["name"] = name
    path.write_text(json.dumps(described))
    with pytest.raises(DataError, match="is not a manifest"):
        open_source(tmp_path / "s")
