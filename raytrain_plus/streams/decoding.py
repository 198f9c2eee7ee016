"""Decodes a file's bytes to a table that is safe to use, even if the bytes are hostile.

Arrow trusts what it reads: a wrong offset ends the process when its row is read, and a small file
may declare any amount of memory. So sizes are checked before memory is allocated, and values before
they are used, each time that a file is opened. Text that is read in place is not read as a whole
for this: its offsets are checked, and each row is checked when it is decoded.
"""

import heapq
import importlib
import math
import os
import resource
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raytrain_plus.storage.errors import StorageError
from raytrain_plus.streams.columns import Column, DataError, Values, values_of
from raytrain_plus.streams.parquet_footer import Footer, read_footer

_BATCH_ROWS = 8192  # of Parquet: memory is checked between two batches
_SMALL = 1 << 20  # bytes that are allocated without a check of the memory
_CONTINUED = 0xFFFFFFFF  # comes before each message of Arrow IPC data
_DICTIONARY, _RECORD_BATCH = 2, 3  # kinds of messages
_WITH_BUFFERS = (_DICTIONARY, _RECORD_BATCH)


# The errors that Arrow, NumPy and Python raise for damaged bytes.
_DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    ArithmeticError,
    MemoryError,
    SystemError,
    struct.error,
)


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Turn each error of reading a file into a DataError that names the file."""
    try:
        yield
    except (DataError, StorageError):
        raise
    except _DAMAGE as error:
        raise DataError(
            f"{where} cannot be read; it may be damaged or cut short, so write or copy it again. "
            f"The reader said: {error or type(error).__name__}"
        ) from error


def decode(
    content: Any,
    where: str,
    *,
    is_parquet: bool,
    most: int | None = None,
    columns: list[str] | None = None,
) -> pa.Table:
    """Return a file's table after checking its sizes and values.

    Args:
        content: the bytes, or the path of a Parquet file.
        where: the name of the file in an error.
        is_parquet: the file is a Parquet file; else it is an Arrow IPC file.
        most: bytes that its values may take. Default: the memory that this process may use.
        columns: the columns to read, only of Parquet. Default: all.

    Raises:
        DataError: the file is damaged, or too large.
    """
    with explained(where):
        if is_parquet:
            with parquet_file(content) as file:
                footer = footer_of(content, where)
                table = _read_parquet(file, footer.rows, where, columns, most)
        else:
            reader = pa.ipc.open_file(content)
            check_declared(pa.py_buffer(content), reader.schema, where, most)
            table = reader.read_all()
        check_values(table, table.schema.names, where)
    return table


def parquet_file(content: Any) -> Any:
    """Open a Parquet file: its bytes, or a path."""
    # This imports pandas, which takes a third of a second, so workers import it only if needed.
    parquet = importlib.import_module("pyarrow.parquet")
    is_bytes = isinstance(content, bytes | bytearray | memoryview | pa.Buffer)
    return parquet.ParquetFile(pa.BufferReader(content) if is_bytes else content)


def footer_of(content: Any, where: str) -> Footer:
    """Return what the footer of a Parquet file declares.

    Args:
        content: the bytes, or a path.
        where: the name of the file in an error.

    Raises:
        DataError: it is damaged, or its numbers do not agree.
    """
    if not isinstance(content, Path):
        return read_footer(content, where)
    with content.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        length = int.from_bytes(file.read(4), "little") + 8
        file.seek(max(0, size - length))
        return read_footer(file.read(), where)


def values_in(
    table: pa.Table,
    columns: Mapping[str, Column],
    where: str,
    constants: Mapping[str, int | str] | None = None,
) -> Values:
    """Return the values of columns, as `values_of`; each error names the file.

    Raises:
        DataError: a column holds nulls, or is damaged.
    """
    with explained(where):
        return values_of(table, columns, where, constants)


def check_values(
    table: pa.Table, names: Iterable[str], where: str, *, in_place: bool = False
) -> None:
    """Check all that Arrow relies on: sizes of buffers, offsets, indices, and UTF-8.

    Args:
        table: what was read.
        names: the columns that will be used.
        where: the name of the file in an error.
        in_place: the text may be larger than memory, so only its offsets are checked.

    Raises:
        DataError, pa.ArrowException: a check fails.
    """
    for name in names:
        for chunk in table.column(name).chunks:
            array = chunk
            if in_place and pa.types.is_string(chunk.type):
                array = chunk.view(pa.binary())
            elif in_place and pa.types.is_large_string(chunk.type):
                array = chunk.view(pa.large_binary())
            array.validate(full=True)
            needed = _plain_bytes(array)
            if needed > _SMALL:
                check_memory(needed, f"column {name!r} of {where}, decoded,")


def _plain_bytes(array: pa.Array) -> int:
    """Return the bytes of an encoded array's plain form, which may be far larger; 0 if plain."""
    kind, types = array.type, pa.types
    if types.is_dictionary(kind):
        if not (_is_text(kind.value_type)):
            return len(array) * _width(kind.value_type)
        sizes = pc.binary_length(array.dictionary).cast(pa.int64())
        return int(pc.sum(sizes.take(array.indices)).as_py() or 0)
    if types.is_run_end_encoded(kind):
        if not _is_text(kind.value_type):
            return len(array) * _width(kind.value_type)
        runs = np.diff(array.run_ends.to_numpy(), prepend=0)
        sizes = pc.binary_length(array.values).fill_null(0).to_numpy()
        return int((runs.astype(np.float64) * sizes[: len(runs)]).sum())
    if types.is_string_view(kind) or types.is_binary_view(kind):
        # A view is 16 bytes, of which the first four are the length of the value.
        views = np.frombuffer(array.buffers()[1], np.int32).reshape(-1, 4)
        return int(views[array.offset : array.offset + len(array), 0].sum(dtype=np.int64))
    if types.is_list_view(kind) or types.is_large_list_view(kind):
        items = float(array.sizes.to_numpy().astype(np.float64).sum())
        return int(items * _width(kind.value_type))
    return 0


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
    )


