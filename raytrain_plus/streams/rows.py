"""Converts rows of Python values to Arrow tables: each value exactly, or an error names it."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from raytrain_plus.streams.widening import InexactError, cast_exactly, wider

Row = Mapping[str, Any]

_BYTE_FORMATS = ("B", "c")  # of a memoryview; with any other it holds numbers

_KINDS: tuple[tuple[str, tuple[type, ...]], ...] = (
    ("null", (type(None),)),
    ("bool", (bool, np.bool_)),
    ("number", (int, float, np.integer, np.floating)),
    ("text", (str,)),
    ("bytes", (bytes, bytearray, memoryview)),
    ("list", (list, tuple, np.ndarray)),
)


# What NumPy, PyTorch and Arrow raise for values that they cannot convert.
_NOT_STORABLE = (TypeError, ValueError, OverflowError, RuntimeError)


class RowError(ValueError):
    """A row cannot be stored; the message says why.

    Attributes:
        row: the index of the row, from 0.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def table_of(rows: Sequence[Row], schema: pa.Schema | None = None) -> pa.Table:
    """Return rows as a table.

    Numbers of several types become the narrowest type that holds all of them exactly. Arrays and
    tensors of one shape become fixed shape tensors; lists may be of any length.

    Args:
        rows: at least one, all with the same columns.
        schema: the wanted types of some of the columns.

    Raises:
        RowError: the rows differ in their columns, shapes or kinds, or Arrow has no type for one.
    """
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise RowError(number, f"it is a {type(row).__name__}, but must be a dictionary")
        if not row:
            raise RowError(
                number, "it has no column: give it the columns of the other rows, or drop it"
            )
        if row.keys() != rows[0].keys():
            raise RowError(number, _differing(row, rows[0]))
    odd = next((name for name in rows[0] if not isinstance(name, str)), None)
    if odd is not None:
        raise RowError(0, f"a column is named {odd!r} ({type(odd).__name__}): names must be text")
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        try:
            columns[name] = _array(values)
            if schema is not None and name in schema.names:
                columns[name] = cast_exactly(columns[name], schema.field(name).type)
        except (RowError, InexactError) as error:
            raise RowError(error.row, f"column {name!r}: {error}") from error
        except (pa.ArrowException, *_NOT_STORABLE) as error:
            first = _first_not_storable(values)
            what = f"{values[first]!r:.80} ({type(values[first]).__name__})"
            raise RowError(first, f"column {name!r}: {what} cannot be stored: {error}") from error
    return pa.table(columns)


def _differing(row: Row, first: Row) -> str:
    more = [name for name in row if name not in first]
    less = [name for name in first if name not in row]
    found = [f"also has {', '.join(map(repr, more))}"] if more else []
    found += [f"lacks {', '.join(map(repr, less))}"] if less else []
    return (
        f"its columns differ from those of the rows before: it {' and '.join(found)}. Give all "
        "rows the same columns, and fill in what is absent; or leave the column out of all"
    )


def _first_not_storable(values: list[Any]) -> int:
    """Return the first row that cannot be stored alone, or else together with those before it."""
    alone = next((i for i, value in enumerate(values) if not _storable([value])), None)
    if alone is not None:
        return alone
    row, end = 0, len(values)
    while end - row > 1:
        middle = (row + end) // 2
        if _storable(values[:middle]):
            row = middle
        else:
            end = middle
    return row


def _storable(values: list[Any]) -> bool:
    try:
        _array(values)
    except (pa.ArrowException, *_NOT_STORABLE):
        return False
    return True


def _array(values: list[Any]) -> pa.Array:
    arrays = [_as_numpy(value) for value in values]
    _check_whole(arrays)
    shaped = [isinstance(value, np.ndarray) for value in arrays]
    if all(shaped):
        return _tensors(arrays)
    if any(shaped):
        arrays = [v.tolist() if isinstance(v, np.ndarray) else v for v in arrays]
    kinds = _kinds(arrays)
    if len(kinds) > 1:
        raise _mixed_kinds(arrays)
    types = _leaf_types(arrays)
    if len(types) > 1 and any(issubclass(one, np.generic) for one in types):
        # If NumPy's numbers have several types, pyarrow (26) wraps the ones that are too large.
        arrays = [_as_python(value) for value in arrays]
    depth = next(iter(kinds), "").count("list of")
    try:
        return pa.array(arrays)
    except OverflowError:
        return _large_whole_numbers(arrays, depth)
    except pa.ArrowInvalid:
        if not kinds or not next(iter(kinds)).endswith("number"):
            raise
        return pa.array(_as_floats(arrays))


def _check_whole(values: list[Any]) -> None:
    """Check that Arrow keeps the values as they are.

    Raises:
        RowError: one is a set, which has no order, or an array with masked values.
    """
    for row, value in enumerate(values):
        if isinstance(value, set | frozenset):
            raise RowError(row, f"{value!r:.80} is a set, which has no order: give a sorted list")
        if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise RowError(row, "values of the array are masked: fill them (`array.filled()`)")


def _as_numpy(value: Any) -> Any:
    """Return a tensor or a view of numbers as a NumPy array; any other value as it is."""
    if isinstance(value, memoryview) and value.format not in _BYTE_FORMATS:
        value = np.asarray(value)
    if isinstance(value, torch.Tensor):
        if value.dtype == torch.bfloat16:  # NumPy has no such type, and float32 holds each value
            value = value.float()
        value = value.numpy(force=True)
    if isinstance(value, np.ndarray) and not value.ndim:
        return value[()]
    return value


