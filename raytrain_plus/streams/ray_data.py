"""Writes a `ray.data.Dataset` as a stream, since its rows have no numbers by which to find them.

The stream is named after its content, so that the same rows are kept once: if a run is started or
resumed with the same dataset, it uses the stream that is there.
"""

import contextlib
import hashlib
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain_plus.storage.errors import ExistsError
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.stream import Stream, read_manifest
from raytrain_plus.streams.writer import StreamWriter

_ROWS = 1024  # at once: the same on any cluster, since the files are cut by them
_INTERVAL = 5.0  # seconds between two lines of progress


def written_stream(dataset: Any, root: str, options: Mapping[str, Any] | None = None) -> Stream:
    """Return a stream with the rows of a Ray dataset, in its order.

    Its files are first written to a temporary folder (`$TMPDIR`).

    Args:
        dataset: the dataset; it is executed, and its rows pass through this process.
        root: the folder or URL that has such streams, which all nodes must see.
        options: for the store of that URL.

    Raises:
        DataError: it has no rows, or a row cannot be stored.
        StoreError: the stream cannot be written to `root`.
    """
    execution = dataset.context.execution_options
    before, execution.preserve_order = execution.preserve_order, True
    with tempfile.TemporaryDirectory(prefix="raytrain_plus-") as scratch:
        fresh = Store(Path(scratch) / "stream")
        try:
            rows = _write(dataset, fresh)
        finally:
            execution.preserve_order = before
        manifest = read_manifest(fresh)
        told = [manifest.arrow_schema, *(file.sha256 for file in manifest.files)]
        name = hashlib.sha256("\n".join(told).encode()).hexdigest()[:24]
        place = Store(f"{root.rstrip('/')}/{name}", options)
        if place.exists(MANIFEST):
            _tell(f"its {rows:,} rows are in {place.location} already")
        else:
            for file in manifest.files:
                place.write(file.name, fresh.read(file.name))
            with contextlib.suppress(ExistsError):  # another run has just written the same
                place.create(MANIFEST, fresh.read(MANIFEST))
            _tell(f"its {rows:,} rows are in {place.location}")
    return Stream(str(place.location), storage_options=dict(options or {}))


def _write(dataset: Any, fresh: Store) -> int:
    rows, next_line = 0, time.monotonic() + _INTERVAL
    with StreamWriter(fresh.local_path, warn=False) as writer:
        for batch in dataset.iter_batches(batch_size=_ROWS, batch_format="pyarrow"):
            if not batch.num_rows:
                continue
            writer.write(batch)
            rows += batch.num_rows
            if time.monotonic() > next_line:
                next_line = time.monotonic() + _INTERVAL
                _tell(f"{rows:,} rows are read")
        if not rows:
            raise DataError("the Ray dataset has no rows: there is nothing to train on.")
    return rows


def _tell(text: str) -> None:
    sys.stderr.write(f"Ray dataset: {text}\n")