def _width(kind: pa.DataType) -> int:
    """Return the bytes of one value; those of an offset if the width is not fixed."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return 8


def least_bytes(schema: pa.Schema, rows: int) -> int:
    """Return the least bytes that the values of `rows` rows take as they are stored."""
    return sum(_least_bits(field.type) for field in schema) * rows // 8


def _least_bits(kind: pa.DataType) -> int:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _least_bits(kind.storage_type)
    if types.is_fixed_size_list(kind):
        return int(kind.list_size) * _least_bits(kind.value_type)
    if types.is_large_string(kind) or types.is_large_binary(kind) or types.is_large_list(kind):
        return 64
    if _is_text(kind) or types.is_list(kind):
        return 32
    if types.is_dictionary(kind):
        return int(kind.index_type.bit_width)
    try:
        return int(kind.bit_width)
    except ValueError:
        return 0


def _read_parquet(
    file: Any, rows: int, where: str, columns: list[str] | None, most: int | None
) -> pa.Table:
    """Read in small batches, to check the decoded size while it grows."""
    schema = file.schema_arrow
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    _check_size(least_bytes(schema, rows), where, most)
    batches, taken, next_look = [], 0, _SMALL
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
        batches.append(batch)
        taken += batch.nbytes
        if taken > next_look:
            _check_size(taken, where, most)  # the batches are copied into one table later
            next_look = taken + taken // 8
    table = pa.Table.from_batches(batches, batches[0].schema if batches else schema)
    if schema.metadata:
        table = table.replace_schema_metadata(schema.metadata)
    if table.num_rows != rows:
        raise DataError(
            f"{where} has {table.num_rows} rows, but its footer says {rows}: it is damaged, write "
            "it again."
        )
    return table


def _check_size(size: int, where: str, most: int | None) -> None:
    """Check the bytes that the values of a file take."""
    if most is not None and size > most:
        raise DataError(
            f"{where} takes more than {most:,} bytes when it is decoded: it is larger than "
            "declared, or than the cache may be. Raise `cache_limit`, or write the data set "
            "again with smaller files."
        )
    if size > _SMALL:
        check_memory(size, f"{where}, decoded,")


# -- the sizes that an Arrow IPC file declares, read from its flatbuffers before decompression


def check_declared(
    content: pa.Buffer,
    schema: pa.Schema,
    where: str,
    most: int | None = None,
    *,
    is_stream: bool = False,
) -> int:
    """Check the sizes that Arrow IPC data declares; returns the number of rows that it declares.

    Args:
        content: the file.
        schema: the schema of its columns.
        where: the name of the file in an error.
        most: the largest sum of the sizes. Default: the memory that this process may use.
        is_stream: the data is an Arrow IPC stream, which has no footer.

    Raises:
        DataError: the sizes are too large or too small for the rows, or the file is damaged.
    """
    rows = compressed = 0
    with explained(where):
        view = memoryview(content)
        for block in _following_blocks(view) if is_stream else _blocks_of_footer(view):
            message = _declared(view, *block)
            if least_bytes(schema, message.rows) > message.size:
                raise ValueError(f"{message.rows:,} rows cannot be in {message.size:,} bytes")
            rows += message.rows
            compressed += message.size if message.is_compressed else 0
        _check_size(compressed, where, most)
    return rows


class _Declared(NamedTuple):
    """What one message declares: its rows, 0 for a dictionary, and the bytes of its buffers."""

    rows: int
    size: int
    is_compressed: bool


def _blocks_of_footer(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield the position of each message of a file, and the bytes of its metadata and body."""
    end = len(view) - 10
    length = _number("<i", view, end)
    if not 0 < length <= end - 8:
        raise ValueError("its footer is damaged")
    footer = _table(view[end - length : end], 0)
    for field in (2, 3):  # dictionaries and record batches
        for at in footer.items(field, 24):
            yield struct.unpack_from("<qi4xq", footer.view, at)


