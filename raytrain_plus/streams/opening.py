"""Opens what a user gives as a source of rows: a table, files, a folder, a dataset, or a stream.

Opening reads footers and manifests only (of an Arrow IPC stream, which has no footer, all
messages). The values of a file are read when one of its rows is first needed, and memory-mapped if
the format allows it. CSV and JSON lines, whose types follow from all rows, are read into memory.
"""

import contextlib
import hashlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from raytrain_plus.storage.locations import local_path
from raytrain_plus.storage.store import Stat, Store
from raytrain_plus.streams.columns import (
    Column,
    DataError,
    Values,
    columns_of,
    difference,
    first_null,
    listed,
    null_error,
    plain_table,
)
from raytrain_plus.streams.convert import Data, RowBatch, Wanted, read_any
from raytrain_plus.streams.decoding import check_memory, check_values, explained, values_in
from raytrain_plus.streams.files import DataFile, inspect_file
from raytrain_plus.streams.folders import (
    PARQUET_SUFFIXES,
    Contents,
    DataPath,
    form_of,
    paths_below,
    select,
    suffix_of,
    tables_of,
    without_pattern,
)
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.forms import is_hugging_face, plain_form
from raytrain_plus.streams.hugging_face import HuggingFaceRows
from raytrain_plus.streams.labels import check_same, labels_of
from raytrain_plus.streams.map_dataset import MapDataset, open_dataset
from raytrain_plus.streams.mixture import Mixture, open_mixture
from raytrain_plus.streams.source import Opened, Source, Transform
from raytrain_plus.streams.stream import Stream, check_on_web, open_stream, open_urls
from raytrain_plus.streams.widening import InexactError, cast_exactly, settled, wider

_FOLDER_WINDOW = 8
_HASHED_ROWS = 1024  # of nested values, which become text for it


@dataclass(frozen=True)
class _Memory:
    """A table in memory; its columns are views if they have one chunk and are not booleans."""

    rows: int
    columns: dict[str, Column]
    values: Values
    where: str = "the table"

    def open(self, cancelled: threading.Event) -> Opened:
        del cancelled
        return Opened(self.values)

    def identify(self) -> list[Any]:
        digest = hashlib.sha256()
        for name in sorted(self.values):
            values = self.values[name]
            if isinstance(values, pa.Array):
                _hash_rows(values, digest)
                continue
            flat = np.ascontiguousarray(values).reshape(-1)
            digest.update(flat.view(np.uint8).data)
        return [digest.hexdigest()]

    def digest(self) -> str:
        return str(self.identify()[0])


def _hash_rows(array: pa.Array, digest: Any) -> None:
    """Hash rows of any length: their lengths, then all of their values."""
    types = pa.types
    is_list = types.is_list(array.type) or types.is_large_list(array.type)
    is_text = types.is_string(array.type) or types.is_large_string(array.type)
    is_bytes = types.is_binary(array.type) or types.is_large_binary(array.type)
    if not (is_text or is_bytes or (is_list and types.is_primitive(array.type.value_type))):
        for start in range(0, len(array), _HASHED_ROWS):
            digest.update(repr(array[start : start + _HASHED_ROWS].to_pylist()).encode())
        return
    lengths = pc.list_value_length(array) if is_list else pc.binary_length(array)
    digest.update(lengths.cast(pa.int64()).to_numpy(zero_copy_only=False).tobytes())
    if is_list:
        items = np.ascontiguousarray(array.flatten().to_numpy(zero_copy_only=False))
        digest.update(items.view(np.uint8).data)
        return
    ends = array.cast(pa.large_binary())
    offsets = np.frombuffer(ends.buffers()[1], np.int64)[ends.offset : ends.offset + len(ends) + 1]
    if len(ends):
        digest.update(memoryview(ends.buffers()[2])[offsets[0] : offsets[-1]])


def open_source(
    data: Any,
    columns: Sequence[str] | None = None,
    *,
    hash_data: bool = False,
) -> Source:
    """Open a table, files, a folder of them, a dataset or a stream for reading rows.

    Args:
        data: A pyarrow.Table, or a frame of pandas or polars; a Stream, the URL of one, or a
            Mixture; a path or file:// URL of one Arrow IPC, Parquet, CSV or JSON lines file, or of
            a folder of them (see `folders.py`), or a pattern such as `data/train-*.parquet`; a
            list of such paths or URLs; a `datasets.Dataset`; or a map-style dataset.
        columns: The columns to read, default all.
        hash_data: The identity of the data is the SHA-256 of all of its bytes, which are read for
            it. Otherwise files without a manifest are identified by what the store says of them.

    Returns:
        The source. A folder's files are its shard files.

    Raises:
        DataError: There is no such data; it has no rows; its files differ in their columns; a file
            cannot be read or is cut short; or a column has another type or contains nulls.
    """
    if isinstance(columns, str):
        raise DataError(f"columns is {columns!r}, but must be a list of names: [{columns!r}].")
    selection = None if columns is None else list(dict.fromkeys(columns))
    data = plain_form(data)
    source = _opened(data, selection)
    if source.total_rows == 0:
        source.close()
        raise DataError(f"{_called(data)} has no rows: there is nothing to train on.")
    source.hash_data = hash_data
    return source


