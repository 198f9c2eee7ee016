"""Reads rows of Arrow and Parquet data on this machine.

`open_source` takes a table, a file or a folder of files and gives a `Source`: what columns there
are, how many rows each shard file has, and a vectorised gather of any rows into an array of the
caller's. Opening reads footers only (an Arrow stream, which has none, is walked once); a file's
values are read, and memory-mapped where its format allows, when a row of it is first asked for.
"""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raytrain_plus.streams.columns import Column, DataError, Values, columns_of, listed, values_of
from raytrain_plus.streams.files import inspect_file

__all__ = ["Column", "DataError", "Source", "open_source"]

_SUFFIXES = (".arrow", ".feather", ".ipc", ".parquet")
_FOLDER_WINDOW = 8
# A table or a single file is mixed in at most this many pieces, to bound the memory of the order.
_MOST_PIECES = 2**20


class _Shard(Protocol):
    """A number of rows that are read together: a file, or a table in memory."""

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> dict[str, Column]: ...

    def read(self) -> Values: ...

    def identify(self) -> list[Any]: ...


@dataclass(frozen=True)
class _Memory:
    """A table, viewed in place where it is one chunk without booleans."""

    rows: int
    columns: dict[str, Column]
    values: Values

    def read(self) -> Values:
        return self.values

    def identify(self) -> list[Any]:
        digest = hashlib.sha256()
        for name in sorted(self.values):
            flat = np.ascontiguousarray(self.values[name]).reshape(-1)
            digest.update(flat.view(np.uint8).data)
        return [digest.hexdigest()]


