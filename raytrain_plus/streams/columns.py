"""The Arrow columns that can be trained on, and their values.

Integers, floats and booleans, fixed-size lists of them (also nested) and fixed shape tensors have
rows of one shape and become one tensor. Variable-length lists of numbers, strings and binary values
become lists: one tensor, `str` or `bytes` for each row. Encoded columns (dictionaries, views, runs)
count as their plain form.
"""

import numbers
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Kind = Literal["tensor", "list", "string", "binary"]
Values: TypeAlias = dict[str, "npt.NDArray[Any] | pa.Array"]
"""Column name -> its rows: an array of shape (rows, *shape) for tensors, else an Arrow array."""

_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")


class DataError(ValueError):
    """The data cannot be trained on as it is; the message says why and what to do."""


def check_setting(name: str, value: object, *, valid: bool, must: str) -> None:
    """Check a setting of a user.

    Args:
        name: of the setting.
        value: what was given.
        valid: whether it is allowed.
        must: what it must be, as in "at least 1 file".

    Raises:
        DataError: it is not allowed.
    """
    if not valid:
        raise DataError(f"{name} is {value!r:.80}, but must be {must}.")


def is_whole(value: object, least: int) -> bool:
    """Say whether a value is a whole number of at least `least`."""
    return (
        isinstance(value, numbers.Integral) and not isinstance(value, bool) and int(value) >= least
    )


class LeftOutWarning(UserWarning):
    """A column is not read, because it is an index and not data."""


@dataclass(frozen=True)
class Column:
    """What one row of a column is.

    Attributes:
        dtype: NumPy's type of its numbers; object for strings and binary values.
        shape: The shape of one row's value; () for a scalar, (-1,) for a list of any length.
        kind: What a row becomes.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    kind: Kind = "tensor"

    def __str__(self) -> str:
        return self.kind if self.dtype == object else f"{self.dtype} of shape {self.shape}"


def columns_of(schema: pa.Schema, selection: Sequence[str] | None, where: str) -> dict[str, Column]:
    """Return what the selected columns of a schema are, in the order of the selection.

    Args:
        schema: The schema of a table or file.
        selection: Names of columns; None selects all that `data_columns` returns.
        where: The name of the table or file in an error.

    Raises:
        DataError: A column is absent, exists twice or has an unsupported type, or none is selected.
    """
    present = schema.names  # a list that is built at each access
    counts = Counter(present)
    names = data_columns(present) if selection is None else selection
    missing = [name for name in names if name not in counts]
    if missing:
        raise DataError(
            f"{where} has no column {listed(missing)}; it has {listed(present)}: select from those."
        )
    if not names:
        raise DataError(f"no column of {where} is selected; it has {listed(present)}.")
    twice = [name for name in dict.fromkeys(names) if counts[name] > 1]
    if twice:
        raise DataError(f"{where} has more than one column {listed(twice)}: rename one of them.")
    types = dict(zip(present, schema.types, strict=True))
    return {name: _column(name, types[name], where) for name in names}


def data_columns(names: Sequence[str]) -> list[str]:
    """Return the columns that hold data: all but the unnamed index of a pandas frame.

    pandas stores the index of a frame from which rows were dropped, or that was sorted, as a column
    `__index_level_0__`. A model would take these row numbers for a feature. A `LeftOutWarning` says
    what is left out. An index with a name is a column like any other.
    """
    left_out = [name for name in names if _UNNAMED_INDEX.fullmatch(name)]
    if left_out:
        warnings.warn(
            f"column {listed(left_out)} is left out: it is the unnamed index of a pandas frame. "
            "It is read if `columns` names it; `reset_index(drop=True)` removes it from a frame",
            LeftOutWarning,
            stacklevel=2,
        )
    return [name for name in names if name not in left_out]


def with_constants(schema: pa.Schema, constants: Mapping[str, int | str]) -> pa.Schema:
    """Return a file's schema, with the columns of its partition folders that it does not have."""
    present = set(schema.names)
    for name, value in constants.items():
        if name not in present:
            kind = pa.int64() if isinstance(value, int) else pa.string()
            schema = schema.append(pa.field(name, kind))
    return schema


