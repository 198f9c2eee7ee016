"""The Arrow columns that can be trained on, and their values.

Integers, floats and booleans, fixed-size lists of them (also nested) and fixed shape tensors have
rows of one shape and become one tensor. Variable-length lists of these, strings and binary values
become lists: one tensor, `str` or `bytes` for each row. Dates, times and decimals become numbers.
Structs, maps, and lists of text, of structs or of lists become Python values. Encoded columns
(dictionaries, views, runs) count as their plain form.
"""

import decimal
import json
import math
import numbers
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raytrain_plus.redaction import redact

Kind = Literal["tensor", "list", "string", "binary", "nested"]
Values: TypeAlias = dict[str, "npt.NDArray[Any] | pa.Array"]
"""Column name -> its rows: an array of shape (rows, *shape) for tensors, else an Arrow array."""

_UNNAMED_INDEX = re.compile(r"__index_level_\d+__")
_EXACT_DIGITS = 18  # decimal digits that an int64 always holds
_EPOCH = "since 1970-01-01"
_FEATURES = b"huggingface"  # the metadata in which `datasets` describes columns
_HF_ARRAY = re.compile(r"Array[2-5]D")


class DataError(ValueError):
    """The data cannot be trained on as it is; the message says why, and shows no password."""

    def __init__(self, message: str) -> None:
        super().__init__(redact(message))


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
        dtype: NumPy's type of its numbers; object for strings, binary and nested values.
        shape: The shape of one row's value; () for a scalar, (-1,) for a list of any length,
            (-1, 4) for one whose items are four numbers.
        kind: What a row becomes.
        meaning: What its numbers count, such as "days since 1970-01-01"; for nested values their
            Arrow type; else empty.
        fill: What replaces nulls; None where nulls are refused.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
    kind: Kind = "tensor"
    meaning: str = ""
    fill: Any = None

    def __str__(self) -> str:
        if self.kind == "nested":
            return self.meaning
        if self.dtype == object:
            return self.kind
        counted = f", {self.meaning}" if self.meaning else ""
        return f"{self.dtype} of shape {self.shape}{counted}"


