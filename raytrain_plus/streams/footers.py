"""A folder of Parquet files without a manifest: its footers are read once, and kept by the node."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.folders import suffix_of
from raytrain_plus.streams.format import FileEntry, FoundFile, decode_schema, encode_schema
from raytrain_plus.streams.store import Store

_READERS = 16
_TAIL = 64 << 10  # bytes: most footers are shorter


def parquet_files(
    store: Store, folder: Path, chosen: Sequence[str]
) -> tuple[pa.Schema, Sequence[FileEntry]]:
    """Return the schema and the files of a folder of Parquet files.

    Args:
        store: the folder.
        folder: where the node keeps what it has read of footers.
        chosen: the paths of the files in it.

    Returns:
        The schema of all, and the files by name. Their `sha256` is a hash of what the store says
        of them, not of their bytes; `raw_bytes` is what their footers say, about.

    Raises:
        DataError: there are none, one is damaged, or they differ in their columns.
    """
    for name in chosen:
        if suffix_of(name) not in (".parquet", ".pq"):
            raise DataError(
                f"{store.where(name)} is an Arrow file: a stream without a manifest is a folder of "
                "Parquet files. Make a stream of it with `raytrain-plus data write`, or train on "
                "the folder by its path."
            )
    with ThreadPoolExecutor(_READERS) as readers:
        sizes, stamps = zip(*readers.map(store.stat, chosen), strict=True)
        listing = json.dumps([store.url, chosen, stamps])
        kept = folder / f"footers-{hashlib.sha256(listing.encode()).hexdigest()[:40]}.json"
        described = _kept(kept)
        if described is None:
            footers = list(readers.map(partial(_footer, store), chosen, sizes))
            described = {
                "schema": _one_schema(store, chosen, [f["schema"] for f in footers]),
                "files": [
                    {
                        "name": name,
                        "rows": footer["rows"],
                        "stored_bytes": footer["size"],
                        "raw_bytes": footer["raw_bytes"],
                        "sha256": hashlib.sha256(
                            f"{store.where(name)}:{stamp}".encode()
                        ).hexdigest(),
                    }
                    for name, stamp, footer in zip(chosen, stamps, footers, strict=True)
                ],
            }
            Store(folder).write(kept.name, json.dumps(described).encode())
    return decode_schema(described["schema"]), [FoundFile(**file) for file in described["files"]]


def _kept(path: Path) -> dict[str, Any] | None:
    try:
        described: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):  # absent, or damaged: read the footers again
        return None
    return described


def _footer(store: Store, name: str, size: int) -> dict[str, Any]:
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    tail = store.read_range(name, max(0, size - _TAIL), size)
    where = store.where(name)
    if size < 12 or tail[-4:] != b"PAR1":
        raise DataError(f"{where} is cut short, or no Parquet file: write it again.")
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > len(tail):
        tail = store.read_range(name, max(0, size - length), size)
    try:
        metadata = parquet.read_metadata(pa.BufferReader(tail))
        schema = metadata.schema.to_arrow_schema()
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"the footer of {where} is damaged: {error}") from error
    groups = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
    text = encode_schema(schema.remove_metadata())
    return {"rows": metadata.num_rows, "size": size, "raw_bytes": sum(groups), "schema": text}


def _one_schema(store: Store, names: Sequence[str], schemas: Sequence[str]) -> str:
    for name, schema in zip(names, schemas, strict=True):
        if schema != schemas[0]:
            raise DataError(
                f"{store.where(names[0])} and {store.where(name)} differ in their columns: all "
                "files of a stream must have the same ones. Write them again."
            )
    return schemas[0]
