"""Encoded columns: read and written as the values that they encode."""

import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from raytrain_plus.streams.columns import DataError, columns_of, plain, plain_type
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter
from tests.streams.arrow_data import write_ipc

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
ENCODED = {
    "category": (pa.array(["a", "b", "a", "c"]).dictionary_encode(), pa.string()),
    "runs": (pc.run_end_encode(pa.array([1, 1, 2, 3])), pa.int64()),
    "text view": (pa.array(["a", "b" * 30, "", "c"], pa.string_view()), pa.string()),
    "bytes view": (pa.array([b"a", b"b" * 30, b"", b"c"], pa.binary_view()), pa.binary()),
    "hashes": (pa.array([b"ab", b"cd", b"ef", b"gh"], pa.binary(2)), pa.binary()),
    "list view": (
        pa.array([[1, 2], [], [3], [4, 5]], pa.list_view(pa.int64())),
        pa.list_(pa.int64()),
    ),
    "large list view": (
        pa.array([[1, 2], [], [3], [4, 5]], pa.large_list_view(pa.int64())),
        pa.large_list(pa.int64()),
    ),
    "image": (
        pa.array([{"bytes": b"png%d" % i, "path": "a"} for i in range(4)], IMAGE),
        pa.binary(),
    ),
    "pairs of categories": (
        pa.FixedSizeListArray.from_arrays(pa.array([1, 2] * 4).dictionary_encode(), 2),
        pa.list_(pa.int64(), 2),
    ),
}


def values(array):
    is_image = plain_type(array.type) == pa.binary() and pa.types.is_struct(array.type)
    return [v["bytes"] if is_image else v for v in array.to_pylist()]


def read_all(data, columns=None):
    source = open_source(data, columns)
    batch = load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)
    return {
        name: [v.tolist() if hasattr(v, "tolist") else v for v in column]
        for name, column in batch.items()
    }


@pytest.mark.parametrize("name", ENCODED)
@pytest.mark.parametrize(("start", "stop"), [(0, 4), (1, 4), (1, 3), (2, 2)])
def test_the_plain_form_has_the_same_values(name, start, stop):
    array, kind = ENCODED[name]
    cut = array[start:stop]
    assert plain_type(array.type) == kind
    assert plain(cut).type == kind
    assert plain(cut).to_pylist() == values(array)[start:stop]
    plain(cut).validate(full=True)


def test_plain_columns_are_not_copied():
    array = pa.array([[1], [2, 3]])
    assert plain(array) is array


def test_nulls_stay_nulls():
    views = pa.array([[1], None, [2]], pa.list_view(pa.int64()))
    assert plain(views).to_pylist() == [[1], None, [2]]
    assert plain(pa.array(["a", None]).dictionary_encode()).to_pylist() == ["a", None]


@pytest.mark.parametrize("name", ENCODED)
def test_encoded_columns_are_read_and_written(name, tmp_path):
    array, _ = ENCODED[name]
    table = pa.table({"x": array})
    expected = {"x": values(array)}
    assert read_all(table) == expected
    write_ipc(table, tmp_path / "a.arrow")
    assert read_all(tmp_path / "a.arrow") == expected
    with StreamWriter(tmp_path / "s") as writer:
        writer.write(table.slice(0, 1))
        writer.write(table.slice(1))
    assert read_all(Stream(tmp_path / "s", cache=tmp_path / "c")) == expected


@pytest.mark.parametrize("name", ["category", "text view", "image"])
def test_encoded_columns_of_parquet_are_read(name, tmp_path):
    array, _ = ENCODED[name]
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"x": array}), tmp_path / "p" / "a.parquet")
    expected = {"x": values(array)}
    assert read_all(tmp_path / "p" / "a.parquet") == expected
    assert read_all(Stream(tmp_path / "p", cache=tmp_path / "c")) == expected


def test_empty_lists_are_not_nulls(tmp_path):
    lists = [[1, 2], [], [3]]
    (tmp_path / "p").mkdir()
    pq.write_table(pa.table({"x": lists}), tmp_path / "p" / "a.parquet")
    for data in (
        pa.table({"x": lists}),
        tmp_path / "p" / "a.parquet",
        tmp_path / "p",
        Stream(tmp_path / "p", cache=tmp_path / "c"),
    ):
        assert read_all(data) == {"x": lists}


@pytest.mark.parametrize("column", [[[1], None], [[1], [None]], [1, None]])
def test_nulls_in_parquet_are_still_refused(column, tmp_path):
    pq.write_table(pa.table({"x": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'x' .* holds nulls"):
        read_all(tmp_path / "a.parquet")


@pytest.mark.parametrize(
    "kind",
    [pa.month_day_nano_interval(), pa.sparse_union([pa.field("a", pa.int8())]), pa.null()],
)
def test_types_without_a_tensor_are_refused_by_name(kind):
    with pytest.raises(DataError, match=r"column 'x' of it is of type .*--columns"):
        columns_of(pa.schema([("x", kind)]), None, "it")


def test_wide_tables_cost_in_proportion_to_their_width():
    def cost(width):
        schema = pa.schema([(f"c{i}", pa.float32()) for i in range(width)])
        begun = time.process_time()
        columns_of(schema, None, "it")
        return time.process_time() - begun

    cost(100)
    assert cost(8000) < 2  # seconds; it was 20 when each name searched a new list
