"""Rows of tables, files and folders are read as written, or an error says what is wrong."""

import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain_plus.streams.columns import Column, DataError
from raytrain_plus.streams.opening import open_source
from tests.streams.arrow_data import (
    N,
    as_compressed_batches,
    as_folder,
    as_is,
    as_mapped_file,
    as_parquet,
    as_parquet_folder,
    as_slice_of_chunks,
    as_stream,
    every_type,
    fixed_list,
    gather,
    table_of,
    tensors,
    write_folder,
    write_ipc,
)

FORMS = [
    as_is,
    as_slice_of_chunks,
    as_mapped_file,
    as_compressed_batches,
    as_stream,
    as_parquet,
    as_folder,
    as_parquet_folder,
]


@pytest.mark.parametrize("form", FORMS)
def test_every_type_is_read_as_it_was_written(form, tmp_path):
    columns = every_type()
    source = open_source(form(table_of(columns), tmp_path))
    assert source.total_rows == N
    assert list(source.columns) == list(columns)
    for name, (_, values) in columns.items():
        assert source.columns[name] == Column(values.dtype, values.shape[1:])
        np.testing.assert_array_equal(gather(source, name), values)
        mixed = [10, 3, 3, 0, 9, 4]
        np.testing.assert_array_equal(gather(source, name, mixed), values[mixed])


@pytest.mark.parametrize("form", FORMS)
def test_selected_columns_come_in_the_order_of_the_selection(form, tmp_path):
    columns = every_type()
    source = open_source(form(table_of(columns), tmp_path), ["tensors", "int8", "tensors"])
    assert list(source.columns) == ["tensors", "int8"]
    np.testing.assert_array_equal(gather(source, "int8"), columns["int8"][1])


@pytest.mark.parametrize("form", FORMS)
def test_a_source_is_pickled_by_what_it_opened(form, tmp_path):
    source = open_source(form(table_of(every_type()), tmp_path), ["float32"])
    copy = pickle.loads(pickle.dumps(source))
    assert copy.identity == source.identity
    assert list(copy.columns) == ["float32"]
    np.testing.assert_array_equal(gather(copy, "float32"), gather(source, "float32"))


def test_a_pickled_file_is_small(tmp_path):
    table = pa.table({"x": np.zeros(10_000)})
    assert len(pickle.dumps(open_source(as_mapped_file(table, tmp_path)))) < 1000


def test_a_folder_has_its_files_and_a_table_small_pieces(tmp_path):
    table = pa.table({"x": np.arange(N)})
    folder = open_source(as_folder(table, tmp_path))
    assert folder.rows.tolist() == [4, 0, 6, 1]
    assert folder.window == 8
    for whole in (open_source(table), open_source(as_mapped_file(table, tmp_path))):
        assert whole.rows.tolist() == [1] * N
        assert whole.window is None


def test_a_table_of_more_than_a_million_rows_has_pieces_of_several_rows():
    table = pa.table({"x": np.arange(2**21 + 3, dtype=np.int32)})
    source = open_source(table)
    assert source.rows[:-1].tolist() == [3] * (len(source.rows) - 1)
    assert source.rows.sum() == source.total_rows == table.num_rows
    places = [0, 4, 2**21 + 2, 1_234_567]
    assert gather(source, "x", places).tolist() == places


def test_only_data_files_of_a_folder_are_read(tmp_path):
    folder = as_folder(pa.table({"x": np.arange(N)}), tmp_path)
    for name in ("other.json", ".hidden.arrow", "_temporary.parquet", "readme.txt"):
        (folder / name).write_text("not data")
    assert gather(open_source(folder), "x").tolist() == list(range(N))
    (folder / "not hidden.arrow").write_text("not data")
    with pytest.raises(DataError, match=r"not hidden\.arrow"):
        open_source(folder)


def test_files_that_store_a_shape_differently_can_be_combined(tmp_path):
    values = np.arange(12, dtype=np.float32).reshape(6, 2)
    write_ipc(pa.table({"x": fixed_list(values[:3], 2)}), tmp_path / "a.arrow")
    pq.write_table(pa.table({"y": [0] * 3, "x": tensors(values[3:])}), tmp_path / "b.parquet")
    np.testing.assert_array_equal(gather(open_source(tmp_path, ["x"]), "x"), values)