def _opened(data: Any, selection: Sequence[str] | None) -> Source:
    if isinstance(data, pa.Table):
        return _open_table(data, selection)
    if isinstance(data, MapDataset):
        return open_dataset(data, selection)
    if is_hugging_face(data):
        return _open_hugging_face(data, selection)
    if isinstance(data, Mixture):
        return open_mixture(data, selection)
    if isinstance(data, list):
        return _open_list(data, selection)
    url = data.url if isinstance(data, Stream) else data
    if not isinstance(url, str | os.PathLike):
        raise DataError(
            f"data is a {type(data).__name__}, but must be a table or frame (pyarrow, pandas, "
            "polars), a dataset with __len__ and __getitem__, a Stream, or the path or URL of "
            "Parquet, Arrow, CSV or JSON lines files or of a folder of them."
        )
    path = local_path(url)
    if path is None:
        stream = data if isinstance(data, Stream) else Stream(url)
        is_text = "*" not in str(url) and form_of(os.fspath(url)) in _TEXT
        return _open_text_urls([stream], selection) if is_text else open_stream(stream, selection)
    with _named(path):
        if isinstance(data, Stream):
            return _open_local_stream(data, path, selection)
        return _open_path(path, selection)


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _called(data: Any) -> str:
    if isinstance(data, pa.Table):
        return "the table"
    if isinstance(data, Mixture):
        return "the mixture"
    if isinstance(data, MapDataset):
        return data.where
    if is_hugging_face(data):
        return "the Hugging Face dataset"
    return str(data.url if isinstance(data, Stream) else data)


def _open_table(table: pa.Table, selection: Sequence[str] | None) -> Source:
    columns = columns_of(table.schema, selection, "the table")
    with explained("the table"):
        check_values(table, columns, "the table", in_place=True)
    values = values_in(table, columns, "the table")
    shard = _Memory(table.num_rows, columns, values)
    source = Source([shard], (open_source, (table, selection)), window=None, in_pieces=True)
    source.labels = {n: names for n, names in labels_of(table.schema).items() if n in columns}
    return source


def _open_hugging_face(dataset: Any, selection: Sequence[str] | None) -> Source:
    rows = HuggingFaceRows(dataset, selection)
    source = Source([rows], (open_source, (dataset, selection)), window=None, in_pieces=True)
    source.labels = labels_of(rows.schema)
    return source


def _open_path(path: Path, selection: Sequence[str] | None) -> Source:
    folder, pattern = without_pattern(str(path))
    path = Path(folder)
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path, on the machine of every worker.")
    named = path if pattern is None else path / pattern
    if not path.is_dir():
        if form_of(path.name) in _TEXT:
            return _open_text([str(path)], selection, (open_source, (path, selection)))
        file = inspect_file(path, selection)
        source = Source([file], (open_source, (path, selection)), window=None, in_pieces=True)
        source.labels = file.labels
        return source
    if pattern is None and (path / MANIFEST).exists():
        return open_stream(Stream(path), selection)
    contents = select(paths_below(LocalFileSystem(), str(path), pattern), str(named))
    reopen = (open_source, (str(named), selection))
    if contents.form in _TEXT:
        return _open_text([str(named)], selection, reopen, contents)
    found = tables_of(contents, str(named))
    files = [inspect_file(path / each.path, selection, each) for each in found]
    return _of_files(files, reopen)


def _open_local_stream(stream: Stream, path: Path, selection: Sequence[str] | None) -> Source:
    """Open a Stream of this machine: also Arrow files without a manifest, and text."""
    folder, pattern = without_pattern(str(path))
    place = Path(folder)
    if not place.exists():
        return open_stream(stream, selection)
    named = place if pattern is None else place / pattern
    wanted = stream.columns
    if stream.transform is None and selection is not None:
        wanted = selection
    transform = stream.transform and Transform(stream.transform, stream.per == "batch")
    settings: dict[str, Any] = {"shuffle": stream.shuffle, "transform": transform}
    reopen = (open_source, (stream, selection))
    if not place.is_dir():
        if form_of(place.name) in _TEXT:
            return _open_text([str(place)], wanted, reopen, fill=stream.fill, **settings)
        return open_stream(stream, selection)
    if pattern is None and (place / MANIFEST).exists():
        return open_stream(stream, selection)
    paths = paths_below(LocalFileSystem(), str(place), pattern)
    contents = select(paths, str(named), stream.split)
    if contents.form in _TEXT:
        return _open_text(
            [str(named)], wanted, reopen, contents, fill=stream.fill, split=stream.split, **settings
        )
    found = tables_of(contents, str(named))
    if all(suffix_of(each.path) in PARQUET_SUFFIXES for each in found):
        return open_stream(stream, selection)  # decoded once, in the cache
    files = [inspect_file(place / each.path, wanted, each, stream.fill) for each in found]
    return _of_files(files, reopen, window=stream.window, **settings)


