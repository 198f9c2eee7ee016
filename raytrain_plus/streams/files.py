"""One Arrow or Parquet file: what its footer says, and its values.

A format is recognized by a file's first bytes, never by its name; the last bytes must be that
format's end, so that a file that was cut short is refused rather than read as a shorter one.
"""

import importlib
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs

from raytrain_plus.streams.columns import (
    Column,
    DataError,
    Values,
    columns_of,
    null_error,
    values_of,
)
from raytrain_plus.streams.source import Opened

# First bytes -> the format, and the last bytes of a file that was written to its end.
_FORMATS = {
    b"ARROW1": ("Arrow IPC", b"ARROW1"),
    b"PAR1": ("Parquet", b"PAR1"),
    b"\xff\xff\xff\xff": ("Arrow IPC stream", b"\xff\xff\xff\xff\0\0\0\0"),
}


@dataclass(frozen=True)
class DataFile:
    """A file whose footer has been read and checked, by `inspect_file`.

    Attributes:
        path: Where it is.
        format: Its format, as `_FORMATS` calls it.
        size: Its size in bytes.
        rows: Its number of rows.
        columns: The selected columns.
    """

    path: Path
    format: str
    size: int
    rows: int
    columns: dict[str, Column]

    def open(self, cancelled: threading.Event) -> Opened:
        """Return the values of the selected columns.

        Raises:
            DataError: as `read`.
        """
        del cancelled  # what is on this machine is not waited for
        return Opened(self.read())

    def read(self) -> Values:
        """Return the selected columns' values: in place where Arrow stored them uncompressed.

        Raises:
            DataError: The file is damaged or has changed, or a column holds nulls.
        """
        with _explained(self.path):
            if self.format == "Parquet":
                with _parquet_file(self.path) as parquet:
                    table = parquet.read(columns=list(self.columns))
            else:
                # Naming the columns would make Arrow copy them out of the mapped file.
                table = _open_ipc(self.path, self.format).read_all()
            table.validate()
        if table.num_rows != self.rows:
            raise DataError(
                f"{self.path} had {self.rows} rows when it was opened and has {table.num_rows} "
                "now: data must not change during a run. Start the run again."
            )
        return values_of(table, self.columns, str(self.path))

    def identify(self) -> list[Any]:
        """Return what tells this file from others, as data: its name and size."""
        return [self.path.name, self.size]


def inspect_file(path: Path, selection: Sequence[str] | None) -> DataFile:
    """Read what a file's footer says, and check it.

    Args:
        path: The file.
        selection: Names of columns; None selects all.

    Raises:
        DataError: The file is of another format, damaged or cut short, a selected column is absent
            or of an unsupported type, or the footer says that one holds nulls.
    """
    with _explained(path):
        kind, size = _recognize(path)
        if kind == "Parquet":
            with _parquet_file(path) as parquet:
                columns = columns_of(parquet.schema_arrow, selection, str(path))
                _check_statistics(parquet, columns, path)
                return DataFile(path, kind, size, parquet.metadata.num_rows, columns)
        schema = _open_ipc(path, kind).schema
        columns = columns_of(schema, selection, str(path))
        if kind == "Arrow IPC":
            local = pyarrow.fs.LocalFileSystem()
            fragment = _dataset().IpcFileFormat().make_fragment(str(path), filesystem=local)
            rows = fragment.count_rows()
        else:
            # A stream has no footer: its batches have to be walked, for which one column is enough.
            field = schema.get_field_index(next(iter(columns)))
            options = pa.ipc.IpcReadOptions(included_fields=[field])
            rows = sum(batch.num_rows for batch in _open_ipc(path, kind, options))
        return DataFile(path, kind, size, rows, columns)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the errors of reading a file into one that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path} cannot be read; it may be damaged or cut short, so write or copy it again. "
            f"The reader said: {error}"
        ) from error


def _recognize(path: Path) -> tuple[str, int]:
    """Return a file's format, by its first and last bytes, and its size in bytes."""
    with path.open("rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read()
    for magic, (kind, end) in _FORMATS.items():
        if head.startswith(magic):
            if size < len(magic) + len(end) or not tail.endswith(end):
                raise DataError(
                    f"{path} is cut short: it begins as {kind} but its end is missing. Write or "
                    "copy it again."
                )
            return kind, size
    raise DataError(
        f"{path} is neither an Arrow IPC file nor a Parquet file: write it with pyarrow, or "
        "convert it."
    )


def _open_ipc(path: Path, kind: str, options: pa.ipc.IpcReadOptions | None = None) -> Any:
    """Map an Arrow file into memory and open it."""
    opener = pa.ipc.open_file if kind == "Arrow IPC" else pa.ipc.open_stream
    return opener(pa.memory_map(str(path)), options=options)


# These parts of Arrow import pandas: a third of a second that workers start without if they can.


def _parquet_file(path: Path) -> Any:
    return importlib.import_module("pyarrow.parquet").ParquetFile(path)


def _dataset() -> Any:
    return importlib.import_module("pyarrow.dataset")


def _check_statistics(parquet: Any, columns: Mapping[str, Column], path: Path) -> None:
    """Refuse nulls that a Parquet file's statistics admit; others show when values are read."""
    metadata = parquet.metadata
    judged = {}
    for leaf in range(metadata.num_columns):
        described = parquet.schema.column(leaf)
        name = described.path if described.path in columns else described.path.split(".")[0]
        column = columns.get(name)
        if column is None:
            continue
        # A list's count includes its empty lists, and the path of an image may be null.
        is_fixed = column.kind == "tensor" and 0 not in column.shape
        if is_fixed or (described.path == name and described.max_repetition_level == 0):
            judged[leaf] = name
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for leaf, name in judged.items():
            statistics = row_group.column(leaf).statistics
            known = statistics is not None and statistics.has_null_count
            if known and statistics.null_count:
                raise null_error(name, str(path))
