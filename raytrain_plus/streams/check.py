"""Describes and verifies a stream: what it contains, and whether it is complete."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from raytrain_plus.redaction import redact
from raytrain_plus.storage.errors import StorageError
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.folders import paths_in, select
from raytrain_plus.streams.format import MANIFEST, StreamManifest
from raytrain_plus.streams.stream import read_manifest

_DEADLINE = 10.0  # seconds to wait for a file that may be missing


def inspect_stream(url: str, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the content of a stream's manifest, as values for JSON.

    Raises:
        DataError: there is no manifest.
    """
    store = Store(url, options)
    return _described(store, _manifest_of(store))


def verify_stream(
    url: str,
    options: Mapping[str, Any] | None = None,
    on_file: Callable[[pa.Table], None] = lambda _: None,
) -> dict[str, Any]:
    """Read every file of a stream and compare it with the manifest.

    Returns:
        As `inspect_stream`, with `problems`: a list of sentences, empty if all is right; and with
        `extra`: files in the folder that are not part of the data.

    Raises:
        DataError: there is no manifest, it is damaged, or it was written for another order.
    """
    store = Store(url, options, deadline=_DEADLINE)
    manifest = _manifest_of(store)
    problems = []
    for entry in manifest.files:
        try:
            content = store.read(entry.name, entry.stored_bytes, entry.sha256)
            table = pa.ipc.open_file(content).read_all()
            table.validate(full=True)
        except (DataError, StorageError, pa.ArrowException) as error:
            problems.append(f"{entry.name}: {error}")
            continue
        if table.num_rows != entry.rows:
            problems.append(f"{entry.name} has {table.num_rows} rows, not {entry.rows}")
        if not table.schema.equals(manifest.schema):
            problems.append(f"the columns of {entry.name} have other types than the manifest says")
        on_file(table)
    known = {MANIFEST, *(entry.name for entry in manifest.files)}
    extra = [name for name in store.names() if name not in known]
    return {**_described(store, manifest), "problems": problems, "extra": extra}


def _manifest_of(store: Store) -> StreamManifest:
    """Return a stream's manifest; without one, the error says what the folder contains."""
    if MANIFEST not in store.names():
        contents = select(paths_in(store), store.url)
        raise DataError(
            f"{store.url} is not a stream, since it has no {MANIFEST}: it has "
            f"{len(contents.files)} "
            f"files ({contents.files[0].path}). Make a stream of them with `raytrain-plus data "
            f"write {store.url} NEW_PLACE`."
        )
    return read_manifest(store)


def _described(store: Store, manifest: StreamManifest) -> dict[str, Any]:
    return {
        "url": redact(store.url),
        "rows": manifest.rows,
        "files": len(manifest.files),
        "stored_bytes": manifest.stored_bytes,
        "raw_bytes": manifest.raw_bytes,
        "largest_file": max(file.raw_bytes for file in manifest.files),
        "compression": manifest.compression,
        "columns": manifest.columns,
        **({"labels": manifest.labels} if manifest.labels else {}),
        **({"label_skew": manifest.label_skew} if manifest.label_skew else {}),
        **({"vocabularies": _told(manifest)} if manifest.vocabularies else {}),
    }


def _told(manifest: StreamManifest) -> dict[str, dict[str, Any]]:
    return {name: found.model_dump() for name, found in manifest.vocabularies.items()}