def _of_files(
    files: list[DataFile],
    reopen: tuple[Callable[..., Source], tuple[Any, ...]],
    *,
    window: int = _FOLDER_WINDOW,
    **settings: Any,
) -> Source:
    """Return a source of files, each of which is a shard.

    Raises:
        DataError: they differ in their columns or in the names of labels.
    """
    first = next((file for file in files if file.rows), files[0])
    for file in files:
        if file.rows and file.columns != first.columns:
            raise DataError(
                f"{first.path} and {file.path} differ in their columns: "
                f"{difference(first.columns, file.columns)}. All files must have the same ones; "
                "select those that agree, or write the files again."
            )
        check_same(first.labels, file.labels, str(first.path), str(file.path))
    # Files without rows stay in the list, since the order of the others depends on its length.
    files = [replace(file, columns=first.columns) for file in files]
    source = Source(files, reopen, window=window, **settings)
    source.labels = first.labels
    return source


def _open_list(data: Sequence[str], selection: Sequence[str] | None) -> Source:
    """Open several files, each by a path, a pattern or a URL.

    Raises:
        DataError: they have several forms, or one is named twice.
    """
    paths = [local_path(one) for one in data]
    reopen = (open_source, (list(data), selection))
    if not any(paths):
        is_text = {form_of(url) in _TEXT for url in data}
        if len(is_text) > 1:
            raise DataError(f"the list has files of several forms ({listed(data)}): give one form.")
        if True in is_text:
            return _open_text_urls([Stream(url) for url in data], selection)
        return open_urls(list(data), selection, reopen)
    if not all(paths):
        raise DataError(
            f"the list names files of this machine and URLs ({listed(data)}): give one kind."
        )
    found = [file for path in paths if path is not None for file in _files_at(path)]
    if twice := [str(path) for path, count in Counter(found).items() if count > 1]:
        raise DataError(
            f"the list of files names {listed(twice)} more than once: its rows would count twice."
        )
    forms = {form_of(path.name) for path in found}
    if len(forms) > 1:
        kinds = ", ".join(sorted({suffix_of(path.name) or "no suffix" for path in found}))
        raise DataError(f"the list has files of several forms ({kinds}): give files of one form.")
    if forms <= set(_TEXT):
        return _open_text([str(path) for path in found], selection, reopen)
    files = [inspect_file(path, selection, DataPath(path.name)) for path in found]
    return _of_files(files, reopen)


def _files_at(path: Path) -> list[Path]:
    """Return the files that a path or a pattern names; those of a folder, if it is one."""
    folder, pattern = without_pattern(str(path))
    place = Path(folder)
    if not place.exists():
        raise DataError(f"{path} does not exist: check the path, on the machine of every worker.")
    if not place.is_dir():
        return [place]
    if pattern is None and (place / MANIFEST).exists():
        raise DataError(
            f"{path} is a stream in a list of files: give several streams as a Mixture, "
            "Mixture({'one': Stream(...), ...})."
        )
    with _named(place):
        contents = select(paths_below(LocalFileSystem(), str(place), pattern), str(path))
    return [place / each.path for each in contents.files]


# -- text, whose types follow from all of its rows

_TEXT = ("csv", "json")


@dataclass(frozen=True)
class _Text(_Memory):
    """Rows of text files, which are in memory; the files identify them."""

    files: tuple[tuple[Store, str, Stat], ...] = ()

    def identify(self) -> list[Any]:
        return [[name, stat.size, stat.validator] for _, name, stat in self.files]

    def digest(self) -> str:
        found = hashlib.sha256()
        for store, name, stat in self.files:
            found.update(hashlib.sha256(store.read(name, stat.size)).digest())
        return found.hexdigest()


def _text_file(url: str, options: Mapping[str, Any], deadline: float) -> tuple[Store, str, Stat]:
    folder, _, name = url.rpartition("/")
    store = Store(folder or "/", options, deadline=deadline)
    check_on_web(store, name)
    return store, name, store.stat(name)