def _tensors(arrays: list[npt.NDArray[Any]]) -> pa.Array:
    first = arrays[0]
    target = pa.from_numpy_dtype(_native(first).dtype)
    for row, array in enumerate(arrays):
        own = pa.from_numpy_dtype(_native(array).dtype)
        widened = wider(target, own)
        if array.shape != first.shape or widened is None:
            here, before = (f"{a.dtype}{list(a.shape)}" for a in (array, first))
            raise RowError(
                row,
                f"arrays of different shapes or kinds: {here} after {before}. Make them equal, or "
                "give lists, which may have any length",
            )
        target = widened
    if len({array.dtype for array in arrays}) == 1:
        stacked = np.stack([_native(array) for array in arrays])
    else:
        stacked = np.stack([_cast(array, target, row) for row, array in enumerate(arrays)])
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(stacked))


def _cast(array: npt.NDArray[Any], target: pa.DataType, row: int) -> npt.NDArray[Any]:
    try:
        flat = cast_exactly(pa.array(_native(array).ravel()), target)
    except InexactError as error:
        raise RowError(row, str(error)) from error
    values: npt.NDArray[Any] = flat.to_numpy(zero_copy_only=False)
    return values.reshape(array.shape)


def _native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _kinds(values: Sequence[Any]) -> set[str]:
    """Return the kinds of values, such as `number` or `list of list of text`, without nulls."""
    kinds = {_kind(one) for one in set(map(type, values))}
    if "list" in kinds:
        items = list(itertools.chain.from_iterable(v for v in values if _is_list(v)))
        inner = _kinds(items)
        if inner:
            kinds = kinds - {"list"} | {f"list of {kind}" for kind in inner}
    return kinds - {"null"}


def _leaf_types(values: Sequence[Any]) -> set[type]:
    types = set(map(type, values))
    if any(_kind(one) == "list" for one in types):
        types |= _leaf_types(list(itertools.chain.from_iterable(v for v in values if _is_list(v))))
    return {one for one in types if _kind(one) not in ("list", "null")}


def _as_python(value: Any) -> Any:
    if _is_list(value):
        return [_as_python(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value


def _kind(one: type) -> str:
    return next((name for name, types in _KINDS if issubclass(one, types)), one.__name__)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _mixed_kinds(values: list[Any]) -> RowError:
    """Return the error for the first row of another kind than the rows before."""
    known: set[str] = set()
    for row, value in enumerate(values):
        kinds = _kinds([value])
        if known and kinds and len(_without_empty(known | kinds)) > 1:
            here, before = (" and ".join(sorted(some)) for some in (kinds, known))
            return RowError(
                row, f"{value!r:.80} ({here}) does not go together with {before} before"
            )
        known |= kinds
    return RowError(0, "values of several kinds do not go together")


def _without_empty(kinds: set[str]) -> set[str]:
    return kinds - {"list"} if any(kind.startswith("list of") for kind in kinds) else kinds


def _numbers(value: Any) -> Iterator[Any]:
    if _is_list(value):
        for item in value:
            yield from _numbers(item)
    elif value is not None:
        yield value


def _large_whole_numbers(values: list[Any], depth: int) -> pa.Array:
    """Return whole numbers above int64 as uint64.

    Raises:
        RowError: a number is outside of both types, or there are also numbers below 0.
    """
    kind: pa.DataType = pa.uint64()
    for _ in range(depth):
        kind = pa.list_(kind)
    try:
        return pa.array(values, kind)
    except (OverflowError, pa.ArrowException):
        pass
    limits = range(-(2**63), 2**63)
    for row, value in enumerate(values):
        for number in _numbers(value):
            if isinstance(number, int | np.integer) and int(number) not in limits:
                reason = f"{number!r} is outside of int64, and the rows do not all fit uint64"
                raise RowError(row, reason)
    raise RowError(0, "the whole numbers fit neither int64 nor uint64")


def _as_floats(values: list[Any]) -> list[Any]:
    """Return whole numbers and floats as floats; each whole number must be exact as a float."""

    def as_float(value: Any, row: int) -> Any:
        if _is_list(value):
            return [as_float(item, row) for item in value]
        if isinstance(value, int | np.integer) and int(float(value)) != value:
            raise RowError(row, f"{value!r} is not exact as a double, the type of the fractions")
        return None if value is None else float(value)

    return [as_float(value, row) for row, value in enumerate(values)]


def copy_of(row: Any) -> Any:
    """Return a copy of a row; any other value is returned as it is.

    A generator may yield the same dictionary or array each time, with new values. The rows that are
    collected must keep their own values.
    """
    if not isinstance(row, Mapping):
        return row
    return {name: _copy(value) for name, value in row.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, memoryview):
        return bytes(value) if value.format in _BYTE_FORMATS else np.array(value)
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, list):
        is_nested = bool(value) and isinstance(value[0], list | tuple | np.ndarray)
        return [_copy(item) for item in value] if is_nested else value.copy()
    return value


def chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Yield consecutive rows, `size` at a time."""
    whole = iter(rows)
    while chunk := list(itertools.islice(whole, size)):
        yield chunk