def columns_of(
    schema: pa.Schema,
    selection: Sequence[str] | None,
    where: str,
    fill: Mapping[str, Any] | None = None,
) -> dict[str, Column]:
    """Return what the selected columns of a schema are, in the order of the selection.

    Args:
        schema: The schema of a table or file.
        selection: Names of columns; None selects all that `data_columns` returns.
        where: The name of the table or file in an error.
        fill: Column -> what replaces its nulls.

    Raises:
        DataError: A column is absent, exists twice or has an unsupported type, or none is selected;
            or a value to fill in is not of its column's type.
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
    unknown = [name for name in fill or {} if name not in counts]
    if unknown:
        raise DataError(
            f"`fill` names the column {listed(unknown)}, which {where} does not have; it has "
            f"{listed(present)}."
        )
    types, shapes = dict(zip(present, schema.types, strict=True)), array_shapes(schema)
    columns = {}
    for name in names:
        columns[name] = _column(name, types[name], where, shapes.get(name))
        if fill and name in fill:
            _check_fill(name, types[name], fill[name], where)
            columns[name] = replace(columns[name], fill=fill[name])
    return columns


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


def _column(
    name: str, stored: pa.DataType, where: str, shape: tuple[int, ...] | None = None
) -> Column:
    column = _described(plain_type(stored), shape)
    if column is not None:
        return column
    nulls = ", since it holds nothing but nulls" if pa.types.is_null(stored) else ""
    raise DataError(
        f"column {name!r} of {where} is of type {stored}{nulls}. Numbers, booleans, dates, times, "
        "decimals, strings, binary values, lists, structs and maps of them are supported, and "
        "fixed shape tensors whose dimensions are stored in order. Convert the column, or select "
        "the others with `columns` (`--columns` of `data write`)."
    )


def _described(kind: pa.DataType, shape: tuple[int, ...] | None = None) -> Column | None:
    """Return what a column of a plain type is; None if it is not supported.

    Args:
        kind: the type.
        shape: the shape that Hugging Face's `Array2D` and the like declare for it.
    """
    types = pa.types
    if types.is_string(kind) or types.is_large_string(kind):
        return Column(np.dtype(object), kind="string")
    if types.is_binary(kind) or types.is_large_binary(kind):
        return Column(np.dtype(object), kind="binary")
    if shape is not None:
        inner = kind
        while _is_any_list(inner):
            inner = inner.value_type
        number = _number(inner)
        return number and replace(number, shape=shape, kind="list" if shape[0] < 0 else "tensor")
    if types.is_list(kind) or types.is_large_list(kind):
        items = _of_one_shape(kind.value_type)
        if items is not None:
            return replace(items, shape=(-1, *items.shape), kind="list")
    else:
        column = _of_one_shape(kind)
        if column is not None:
            return column
    if types.is_nested(kind) and _is_python(kind):
        return Column(np.dtype(object), kind="nested", meaning=str(_without_large(kind)))
    return None


def _of_one_shape(kind: pa.DataType) -> Column | None:
    """Return what a column is whose rows become one tensor; None if they do not."""
    shape: tuple[int, ...] = ()
    while True:
        if isinstance(kind, pa.FixedShapeTensorType):
            order = kind.permutation
            if order is not None and list(order) != sorted(order):
                return None
            shape, kind = (*shape, *kind.shape), kind.value_type
        elif pa.types.is_fixed_size_list(kind):
            shape, kind = (*shape, kind.list_size), kind.value_type
        else:
            number = _number(kind)
            return number and replace(number, shape=shape)


def _number(kind: pa.DataType) -> Column | None:
    """Return what a column is whose values become numbers; None if they do not."""
    types, int64 = pa.types, np.dtype(np.int64)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return Column(np.dtype(kind.to_pandas_dtype()))
    if types.is_date(kind):
        return Column(int64, meaning=f"days {_EPOCH}")
    if types.is_timestamp(kind):
        zone = "" if kind.tz is None else " UTC"
        return Column(int64, meaning=f"{kind.unit} {_EPOCH}{zone}")
    if types.is_time(kind):
        return Column(int64, meaning=f"{kind.unit} since midnight")
    if types.is_duration(kind):
        return Column(int64, meaning=kind.unit)
    if types.is_decimal(kind):
        is_whole_number = kind.scale == 0 and kind.precision <= _EXACT_DIGITS
        return Column(int64 if is_whole_number else np.dtype(np.float64))
    return None


def _is_python(kind: pa.DataType) -> bool:
    """Say whether Arrow converts values of a nested type to Python values."""
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return False
    if types.is_struct(kind):
        return all(_is_python(field.type) for field in kind)
    if types.is_map(kind):
        return _is_python(kind.key_type) and _is_python(kind.item_type)
    if _is_any_list(kind):
        return _is_python(kind.value_type)
    return not (types.is_union(kind) or types.is_interval(kind))


def _without_large(kind: pa.DataType) -> pa.DataType:
    """Return a type without the width of its offsets, which its values do not depend on."""
    types = pa.types
    if types.is_large_string(kind):
        return pa.string()
    if types.is_large_binary(kind):
        return pa.binary()
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(_without_large(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pa.list_(_without_large(kind.value_type), kind.list_size)
    if types.is_struct(kind):
        return pa.struct([(field.name, _without_large(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(_without_large(kind.key_type), _without_large(kind.item_type))
    return kind


def _is_any_list(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def array_shapes(schema: pa.Schema) -> dict[str, tuple[int, ...]]:
    """Return the shapes of Hugging Face's `Array2D` to `Array5D` in a schema's metadata.

    They are stored as lists of lists. A first dimension of any length is -1.
    """
    try:
        features = json.loads((schema.metadata or {}).get(_FEATURES, b"{}"))["info"]["features"]
        return {
            str(name): tuple(-1 if size is None else int(size) for size in feature["shape"])
            for name, feature in features.items()
            if isinstance(feature, dict) and _HF_ARRAY.fullmatch(str(feature.get("_type")))
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


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
            values[name] = _one_chunk(table.column(name), column, name, where)
            continue
        shape = (table.num_rows, *column.shape)
        stored = [chunk for chunk in table.column(name).chunks if len(chunk)]
        chunks, before = [], 0
        for chunk in _plain_chunks(stored, name, where):
            chunks.append(_flat(chunk, column, name, where, before))
            before += len(chunk)
        if len(chunks) != 1:
            chunks = [np.concatenate([np.empty(0, column.dtype), *chunks])]
        values[name] = chunks[0].reshape(shape)
    return values


def chunk_values(
    chunk: pa.Array, column: Column, name: str, where: str, before: int
) -> "npt.NDArray[Any] | pa.Array":
    """Return the values of one chunk of a column that comes after `before` rows, as `values_of`.

    Raises:
        DataError: it holds nulls.
    """
    if column.kind != "tensor":
        return _one_chunk(pa.chunked_array([chunk]), column, name, where, before)
    (array,) = _plain_chunks([chunk], name, where)
    return _flat(array, column, name, where, before).reshape(len(chunk), *column.shape)


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


def _one_chunk(
    column: pa.ChunkedArray, kind: Column, name: str, where: str, before: int = 0
) -> pa.Array:
    chunks = _plain_chunks(column.chunks, name, where)
    if len(chunks) == 1:
        array = chunks[0]
    else:
        array = pa.chunked_array(chunks, plain_type(column.type)).combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # more than Arrow's 32-bit offsets can address
        raise DataError(
            f"column {name!r} of {where} holds more than 2 GB: write it as several files."
        )
    if kind.fill is not None:
        array = fill_nulls(array, kind.fill)
    first = _first_null(array)
    if first is not None:
        raise null_error(name, where, before + first)
    return array if kind.kind != "list" else _list_of_numbers(array, kind, name, where)


def _list_of_numbers(array: pa.Array, column: Column, name: str, where: str) -> pa.Array:
    """Return lists of one level, whose items are numbers of the column's type, one after another.

    An item of shape (4,) is four numbers in a row.
    """
    items = array.flatten()
    if items.type.equals(pa.from_numpy_dtype(column.dtype)):
        return array
    flat = _flat(items, replace(column, shape=column.shape[1:]), name, where, 0)
    size = math.prod(column.shape[1:])
    lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False).astype(np.int64) * size
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    return pa.LargeListArray.from_arrays(offsets, pa.array(flat, pa.from_numpy_dtype(column.dtype)))


def _flat(chunk: pa.Array, column: Column, name: str, where: str, before: int) -> npt.NDArray[Any]:
    """Return the numbers of a chunk that comes after `before` rows, as one dimension."""
    array = chunk if column.fill is None else fill_nulls(chunk, column.fill)
    level = 0
    while True:
        if array.null_count:
            raise null_error(name, where, before + (_first_null(chunk) or 0))
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_fixed_size_list(array.type):
            level, array = level + 1, array.flatten()
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            lengths = pc.list_value_length(array).to_numpy(zero_copy_only=False)
            if (lengths != column.shape[level]).any():
                raise DataError(
                    f"column {name!r} of {where} has rows of another shape than its declared one, "
                    f"{column.shape}: write it again."
                )
            level, array = level + 1, array.flatten()
        else:
            return _as_numbers(array)


def _as_numbers(array: pa.Array) -> npt.NDArray[Any]:
    """Return the numbers of values without nulls; see `_number`."""
    types, kind = pa.types, array.type
    if types.is_date64(kind):  # milliseconds of whole days
        array = array.cast(pa.date32())
    if types.is_date(kind) or types.is_time32(kind):
        array = array.view(pa.int32()).cast(pa.int64())
    elif types.is_temporal(kind):
        array = array.view(pa.int64())
    elif types.is_decimal(kind):
        array = array.cast(pa.from_numpy_dtype(cast("Column", _number(kind)).dtype))
    flat: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return flat


def fill_nulls(array: pa.Array, value: Any) -> pa.Array:
    """Return an array of the same type, in which a value replaces nulls.

    A number also replaces null items of lists of numbers. It replaces each number of a row that is
    null if all rows have one shape.

    Args:
        array: of a plain type.
        value: what to fill in.

    Raises:
        DataError: the value is not of the array's type.
    """
    if isinstance(array, pa.ExtensionArray):
        filled = fill_nulls(array.storage, value)
        return pa.ExtensionArray.from_storage(array.type, filled)
    kind = array.type
    if _is_any_list(kind) and not isinstance(value, list | tuple):
        items = array.flatten()
        if items.null_count or _is_any_list(items.type):
            array = _with_items(array, fill_nulls(items, value))
    if not array.null_count:
        return array
    absent = array.is_null().to_numpy(zero_copy_only=False)
    places = np.where(absent, len(array), np.arange(len(array)))
    return pa.concat_arrays([array, _filled_row(kind, value)]).take(pa.array(places))


def _with_items(array: pa.Array, items: pa.Array) -> pa.Array:
    """Return lists of the same lengths with other items; null lists stay null."""
    absent = array.is_null()
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(array.type):
        size = array.type.list_size
        lists: Any = pa.FixedSizeListArray.from_arrays(items, size)
        valid = np.cumsum(~absent.to_numpy(zero_copy_only=False)) - 1
        return lists.take(pa.array(valid, mask=absent.to_numpy(zero_copy_only=False)))
    large = pa.types.is_large_list(array.type)
    made: Any = pa.LargeListArray if large else pa.ListArray
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return made.from_arrays(
        pa.array(offsets, pa.int64() if large else pa.int32()), items, mask=absent
    )


def _filled_row(kind: pa.DataType, value: Any) -> pa.Array:
    """Return one row of a type with a value.

    Raises:
        DataError: the value is not of that type.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _filled_row(kind.storage_type, value)
    if pa.types.is_fixed_size_list(kind) and not isinstance(value, list | tuple):
        inner = _filled_row(kind.value_type, value)
        return pa.FixedSizeListArray.from_arrays(
            pa.concat_arrays([inner] * kind.list_size), kind.list_size
        )
    if pa.types.is_decimal(kind) and isinstance(value, float):
        value = decimal.Decimal(str(value))
    is_flag = isinstance(value, bool)
    try:
        if is_flag != pa.types.is_boolean(kind) and not pa.types.is_nested(kind):
            raise TypeError("a truth value is no number")
        row = pa.array([value], kind)
        if pa.types.is_integer(kind) and row[0].as_py() != value:
            raise ValueError("it would be rounded")
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{value!r:.80} is not a value of type {kind}") from error
    return row


