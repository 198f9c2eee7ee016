"""What a stream can be made of: Parquet, Arrow, CSV, JSON lines, and folders of images."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.locations import file_system
from raytrain_plus.streams.store import Store
from raytrain_plus.streams.stream import read_manifest

_FORMATS = {
    ".parquet": "parquet",
    ".arrow": "ipc",
    ".feather": "ipc",
    ".ipc": "ipc",
    ".csv": "csv",
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
}
_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_READ_ROWS = 8192
_READ_IMAGES = 64


def read_any(
    source: str | os.PathLike[str], options: Mapping[str, Any] | None = None
) -> tuple[Iterator[pa.RecordBatch], int | None]:
    """Return the record batches of a file or folder, in the order of the files' names.

    Args:
        source: a stream; or a file, or a folder of files of one format: Parquet, Arrow, CSV or
            JSON lines. Or a folder with a folder of images for each label, as in `cats/1.png`: they
            become the columns `image` (the files' bytes as they are), `label` (the label's number
            in the order of names) and `name`.
        options: passed to fsspec's filesystem.

    Returns:
        The batches, and the rows they have together where that is known.

    Raises:
        DataError: there is no such data, or it is of no known format or of more than one.
    """
    url = os.fspath(source)
    try:
        fs, root = file_system(source, options)
        paths = [root] if fs.isfile(root) else sorted(fs.find(root))
    except OSError as error:
        raise DataError(f"{url} cannot be read: {error}") from error
    if any(PurePosixPath(p).name == MANIFEST for p in paths):
        return _stream_batches(Store(source, options))
    visible = [p for p in paths if not PurePosixPath(p).name.startswith((".", "_"))]
    suffixes = {PurePosixPath(p).suffix.lower() for p in visible}
    images = [p for p in visible if p.lower().endswith(_IMAGES)]
    if images:
        return _image_batches(fs, root, images), len(images)
    formats = {_FORMATS[suffix] for suffix in suffixes if suffix in _FORMATS}
    if len(formats) != 1:
        raise DataError(
            f"{url} holds {', '.join(sorted(suffixes)) or 'no file'}: give a file, or a folder of "
            f"files of one format: {', '.join([*_FORMATS, *_IMAGES])}."
        )
    chosen = [p for p in visible if PurePosixPath(p).suffix.lower() in _FORMATS]
    return _batches(fs, chosen, formats.pop(), url)


def _batches(
    fs: Any, paths: list[str], kind: str, url: str
) -> tuple[Iterator[pa.RecordBatch], int | None]:
    from pyarrow import dataset  # noqa: PLC0415 - imports pandas, which few need

    try:
        found = dataset.dataset(paths, format=kind, filesystem=fs)
        rows = found.count_rows() if kind in ("parquet", "ipc") else None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{url} cannot be read: {error}") from error

    def read() -> Iterator[pa.RecordBatch]:
        try:
            # Few batches ahead: memory is bounded, and the order is that of the files.
            yield from found.to_batches(
                batch_size=_READ_ROWS, batch_readahead=2, fragment_readahead=1
            )
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{url} cannot be read: {error}") from error

    return read(), rows


def _stream_batches(store: Store) -> tuple[Iterator[pa.RecordBatch], int]:
    manifest = read_manifest(store)

    def read() -> Iterator[pa.RecordBatch]:
        for entry in manifest.files:
            content = store.read(entry.name, entry.stored_bytes, entry.sha256)
            yield from pa.ipc.open_file(content).read_all().to_batches()

    return read(), manifest.rows


def write_parquet(batches: Iterator[pa.RecordBatch], folder: str, options: Any = None) -> int:
    """Write record batches as a folder of Parquet files, one for each batch; returns the rows.

    Raises:
        DataError: the folder holds Parquet files already, or cannot be written.
    """
    from pyarrow import parquet  # noqa: PLC0415 - imports pandas, which few need

    store = Store(folder, options)
    if store.exists("part-000000.parquet"):
        raise DataError(f"there are Parquet files in {store.url} already: write to another place.")
    rows = 0
    for number, batch in enumerate(batches):
        sink = pa.BufferOutputStream()
        parquet.write_table(pa.Table.from_batches([batch]), sink, compression="zstd")
        store.write(f"part-{number:06d}.parquet", sink.getvalue().to_pybytes())
        rows += batch.num_rows
    return rows


def _image_batches(fs: Any, root: str, paths: list[str]) -> Iterator[pa.RecordBatch]:
    inside = {p: PurePosixPath(p).relative_to(PurePosixPath(root)) for p in paths}
    flat = [str(p) for p, place in inside.items() if len(place.parts) < 2]
    if flat:
        raise DataError(
            f"{flat[0]} has no label: put each image into a folder named after its label, as in "
            f"{root}/cats/1.png."
        )
    labels = sorted({place.parts[0] for place in inside.values()})
    metadata = {"labels": json.dumps(labels)}
    schema = pa.schema(
        [("image", pa.binary()), ("label", pa.int64()), ("name", pa.string())], metadata=metadata
    )

    def read() -> Iterator[pa.RecordBatch]:
        for start in range(0, len(paths), _READ_IMAGES):
            some = paths[start : start + _READ_IMAGES]
            yield pa.record_batch(
                [
                    pa.array([fs.cat_file(p) for p in some], pa.binary()),
                    pa.array([labels.index(inside[p].parts[0]) for p in some], pa.int64()),
                    pa.array([str(inside[p]) for p in some], pa.string()),
                ],
                schema=schema,
            )

    return read()