def _open_text_urls(streams: Sequence[Stream], selection: Sequence[str] | None) -> Source:
    """Open CSV or JSON lines in a store, each file by its URL, as a table in memory."""
    first = streams[0]
    wanted = selection if first.transform is None and selection is not None else first.columns
    options, places = first.storage_options, [os.fspath(one.url) for one in streams]
    files = tuple(_text_file(url, options, first.deadline) for url in places)
    parts = [read_any(url, options, Wanted(columns=wanted)) for url in places]
    data = first if len(streams) == 1 else places
    return _text_source(
        parts,
        files,
        wanted,
        (open_source, (data, selection)),
        fill=first.fill,
        shuffle=first.shuffle,
        transform=first.transform and Transform(first.transform, first.per == "batch"),
    )


def _open_text(  # noqa: PLR0913 - each is a setting of a Stream
    places: Sequence[str],
    selection: Sequence[str] | None,
    reopen: tuple[Callable[..., Source], tuple[Any, ...]],
    contents: Contents | None = None,
    *,
    fill: Mapping[str, Any] | None = None,
    split: str | None = None,
    shuffle: bool = True,
    transform: Transform | None = None,
) -> Source:
    """Open CSV or JSON lines, as a table in memory.

    Args:
        places: the files, or the folder or pattern that has all of them.
        selection: the wanted columns; None for all.
        reopen: as for a Source.
        contents: the files in the folder before the pattern; None if `places` are the files.
        fill: column -> what replaces its nulls.
        split: as in a Stream.
        shuffle: whether to mix the rows.
        transform: for the rows; None for none.
    """
    paths = list(places)
    if contents is not None:
        folder = str(without_pattern(places[0])[0])
        paths = [f"{folder}/{each.path}" for each in contents.files]
    files = tuple(_text_file(path, {}, 60.0) for path in paths)
    parts = [read_any(place, None, Wanted(columns=selection, split=split)) for place in places]
    settings = {"shuffle": shuffle, "transform": transform}
    return _text_source(parts, files, selection, reopen, fill=fill or {}, **settings)


def _text_source(
    parts: Sequence[Data],
    files: tuple[tuple[Store, str, Stat], ...],
    selection: Sequence[str] | None,
    reopen: tuple[Callable[..., Source], tuple[Any, ...]],
    *,
    fill: Mapping[str, Any],
    **settings: Any,
) -> Source:
    where = files[0][0].where(files[0][1])
    if len(files) > 1:
        where = f"{where} and {len(files) - 1} more"
    table = joined(parts, where, fill)
    columns = columns_of(table.schema, selection, where, fill)
    values = values_in(table, columns, where)
    shard = _Text(table.num_rows, columns, values, where, files)
    return Source([shard], reopen, window=None, in_pieces=True, **settings)


def joined(parts: Sequence[Data], where: str, fill: Mapping[str, Any]) -> pa.Table:
    """Return the rows of text as one table, in the types that hold all of them.

    Args:
        parts: the rows.
        where: the name of the data in an error.
        fill: column -> what replaces its nulls; other nulls are refused.

    Raises:
        DataError: no type holds all values of a column, there are nulls, or memory is full.
    """
    batches: list[RowBatch] = []
    schema: pa.Schema | None = None
    for batch in (batch for part in parts for batch in part.batches):
        table = plain_table(batch.table)
        for name, column in zip(table.column_names, table.columns, strict=True):
            row = None if name in fill else first_null(column)
            if row is not None:
                raise null_error(name, batch.place(row))
        check_memory(table.nbytes, f"{where}, as a table in memory,")
        schema = _grown(schema, table.schema, batch.place(0))
        batches.append(RowBatch(table, batch.place))
    if schema is None:
        raise DataError(f"{where} has no rows: there is nothing to train on.")
    schema = settled(schema)
    return pa.concat_tables([_as_schema(batch, schema) for batch in batches])


def _grown(one: pa.Schema | None, other: pa.Schema, place: str) -> pa.Schema:
    if one is None or one.equals(other):
        return other
    if set(one.names) != set(other.names):
        differing = listed(sorted({*one.names} ^ {*other.names}))
        raise DataError(f"{place}: its columns differ from those of the rows before by {differing}")
    both = {name: wider(one.field(name).type, other.field(name).type) for name in one.names}
    for name, kind in both.items():
        if kind is None:
            raise DataError(
                f"{place}: column {name!r} is {other.field(name).type} there and "
                f"{one.field(name).type} before: give all rows values of one kind."
            )
    return pa.schema(list(both.items()))


def _as_schema(batch: RowBatch, schema: pa.Schema) -> pa.Table:
    columns = []
    for field in schema:
        chunks, before = [], 0
        for chunk in batch.table.column(field.name).chunks:
            try:
                chunks.append(cast_exactly(chunk, field.type))
            except InexactError as error:
                raise DataError(
                    f"{batch.place(before + error.row)}: column {field.name!r} does not go "
                    f"together with other rows: {error}"
                ) from error
            before += len(chunk)
        columns.append(pa.chunked_array(chunks, field.type))
    return pa.Table.from_arrays(columns, schema=schema)
