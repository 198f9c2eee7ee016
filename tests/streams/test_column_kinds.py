"""A column of each kind has the same values in a table, in files, and after `data write`."""

import datetime as dt
import decimal
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.loader import load_part
from raytrain_plus.streams.opening import open_source
from raytrain_plus.streams.rows import RowError, table_of
from raytrain_plus.streams.stream import Stream
from raytrain_plus.streams.writer import StreamWriter


def read(data, columns=None):
    source = open_source(data, columns)
    batch = load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)
    source.close()
    return {name: plainly(values) for name, values in batch.items()}


def plainly(value):
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return [plainly(one) for one in value] if isinstance(value, list) else value


def forms(table, folder, fill=None):
    """Return the same rows as a table, as files, through the cache, and as a stream."""
    folder.mkdir()
    (folder / "parquet").mkdir()
    pq.write_table(table, folder / "parquet" / "a.parquet")
    with pa.ipc.new_file(folder / "a.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=2)
    with StreamWriter(folder / "stream", fill=fill, warn=False) as writer:
        writer.write(table)
    place = {"cache": folder / "cache", "fill": fill or {}}
    return {
        "arrow": Stream(folder / "a.arrow", **place),
        "parquet": Stream(folder / "parquet" / "a.parquet", **place),
        "cached": Stream(folder / "parquet", **place),
        "written": str(folder / "stream"),
        **({} if fill else {"table": table}),
    }


DAY = dt.date(2024, 1, 2)
NOON = dt.datetime(2024, 1, 2, 12, tzinfo=dt.UTC)
SECONDS = int(NOON.timestamp())
CHAT = [
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": "x"}, {"role": "bot", "content": None}],
    [],
]

KINDS = {
    "date32": (pa.array([DAY] * 3), [19724] * 3),
    "date64": (pa.array([DAY] * 3, pa.date64()), [19724] * 3),
    "timestamp": (pa.array([NOON] * 3, pa.timestamp("ms", "UTC")), [SECONDS * 1000] * 3),
    "time32": (pa.array([1, 2, 3], pa.time32("ms")), [1, 2, 3]),
    "time64": (pa.array([1, 2, 3], pa.time64("ns")), [1, 2, 3]),
    "duration": (pa.array([1, -2, 3], pa.duration("us")), [1, -2, 3]),
    "decimal": (pa.array([decimal.Decimal("0.10")] * 3, pa.decimal128(9, 2)), [0.1] * 3),
    "whole decimal": (
        pa.array([10**17 + 1, -5, 0], pa.decimal128(18, 0)),
        [10**17 + 1, -5, 0],
    ),
    "float16": (pa.array(np.array([0.5, 1, 2], np.float16)), [0.5, 1, 2]),
    "flags": (pa.array([[True], [False, True], []]), [[True], [False, True], []]),
    "dictionary": (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    "string view": (pa.array(["a", "b", "c" * 20], pa.string_view()), ["a", "b", "c" * 20]),
    "large string": (pa.array(["a", "b", ""], pa.large_string()), ["a", "b", ""]),
    "binary view": (pa.array([b"a", b"b", b""], pa.binary_view()), [b"a", b"b", b""]),
    "fixed binary": (pa.array([b"ab"] * 3, pa.binary(2)), [b"ab"] * 3),
    "boxes": (
        pa.array([[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]], pa.list_(pa.list_(pa.float32(), 2))),
        [[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]],
    ),
    "dates of a row": (pa.array([[DAY], [], [DAY, DAY]]), [[19724], [], [19724, 19724]]),
    "lists of lists": (pa.array([[[1], [2, 3]], [], [[]]]), [[[1], [2, 3]], [], [[]]]),
    "texts": (pa.array([["a", "b"], [], ["c"]]), [["a", "b"], [], ["c"]]),
    "coded texts": (
        pa.array([["a"], [], ["c"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        [["a"], [], ["c"]],
    ),
    "texts of two": (
        pa.array([["a", "b"]] * 3, pa.list_(pa.string(), 2)),
        [["a", "b"]] * 3,
    ),
    "chat": (pa.array(CHAT), CHAT),
    "struct": (
        pa.array([{"a": 1, "b": ["x"]}, {"a": None, "b": []}, {"a": 3, "b": None}]),
        [{"a": 1, "b": ["x"]}, {"a": None, "b": []}, {"a": 3, "b": None}],
    ),
    "map": (
        pa.array([[("a", 1)], [], [("b", 2), ("c", 3)]], pa.map_(pa.string(), pa.int64())),
        [{"a": 1}, {}, {"b": 2, "c": 3}],
    ),
    "uuid": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16] * 3, pa.binary(16))),
        [b"0" * 16] * 3,
    ),
}


def test_every_kind_of_column_has_the_same_values_everywhere(tmp_path):
    table = pa.table({name: array for name, (array, _) in KINDS.items()})
    expected = {name: values for name, (_, values) in KINDS.items()}
    for form, data in forms(table, tmp_path / "d").items():
        found = read(data)
        for name, values in expected.items():
            assert found[name] == values, (form, name)
    types = {name: read_types(table)[name] for name in ("date32", "timestamp", "boxes", "flags")}
    assert types == {
        "date32": torch.int64,
        "timestamp": torch.int64,
        "boxes": torch.float32,
        "flags": torch.bool,
    }


def read_types(table):
    source = open_source(table)
    batch = load_part(source, source.plain_order(1), 0, 0, 0, source.total_rows)
    return {
        name: getattr(values if isinstance(values, torch.Tensor) else values[0], "dtype", None)
        for name, values in batch.items()
    }


def test_an_item_of_a_list_may_have_a_shape():
    source = open_source(pa.table({"boxes": KINDS["boxes"][0]}))
    assert source.columns["boxes"].shape == (-1, 2)
    assert source.count_items("boxes") == 3
    batch = load_part(source, source.plain_order(1), 0, 0, 0, 3)
    assert [tuple(one.shape) for one in batch["boxes"]] == [(1, 2), (0, 2), (2, 2)]


def test_units_of_time_are_not_mixed(tmp_path):
    for unit in ("ms", "us"):
        pq.write_table(pa.table({"t": pa.array([1], pa.timestamp(unit))}), tmp_path / f"{unit}.pq")
    with pytest.raises(
        DataError, match=r"'t' is int64 of shape \(\), ms since 1970-01-01 in the f"
    ):
        open_source(tmp_path)


def test_rows_of_python_may_be_nested_and_gain_fields(tmp_path):
    rows = [
        {"messages": [{"role": "user"}], "day": DAY, "tags": ["a"]},
        {"messages": [], "day": DAY, "tags": []},
        {"messages": [{"role": "bot", "tool": {"name": "f"}}], "day": DAY, "tags": ["b", "c"]},
    ]
    with StreamWriter(tmp_path / "s", file_size=50, warn=False) as writer:
        for row in rows:
            writer.write(row)
    found = read(str(tmp_path / "s"))
    assert found["messages"] == [
        [{"role": "user", "tool": None}],
        [],
        [{"role": "bot", "tool": {"name": "f"}}],
    ]
    assert found["tags"] == [["a"], [], ["b", "c"]]
    assert found["day"] == [19724] * 3
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"m": r["messages"]}) + "\n" for r in rows)
    )
    assert read(str(tmp_path / "a.jsonl"))["m"] == found["messages"]
    with pytest.raises(RowError):  # negative control: fields of one name hold one kind
        table_of([{"m": [{"role": "a"}]}, {"m": [{"role": 1}]}])


