"""`--type`: a column becomes what was asked for, each value exactly, or its row is named."""

import pyarrow as pa
import pytest

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.retyping import parse_types, retyped


def as_type(values, kind, stored=None):
    column = pa.chunked_array([pa.array(values[:1], stored), pa.array(values[1:], stored)])
    return retyped(column, pa.type_for_alias(kind), "x", lambda row: f"row {row + 1}")


@pytest.mark.parametrize(
    ("values", "stored", "kind", "expected"),
    [
        (["1", "007"], None, "int64", [1, 7]),
        (["1", "-2.5"], None, "float64", [1, -2.5]),
        (["0.1", "1e3"], None, "float32", [pytest.approx(0.1), 1000]),
        (["nan", "inf"], None, "float64", [pytest.approx(float("nan"), nan_ok=True), float("inf")]),
        (["true", "False"], None, "bool", [True, False]),
        ([1, 2**53], pa.int64(), "float64", [1.0, 2.0**53]),
        ([1, 255], pa.int64(), "uint8", [1, 255]),
        ([1.0, 3.0], None, "int32", [1, 3]),
        ([0.1, 0.5], None, "float32", [pytest.approx(0.1), 0.5]),
        ([1, 22], None, "string", ["1", "22"]),
        ([b"a", b"b"], None, "string", ["a", "b"]),
        (["a", "b"], None, "binary", [b"a", b"b"]),
        ([[1], [2, 3]], None, "uint16", [[1], [2, 3]]),
        ([[[1], []], [[2]]], None, "int8", [[[1], []], [[2]]]),
        ([None, "1"], pa.string(), "int64", [None, 1]),
    ],
)
def test_values_are_kept(values, stored, kind, expected):
    found = as_type(values, kind, stored)
    assert found.to_pylist() == expected


@pytest.mark.parametrize(
    ("values", "stored", "kind"),
    [
        (["1", ""], None, "int64"),
        (["1", "2.5"], None, "int64"),
        (["1", "9223372036854775808"], None, "int64"),
        (["1", "9007199254740993"], None, "float64"),
        (["1", "1e400"], None, "float64"),
        (["1", "70000"], None, "float16"),
        ([1, 256], None, "uint8"),
        ([1, -1], None, "uint64"),
        ([1, 2**53 + 1], None, "float64"),
        ([1.0, 1.5], None, "int64"),
        ([b"a", b"\xff"], None, "string"),
        (["yes", "no"], None, "bool"),
        ([[1], [2, 300]], None, "uint8"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_row(values, stored, kind):
    row = 1 if values == ["yes", "no"] else 2
    with pytest.raises(DataError, match=rf"row {row}: column 'x' holds .* which {kind} does not"):
        as_type(values, kind, stored)


@pytest.mark.parametrize("given", [["x"], ["x=date"], ["=int8"], ["x=int8", "x=int16"]])
def test_types_of_another_form_are_refused(given):
    with pytest.raises(DataError, match="the type"):
        parse_types(given)


def test_lists_of_one_length_become_rows_of_one_shape():
    types = parse_types(["x=uint8[2]"])
    column = pa.chunked_array([[[1, 2]], [[3, 4], [5, 6]]])
    found = retyped(column, types["x"], "x", lambda row: f"row {row + 1}")
    assert found.type == pa.list_(pa.uint8(), 2)
    assert found.to_pylist() == [[1, 2], [3, 4], [5, 6]]
    for wrong in ([[1, 2], [3]], [[1, 2], [3, 256]]):
        with pytest.raises(DataError, match=r"row 2: .* which uint8\[2\] does not hold"):
            retyped(pa.chunked_array([wrong]), types["x"], "x", lambda row: f"row {row + 1}")


def test_the_name_of_a_column_may_have_an_equals_sign():
    assert parse_types(["a=b=int8"]) == {"a=b": pa.int8()}