def _check_fill(name: str, stored: pa.DataType, value: Any, where: str) -> None:
    """Check that a value can replace the nulls of a column.

    Raises:
        DataError: it cannot.
    """
    kind = plain_type(stored)
    try:
        if value is None:
            raise DataError("None is a null itself")
        items = kind.value_type if _is_any_list(kind) else kind
        _filled_row(kind if isinstance(value, list | tuple) else items, value)
    except DataError as error:
        raise DataError(f"`fill` for column {name!r} of {where}: {error}.") from error


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
    """Return the first row that is null or, unless rows become Python values, contains a null."""
    if isinstance(array, pa.ExtensionArray):
        return _first_null(array.storage)
    if array.null_count:
        return int(array.is_null().index(True).as_py())
    if not _is_any_list(array.type):
        return None
    column = _described(array.type)
    if column is not None and column.kind == "nested":
        return None
    item = _first_null(array.flatten())
    if item is None or pa.types.is_fixed_size_list(array.type):
        return item and item // array.type.list_size
    ends = np.cumsum(pc.list_value_length(array).to_numpy(), dtype=np.int64)
    return int(np.searchsorted(ends, item, side="right"))


def null_error(name: str, where: str, row: int | None = None) -> DataError:
    """Return the error for a column that contains nulls, the first in `row` if that is known."""
    first = "" if row is None else f" (the first in row {row + 1:,}, counted from 1)"
    return DataError(
        f"column {name!r} of {where} holds nulls{first}, which a tensor cannot: fill them "
        f"(`Stream(..., fill={{{name!r}: VALUE}})`, `data write --fill {name}=VALUE`), drop their "
        "rows, or leave the column out."
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
    if isinstance(kind, pa.BaseExtensionType):
        is_tensor = isinstance(kind, pa.FixedShapeTensorType)
        return kind if is_tensor else plain_type(kind.storage_type)
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
    if types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    if types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
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
    if isinstance(kind, pa.BaseExtensionType):
        return plain(array.storage)
    if types.is_dictionary(kind):
        return plain(array.dictionary_decode())
    if types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(array))
    if _is_image(kind):
        _check_embedded(array)
        return plain(pc.struct_field(array, "bytes")).cast(target)
    if not types.is_nested(kind):
        return array.cast(target)
    if types.is_struct(kind):
        parts = [plain(part) for part in array.flatten()]
        absent = array.is_null() if array.null_count else None
        return pa.StructArray.from_arrays(parts, fields=list(target), mask=absent)
    if array.null_count or types.is_map(kind):  # rare: it may be slow
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


