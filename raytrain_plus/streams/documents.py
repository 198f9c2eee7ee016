"""Reads documents of text: what `data write` reads, and files of plain text."""

import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from raytrain_plus.storage.locations import file_system
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.convert import Data, RowBatch, Wanted, read_any
from raytrain_plus.streams.folders import (
    form_of,
    is_hidden,
    of_split,
    paths_below,
    without_pattern,
)
from raytrain_plus.streams.foreign import is_pointer, told_of_pointer
from raytrain_plus.streams.unpacking import ERRORS, SUFFIXES, open_unpacked

_TEXT = (".txt", ".text")


def read_documents(
    source: str | os.PathLike[str],
    column: str,
    options: Mapping[str, Any] | None,
    choice: Wanted,
) -> Data:
    """Return documents, one in each row of a column.

    Args:
        source: as in `convert.read_any`; or a text file, or a folder or pattern of text files (and
            of no other data), each of which is a document.
        column: the column of the documents.
        options: passed to fsspec's filesystem.
        choice: what is wanted of the data.

    Raises:
        DataError: there are no documents, or they cannot be read.
    """
    place, pattern = without_pattern(source)
    fs, root = file_system(place, options)
    try:
        if fs.isfile(root):
            folder, _, name = root.rpartition("/")
            paths = [name]
        else:
            folder, paths = root, paths_below(fs, root, pattern)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error}") from error
    visible = [path for path in paths if not is_hidden(path)]
    texts = sorted(
        (path for path in visible if _is_text(path)), key=lambda p: PurePosixPath(p).parts
    )
    if not texts or any(form_of(path) is not None for path in visible):
        return read_any(source, options, choice)
    texts = of_split(texts, os.fspath(source), choice.split, texts)
    return Data(_read(fs, folder, texts, column, choice.dialect.encoding), len(texts))


def _is_text(path: str) -> bool:
    name = PurePosixPath(path)
    return (
        name.with_suffix("") if name.suffix.lower() in SUFFIXES else name
    ).suffix.lower() in _TEXT


def _read(fs: Any, folder: str, paths: list[str], column: str, encoding: str) -> Iterator[RowBatch]:
    for path in paths:
        where = f"{folder}/{path}"
        try:
            with open_unpacked(fs, where) as file:
                content = file.read()
        except ERRORS as error:
            raise DataError(f"{where} cannot be read: {error}") from error
        if is_pointer(content):
            raise DataError(told_of_pointer(where))
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where}, byte {error.start:,}: it is not {error.encoding}: {error.reason}. Give "
                "the encoding of the text (`--encoding`)."
            ) from error
        table = pa.table({column: pa.array([text], pa.large_string())})
        yield RowBatch(table, [where].__getitem__)