HOLED = {
    "number": (pa.array([1, None, 3]), 7, [1, 7, 3]),
    "flag": (pa.array([True, None, False]), True, [True, True, False]),
    "text": (pa.array(["a", None, "c"]), "-", ["a", "-", "c"]),
    "day": (pa.array([DAY, None, DAY]), dt.date(1970, 1, 2), [19724, 1, 19724]),
    "price": (pa.array([decimal.Decimal("1.50"), None, None]), 0.25, [1.5, 0.25, 0.25]),
    "vector": (
        pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2)),
        0,
        [[1, 2], [0, 0], [3, 0]],
    ),
    "tokens": (pa.array([[1], None, [2, 3]]), [], [[1], [], [2, 3]]),
    "items": (pa.array([[1], [None], [2, 3]]), -1, [[1], [-1], [2, 3]]),
    "chat": (pa.array([CHAT[0], None, []]), [], [CHAT[0], [], []]),
}


def test_nulls_are_filled_where_it_is_said(tmp_path):
    table = pa.table({name: array for name, (array, _, _) in HOLED.items()})
    fill = {name: value for name, (_, value, _) in HOLED.items()}
    for form, data in forms(table, tmp_path / "d", fill).items():
        assert read(data) == {name: values for name, (_, _, values) in HOLED.items()}, form
    identities = {
        open_source(Stream(tmp_path / "d" / "a.arrow", columns=["number"], fill=one)).identity
        for one in ({"number": 7}, {"number": 8})
    }
    assert len(identities) == 2  # other values, so another data set


