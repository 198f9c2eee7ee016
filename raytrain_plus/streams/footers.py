"""A folder of Parquet files without a manifest: its footers are read once, and kept by the node."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from raytrain_plus.storage.store import Stat, Store
from raytrain_plus.streams.columns import (
    Column,
    DataError,
    columns_of,
    difference,
    null_error,
    with_constants,
)
from raytrain_plus.streams.decoding import explained
from raytrain_plus.streams.folders import DataPath, suffix_of
from raytrain_plus.streams.format import FileEntry, FoundFile, decode_schema, encode_schema
from raytrain_plus.streams.labels import Labels, check_same, labels_of, with_names
from raytrain_plus.streams.parquet_footer import Footer, read_footer

_READERS = 16
_TAIL = 64 << 10  # bytes: most footers are shorter
_KEPT_FORMAT = 2  # of what a node keeps of footers


@dataclass(frozen=True)
class ParquetFile:
    """What a footer says.

    Attributes:
        entry: as a manifest would name the file. Its `sha256` is a hash of what the store says of
            it, not of its bytes; its `raw_bytes` is a guess unless `is_exact`.
        schema: of its columns.
        nulls: column -> whether it is one of plain values; of columns whose statistics count nulls.
        is_exact: the writer has said how large all values are.
        stat: what the store says of it.
        constants: values of columns that the names of its folders give, and it has not.
        labels: column -> the names of its numbers, where the file says them.
    """

    entry: FileEntry
    schema: pa.Schema
    nulls: dict[str, bool]
    is_exact: bool
    stat: Stat
    constants: Mapping[str, int | str]
    labels: Labels


def parquet_files(store: Store, folder: Path, found: Sequence[DataPath]) -> list[ParquetFile]:
    """Return what the footers of a folder's files say; asks the store for those not kept.

    Args:
        store: the folder.
        folder: where the node keeps what it has read of footers.
        found: the paths of the files in it.

    Raises:
        DataError: one is damaged, or of another format.
    """
    chosen = [each.path for each in found]
    for name in chosen:
        if suffix_of(name) not in (".parquet", ".pq"):
            raise DataError(
                f"{store.where(name)} is an Arrow file: a stream without a manifest is a folder of "
                "Parquet files. Make a stream of it with `raytrain-plus data write`, or train on "
                "the folder by its path."
            )
    with ThreadPoolExecutor(_READERS) as readers:
        stats = list(readers.map(store.stat, chosen))
        listing = json.dumps(
            [_KEPT_FORMAT, store.url, list(chosen), [(s.size, s.exact) for s in stats]]
        )
        kept = folder / f"footers-{hashlib.sha256(listing.encode()).hexdigest()[:40]}.json"
        described = _kept(kept)
        if described is None:
            footers = readers.map(partial(_footer, store), chosen, [s.size for s in stats])
            described = _described(list(footers))
            content = json.dumps(described).encode()
            digest = hashlib.sha256(content).hexdigest().encode()
            Store(folder).write(kept.name, digest + b"\n" + content)
    schemas = [decode_schema(text) for text in described["schemas"]]
    names = [set(schema.names) for schema in schemas]
    labels = [labels_of(schema) for schema in schemas]
    return [
        ParquetFile(
            FoundFile(
                name=name,
                rows=said["rows"],
                stored_bytes=stat.size,
                raw_bytes=said["raw_bytes"],
                sha256=hashlib.sha256(f"{store.where(name)}:{stat}".encode()).hexdigest(),
            ),
            schemas[said["schema"]],
            said["nulls"],
            said["is_exact"],
            stat,
            {
                key: value
                for key, value in each.partitions.items()
                if key not in names[said["schema"]]
            },
            labels[said["schema"]],
        )
        for each, name, stat, said in zip(found, chosen, stats, described["files"], strict=True)
    ]


def common_columns(
    files: Sequence[ParquetFile], selection: Sequence[str] | None, store: Store
) -> dict[str, Column]:
    """Return the selected columns, which all files have.

    They may differ in the order of columns, in columns that are not selected, and in types that
    become the same values.

    Raises:
        DataError: the files differ, or one holds nulls.
    """
    first = files[0]
    columns: dict[str, Column] = {}
    seen: set[tuple[int, ...]] = set()
    for file in files:
        where = store.where(file.entry.name)
        kind = (id(file.schema), *map(hash, sorted(file.constants)))
        if kind not in seen:
            seen.add(kind)
            own = columns_of(with_constants(file.schema, file.constants), selection, where)
            columns = columns or own
            if own != columns:
                raise DataError(
                    f"{store.where(first.entry.name)} and {where} differ in their columns: "
                    f"{difference(columns, own)}. All files of a stream must have the same ones; "
                    "select those that agree, or write the files again."
                )
        for name, is_plain in file.nulls.items():
            column = columns.get(name)
            # A list's count includes its empty lists, and the path of an image may be null.
            if column and (is_plain or (column.kind == "tensor" and 0 not in column.shape)):
                raise null_error(name, where)
    return columns


def common_labels(files: Sequence[ParquetFile], store: Store) -> Labels:
    """Return the names of labels that the files' columns have.

    Raises:
        DataError: a number stands for different names in two of them.
    """
    first = files[0]
    for other in {id(file.labels): file for file in files}.values():
        one, two = (store.where(file.entry.name) for file in (first, other))
        check_same(first.labels, other.labels, one, two)
    return first.labels


def _kept(path: Path) -> dict[str, Any] | None:
    """Return what was kept, unless it is absent or damaged: then footers are read again."""
    try:
        digest, content = path.read_bytes().split(b"\n", 1)
    except (OSError, ValueError):
        return None
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    described: dict[str, Any] = json.loads(content)
    return described


def _described(footers: Sequence[tuple[Footer, str]]) -> dict[str, Any]:
    schemas = {text: None for _, text in footers}
    numbers = {text: number for number, text in enumerate(schemas)}
    return {
        "schemas": list(schemas),
        "files": [
            {
                "rows": footer.rows,
                "raw_bytes": footer.decoded,
                "is_exact": footer.is_exact,
                "schema": numbers[text],
                "nulls": {
                    chunk.leaf.path[0]: len(chunk.leaf.path) == 1 and not chunk.leaf.repeated
                    for chunk in footer.chunks
                    if chunk.nulls
                },
            }
            for footer, text in footers
        ],
    }


def _footer(store: Store, name: str, size: int) -> tuple[Footer, str]:
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    tail = store.read_range(name, max(0, size - _TAIL), size)
    where = store.where(name)
    if size < 12 or tail[-4:] != b"PAR1":
        raise DataError(f"{where} is cut short, or no Parquet file: write it again.")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > size:
        raise DataError(f"{where} is damaged: its footer is longer than the file. Write it again.")
    if length > len(tail):
        tail = store.read_range(name, size - length, size)
    footer = read_footer(tail, where)
    with explained(where):
        schema = parquet.read_metadata(pa.BufferReader(tail)).schema.to_arrow_schema()
    return footer, encode_schema(with_names(schema.remove_metadata(), labels_of(schema)))