def _following_blocks(view: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield the same for each message of a stream, except its schema."""
    at = 0
    while at + 8 <= len(view):
        head = 8 if _number("<I", view, at) == _CONTINUED else 4
        length = _number("<i", view, at + head - 4)
        if length <= 0:
            return  # the end of the stream
        message = _table(view[at + head : at + head + length], 0)
        body = _number("<q", message.view, message.at(3)) if message.at(3) else 0
        if body < 0:
            raise ValueError("a message declares a size below zero")
        if _kind(message) in _WITH_BUFFERS:
            yield at, head + length, body
        at += head + length + body


def _declared(view: memoryview, offset: int, metadata: int, body: int) -> _Declared:
    """Return what one message declares; for compressed buffers, the decompressed bytes."""
    if min(offset, metadata, body) < 0 or offset + metadata + body > len(view):
        raise ValueError("a block lies outside of the file")
    skipped = 8 if _number("<I", view, offset) == _CONTINUED else 4
    message = _table(view[offset + skipped : offset + metadata], 0)
    header = message.table(2)
    is_dictionary = _kind(message) == _DICTIONARY
    if is_dictionary:
        header = header.table(1)
    is_compressed = bool(header.at(3))
    total = 0
    for at in header.items(2, 16):
        start, length = struct.unpack_from("<qq", header.view, at)
        if length < 0 or start < 0 or start + length > body:
            raise ValueError("a buffer lies outside of its message")
        size = length
        if is_compressed and length:
            size = _number("<q", view, offset + metadata + start)
            if size < -1:
                raise ValueError("a buffer declares a size below zero")
        total += length if size == -1 else size  # -1: stored as it is
    rows = _number("<q", header.view, header.at(0)) if header.at(0) else 0
    if rows < 0:
        raise ValueError("a batch declares rows below zero")
    return _Declared(0 if is_dictionary else rows, total, is_compressed)


def _kind(message: "_Table") -> int:
    return _number("<B", message.view, message.at(1))


class _Table:
    """A table of a flatbuffer: its position, and the positions of its fields."""

    def __init__(self, view: memoryview, position: int) -> None:
        self.view, self.position = view, position
        self._fields = position - _number("<i", view, position)
        self._size = _number("<H", view, self._fields)

    def at(self, field: int) -> int:
        """Return the position of a field; 0 if it is absent."""
        entry = 4 + 2 * field
        if entry + 2 > self._size:
            return 0
        offset = _number("<H", self.view, self._fields + entry)
        return self.position + offset if offset else 0

    def table(self, field: int) -> "_Table":
        """Return the table that a field refers to."""
        at = self.at(field)
        if not at:
            raise ValueError("a field is missing")
        return _table(self.view, at)

    def items(self, field: int, size: int) -> range:
        """Return the positions of the structs of a vector; none if it is absent."""
        at = self.at(field)
        if not at:
            return range(0)
        start = at + _number("<I", self.view, at)
        count = _number("<I", self.view, start)
        if start + 4 + count * size > len(self.view):
            raise ValueError("a list reaches beyond its message")
        return range(start + 4, start + 4 + count * size, size)


def _table(view: memoryview, at: int) -> _Table:
    return _Table(view, at + _number("<I", view, at))


def _number(kind: str, view: memoryview, at: int) -> int:
    if at < 0:
        raise ValueError("a position lies before the file")
    return int(struct.unpack_from(kind, view, at)[0])


# -- memory that this process may still use

_FEW_ROWS = 10**6  # for which memory is not checked
_MIXING_BYTES = 32  # of memory for each row while a window is mixed
_CGROUP = Path("/sys/fs/cgroup")


def memory_left() -> float:
    """Return the bytes of memory that this process may still use; infinite without a limit."""
    return max(0.0, min(_of_machine(), _of_container(), _of_process()))


def check_memory(needed: float, what: str) -> None:
    """Check that something fits into memory.

    Args:
        needed: bytes.
        what: what needs them, as the beginning of a sentence.

    Raises:
        DataError: there is less memory.
    """
    if needed > (left := memory_left()):
        raise DataError(
            f"{what} takes {needed:,.0f} bytes of memory, and this process may use {left:,.0f} "
            "more. If the data is neither damaged nor hostile, use smaller files, or a machine "
            "with more memory."
        )


def check_order_memory(rows: Sequence[int], window: int | None, where: str) -> None:
    """Check that there is memory to mix a window of files.

    Args:
        rows: the rows of each file.
        window: how many files are mixed at a time; None for all.
        where: the name of the data in an error.

    Raises:
        DataError: there is less memory.
    """
    most = sum(heapq.nlargest(window or len(rows), rows))
    if most > _FEW_ROWS:
        check_memory(_MIXING_BYTES * most, f"mixing {most:,} rows of {where}")


def _of_machine() -> float:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return float(next(n for n in lines if n.startswith("MemAvailable")).split()[1]) * 1024
    except (OSError, StopIteration):
        return math.inf


def _of_container() -> float:
    try:
        limit = float((_CGROUP / "memory.max").read_text())  # "max" where there is none
        used = float((_CGROUP / "memory.current").read_text())
        counts = dict(n.split() for n in (_CGROUP / "memory.stat").read_text().splitlines())
        return limit - used + float(counts.get("inactive_file", 0))
    except (OSError, ValueError):
        return math.inf


def _of_process() -> float:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return float(limit - pages * resource.getpagesize())