def test_only_an_uncompressed_file_is_read_without_a_copy(tmp_path):
    table = pa.table({"x": np.zeros(2**17), "y": tensors(np.zeros((2**17, 2)))})

    def allocated(**options):
        path = write_ipc(table, tmp_path / "a.arrow", **options)
        before = pa.total_allocated_bytes()
        source = open_source(path)
        for name in source.columns:
            gather(source, name, [0])
        return pa.total_allocated_bytes() - before

    assert allocated() < 2**17
    assert allocated(compression="lz4") > 2**20


def test_a_bounded_number_of_files_stays_open(tmp_path, monkeypatch):
    folder = write_folder(pa.table({"x": np.arange(40)}), tmp_path / "data", [2] * 20)
    source = open_source(folder)
    reads = []
    kind = type(source.shards[0])
    read = kind.read
    monkeypatch.setattr(kind, "read", lambda file: (reads.append(file.path.name), read(file))[1])
    assert gather(source, "x").tolist() == list(range(40))
    assert len(source._opened) == source.open_files == 16
    assert len(reads) == 20
    gather(source, "x", range(8, 40))
    assert len(reads) == 20
    gather(source, "x", [8])
    gather(source, "x", [0])
    gather(source, "x", [8])
    assert reads[20:] == ["000.arrow"]
    gather(source, "x", [10])
    assert reads[21:] == ["005.arrow"]


def test_a_gather_refuses_invalid_arguments():
    source = open_source(pa.table({"x": pa.array([1, 2, 3], pa.int32())}))
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="no column 'y'; there are 'x'"):
        source.gather(one, one, "y", np.empty(1, np.int32))
    for out in (np.empty(1, np.int64), np.empty(2, np.int32), np.empty((1, 1), np.int32)):
        with pytest.raises(ValueError, match="column 'x' needs int32"):
            source.gather(one, one, "x", out)
    for files, rows in ((one + 3, one), (one - 1, one), (one, one + 1), (one, one - 1)):
        with pytest.raises(IndexError):
            source.gather(files, rows, "x", np.empty(1, np.int32))


def test_nothing_is_gathered_for_no_rows():
    source = open_source(pa.table({"x": [1]}))
    none = np.empty(0, np.int64)
    source.gather(none, none, "x", np.empty(0, np.int64))


def test_the_identity_of_a_table_depends_on_its_values():
    columns = every_type()
    table = table_of(columns)
    identity = open_source(table).identity
    assert len(identity) == 64
    assert open_source(as_slice_of_chunks(table, None)).identity == identity
    assert open_source(table.replace_schema_metadata({"by": "me"})).identity == identity
    assert open_source(table.slice(1)).identity != identity
    for name, (_, values) in columns.items():
        sizes = values.shape[:0:-1]
        same = columns | {name: (fixed_list(values, *sizes), None)}
        assert open_source(table_of(same)).identity == identity, name
        changed = values.copy()
        changed.ravel()[-1] = not changed.ravel()[-1]
        other = columns | {name: (fixed_list(changed, *sizes), None)}
        assert open_source(table_of(other)).identity != identity, name


def test_the_identity_covers_names_and_types():
    base = pa.table({"a": pa.array([1, 2], pa.int32())})
    identities = {
        open_source(table).identity
        for table in (
            base,
            base.rename_columns(["b"]),
            base.cast(pa.schema({"a": pa.uint32()})),
            pa.table({"a": fixed_list(np.array([[1], [2]], np.int32), 1)}),
        )
    }
    assert len(identities) == 4


def test_the_identity_of_files_depends_on_their_names_sizes_rows_and_times(tmp_path):
    table = pa.table({"x": np.arange(N)})

    def identity(name, lengths, seconds=1, *, hash_data=False):
        folder = write_folder(table, tmp_path / name, lengths)
        for path in folder.iterdir():
            os.utime(path, (seconds, seconds))
        return open_source(folder, hash_data=hash_data).identity

    one = identity("one", [5, 6])
    assert identity("two", [5, 6]) == one
    assert identity("three", [6, 5]) != one
    assert identity("four", [5, 6], seconds=2) != one
    hashed = identity("five", [5, 6], hash_data=True)
    assert identity("six", [5, 6], seconds=2, hash_data=True) == hashed != one
    renamed = write_folder(table, tmp_path / "seven", [5, 6])
    (renamed / "001.arrow").rename(renamed / "002.arrow")
    for path in renamed.iterdir():
        os.utime(path, (1, 1))
    assert open_source(renamed).identity != one