class Source:
    """Rows of a table, a file or a folder of files; made by `open_source`.

    It may be pickled: the copy opens the same data again.

    Attributes:
        columns: Column name -> what one row of it is.
        rows: Rows of each shard file, int64 of shape (files,), read-only. A table or a single file
            has no shard files of its own and counts as many small pieces.
        window: How many shard files an order should mix at a time; None for all.
        open_files: How many files to keep open; the one that was used longest ago is closed first.
    """

    def __init__(
        self,
        data: pa.Table | Path,
        selection: Sequence[str] | None,
        shards: Sequence[_Shard],
        *,
        is_folder: bool,
    ) -> None:
        self._data, self._selection, self._shards = data, selection, shards
        self.columns = shards[0].columns
        self.open_files = 16
        self.window = _FOLDER_WINDOW if is_folder else None
        counts = np.array([shard.rows for shard in shards], np.int64)
        self.total_rows = int(counts.sum())
        self._piece_rows: int | None = None
        if not is_folder:
            self._piece_rows = max(1, -(-self.total_rows // _MOST_PIECES))
            starts = np.arange(0, self.total_rows, self._piece_rows)
            counts = np.minimum(self.total_rows - starts, self._piece_rows)
        self.rows = counts
        self.rows.flags.writeable = False
        self._opened: OrderedDict[int, Values] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_source, (self._data, self._selection)

    @cached_property
    def identity(self) -> str:
        """SHA-256 in hex: the same for the same data.

        It covers the columns and, of files, their names, sizes and rows; of a table, its values,
        however they are cut into chunks.
        """
        described = {
            "columns": [
                [name, column.dtype.str, column.shape]
                for name, column in sorted(self.columns.items())
            ],
            "rows": [shard.rows for shard in self._shards],
            "shards": [shard.identify() for shard in self._shards],
        }
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def gather(
        self,
        files: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        column: str,
        out: npt.NDArray[Any],
    ) -> None:
        """Copy one column of any rows, in the order asked, into an array of the caller's.

        Args:
            files: The index of each row's shard file, shape (n,).
            rows: Each row's index in its file, shape (n,).
            column: The column's name.
            out: Filled; of the column's type and of shape (n, *shape of the column).

        Raises:
            ValueError: `out` does not fit, or there is no such column.
            IndexError: There is no such file or row.
            DataError: A file cannot be read or holds a null.
        """
        if column not in self.columns:
            raise ValueError(f"there is no column {column!r}; there are {listed(self.columns)}.")
        wanted = self.columns[column]
        if out.dtype != wanted.dtype or out.shape != (len(rows), *wanted.shape):
            raise ValueError(
                f"out is {out.dtype} of shape {out.shape}, but column {column!r} needs "
                f"{wanted.dtype} of shape {(len(rows), *wanted.shape)}."
            )
        if not len(rows):
            return
        if files.min() < 0 or files.max() >= len(self.rows):
            raise IndexError(f"files must be in 0..{len(self.rows) - 1}.")
        if rows.min() < 0 or (rows >= self.rows[files]).any():
            raise IndexError("a row is outside its file; see the source's `rows`.")
        if self._piece_rows:
            rows = files * self._piece_rows + rows
            files = np.zeros_like(rows)
        by_file = np.argsort(files, kind="stable")
        touched, first = np.unique(files[by_file], return_index=True)
        if len(touched) == 1:
            # With mode="raise" NumPy would fill a copy first; the rows are checked above.
            np.take(self._open(int(touched[0]))[column], rows, axis=0, out=out, mode="clip")
            return
        for file, places in zip(touched, np.split(by_file, first[1:]), strict=True):
            out[places] = np.take(self._open(int(file))[column], rows[places], axis=0)

    def _open(self, file: int) -> Values:
        with self._lock:
            if file not in self._opened:
                while len(self._opened) >= self.open_files:
                    self._opened.popitem(last=False)
                self._opened[file] = self._shards[file].read()
            self._opened.move_to_end(file)
            return self._opened[file]


def open_source(
    data: pa.Table | str | os.PathLike[str], columns: Sequence[str] | None = None
) -> Source:
    """Open a table, a file or a folder of files for reading rows.

    Columns may be integers, floats or booleans, fixed-size lists of them (nested too), or fixed
    shape tensors.

    Args:
        data: A pyarrow.Table; or a path or file:// URL of one Arrow IPC or Parquet file, or of a
            folder of them: its files ending in .arrow, .feather, .ipc or .parquet, by name,
            without those whose names begin with "." or "_".
        columns: The columns to read, default all.

    Returns:
        The source. A folder's files are its shard files.

    Raises:
        DataError: There is no such data, it has no rows, its files differ in their columns, one
            cannot be read or is cut short, or a column is of another type or holds nulls.
    """
    if isinstance(columns, str):
        raise DataError(f"columns is {columns!r}, but must be a list of names: [{columns!r}].")
    selection = None if columns is None else list(dict.fromkeys(columns))
    if isinstance(data, pa.Table):
        source = _open_table(data, selection)
    elif isinstance(data, str | os.PathLike):
        source = _open_path(_local_path(os.fspath(data)), selection)
    else:
        raise DataError(
            f"data is a {type(data).__name__}, but must be a pyarrow.Table, or the path of an "
            "Arrow or Parquet file or of a folder of them."
        )
    if source.total_rows == 0:
        raise DataError(f"{_called(data)} has no rows: there is nothing to train on.")
    return source


def _called(data: Any) -> str:
    return "the table" if isinstance(data, pa.Table) else str(data)


def _open_table(table: pa.Table, selection: Sequence[str] | None) -> Source:
    columns = columns_of(table.schema, selection, "the table")
    values = values_of(table, columns, "the table")
    shard = _Memory(table.num_rows, columns, values)
    return Source(table, selection, [shard], is_folder=False)


def _open_path(path: Path, selection: Sequence[str] | None) -> Source:
    if not path.exists():
        raise DataError(f"{path} does not exist: check the path, on the machine of every worker.")
    if not path.is_dir():
        return Source(path, selection, [inspect_file(path, selection)], is_folder=False)
    paths = sorted(
        entry
        for entry in path.iterdir()
        if entry.suffix.lower() in _SUFFIXES and not entry.name.startswith((".", "_"))
    )
    if not paths:
        raise DataError(
            f"the folder {path} has no data file: files ending in {', '.join(_SUFFIXES)} are read, "
            "without those whose names begin with '.' or '_'."
        )
    files = [inspect_file(each, selection) for each in paths]
    for file in files[1:]:
        if file.columns != files[0].columns:
            raise DataError(
                f"{files[0].path} and {file.path} differ in their columns: "
                f"{_difference(files[0].columns, file.columns)}. All files of a folder must have "
                "the same ones; select those that agree, or write the files again."
            )
    return Source(path, selection, files, is_folder=True)


def _local_path(location: str) -> Path:
    if "://" not in location:
        return Path(location).absolute()
    parts = urlsplit(location)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise DataError(f"{location} is not on this machine: give a path or a file:/// URL.")
    return Path(unquote(parts.path))


def _difference(one: Mapping[str, Column], other: Mapping[str, Column]) -> str:
    return "; ".join(
        f"column {name!r} is {one.get(name, 'absent')} in the first and "
        f"{other.get(name, 'absent')} in the second"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name)
    )
