"""Which Arrow columns can be trained on, and their values as NumPy arrays.

Supported are integers, floats and booleans, fixed-size lists of them (nested too) and fixed shape
tensors: the types whose rows are all of one shape.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Values = dict[str, npt.NDArray[Any]]


class DataError(ValueError):
    """The data cannot be trained on as it is; the message says why and what to do."""


@dataclass(frozen=True)
class Column:
    """What one row of a column is.

    Attributes:
        dtype: NumPy's type of its numbers.
        shape: The shape of one row's value; () for a scalar.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.shape}"


def columns_of(schema: pa.Schema, selection: Sequence[str] | None, where: str) -> dict[str, Column]:
    """Return what the selected columns of a schema are, in the order of the selection.

    Args:
        schema: The schema of a table or file.
        selection: Names of columns; None selects all.
        where: What to call the table or file in an error.

    Raises:
        DataError: A column is absent, there twice or of an unsupported type, or none is selected.
    """
    names = schema.names if selection is None else selection
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise DataError(
            f"{where} has no column {listed(missing)}; it has {listed(schema.names)}: select from "
            "those."
        )
    if not names:
        raise DataError(f"no column of {where} is selected; it has {listed(schema.names)}.")
    twice = [name for name, count in Counter(schema.names).items() if count > 1 and name in names]
    if twice:
        raise DataError(f"{where} has more than one column {listed(twice)}: rename one of them.")
    return {name: _column(name, schema.field(name).type, where) for name in names}


def _column(name: str, arrow_type: pa.DataType, where: str) -> Column:
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
    is_number = pa.types.is_integer(inner) or pa.types.is_floating(inner)
    if is_number or pa.types.is_boolean(inner):
        return Column(np.dtype(inner.to_pandas_dtype()), shape)
    raise DataError(
        f"column {name!r} of {where} is of type {arrow_type}. Integers, floats and booleans are "
        "supported, fixed-size lists of them, and fixed shape tensors whose dimensions are stored "
        "in order. Convert the column, or select the others with `columns`."
    )


def values_of(table: pa.Table, columns: Mapping[str, Column], where: str) -> Values:
    """Return columns as arrays of shape (rows, *shape of the column).

    A column in one chunk is viewed in place; booleans, which Arrow packs into bits, and several
    chunks are copied.

    Raises:
        DataError: A column holds nulls.
    """
    values: Values = {}
    for name, column in columns.items():
        shape = (table.num_rows, *column.shape)
        chunks = [_flat(chunk, name, where) for chunk in table.column(name).chunks if len(chunk)]
        if len(chunks) != 1:
            chunks = [np.concatenate([np.empty(0, column.dtype), *chunks])]
        values[name] = chunks[0].reshape(shape)
    return values


def _flat(array: pa.Array, name: str, where: str) -> npt.NDArray[Any]:
    while True:
        if array.null_count:
            raise null_error(name, where)
        if isinstance(array, pa.ExtensionArray):
            array = array.storage
        elif pa.types.is_fixed_size_list(array.type):
            array = array.flatten()
        else:
            flat: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
            return flat


def null_error(name: str, where: str) -> DataError:
    """Return the error that says that a column of a table or file holds nulls."""
    return DataError(
        f"column {name!r} of {where} holds nulls, which a tensor cannot: fill them, or drop their "
        "rows."
    )


def listed(names: Iterable[str]) -> str:
    """Return names as one list to read."""
    return ", ".join(repr(name) for name in names) or "none"
