"""Values of a column are read as they were written, or are refused with their place."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain_plus.streams.check import verify_stream
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.format import MANIFEST, StreamManifest
from raytrain_plus.streams.rows import RowError, table_of
from raytrain_plus.streams.widening import InexactError, cast_exactly, wider
from raytrain_plus.streams.writer import StreamWriter

FIRST = 1024  # rows that a writer processes at a time: types follow from the rows so far


def stored(folder):
    """Return the rows of a stream as its files hold them."""
    manifest = StreamManifest.parse((folder / MANIFEST).read_bytes(), "it")
    tables = [pa.ipc.open_file(str(folder / file.name)).read_all() for file in manifest.files]
    assert all(table.schema.equals(manifest.schema) for table in tables)
    assert verify_stream(folder)["problems"] == []
    assert verify_stream(folder)["extra"] == []
    return pa.concat_tables(tables)


def written(folder, *pieces, **settings):
    with StreamWriter(folder, **settings) as writer:
        for piece in pieces:
            writer.write(piece)
    return stored(folder)


# -- rows of Python values


@pytest.mark.parametrize(
    ("early", "late", "kind"),
    [
        (1, 0.75, pa.float64()),
        (0.75, 1, pa.float64()),
        (2**53, 0.5, pa.float64()),
        (-(2**60), 0.5, pa.float64()),
        (1, -0.0, pa.float64()),
        (1, math.inf, pa.float64()),
        (np.int8(1), np.int64(2**40), pa.int64()),
        (np.uint8(200), np.int8(-1), pa.int16()),
        (np.float16(0.1), 0.1, pa.float64()),
        (np.float32(0.1), 0.1, pa.float64()),
        (np.float32(0.1), np.int16(3), pa.float32()),
        (np.float32(0.1), np.int32(2**24 + 1), pa.float64()),
        (np.float64(0.1), np.uint64(2**60), pa.float64()),
        (1, np.uint64(7), pa.int64()),
        (torch.tensor(1), torch.tensor(0.5), pa.float64()),
        (True, np.bool_(False), pa.bool_()),
        ("a", "ä" * 50, pa.string()),
        ([], [1], pa.list_(pa.int64())),
        ([1, 2], [0.5], pa.list_(pa.float64())),
        ([np.int8(1)], np.array([0.1], np.float32).tolist(), pa.list_(pa.float64())),
        ([2**63], [2**64 - 1], pa.list_(pa.uint64())),
    ],
)
@pytest.mark.parametrize("how", ["one by one", "together", "far apart", "files apart"])
def test_a_column_grows_to_hold_every_value(early, late, kind, how, tmp_path):
    before = [early] * (FIRST if how == "far apart" else 20 if how == "files apart" else 1)
    rows = [{"x": value} for value in [*before, late]]
    size = 64 if how == "files apart" else "64MB"
    pieces = [iter(rows)] if how in ("together", "far apart") else rows
    column = written(tmp_path / "s", *pieces, file_size=size)["x"]
    plain = [v.tolist() if hasattr(v, "tolist") else v for v in [*before, late]]
    assert column.to_pylist() == plain
    if isinstance(plain[-1], float):
        assert math.copysign(1, column.to_pylist()[-1]) == math.copysign(1, plain[-1])
    if how != "together":
        assert column.type == kind


@pytest.mark.parametrize(
    ("early", "late"),
    [
        (2**53 + 1, 0.5),
        (0.5, 2**53 + 1),
        (np.int64(2**53 + 1), 0.5),
        ([2**53 + 1], [0.5]),
        (True, 1),
        (1, True),
        (1.5, True),
        (np.True_, 1),
        (1, np.True_),
        ([True], [1]),
        ("a", b"b"),
        (b"a", "b"),
        (1, "1"),
        ("1", 1),
        ([1], ["1"]),
        (1, [1]),
        (1, None),
        (2**64, 1),
        (-1, 2**63),
        (np.int64(-1), np.uint64(2**63)),
        ([np.int64(-1)], [np.uint64(2**63)]),
        (np.zeros(2), np.zeros(3)),
        (np.zeros(2, bool), np.zeros(2)),
        (np.array([2**53 + 1]), np.array([0.5])),
        (np.zeros(2), [0.0, 1.0]),
    ],
)
@pytest.mark.parametrize("how", ["one by one", "together", "far apart", "files apart"])
def test_values_without_a_common_type_are_refused(early, late, how, tmp_path):
    count = FIRST if how == "far apart" else 20 if how == "files apart" else 1
    if how == "together" and isinstance(late, list) and isinstance(early, np.ndarray):
        pytest.skip("rows that are given together may mix lists and arrays: they become lists")
    rows = [{"x": value} for value in [*[early] * count, late]]
    pieces = [iter(rows)] if how in ("together", "far apart") else rows
    with pytest.raises(DataError, match=r"row [\d,]+: column 'x'|of type list<item: string>"):
        written(tmp_path / "s", *pieces, file_size=64 if how == "files apart" else "64MB")
    assert not (tmp_path / "s" / MANIFEST).exists()


def test_the_row_that_does_not_fit_is_named(tmp_path):
    rows = [{"x": 0.5}] * 3000 + [{"x": 2**53 + 1}] + [{"x": 0.5}] * 100
    with pytest.raises(DataError, match=r"row 3,001: column 'x'.*9007199254740993"):
        written(tmp_path / "s", iter(rows))
    with pytest.raises(DataError, match=r"row 3,001: column 'x'.*9007199254740993"):
        written(tmp_path / "t", rows[:2990], *rows[2990:], file_size=64)
    with pytest.raises(DataError, match=r"row 1,026: column 'x'.*nulls"):
        written(tmp_path / "u", iter([{"x": 1}] * 1025 + [{"x": None}]))


def test_columns_that_appear_or_disappear_later_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"row 2: .*it also has 'y'"):
        written(tmp_path / "a", {"x": 1}, {"x": 2, "y": 3})
    with pytest.raises(DataError, match=r"row 2: .*it lacks 'y'"):
        written(tmp_path / "b", {"x": 1, "y": 2}, {"x": 2})
    with pytest.raises(DataError, match=r"row 2: .*it also has 'y'"):
        written(tmp_path / "c", pa.table({"x": [1]}), pa.table({"x": [1], "y": [2]}))
    rows = written(tmp_path / "d", {"x": 1, "y": 2}, {"y": 4, "x": 3})
    assert rows.to_pylist() == [{"x": 1, "y": 2}, {"x": 3, "y": 4}]


def test_a_declared_type_is_kept_and_truncates_no_value(tmp_path):
    declared = {"schema": pa.schema([("x", pa.float32())])}
    column = written(tmp_path / "a", {"x": 0.1}, {"x": 1}, **declared)["x"]
    assert column.type == pa.float32()
    assert column.to_pylist() == [float(np.float32(0.1)), 1]
    for number, (value, kind) in enumerate(
        [(0.5, pa.int64()), (300, pa.uint8()), (2**24 + 1, pa.float32()), (1e300, pa.float32()),
         (True, pa.int64()), ("1", pa.int64())]
    ):  # fmt: skip
        with pytest.raises(DataError, match=r"row 2: column 'x'"):
            written(
                tmp_path / f"b{number}", {"x": kind.to_pandas_dtype()(1)}, {"x": value},
                schema=pa.schema([("x", kind)]),
            )  # fmt: skip


def test_arrays_of_several_types_become_the_widest(tmp_path):
    rows = [{"x": np.array([1, 2], np.int16)}, {"x": np.array([0.1, 0.2], np.float32)}]
    for folder, pieces in (("a", rows), ("b", [rows])):
        column = written(tmp_path / folder, *pieces)["x"]
        assert column.type.value_type == pa.float32()
        assert [v.tolist() for v in column.combine_chunks().to_numpy_ndarray()] == [
            row["x"].tolist() for row in rows
        ]
    swapped = np.array([1.5, 2.5], ">f4")
    assert written(tmp_path / "c", {"x": swapped})[
        "x"
    ].combine_chunks().to_numpy_ndarray().tolist() == [[1.5, 2.5]]
    half = torch.tensor([0.1, 3e38], dtype=torch.bfloat16)
    column = written(tmp_path / "d", {"x": half})["x"]
    assert column.combine_chunks().to_numpy_ndarray().tolist() == [half.tolist()]


def test_tables_of_pandas_are_rows(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"x": [1, 2], "kind": pandas.Categorical(["a", "b"])})
    assert written(tmp_path / "s", frame).to_pydict() == {"x": [1, 2], "kind": ["a", "b"]}


def test_only_empty_lists_have_no_type(tmp_path):
    with pytest.raises(DataError, match="has only empty lists"):
        written(tmp_path / "s", {"x": []})


# -- the pure core

NUMBERS = [
    pa.int8(), pa.int16(), pa.int32(), pa.int64(),
    pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
    pa.float16(), pa.float32(), pa.float64(),
]  # fmt: skip
KINDS = [
    *NUMBERS, pa.bool_(), pa.null(), pa.string(), pa.large_string(), pa.binary(),
    pa.list_(pa.int64()), pa.list_(pa.float32()), pa.list_(pa.null()), pa.large_list(pa.int8()),
    pa.list_(pa.int8(), 2), pa.list_(pa.float64(), 2), pa.list_(pa.int8(), 3),
    pa.fixed_shape_tensor(pa.int8(), [2]), pa.fixed_shape_tensor(pa.float16(), [2]),
]  # fmt: skip


@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from(KINDS))
def test_wider_is_commutative_and_a_bound(one, two, three):
    both = wider(one, two)
    assert wider(two, one) == both
    assert wider(one, one) == one
    if both is not None:
        assert wider(both, one) == both
        more = wider(two, three)
        if more is not None and wider(both, three) is not None:
            # The way may matter: int8 and uint8 become int16, which float16 does not hold.
            first, second = wider(both, three), wider(one, more)
            assert wider(first, second) in (first, second)


EDGES = [0, 1, -1, 255, 256, 2**24 + 1, 2**53 - 1, 2**53, 2**53 + 1, 2**60, 2**62 + 1, 2**63 - 1]
integers = st.sampled_from(EDGES + [-edge for edge in EDGES]) | st.integers(-(2**63), 2**63 - 1)
floats = st.floats() | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324])


def equal(one, other):
    if isinstance(one, list):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other or (one != one and other != other)  # noqa: PLR0124 - NaN


@settings(max_examples=200)
@given(st.lists(st.lists(integers | floats, min_size=1, max_size=4), min_size=1, max_size=5))
def test_numbers_are_kept_exactly_or_refused(pieces):
    """Do a writer's work on pieces, without a disk: infer, widen, cast."""
    try:
        tables = [table_of([{"x": v} for v in piece]) for piece in pieces]
        kind = tables[0]["x"].type
        for table in tables:
            kind = wider(kind, table["x"].type)
        cast = [cast_exactly(table["x"].chunk(0), kind).to_pylist() for table in tables]
    except (RowError, InexactError):
        numbers = [v for piece in pieces for v in piece]
        exact = all(
            math.isfinite(float(v)) and int(float(v)) == v for v in numbers if isinstance(v, int)
        )
        assert not exact  # no fitting value is refused
        return
    assert all(map(equal, cast, pieces))


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.data())
def test_a_cast_keeps_each_value_or_names_the_first_that_it_cannot(one, target, data):
    if pa.types.is_floating(one):
        drawn = st.floats(width=one.bit_width)
    else:
        limits = np.iinfo(one.to_pandas_dtype())
        drawn = st.integers(int(limits.min), int(limits.max))
    values = data.draw(st.lists(drawn, min_size=1, max_size=8))
    array = pa.array(np.array(values, one.to_pandas_dtype()))
    rounds = pa.types.is_floating(one) and target.bit_width < one.bit_width
    try:
        cast = cast_exactly(array, target).to_pylist()
    except InexactError as error:
        held = equal(error.value, values[error.row])
        cast_exactly(array[: error.row], target)
    else:
        held = rounds or equal(cast, values)
    assert held


@given(st.lists(integers, max_size=30), st.integers(0, 40))
def test_lists_are_cast_as_their_items_are(items, at):
    lists = [items[:at], items[at:]]
    array = pa.array(lists, pa.list_(pa.int64()))
    try:
        held = cast_exactly(array, pa.list_(pa.float64())).to_pylist() == lists
    except InexactError as error:
        held = any(int(float(v)) != v for v in lists[error.row])
    assert held