def _column(name: str, stored: pa.DataType, where: str) -> Column:
    arrow_type = plain_type(stored)
    if pa.types.is_string(arrow_type) or pa.types.is_large_string(arrow_type):
        return Column(np.dtype(object), kind="string")
    if pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type):
        return Column(np.dtype(object), kind="binary")
    if pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type):
        inner = arrow_type.value_type
        if _is_number(inner):
            return Column(np.dtype(inner.to_pandas_dtype()), (-1,), "list")
    shape: tuple[int, ...] = ()
    inner = arrow_type
    while True:
        if isinstance(inner, pa.FixedShapeTensorType):
            order = inner.permutation
            if order is not None and list(order) != sorted(order):
                break
            shape, inner = (*shape, *inner.shape), inner.value_type
        elif pa.types.is_fixed_size_list(inner):
            shape, inner = (*shape, inner.list_size), inner.value_type
        else:
            break
    if _is_number(inner):
        return Column(np.dtype(inner.to_pandas_dtype()), shape)
    nulls = ", since it holds nothing but nulls" if pa.types.is_null(arrow_type) else ""
    raise DataError(
        f"column {name!r} of {where} is of type {stored}{nulls}. Integers, floats and booleans are "
        "supported, lists of them (nested ones if they are of fixed size), fixed shape tensors "
        "whose dimensions are stored in order, strings and binary values. Convert the column, or "
        "select the others with `columns` (`--columns` of `data write`)."
    )


def _is_number(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    )


def values_of(
    table: pa.Table,
    columns: Mapping[str, Column],
    where: str,
    constants: Mapping[str, int | str] | None = None,
) -> Values:
    """Return the values of columns.

    A column with one chunk is a view, without a copy. Several chunks are copied, and so are
    booleans of tensors, which Arrow packs into bits.

    Args:
        table: has all columns but the constants.
        columns: the wanted columns.
        where: the name of the table in an error.
        constants: columns with the same value in all rows. The table's own columns take precedence.

    Raises:
        DataError: A column holds nulls.
    """
    values: Values = {}
    constants = constants or {}
    own = set(table.column_names)
    for name, column in columns.items():
        if name in constants and name not in own:
            values[name] = _constant(constants[name], table.num_rows)
            continue
        if column.kind != "tensor":
            values[name] = _one_chunk(table.column(name), name, where)
            continue
        shape = (table.num_rows, *column.shape)
        stored = [chunk for chunk in table.column(name).chunks if len(chunk)]
        chunks, before = [], 0
        for chunk in _plain_chunks(stored, name, where):
            chunks.append(_flat(chunk, name, where, before))
            before += len(chunk)
        if len(chunks) != 1:
            chunks = [np.concatenate([np.empty(0, column.dtype), *chunks])]
        values[name] = chunks[0].reshape(shape)
    return values


def _constant(value: int | str, rows: int) -> "npt.NDArray[Any] | pa.Array":
    if isinstance(value, str):
        return pa.repeat(pa.scalar(value, pa.string()), rows)
    return np.broadcast_to(np.int64(value), (rows,))


def _plain_chunks(chunks: Iterable[pa.Array], name: str, where: str) -> list[pa.Array]:
    try:
        return [plain(chunk) for chunk in chunks]
    except pa.ArrowException as error:
        raise DataError(
            f"column {name!r} of {where} cannot be decoded: {error}. If it holds more than 2 GB, "
            "write it as several files."
        ) from error


def _one_chunk(column: pa.ChunkedArray, name: str, where: str) -> pa.Array:
    chunks = _plain_chunks(column.chunks, name, where)
    if len(chunks) == 1:
        array = chunks[0]
    else:
        array = pa.chunked_array(chunks, plain_type(column.type)).combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # more than Arrow's 32-bit offsets can address
        raise DataError(
            f"column {name!r} of {where} holds more than 2 GB: write it as several files."
        )
    is_listed = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    if array.null_count or (is_listed and array.flatten().null_count):
        raise null_error(name, where, _first_null(array))
    return array


