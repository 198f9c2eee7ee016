"""Finds one type for values of several types, and casts without changing a value.

Rows come in batches, and each batch has the types of its own values: `1` is a whole number and
`0.5` is a float. The type of a column is the narrowest one that holds all of its batches. Each cast
to it is checked value by value: a value is either kept exactly, or refused with its row.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_EXACT = {16: 2**11, 32: 2**24, 64: 2**53}
"""Bits of a float -> the whole number up to which it holds each whole number."""


class InexactError(ValueError):
    """A type does not hold a value exactly.

    Attributes:
        row: the row in the array, from 0.
        value: the row's value.
    """

    def __init__(self, row: int, value: Any, target: pa.DataType) -> None:
        super().__init__(f"{value!r} is not a value of type {target}")
        self.row, self.value = row, value


def wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return the narrowest type that can hold the values of both types; None if there is none.

    `cast_exactly` finds out whether it holds each value: a float64 holds only some of the whole
    numbers above 2**53. Booleans, numbers, strings and binary values have no common type.
    """
    types = pa.types
    if one == other or types.is_null(other):
        return one
    if types.is_null(one):
        return other
    if _is_number(one) and _is_number(other):
        return _wider_number(one, other)
    for is_kind, is_large, large in (
        (_is_string, types.is_large_string, pa.large_string()),
        (_is_binary, types.is_large_binary, pa.large_binary()),
    ):
        if is_kind(one) and is_kind(other):
            return large if is_large(one) or is_large(other) else one
    if types.is_struct(one) and types.is_struct(other):
        return _wider_struct(one, other)
    return _wider_list(one, other)


def cast_exactly(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Return an array's values as another type.

    Only floats may be rounded, to a narrower float type. `wider` never returns a narrower type, so
    this happens only if a schema requires it.

    Args:
        array: values of a plain type.
        target: the wanted type.

    Raises:
        InexactError: the type does not hold a value exactly.
    """
    if array.type == target:
        return array
    if isinstance(target, pa.FixedShapeTensorType):
        storage = array.storage if isinstance(array, pa.ExtensionArray) else array
        return pa.ExtensionArray.from_storage(target, cast_exactly(storage, target.storage_type))
    if isinstance(array, pa.ExtensionArray):
        return cast_exactly(array.storage, target)
    if pa.types.is_struct(leaf_type(array.type)) and pa.types.is_struct(leaf_type(target)):
        return _cast_structs(array, target)
    if not _castable(array.type, target):
        raise InexactError(0, array[0].as_py() if len(array) else None, target)
    cast = _try_cast(array, target)
    if cast is None:
        row = _first_inexact(array, target)
        raise InexactError(row, array[row].as_py(), target)
    return cast


def leaf_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the innermost items of a list; another type is returned as it is."""
    while True:
        is_tensor = isinstance(kind, pa.FixedShapeTensorType)
        if not (is_tensor or _is_list(kind) or pa.types.is_fixed_size_list(kind)):
            return kind
        kind = kind.value_type


def leaves(array: pa.Array) -> pa.Array:
    """Return the innermost items of lists; another array is returned as it is."""
    while True:
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif _is_list(array.type) or pa.types.is_fixed_size_list(array.type):
            array = array.flatten()
        else:
            return array


def settled(schema: pa.Schema) -> pa.Schema:
    """Return a schema in which lists without a type, since all are empty, are lists of int64."""
    fields = []
    for field in schema:
        kind = field.type
        if _is_list(kind) and pa.types.is_null(leaf_type(kind)):
            kind = pa.list_(pa.int64())
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields)


