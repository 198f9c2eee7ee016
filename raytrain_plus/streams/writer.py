"""Writing a stream: files first, in parallel, and the manifest last and at once.

Until the manifest stands there is no data set, whatever happened to its writer; and of two writers
to one place, one publishes and the other fails. File names hold a hash of their contents, so that
neither can write over the other's files.
"""

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self, TypeAlias, get_args

import numpy as np
import pyarrow as pa
import torch

from raytrain_plus.streams.columns import DataError, columns_of, values_of
from raytrain_plus.streams.format import MANIFEST, Compression, FileEntry, Manifest
from raytrain_plus.streams.plain import plain_table
from raytrain_plus.streams.store import ExistsError, Store
from raytrain_plus.streams.stream import parse_bytes, write_raw

Row = Mapping[str, Any]
Rows: TypeAlias = pa.RecordBatch | pa.Table | Iterable[Row]

DEFAULT_FILE_SIZE = 64 << 20
_ROWS_AT_ONCE = 1024  # of dictionaries, which Arrow takes many of at a time


class StreamWriter:
    """Writes a stream; used as a context manager.

        with StreamWriter("s3://bucket/train") as writer:
            for batch in batches:
                writer.write(batch)

    The data set is published when the block ends without an error, else not at all. Memory is
    bounded by `parallel + 2` files.

    Args:
        url: the folder to write to: a path or any URL that fsspec knows.
        file_size: the raw bytes of a file, as a number or like "64MB"; one row is never cut.
        compression: of the files at rest: zstd, lz4 or none.
        schema: of the rows; by default that of the first that are written.
        parallel: how many files are compressed and stored at once.
        storage_options: passed to fsspec's filesystem.
        only_writer: the store need not keep two writers apart: nobody else writes to this place.
        deadline: seconds without progress after which a store's fault is an error.
        on_file: called after each file is stored, in any order.

    Raises:
        DataError: there is a data set already, the store cannot be written, or it cannot keep two
            writers apart.
    """

    def __init__(  # noqa: PLR0913 - settings that users name
        self,
        url: str | os.PathLike[str],
        *,
        file_size: int | str = DEFAULT_FILE_SIZE,
        compression: Compression = "zstd",
        schema: pa.Schema | None = None,
        parallel: int = 4,
        storage_options: Mapping[str, Any] | None = None,
        only_writer: bool = False,
        deadline: float = 60.0,
        on_file: Callable[[FileEntry], None] = lambda _: None,
    ) -> None:
        if compression not in get_args(Compression):
            raise DataError(
                f"compression is {compression!r}, but must be one of "
                f"{', '.join(get_args(Compression))}."
            )
        if parallel < 1:
            raise DataError(f"parallel is {parallel}, but must be at least 1 file.")
        self._store = Store(url, storage_options, deadline=deadline)
        self._file_size = parse_bytes(file_size)
        self._compression: Compression = compression
        self._schema = schema
        self._parallel = parallel
        self._on_file = on_file
        self._only_writer = only_writer
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._storing: deque[Future[FileEntry]] = deque()
        self._stored: list[FileEntry] = []
        self._begun = 0
        self._threads = ThreadPoolExecutor(parallel, "raytrain_plus writer")
        if self._store.exists(MANIFEST):
            raise DataError(
                f"there is a data set in {self._store.url} already: write to another place, or "
                "remove it first."
            )
        if not only_writer and not self._store.creates_conditionally():
            raise DataError(
                f"the store of {self._store.url} does not keep two writers apart: it writes over "
                "what is there when it was asked not to. If nobody else writes to this place, say "
                "so with `only_writer=True` (`--only-writer`)."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            self._threads.shutdown(cancel_futures=True)

    def write(self, rows: Rows | Row) -> None:
        """Add rows after those that were written before.

        Args:
            rows: a table or record batch; a dictionary, which is one row, or many of them. Values
                of a row may be numbers, strings, bytes, lists, and NumPy arrays and tensors, whose
                shape all rows must share.

        Raises:
            DataError: they do not go together with the rows before, or hold nulls or a type that
                cannot be read back; or a file could not be stored.
        """
        if isinstance(rows, Mapping):
            rows = [rows]
        if isinstance(rows, pa.RecordBatch):
            rows = pa.Table.from_batches([rows])
        if isinstance(rows, pa.Table):
            self._add(rows)
            return
        chunk: list[Row] = []
        for row in rows:
            chunk.append(row)
            if len(chunk) == _ROWS_AT_ONCE:
                self._add(table_of(chunk, self._schema))
                chunk = []
        if chunk:
            self._add(table_of(chunk, self._schema))

    def _add(self, table: pa.Table) -> None:
        table = plain_table(table)
        if self._schema is None:
            columns_of(table.schema, None, "the data")
            self._schema = table.schema
        schema = self._schema
        try:
            table = table.select(schema.names).cast(schema)
        except (KeyError, pa.ArrowException) as error:
            raise DataError(
                f"rows {dict(_types(table.schema))} do not go together with the ones before, which "
                f"are {dict(_types(schema))}: {error}"
            ) from error
        values_of(table, columns_of(schema, None, "the data"), "the data")  # refuses nulls
        for batch in table.to_batches():
            self._take(batch)

    def _take(self, batch: pa.RecordBatch) -> None:
        """Cut rows into files of the wanted size."""
        while batch.num_rows:
            each = max(1, batch.nbytes // batch.num_rows)
            fits = max(1, (self._file_size - self._pending_bytes) // each)
            head, batch = batch.slice(0, fits), batch.slice(fits)
            self._pending.append(head)
            self._pending_bytes += each * head.num_rows
            if batch.num_rows or self._pending_bytes + each > self._file_size:
                self._flush()

    def _flush(self) -> None:
        while len(self._storing) > self._parallel:
            self._stored.append(self._storing.popleft().result())
        table = pa.Table.from_batches(self._pending)
        self._pending, self._pending_bytes = [], 0
        self._storing.append(self._threads.submit(self._store_file, self._begun, table))
        self._begun += 1

    def _store_file(self, number: int, table: pa.Table) -> FileEntry:
        raw = write_raw(table)
        content = _compressed(raw, self._compression)
        digest = hashlib.sha256(content).hexdigest()
        entry = FileEntry(
            name=f"part-{number:06d}-{digest[:12]}.arrow",
            rows=table.num_rows,
            stored_bytes=len(content),
            raw_bytes=raw.nbytes,
            sha256=digest,
        )
        self._store.write(entry.name, content)
        self._on_file(entry)
        return entry

    def _publish(self) -> None:
        if self._pending:
            self._flush()
        self._stored += [future.result() for future in self._storing]
        if not self._stored or self._schema is None:
            raise DataError("nothing was written: a data set has at least one row.")
        manifest = Manifest.of(self._schema, tuple(self._stored), self._compression)
        try:
            if self._only_writer:
                self._store.write(MANIFEST, manifest.dump())
            else:
                self._store.create(MANIFEST, manifest.dump())
        except ExistsError as error:
            raise DataError(
                f"another writer has published a data set in {self._store.url} meanwhile, and this "
                "one was not: write to another place."
            ) from error


def table_of(rows: Sequence[Row], schema: pa.Schema | None = None) -> pa.Table:
    """Return rows as a table; arrays and tensors become fixed shape tensors.

    Raises:
        DataError: the rows differ in their columns, shapes or types.
    """
    names = list(rows[0])
    for row in rows:
        if row.keys() != rows[0].keys():
            raise DataError(f"rows differ in their columns: {names} and {list(row)}.")
    try:
        columns = {name: _array([row[name] for row in rows], name, schema) for name in names}
    except (pa.ArrowException, TypeError) as error:
        raise DataError(f"rows cannot be stored: {error}") from error
    return pa.table(columns)


def _array(values: list[Any], name: str, schema: pa.Schema | None) -> pa.Array:
    arrays = [v.numpy(force=True) if isinstance(v, torch.Tensor) else v for v in values]
    if isinstance(arrays[0], np.ndarray) and arrays[0].ndim:
        if len({(a.shape, a.dtype) for a in arrays}) > 1:
            shapes = sorted({f"{a.dtype}{list(a.shape)}" for a in arrays})
            raise DataError(
                f"column {name!r} holds arrays of different shapes: {', '.join(shapes)}. Make them "
                "equal, or give lists, which may be of any length."
            )
        stacked = np.ascontiguousarray(np.stack(arrays))
        return pa.FixedShapeTensorArray.from_numpy_ndarray(stacked)
    if isinstance(arrays[0], np.ndarray | np.generic):
        return pa.array(np.array(arrays))
    if schema is not None and name in schema.names:
        return pa.array(arrays, schema.field(name).type)
    return pa.array(arrays)


def _types(schema: pa.Schema) -> Iterable[tuple[str, str]]:
    return ((field.name, str(field.type)) for field in schema)


def _compressed(raw: memoryview, compression: Compression) -> bytes:
    if compression == "none":
        return bytes(raw)
    sink = io.BytesIO()
    reader = pa.ipc.open_file(pa.py_buffer(raw))
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(sink, reader.schema, options=options) as writer:
        for number in range(reader.num_record_batches):
            writer.write_batch(reader.get_batch(number))
    return sink.getvalue()
