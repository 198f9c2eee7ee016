"""Opens what a user gives as a source of rows: a table, a file, a folder of files, or a stream.

Opening reads footers and manifests only (of an Arrow IPC stream, which has no footer, all
messages). The values of a file are read when one of its rows is first needed, and memory-mapped if
the format allows it.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec.implementations.local import LocalFileSystem

from raytrain_plus.storage.locations import local_path
from raytrain_plus.streams.columns import Column, DataError, Values, columns_of, difference
from raytrain_plus.streams.decoding import check_values, explained, values_in
from raytrain_plus.streams.files import inspect_file
from raytrain_plus.streams.folders import paths_below, select, tables_of, without_pattern
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.labels import check_same
from raytrain_plus.streams.mixture import Mixture, open_mixture
from raytrain_plus.streams.source import Opened, Source
from raytrain_plus.streams.stream import Stream, open_stream

_FOLDER_WINDOW = 8


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
    is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
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
    data: pa.Table | Stream | Mixture | str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    *,
    hash_data: bool = False,
) -> Source:
    """Open a table, a file, a folder of files or a stream for reading rows.

    Args:
        data: A pyarrow.Table; a Stream, the URL of one, or a Mixture; or a path or file:// URL of
            one Arrow IPC or Parquet file, or of a folder of them (see `folders.py`), or a pattern
            such as `data/train-*.parquet`.
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
    if isinstance(data, pa.Table):
        source = _open_table(data, selection)
    elif isinstance(data, Stream):
        source = open_stream(data, selection)
    elif isinstance(data, Mixture):
        source = open_mixture(data, selection)
    elif isinstance(data, str | os.PathLike):
        path = local_path(data)
        if path is None:
            source = open_stream(Stream(data), selection)
        else:
            with _named(path):
                source = _open_path(path, selection)
    else:
        raise DataError(
            f"data is a {type(data).__name__}, but must be a pyarrow.Table, a Stream, or the path "
            "or URL of an Arrow or Parquet file or of a folder of them."
        )
    if source.total_rows == 0:
        source.close()
        raise DataError(f"{_called(data)} has no rows: there is nothing to train on.")
    source.hash_data = hash_data
    return source


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
    return str(data.url if isinstance(data, Stream) else data)


def _open_table(table: pa.Table, selection: Sequence[str] | None) -> Source:
    columns = columns_of(table.schema, selection, "the table")
    with explained("the table"):
        check_values(table, columns, "the table", in_place=True)
    values = values_in(table, columns, "the table")
    shard = _Memory(table.num_rows, columns, values)
    return Source([shard], (open_source, (table, selection)), window=None, in_pieces=True)


def _open_path(path: Path, selection: Sequence[str] | None) -> Source:
    folder, pattern = without_pattern(str(path))
    path = Path(folder)
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path, on the machine of every worker.")
    if not path.is_dir():
        file = inspect_file(path, selection)
        source = Source([file], (open_source, (path, selection)), window=None, in_pieces=True)
        source.labels = file.labels
        return source
    if pattern is None and (path / MANIFEST).exists():
        return open_stream(Stream(path), selection)
    named = path if pattern is None else path / pattern
    paths = paths_below(LocalFileSystem(), str(path), pattern)
    found = tables_of(select(paths, str(named)), str(named))
    files = [inspect_file(path / each.path, selection, each) for each in found]
    first = next((file for file in files if file.rows), files[0])
    for file in files:
        if file.rows and file.columns != first.columns:
            raise DataError(
                f"{first.path} and {file.path} differ in their columns: "
                f"{difference(first.columns, file.columns)}. All files of a folder must have "
                "the same ones; select those that agree, or write the files again."
            )
        check_same(first.labels, file.labels, str(first.path), str(file.path))
    reopen = (open_source, (str(named), selection))
    # Files without rows stay in the list, since the order of the others depends on its length.
    files = [replace(file, columns=first.columns) for file in files]
    source = Source(files, reopen, window=_FOLDER_WINDOW)
    source.labels = first.labels
    return source