def _wider_number(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    types = pa.types
    floats = [kind for kind in (one, other) if types.is_floating(kind)]
    whole = [kind for kind in (one, other) if types.is_integer(kind)]
    bits = max(kind.bit_width for kind in (one, other))
    if not whole:
        return max(floats, key=lambda kind: kind.bit_width)
    if floats:
        (number,) = whole
        # A float holds all whole numbers of half its width.
        needed = min(64, 2 * number.bit_width)
        wide = max(needed, floats[0].bit_width)
        return {16: pa.float16(), 32: pa.float32(), 64: pa.float64()}[wide]
    signs = {types.is_signed_integer(kind) for kind in whole}
    if len(signs) == 1:
        return max(whole, key=lambda kind: kind.bit_width)
    unsigned = next(kind for kind in whole if not types.is_signed_integer(kind))
    bits = max(bits, min(64, 2 * unsigned.bit_width))
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[bits]


def _wider_list(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    types = pa.types
    if isinstance(one, pa.FixedShapeTensorType) and isinstance(other, pa.FixedShapeTensorType):
        inner = wider(one.value_type, other.value_type)
        alike = (one.shape, one.permutation, one.dim_names) == (
            other.shape,
            other.permutation,
            other.dim_names,
        )
        if inner is None or not alike:
            return None
        return pa.fixed_shape_tensor(
            inner, one.shape, dim_names=one.dim_names, permutation=one.permutation
        )
    make: Callable[[pa.DataType], pa.DataType]
    if _is_list(one) and _is_list(other):
        large = types.is_large_list(one) or types.is_large_list(other)
        make = pa.large_list if large else pa.list_
    elif types.is_fixed_size_list(one) and types.is_fixed_size_list(other):
        if one.list_size != other.list_size:
            return None
        make = lambda inner: pa.list_(inner, one.list_size)  # noqa: E731
    else:
        return None
    inner = wider(one.value_type, other.value_type)
    return None if inner is None else make(inner)


def _wider_struct(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Return a struct with the fields of both; a field that one of them lacks is null there."""
    fields = {field.name: field.type for field in one}
    for field in other:
        both = wider(fields.get(field.name, pa.null()), field.type)
        if both is None:
            return None
        fields[field.name] = both
    return pa.struct(list(fields.items()))


def _cast_structs(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Return structs, or lists of them, as structs that have more fields, or wider ones."""
    absent = array.is_null() if array.null_count else None
    if _is_list(array.type) and _is_list(target):
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        try:
            items = cast_exactly(array.flatten(), target.value_type)
        except InexactError as error:
            row = int(np.searchsorted(offsets, error.row, side="right")) - 1
            raise InexactError(row, error.value, target) from error
        large = pa.types.is_large_list(target)
        made: Any = pa.LargeListArray if large else pa.ListArray
        places = pa.array(offsets, pa.int64() if large else pa.int32())
        return made.from_arrays(places, items, mask=absent)
    if not (pa.types.is_struct(array.type) and pa.types.is_struct(target)):
        raise InexactError(0, array[0].as_py() if len(array) else None, target)
    own = {f.name: part for f, part in zip(array.type, array.flatten(), strict=True)}
    if not own.keys() <= {field.name for field in target}:
        raise InexactError(0, array[0].as_py() if len(array) else None, target)
    parts = [
        cast_exactly(own[f.name], f.type) if f.name in own else pa.nulls(len(array), f.type)
        for f in target
    ]
    return pa.StructArray.from_arrays(parts, fields=list(target), mask=absent)


def _castable(one: pa.DataType, target: pa.DataType) -> bool:
    """Say whether a value of one type can be equal to one of another: `True` is not 1."""
    types = pa.types
    if isinstance(one, pa.FixedShapeTensorType) or isinstance(target, pa.FixedShapeTensorType):
        return bool(one == target)
    if types.is_null(one):
        return True
    if _is_list(one) or types.is_fixed_size_list(one):
        nested = _is_list(target) or types.is_fixed_size_list(target)
        return nested and _castable(one.value_type, target.value_type)
    for is_kind in (_is_number, _is_string, _is_binary):
        if is_kind(one):
            return is_kind(target)
    return bool(one == target)


def _try_cast(array: pa.Array, target: pa.DataType) -> pa.Array | None:
    """Return the array as another type; None if that does not hold a value exactly."""
    own, leaf = leaf_type(array.type), leaf_type(target)
    to_float = pa.types.is_floating(leaf)
    if to_float and pa.types.is_integer(own) and not _holds_whole_numbers(array, leaf):
        return None
    try:
        cast = array.cast(target, safe=not to_float)
    except (pa.ArrowException, OverflowError):
        return None
    if to_float and pa.types.is_floating(own) and _overflows(array, cast):
        return None
    return cast


def _holds_whole_numbers(array: pa.Array, target: pa.DataType) -> bool:
    """Say whether a float type holds each of the whole numbers in an array."""
    numbers = leaves(array).drop_null().to_numpy(zero_copy_only=False)
    most = _EXACT[target.bit_width]
    kind = np.dtype(target.to_pandas_dtype())
    large = numbers > most if numbers.dtype.kind == "u" else (numbers > most) | (numbers < -most)
    with np.errstate(over="ignore"):
        for number in numbers[large].tolist():
            held = float(np.array(number, np.float64).astype(kind))
            if not np.isfinite(held) or int(held) != number:
                return False
    return True


def _overflows(array: pa.Array, cast: pa.Array) -> bool:
    before = leaves(array).drop_null().to_numpy(zero_copy_only=False)
    after = leaves(cast).drop_null().to_numpy(zero_copy_only=False)
    return bool((np.isinf(after) & ~np.isinf(before)).any())


def _first_inexact(array: pa.Array, target: pa.DataType) -> int:
    """Return the first row that cannot be cast, by bisection."""
    row, end = 0, len(array)
    while end - row > 1:
        middle = (row + end) // 2
        if _try_cast(array[row:middle], target) is None:
            end = middle
        else:
            row = middle
    return row


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
