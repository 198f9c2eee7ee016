"""One Arrow or Parquet file: what its footer says, and its values.

A format is recognized by a file's first bytes, never by its name. The last bytes must be the end
of that format, so a file that was cut short is refused and not read as a shorter one.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from raytrain_plus.storage.store import Stat, stat_of
from raytrain_plus.streams.columns import (
    Column,
    DataError,
    Values,
    columns_of,
    null_error,
    with_constants,
)
from raytrain_plus.streams.decoding import (
    check_declared,
    check_values,
    decode,
    explained,
    footer_of,
    parquet_file,
    values_in,
)
from raytrain_plus.streams.folders import DataPath, check_regular, form_of
from raytrain_plus.streams.foreign import format_of_files, is_pointer, told, told_of_pointer
from raytrain_plus.streams.labels import Labels, labels_of
from raytrain_plus.streams.parquet_footer import Footer
from raytrain_plus.streams.source import Opened

_HEAD = 64  # bytes that tell what a file is

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
        stat: What the file system said about it when it was checked.
        rows: Its number of rows.
        columns: The selected columns; none of a file without rows.
        name: Its path in the given folder; None if the file itself was given.
        constants: Column -> value, from its partition folders, for columns that it does not have.
        labels: Column -> the names of its numbers, if the file contains them.
    """

    path: Path
    format: str
    stat: Stat
    rows: int
    columns: dict[str, Column]
    name: str | None = None
    constants: Mapping[str, int | str] = field(default_factory=dict)
    labels: Labels = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Its name in an error."""
        return str(self.path)

    def open(self, cancelled: threading.Event) -> Opened:
        """Return the values of the selected columns.

        Raises:
            DataError: as `read`.
        """
        del cancelled  # a file on this machine needs no wait
        return Opened(self.read(), confirm=self.confirm)

    def confirm(self) -> None:
        """Check that the file has not changed since it was checked; a removed file passes.

        Raises:
            DataError: it was replaced or overwritten.
        """
        with contextlib.suppress(FileNotFoundError):
            confirm(self.path, self.stat)

    def read(self) -> Values:
        """Return the selected columns' values, without a copy if Arrow stored them uncompressed.

        Raises:
            DataError: The file is damaged or has changed, or a column holds nulls.
        """
        where = self.where
        own = [name for name in self.columns if name not in self.constants]
        self.confirm()
        if self.format == "Parquet":
            table = decode(self.path, where, is_parquet=True, columns=own)
        else:
            with explained(where):
                _declared_rows(self.path, self.format)
                # Naming the columns would make Arrow copy them out of the mapped file.
                table = _open_ipc(self.path, self.format).read_all()
                check_values(table, own, where, in_place=True)
        if table.num_rows != self.rows:
            raise DataError(
                f"{self.path} had {self.rows} rows when it was opened and has {table.num_rows} "
                "now: data must not change during a run. Start the run again."
            )
        return values_in(table, self.columns, where, self.constants)

    def identify(self) -> list[Any]:
        """Return what identifies this file: its name, its size, and the time of its last change."""
        told = [self.stat.size, self.stat.validator]
        return [self.name or self.path.name, *told, *sorted(self.constants.items())]

    def digest(self) -> str:
        """Return the SHA-256 of its bytes."""
        with explained(self.where), self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        self.confirm()
        return found


def confirm(path: Path, stat: Stat) -> None:
    """Check that a file has not changed.

    Raises:
        DataError: it was replaced or overwritten.
        OSError: it does not exist.
    """
    if stat_of(path) != stat:
        raise DataError(
            f"{path} was replaced or overwritten since it was opened: data must not change during "
            "a run. Write changed data to another place, and start the run again."
        )


def inspect_file(
    path: Path,
    selection: Sequence[str] | None,
    found: DataPath | None = None,
    fill: Mapping[str, Any] | None = None,
) -> DataFile:
    """Read and check a file's footer.

    Args:
        path: The file.
        selection: Names of columns; None selects all.
        found: Its path in the given folder, if a folder was given.
        fill: Column -> what replaces its nulls.

    A file without rows may have columns of any type, or none: pandas gives the columns of an empty
    frame the null type.

    Raises:
        DataError: The file has another format or is damaged or cut short; a selected column is
            absent or has an unsupported type; or the footer says that one contains nulls.
    """
    with explained(str(path)):
        check_regular(path)
        stat = stat_of(path)
        kind = _recognize(path)
        if kind == "Parquet":
            footer = footer_of(path, str(path))
            with parquet_file(path) as parquet:
                schema = parquet.schema_arrow
            rows = footer.rows
        else:
            schema, rows = _open_ipc(path, kind).schema, _declared_rows(path, kind)
        name, constants = (found.path, found.partitions) if found else (None, {})
        constants = {key: v for key, v in constants.items() if key not in schema.names}
        if not rows:
            return DataFile(path, kind, stat, rows, {}, name, constants)
        columns = columns_of(with_constants(schema, constants), selection, str(path), fill)
        if kind == "Parquet":
            check_nulls(footer, columns, str(path))
        labels = labels_of(schema)
        return DataFile(path, kind, stat, rows, columns, name, constants, labels)


def _recognize(path: Path) -> str:
    with path.open("rb") as file:
        return recognized(file, str(path))[0]


def recognized(file: IO[bytes], path: str) -> tuple[str, int]:
    """Return a file's format, by its first and last bytes, and its size in bytes.

    Args:
        file: the open file.
        path: its name in an error.

    Raises:
        DataError: it has another format, or is cut short.
    """
    head = file.read(_HEAD)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    tail = file.read()
    if not size:
        raise DataError(f"{path} is empty (0 bytes): remove it, or write it again.")
    for magic, (kind, end) in _FORMATS.items():
        if head.startswith(magic):
            if size < len(magic) + len(end) or not tail.endswith(end):
                raise DataError(
                    f"{path} is cut short, or has more after its end: it begins as {kind} but does "
                    "not end so. Write or copy it again."
                )
            return kind, size
    if is_pointer(head):
        raise DataError(told_of_pointer(path))
    if form_of(path) not in (None, "table"):
        raise DataError(
            f"{path} cannot be trained on directly: make a stream of it with `raytrain-plus data "
            f"write {path} NEW_PLACE`, and train on that."
        )
    foreign = format_of_files([path])
    if foreign is not None:
        raise DataError(told(path, foreign))
    raise DataError(
        f"{path} is neither an Arrow IPC file nor a Parquet file: write it with pyarrow, or "
        "convert it."
    )


def _open_ipc(path: Path, kind: str) -> Any:
    """Open an Arrow file, mapped into memory."""
    opener = pa.ipc.open_file if kind == "Arrow IPC" else pa.ipc.open_stream
    return opener(pa.memory_map(str(path)))


def _declared_rows(path: Path, kind: str) -> int:
    """Return the rows that an Arrow file declares, after checking that they fit into it."""
    schema = _open_ipc(path, kind).schema
    content = pa.memory_map(str(path)).read_buffer()
    return check_declared(content, schema, str(path), is_stream=kind != "Arrow IPC")


def check_nulls(footer: Footer, columns: Mapping[str, Column], where: str) -> None:
    """Check that a Parquet file's statistics count no nulls; others are found when values are read.

    Raises:
        DataError: a column contains nulls.
    """
    for chunk in footer.chunks:
        name = chunk.leaf.path[0]
        column = columns.get(name)
        if column is None or column.fill is not None or not chunk.nulls:
            continue
        # A list's count includes its empty lists, and the path of an image may be null.
        is_fixed = column.kind == "tensor" and 0 not in column.shape
        if is_fixed or (len(chunk.leaf.path) == 1 and not chunk.leaf.repeated):
            raise null_error(name, where)
