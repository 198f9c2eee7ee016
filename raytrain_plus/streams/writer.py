"""Writes a stream: first the files, in parallel, and at last, atomically, the manifest.

A column's type grows with its rows: whole numbers become floats at the first fraction, if none of
them changes. Files that were stored before are then stored again, before the manifest.

Without a manifest there is no data set, whatever happened to the writer. If two writers write to
one place, one publishes and the other fails. File names contain a hash of the contents, so neither
overwrites the other's files.
"""

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias, get_args

import pyarrow as pa
import pyarrow.compute as pc

from raytrain_plus.storage.errors import ExistsError
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import (
    DataError,
    check_setting,
    columns_of,
    data_columns,
    fill_nulls,
    first_null,
    is_whole,
    listed,
    plain_table,
)
from raytrain_plus.streams.format import MANIFEST, Compression, ShardEntry, StreamManifest
from raytrain_plus.streams.label_skew import SkewMeter, told
from raytrain_plus.streams.labels import Labels, check_names
from raytrain_plus.streams.rows import Row, RowError, chunks, copy_of, table_of
from raytrain_plus.streams.stream import parse_bytes, write_raw
from raytrain_plus.streams.vocabulary import Vocabularies
from raytrain_plus.streams.widening import InexactError, cast_exactly, leaf_type, settled, wider

Place: TypeAlias = Callable[[int], str]
Rows: TypeAlias = pa.RecordBatch | pa.Table | Iterable[Row]

DEFAULT_FILE_SIZE = 64 << 20
_ROWS_AT_ONCE = 1024  # dictionaries that are converted together


