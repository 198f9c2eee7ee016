"""The plain form of Arrow's types: the same values without an encoding.

Writers choose encodings freely: pandas writes categories as dictionaries, polars writes string
views, Hugging Face writes an image as a struct of its bytes and its path. Each has one plain form
with equal values, and only plain forms are stored in a stream or read into a batch.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_IMAGE = {"bytes", "path"}  # the fields of Hugging Face's Image and Audio, as they are stored


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same values without an encoding; a type that has none stays."""
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
    """Return an array's values in their plain form; an array that is plain is returned as it is.

    Raises:
        pa.ArrowException: the plain form holds more than Arrow's 32-bit offsets reach.
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
    if array.null_count:  # rare, and refused by all who ask: the slow way will do
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
        pa.ArrowException: a column's plain form holds more than Arrow's 32-bit offsets reach.
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