def _flat(chunk: pa.Array, name: str, where: str, before: int) -> npt.NDArray[Any]:
    """Return the numbers of a chunk that comes after `before` rows, as one dimension."""
    array = chunk
    while True:
        if array.null_count:
            raise null_error(name, where, before + (_first_null(chunk) or 0))
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_fixed_size_list(array.type):
            array = array.flatten()
        else:
            flat: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
            return flat


def first_null(column: pa.ChunkedArray) -> int | None:
    """Return the first row of a plain column that is null or contains a null; None without any."""
    before = 0
    for chunk in column.chunks:
        found = _first_null(chunk)
        if found is not None:
            return before + found
        before += len(chunk)
    return None


def _first_null(array: pa.Array) -> int | None:
    if isinstance(array, pa.ExtensionArray):
        return _first_null(array.storage)
    if array.null_count:
        return int(array.is_null().index(True).as_py())
    types = pa.types
    is_fixed = types.is_fixed_size_list(array.type)
    if not (is_fixed or types.is_list(array.type) or types.is_large_list(array.type)):
        return None
    item = _first_null(array.flatten())
    if item is None or is_fixed:
        return item and item // array.type.list_size
    ends = np.cumsum(pc.list_value_length(array).to_numpy(), dtype=np.int64)
    return int(np.searchsorted(ends, item, side="right"))


def null_error(name: str, where: str, row: int | None = None) -> DataError:
    """Return the error for a column that contains nulls, the first in `row` if that is known."""
    first = "" if row is None else f" (the first in row {row + 1:,}, counted from 1)"
    return DataError(
        f"column {name!r} of {where} holds nulls{first}, which a tensor cannot: fill them, or drop "
        "their rows."
    )


def listed(names: Iterable[str]) -> str:
    """Return names as text, quoted and separated by commas."""
    return ", ".join(repr(name) for name in names) or "none"


def difference(one: Mapping[str, Column], other: Mapping[str, Column]) -> str:
    """Return how two files differ in their columns, as text."""
    return "; ".join(
        f"column {name!r} is {one.get(name, 'absent')} in the first and "
        f"{other.get(name, 'absent')} in the second"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    )


# -- the plain form of encoded types: the same values, not encoded

_IMAGE = {"bytes", "path"}  # the stored fields of Hugging Face's Image and Audio


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same values if they are not encoded; a plain type stays."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if types.is_string_view(kind):
        return pa.string()
    if types.is_binary_view(kind) or types.is_fixed_size_binary(kind) or _is_image(kind):
        return pa.binary()
    if types.is_list(kind) or types.is_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    if types.is_large_list(kind) or types.is_large_list_view(kind):
        return pa.large_list(plain_type(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(plain_type(kind.value_type), kind.list_size)
    return kind


def plain(array: pa.Array) -> pa.Array:
    """Return an array's values in their plain form; a plain array is returned as it is.

    Raises:
        pa.ArrowException: the plain form is larger than Arrow's 32-bit offsets can address.
    """
    kind, target = array.type, plain_type(array.type)
    types = pa.types
    if kind == target:
        return array
    if types.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    if _is_image(kind):
        return plain(pc.struct_field(array, "bytes")).cast(target)
    if not types.is_nested(kind):
        return array.cast(target)
    if array.null_count:  # rare, and refused by all callers: it may be slow
        return pa.array(array.to_pylist(), target)
    items = plain(array.flatten())
    if types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(items, kind.list_size)
    # A cast from a list view to a list loses values (pyarrow 26): lists are built from lengths.
    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    lengths = array.sizes if views else pc.list_value_length(array)
    offsets = np.concatenate([[0], np.cumsum(lengths.to_numpy(), dtype=np.int64)])
    large = types.is_large_list(target)
    lists: Any = pa.LargeListArray if large else pa.ListArray
    return lists.from_arrays(pa.array(offsets, pa.int64() if large else pa.int32()), items)


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table with every column in its plain form, and without metadata.

    Raises:
        pa.ArrowException: a column's plain form is larger than Arrow's 32-bit offsets can address.
    """
    fields = [pa.field(field.name, plain_type(field.type)) for field in table.schema]
    columns = [
        pa.chunked_array([plain(chunk) for chunk in column.chunks], field.type)
        for column, field in zip(table.columns, fields, strict=True)
    ]
    if not columns:
        return table
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} == _IMAGE
