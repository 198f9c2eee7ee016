"""Writes a `ray.data.Dataset` as a stream, since its rows have no numbers by which to find them.

The stream is named after its content, so that the same rows are kept once: of a run that is started
or resumed again with the same dataset, the new copy is dropped.
"""

import hashlib
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from raytrain_plus.storage.store import Store
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.format import MANIFEST
from raytrain_plus.streams.stream import read_manifest
from raytrain_plus.streams.writer import StreamWriter

_ROWS = 1024  # at once: the same on any cluster, since the files are cut by them
_INTERVAL = 5.0  # seconds between two lines of progress


def written_stream(dataset: Any, root: Path) -> str:
    """Return the place of a stream with the rows of a Ray dataset, in its order.

    Args:
        dataset: the dataset; it is executed, and its rows pass through this process.
        root: the folder that has such streams, which all nodes must see.

    Raises:
        DataError: it has no rows, or a row cannot be stored.
    """
    fresh = root / f".{uuid.uuid4().hex}"
    options = dataset.context.execution_options
    before, options.preserve_order = options.preserve_order, True
    try:
        rows = _write(dataset, fresh, root)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    finally:
        options.preserve_order = before
    place = root / _name_of(fresh)
    if (place / MANIFEST).exists():
        shutil.rmtree(fresh)
        _tell(f"its {rows:,} rows are in {place} already")
    else:
        fresh.rename(place)
        _tell(f"its {rows:,} rows are in {place}")
    return str(place)


def _write(dataset: Any, fresh: Path, root: Path) -> int:
    rows, next_line = 0, time.monotonic() + _INTERVAL
    with StreamWriter(fresh, warn=False) as writer:
        for batch in dataset.iter_batches(batch_size=_ROWS, batch_format="pyarrow"):
            if not batch.num_rows:
                continue
            writer.write(batch)
            rows += batch.num_rows
            if time.monotonic() > next_line:
                next_line = time.monotonic() + _INTERVAL
                _tell(f"{rows:,} rows are written to {root}")
        if not rows:
            raise DataError("the Ray dataset has no rows: there is nothing to train on.")
    return rows


def _name_of(stream: Path) -> str:
    manifest = read_manifest(Store(stream))
    told = [manifest.arrow_schema, *(file.sha256 for file in manifest.files)]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:24]


def _tell(text: str) -> None:
    sys.stderr.write(f"Ray dataset: {text}\n")