class StreamWriter:
    """Writes a stream; used as a context manager.

        with StreamWriter("s3://bucket/train") as writer:
            for batch in batches:
                writer.write(batch)

    The data set is published if the block ends without an error. Memory is bounded by
    `parallel + 2` files.

    Args:
        url: the folder to write to: a path or any URL that fsspec knows.
        file_size: the raw bytes of a file, as a number or like "64MB". A row is never divided.
        compression: the compression of the stored files: zstd, lz4 or none.
        schema: the schema of the rows. Default: the narrowest types that hold each value exactly.
        labels: column -> the names of its numbers, from 0. They are kept in the manifest, and
            compared if data is used together.
        vocabularies: column of token numbers -> the tokenizer that made them, which is kept in the
            manifest; see `vocabulary.py`.
        fill: column -> what replaces its nulls. Default: nulls are refused.
        parallel: how many files are compressed and stored at once.
        storage_options: passed to fsspec's filesystem.
        only_writer: no other process writes here, so the store need not support conditional writes.
        deadline: seconds without progress after which a store's fault is an error.
        on_file: called after each file is stored, in any order.
        warn: whether to warn if the rows are sorted by a column of few values, such as a label.

    Raises:
        DataError: there is a data set already, the store cannot be written, or it does not support
            conditional writes.
    """

    def __init__(  # noqa: PLR0913 - settings that users name
        self,
        url: str | os.PathLike[str],
        *,
        file_size: int | str = DEFAULT_FILE_SIZE,
        compression: Compression = "zstd",
        schema: pa.Schema | None = None,
        labels: Labels | None = None,
        vocabularies: Vocabularies | None = None,
        fill: Mapping[str, Any] | None = None,
        parallel: int = 4,
        storage_options: Mapping[str, Any] | None = None,
        only_writer: bool = False,
        deadline: float = 60.0,
        on_file: Callable[[ShardEntry], None] = lambda _: None,
        warn: bool = True,
    ) -> None:
        if compression not in get_args(Compression):
            raise DataError(
                f"compression is {compression!r}, but must be one of "
                f"{', '.join(get_args(Compression))}."
            )
        is_schema = isinstance(schema, pa.Schema | None)
        is_labels, is_fill, is_options = (
            isinstance(one, Mapping | None) for one in (labels, fill, storage_options)
        )
        is_time = isinstance(deadline, int | float) and deadline > 0
        for name, value, valid, must in (
            ("parallel", parallel, is_whole(parallel, 1), "at least 1 file"),
            ("schema", schema, is_schema, "a pyarrow.Schema"),
            ("labels", labels, is_labels, "a mapping from column to a list of names"),
            ("fill", fill, is_fill, "a mapping from column to a value"),
            ("storage_options", type(storage_options), is_options, "a mapping"),
            ("deadline", deadline, is_time, "above 0 seconds"),
        ):
            check_setting(name, value, valid=valid, must=must)
        self._store = Store(url, storage_options, deadline=deadline)
        self._file_size = parse_bytes(file_size)
        self._compression: Compression = compression
        self._schema = schema if schema is None else plain_table(schema.empty_table()).schema
        self._is_declared = schema is not None
        self._skew, self._warn = SkewMeter(), warn
        self._labels = {name: check_names(names, name) for name, names in (labels or {}).items()}
        self._vocabularies = dict(vocabularies or {})
        self._fill = dict(fill or {})
        self._latest: pa.Schema | None = None
        self._rows = 0
        self._is_over = False
        self._parallel = parallel
        self._on_file = on_file
        self._only_writer = only_writer
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._storing: deque[Future[_Stored]] = deque()
        self._stored: list[_Stored] = []
        self._begun = self._rows_begun = 0
        self._threads = ThreadPoolExecutor(parallel, "raytrain_plus writer")
        if self._store.exists(MANIFEST):
            raise DataError(
                f"there is a data set in {self._store.url} already: write to another place, or "
                "remove it first."
            )
        if not only_writer and not self._store.creates_conditionally():
            raise DataError(
                f"the store of {self._store.url} does not support conditional writes, so a second "
                "writer could overwrite the data set. If no other process writes here, use "
                "`only_writer=True` (`--only-writer`)."
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_over = True
        try:
            if kind is None:
                self._publish()
        finally:
            self._threads.shutdown(cancel_futures=True)

    def write(self, rows: Rows | Row, place: Place | None = None) -> None:
        """Add rows after those that were written before.

        The rows are copied, so the arrays and tables in them may be filled again afterwards.

        Args:
            rows: a table or record batch, also of pandas or polars; one dictionary, which is a row;
                or an iterable of dictionaries. Values of a row may be numbers, strings, bytes,
                lists, NumPy arrays and tensors. Arrays and tensors must have one shape in all rows.
            place: returns the place of one of these rows, counted from 0, for an error. Default:
                its number among all rows that were written, counted from 1.

        Raises:
            DataError: they do not fit to the rows before, or contain nulls or a type that cannot
                be read back; a file could not be stored; or the `with` block has ended.
        """
        if self._is_over:
            raise DataError("this writer has ended: write the rows in its `with` block.")
        if isinstance(rows, Mapping):
            rows = [rows]
        rows = _as_table(rows)
        first = self._rows
        place = place or _numbered(first)
        if isinstance(rows, pa.Table):
            self._add(_copied(plain_table(self._without_index(rows))), place)
            return
        if not isinstance(rows, list | tuple):  # it may fill one buffer with row after row
            rows = map(copy_of, rows)
        for chunk in chunks(rows, _ROWS_AT_ONCE):
            where = _later(place, self._rows - first)
            try:
                table = table_of(chunk, self._schema if self._is_declared else None)
            except RowError as error:
                raise DataError(f"{where(error.row)}: {error}.") from error
            self._add(table, where)

    def _without_index(self, table: pa.Table) -> pa.Table:
        """Return a table without the unnamed index of a pandas frame, unless it is declared."""
        if b"pandas" not in (table.schema.metadata or {}):
            return table
        declared = self._schema.names if self._is_declared and self._schema is not None else []
        kept = {*data_columns(table.column_names), *declared}
        return table.select([i for i, name in enumerate(table.column_names) if name in kept])

    def _add(self, table: pa.Table, place: Place) -> None:
        if not table.num_rows:
            return
        table = self._filled(plain_table(table), place)
        for name, column in zip(table.column_names, table.columns, strict=True):
            row = first_null(column)
            if row is not None:
                raise DataError(
                    f"{place(row)}: column {name!r} holds nulls, which a tensor cannot: fill them "
                    f"(`fill={{{name!r}: VALUE}}`, `--fill {name}=VALUE`), drop the row, or leave "
                    "the column out."
                )
        if self._latest is None or not table.schema.equals(self._latest):
            columns_of(settled(table.schema), table.schema.names, "the data")
            self._schema = self._grown(table.schema, place)
            self._latest = table.schema
        table = self._widened(table, place)
        self._check_labels(table, place)
        self._skew.see(table)
        self._rows += table.num_rows
        for batch in table.to_batches():
            self._cut(batch)

    def _filled(self, table: pa.Table, place: Place) -> pa.Table:
        """Return rows with values in the place of nulls, in the columns that have a fill."""
        for name, value in self._fill.items():
            if name not in table.column_names:
                raise DataError(
                    f"{place(0)}: `fill` names column {name!r}, which it does not have; it has "
                    f"{listed(table.column_names)}."
                )
            column = table.column(name)
            if pa.types.is_null(column.type):  # all rows so far: the type is that of the value
                column = column.cast(pa.array([value]).type)
            if first_null(column) is None:
                continue
            try:
                chunks = [fill_nulls(chunk, value) for chunk in column.chunks]
            except DataError as error:
                raise DataError(f"{place(0)}: `fill` for column {name!r}: {error}.") from error
            place_in_table = table.column_names.index(name)
            table = table.set_column(place_in_table, name, pa.chunked_array(chunks, column.type))
        return table

    def _check_labels(self, table: pa.Table, place: Place) -> None:
        for name, names in self._labels.items():
            if name not in table.column_names:
                raise DataError(f"there are labels for column {name!r}, but no such column.")
            column = table.column(name)
            if not pa.types.is_integer(column.type):
                raise DataError(
                    f"{place(0)}: column {name!r} has labels, so that it must hold whole numbers, "
                    f"but is {column.type}."
                )
            outside = pc.or_(pc.less(column, 0), pc.greater_equal(column, len(names)))
            if pc.any(outside).as_py():
                row = outside.combine_chunks().index(True).as_py()
                raise DataError(
                    f"{place(row)}: column {name!r} is {column[row]}, but its {len(names)} labels "
                    f"have the numbers 0 to {len(names) - 1}."
                )

    def _grown(self, schema: pa.Schema, place: Place) -> pa.Schema:
        """Return the types that hold both what was written and rows of another schema."""
        if self._schema is None:
            return schema
        before = dict(zip(self._schema.names, self._schema.types, strict=True))
        now = dict(zip(schema.names, schema.types, strict=True))
        if before.keys() != now.keys():
            raise DataError(
                f"{place(0)}: its columns do not go together with those of the rows before: "
                f"{_difference(before, now)}. Give all rows the same columns, and fill in what is "
                "absent; or leave the column out of all."
            )
        if self._is_declared:
            return self._schema
        grown = {name: wider(kind, now[name]) for name, kind in before.items()}
        for name, kind in grown.items():
            if kind is None:
                raise DataError(
                    f"{place(0)}: column {name!r} does not go together with the rows before: it is "
                    f"{now[name]} here and {before[name]} there. Give all rows values of one kind."
                )
        return pa.schema(list(grown.items()))

    def _widened(self, table: pa.Table, place: Place) -> pa.Table:
        """Return rows with the types of everything that was written so far.

        Raises:
            DataError: these types do not hold a value exactly.
        """
        assert self._schema is not None
        if table.schema.equals(self._schema):
            return table
        own = dict(zip(table.column_names, table.columns, strict=True))
        columns = []
        for name, kind in zip(self._schema.names, self._schema.types, strict=True):
            chunks, before = [], 0
            for chunk in own[name].chunks:
                try:
                    chunks.append(cast_exactly(chunk, kind))
                except InexactError as error:
                    raise DataError(
                        f"{place(before + error.row)}: column {name!r} does not go together with "
                        f"other rows: {error.value!r:.80} is {chunk.type}, which {kind} does not "
                        "hold exactly. Give all rows values of one type, or a `schema`."
                    ) from error
                before += len(chunk)
            columns.append(pa.chunked_array(chunks, kind))
        return pa.Table.from_arrays(columns, schema=self._schema)

    def _cut(self, batch: pa.RecordBatch) -> None:
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
        first = self._rows_begun
        tables = []
        for batch in self._pending:
            place = _numbered(self._rows_begun)
            tables.append(self._widened(pa.Table.from_batches([batch]), place))
            self._rows_begun += batch.num_rows
        self._pending, self._pending_bytes = [], 0
        future = self._threads.submit(
            self._store_file, self._begun, first, pa.concat_tables(tables)
        )
        self._storing.append(future)
        self._begun += 1

    def _store_file(self, number: int, first_row: int, table: pa.Table) -> "_Stored":
        raw = write_raw(table)
        content = _compressed(raw, self._compression)
        digest = hashlib.sha256(content).hexdigest()
        entry = ShardEntry(
            name=f"part-{number:06d}-{digest[:12]}.arrow",
            rows=table.num_rows,
            stored_bytes=len(content),
            raw_bytes=raw.nbytes,
            sha256=digest,
        )
        self._store.write(entry.name, content)
        self._on_file(entry)
        return _Stored(number, first_row, entry, table.schema)

    def _store_again(self, stored: "_Stored") -> "_Stored":
        """Store a file's rows again, in the types that later rows required."""
        entry = stored.entry
        content = self._store.read(entry.name, entry.stored_bytes, entry.sha256)
        table = pa.ipc.open_file(content).read_all()
        table = self._widened(table, _numbered(stored.first_row))
        return self._store_file(stored.number, stored.first_row, table)

    def _publish(self) -> None:
        if self._pending:
            self._flush()
        self._stored += [future.result() for future in self._storing]
        if not self._stored or self._schema is None:
            raise DataError("nothing was written: a data set has at least one row.")
        _check_settled(self._schema)
        narrow = [one for one in self._stored if not one.schema.equals(self._schema)]
        again = dict(zip(narrow, self._threads.map(self._store_again, narrow), strict=True))
        files = tuple(again.get(one, one).entry for one in self._stored)
        skews = self._skew.measured()
        manifest = StreamManifest.of(
            self._schema, files, self._compression, self._labels, skews, self._vocabularies
        )
        try:
            if self._only_writer:
                self._store.write(MANIFEST, manifest.dump())
            else:
                self._store.create(MANIFEST, manifest.dump())
        except ExistsError as error:
            raise DataError(
                f"another writer has published a data set in {self._store.url} in the meantime, so "
                "this one was not published: write to another place."
            ) from error
        if self._warn and (sorted_by := told(skews)):
            warnings.warn(sorted_by, stacklevel=3)  # the user's `with` block
        for one in narrow:  # after it: the manifest of another writer of these rows may name it
            self._store.delete(one.entry.name)


@dataclass(frozen=True, eq=False)
class _Stored:
    """A stored file, the number of its first row, and the types of its columns."""

    number: int
    first_row: int
    entry: ShardEntry
    schema: pa.Schema


def _as_table(rows: Any) -> pa.Table | Iterable[Row]:
    """Return the table of a DataFrame and the like; other rows are returned as they are.

    Raises:
        DataError: it is neither a table nor an iterable of rows, or Arrow cannot convert it.
    """
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if isinstance(rows, pa.Table):
        return rows
    if not hasattr(rows, "__arrow_c_stream__"):
        if not isinstance(rows, Iterable):
            raise DataError(
                f"{rows!r:.80} ({type(rows).__name__}) holds no rows: give a dictionary for one "
                "row, an iterable of dictionaries, or a table."
            )
        return rows
    try:
        return pa.table(rows)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DataError(
            f"the {type(rows).__name__} cannot be stored: {'; '.join(map(str, error.args))}. Give "
            "each column one name and values of one kind."
        ) from error


def _copied(table: pa.Table) -> pa.Table:
    """Return a copy of a table, whose memory may be a NumPy array's that the caller fills again."""
    batches = [
        pa.ipc.read_record_batch(batch.serialize(), table.schema) for batch in table.to_batches()
    ]
    return pa.Table.from_batches(batches, table.schema)


def _numbered(first: int) -> Place:
    return lambda row: f"row {first + row + 1:,}"


def _later(place: Place, skipped: int) -> Place:
    return lambda row: place(skipped + row)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    found = []
    if absent := before.keys() - now.keys():
        found.append(f"it lacks {listed(sorted(absent))}")
    if added := now.keys() - before.keys():
        found.append(f"it also has {listed(sorted(added))}")
    return " and ".join(found)


def _check_settled(schema: pa.Schema) -> None:
    """Check that no column consists of empty lists only.

    Raises:
        DataError: one does.
    """
    for field in schema:
        if pa.types.is_null(leaf_type(field.type)):
            raise DataError(
                f"column {field.name!r} has only empty lists, which have no type: give a "
                "`schema`, or leave the column out."
            )


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