def python_values(array: pa.Array) -> list[Any]:
    """Return rows as Python values: lists, and dictionaries for structs and maps."""
    values: list[Any] = array.to_pylist()
    return [_as_dicts(v, array.type) for v in values] if _has_map(array.type) else values


def _has_map(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_has_map(field.type) for field in kind)
    return bool(pa.types.is_map(kind)) or (_is_any_list(kind) and _has_map(kind.value_type))


def _as_dicts(value: Any, kind: pa.DataType) -> Any:
    """Return a value with its maps, which Arrow gives as lists of pairs, as dictionaries."""
    if value is None:
        return None
    if pa.types.is_map(kind):
        found = {key: _as_dicts(item, kind.item_type) for key, item in value}
        if len(found) < len(value):
            raise DataError(f"a map has a key twice: {value!r:.80}. Write it with different keys.")
        return found
    if pa.types.is_struct(kind):
        return {field.name: _as_dicts(value[field.name], field.type) for field in kind}
    return [_as_dicts(v, kind.value_type) for v in value] if _is_any_list(kind) else value


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table with every column in its plain form, and without metadata.

    Raises:
        DataError: a row has another shape than Hugging Face's `Array2D` and the like declares.
        pa.ArrowException: a column's plain form is larger than Arrow's 32-bit offsets can address.
    """
    if not table.num_columns:
        return table
    shapes = array_shapes(table.schema)
    fields, columns = [], []
    for column, field in zip(table.columns, table.schema, strict=True):
        kind, shape = plain_type(field.type), shapes.get(field.name)
        chunks = [plain(chunk) for chunk in column.chunks]
        described = shape and _described(kind, shape)
        if described and described.kind == "tensor":
            kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(described.dtype), described.shape)
            chunks = [_as_tensors(chunk, described, kind, field.name) for chunk in chunks]
        fields.append(pa.field(field.name, kind))
        columns.append(pa.chunked_array(chunks, kind))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _as_tensors(array: pa.Array, column: Column, kind: pa.DataType, name: str) -> pa.Array:
    flat = _flat(array, column, name, "the data", 0)
    items = pa.array(flat, kind.value_type)
    storage = pa.FixedSizeListArray.from_arrays(items, math.prod(column.shape))
    return pa.ExtensionArray.from_storage(kind, storage)


def _check_embedded(array: pa.Array) -> None:
    """Check that Hugging Face's images or sounds are in the data.

    Raises:
        DataError: one is only named, by its path.
    """
    absent = pc.and_(
        pc.is_null(pc.struct_field(array, "bytes")), pc.is_valid(pc.struct_field(array, "path"))
    )
    row = absent.index(True).as_py()
    if row >= 0:
        path = array[row]["path"].as_py()
        raise DataError(
            f"the data names files, such as {path!r}, in place of their contents: give the folder "
            "of the files; or save the dataset with `save_to_disk` or `push_to_hub`, which store "
            "the contents."
        )


def _is_image(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind)) and {field.name for field in kind} == _IMAGE