@pytest.mark.parametrize("name", HOLED)
def test_nulls_are_refused_with_row_column_and_what_to_do(name, tmp_path):
    table = pa.table({name: HOLED[name][0]})
    row = 2
    with pytest.raises(
        DataError, match=rf"'{name}' of the table .*row {row}.*fill=.*--fill {name}="
    ):
        open_source(table)
    with StreamWriter(tmp_path / "s") as writer:
        with pytest.raises(DataError, match=rf"row {row}: column '{name}' holds nulls.*--fill"):
            writer.write(table)
        writer.write({"x": 1})


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        ({"x": "a"}, "`fill` for column 'x' of .*'a' is not a value of type int64"),
        ({"x": 1.5}, "1.5 is not a value of type int64"),
        ({"x": True}, "True is not a value of type int64"),
        ({"x": None}, "None is a null itself"),
        ({"y": 1}, "`fill` names the column 'y'"),
        (1, "fill is 1, but must be a mapping"),
    ],
)
def test_a_fill_that_does_not_fit_is_refused(fill, words, tmp_path):
    pq.write_table(pa.table({"x": [1, None]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=words):
        open_source(Stream(tmp_path / "a.parquet", fill=fill))


def test_images_that_are_only_named_are_refused(tmp_path):
    fields = [("bytes", pa.binary()), ("path", pa.string())]
    images = [{"bytes": b"png", "path": "1.png"}, {"bytes": None, "path": "2.png"}]
    table = pa.table({"image": pa.array(images, pa.struct(fields))})
    assert read(table.slice(0, 1)) == {"image": [b"png"]}
    with pytest.raises(DataError, match=r"names files, such as '2\.png', .*save_to_disk"):
        open_source(table)
    with StreamWriter(tmp_path / "s") as writer:
        with pytest.raises(DataError, match="names files, such as '2"):
            writer.write(table)
        writer.write(table.slice(0, 1))


def hugging_face(table, features):
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return table.replace_schema_metadata(metadata)


def test_arrays_of_hugging_face_are_tensors(tmp_path):
    rows = [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]]
    table = pa.table({"a": pa.array(rows, pa.list_(pa.list_(pa.float32()))), "n": [[[1]], []]})
    features = {
        "a": {"shape": [2, 2], "dtype": "float32", "_type": "Array2D"},
        "n": {"shape": [None, 1], "dtype": "int64", "_type": "Array2D"},
    }
    declared = hugging_face(table, features)
    for form, data in forms(declared, tmp_path / "d").items():
        source = open_source(data)
        batch = load_part(source, source.plain_order(1), 0, 0, 0, 2)
        assert torch.equal(batch["a"], torch.tensor(rows)), form
        source.close()
    assert open_source(declared).columns["n"].shape == (-1, 1)
    assert open_source(table).columns["a"].kind == "nested"  # without the declaration
    wrong = hugging_face(table, {"a": {**features["a"], "shape": [2, 3]}})
    with pytest.raises(DataError, match=r"'a' .* another shape than its declared one, \(2, 3\)"):
        open_source(wrong)
