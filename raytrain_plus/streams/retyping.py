"""Converts columns to types that a user names: each value exactly, or an error names its row."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.widening import InexactError, cast_exactly

Types: TypeAlias = Mapping[str, pa.DataType]

_NAMES = (
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "bool", "string", "binary"),
)

_FORM = re.compile(r"(\w+)(?:\[([1-9]\d*)\])?")


def parse_types(given: Iterable[str]) -> dict[str, pa.DataType]:
    """Return the types that a command line gives as COLUMN=TYPE.

    Raises:
        DataError: one has another form, or names no type, or a column is given twice.
    """
    types: dict[str, pa.DataType] = {}
    for text in given:
        name, _, kind = text.rpartition("=")
        found = _FORM.fullmatch(kind)
        if not name or found is None or found[1] not in _NAMES:
            raise DataError(
                f"the type {text!r} is not of the form COLUMN=TYPE with one of the types "
                f"{', '.join(_NAMES)}; or COLUMN=TYPE[N] for rows of N numbers."
            )
        if name in types:
            raise DataError(f"the type of column {name!r} is given twice: give it once.")
        leaf = pa.type_for_alias(found[1])
        types[name] = pa.list_(leaf, int(found[2])) if found[2] else leaf
    return types


def retyped(
    column: pa.ChunkedArray, kind: pa.DataType, name: str, place: Callable[[int], str]
) -> pa.ChunkedArray:
    """Return a column as another type; of lists and tensors their items.

    Only fractions may be rounded, to a narrower float or from text.

    Args:
        column: of a plain type.
        kind: a type of numbers, bool, string or binary; or lists of one length of them.
        name: the column's, for an error.
        place: returns the place of a row.

    Raises:
        DataError: the type does not hold a value.
    """
    is_fixed = pa.types.is_fixed_size_list(kind)
    target = kind if is_fixed else _with_leaf(column.type, kind)
    chunks, before = [], 0
    for chunk in column.chunks:
        try:
            chunks.append(_cast(chunk, target))
        except InexactError as error:
            raise DataError(
                f"{place(before + error.row)}: column {name!r} holds {error.value!r:.80}, which "
                f"{_name(kind)} does not hold exactly: give another type (`--type`), or change "
                "the value."
            ) from error
        before += len(chunk)
    return pa.chunked_array(chunks, target)


def _name(kind: pa.DataType) -> str:
    """Return a type's name as a user gives it; Arrow calls float64 `double`."""
    if pa.types.is_fixed_size_list(kind):
        return f"{_name(kind.value_type)}[{kind.list_size}]"
    return next(name for name in _NAMES if pa.type_for_alias(name) == kind)


def _with_leaf(kind: pa.DataType, leaf: pa.DataType) -> pa.DataType:
    """Return a type with another type of its innermost items."""
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.fixed_shape_tensor(
            leaf, kind.shape, dim_names=kind.dim_names, permutation=kind.permutation
        )
    if types.is_fixed_size_list(kind):
        return pa.list_(_with_leaf(kind.value_type, leaf), kind.list_size)
    if types.is_large_list(kind):
        return pa.large_list(_with_leaf(kind.value_type, leaf))
    return pa.list_(_with_leaf(kind.value_type, leaf)) if types.is_list(kind) else leaf


def _fixed(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Return lists as lists of one length.

    Raises:
        InexactError: one has another length, or is null.
    """
    lists = array.storage if isinstance(array, pa.ExtensionArray) else array
    if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type)) and not (
        pa.types.is_fixed_size_list(lists.type)
    ):
        raise InexactError(0, lists[0].as_py() if len(lists) else None, target)
    same = pc.fill_null(pc.equal(pc.list_value_length(lists), target.list_size), fill_value=False)
    if (row := same.index(value=False).as_py()) >= 0:
        raise InexactError(row, lists[row].as_py(), target)
    items = lists.flatten()
    try:
        return pa.FixedSizeListArray.from_arrays(_cast(items, target.value_type), target.list_size)
    except InexactError as error:
        row = error.row // target.list_size
        raise InexactError(row, lists[row].as_py(), target) from error


def _cast(array: pa.Array, target: pa.DataType) -> pa.Array:
    types = pa.types
    if types.is_fixed_size_list(target):
        return _fixed(array, target)
    is_text = types.is_string(array.type) or types.is_large_string(array.type)
    if is_text and not types.is_string(target):
        return _parsed(array, target)
    if types.is_string(target) and (types.is_integer(array.type) or types.is_boolean(array.type)):
        return array.cast(target)
    is_binary = types.is_binary(array.type) or types.is_large_binary(array.type)
    if is_binary and types.is_string(target):
        return _parsed(array, target)
    return cast_exactly(array, target)


def _parsed(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """Return what texts say as numbers and the like.

    Raises:
        InexactError: one says something else.
    """
    try:
        values = texts.cast(target)
    except pa.ArrowInvalid:
        row = next(i for i in range(len(texts)) if not _is_castable(texts[i : i + 1], target))
        raise InexactError(row, texts[row].as_py(), target) from None
    if pa.types.is_floating(target):
        _check_floats(texts, values, target)
    return values


def _is_castable(texts: pa.Array, target: pa.DataType) -> bool:
    try:
        texts.cast(target)
    except pa.ArrowInvalid:
        return False
    return True


def _check_floats(texts: pa.Array, values: pa.Array, target: pa.DataType) -> None:
    """Check whole numbers that a float may not hold, and numbers outside of its range."""
    held = values.cast(pa.float64()).to_numpy(zero_copy_only=False)
    limit = {16: 2**11, 32: 2**24, 64: 2**53}[target.bit_width]
    for row in np.flatnonzero(~(np.abs(held) < limit)).tolist():
        text, value = texts[row].as_py(), float(held[row])
        if text is None or np.isnan(value):
            continue
        digits = text.strip().lstrip("+-")
        is_finite = digits[:1].isdigit() or digits[:1] == "."
        inexact = digits.isdigit() and np.isfinite(value) and abs(int(value)) != int(digits)
        if inexact or (is_finite and not np.isfinite(value)):
            raise InexactError(row, text, target)
