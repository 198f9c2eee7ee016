"""All rows of some data in a random order from a seed.

The rows are first stored in a folder on this machine, as raw Arrow files, which takes disk space
for all of them. Then they are gathered from there. This needs 16 bytes of memory per row, and the
memory of the rows that are gathered at a time.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raytrain_plus.seeds import seed_for
from raytrain_plus.storage.store import Store
from raytrain_plus.streams.convert import Data, RowBatch
from raytrain_plus.streams.order import permutation
from raytrain_plus.streams.stream import read_manifest
from raytrain_plus.streams.writer import StreamWriter

_ROWS_AT_ONCE = 8192


def mixed(data: Data, seed: int, scratch: Path) -> Data:
    """Return the same rows in an order that follows from (seed, number of rows) alone.

    Args:
        data: what to mix; all of it is read before this returns.
        seed: the seed of the order.
        scratch: an empty folder on this machine, which is needed until all rows are read.

    Raises:
        DataError: the data cannot be read, or the types of its rows do not fit together.
    """
    with StreamWriter(scratch, compression="none", labels=data.labels, warn=False) as writer:
        for batch in data.batches:
            writer.write(batch.table, batch.place)
    manifest = read_manifest(Store(scratch))
    tables = [
        pa.ipc.open_file(pa.memory_map(str(scratch / file.name))).read_all()
        for file in manifest.files
    ]
    order = permutation(manifest.rows, seed_for(seed, "rows"))
    starts = np.cumsum([0, *(table.num_rows for table in tables)])

    def read() -> Iterator[RowBatch]:
        for begun in range(0, len(order), _ROWS_AT_ONCE):
            rows = order[begun : begun + _ROWS_AT_ONCE]
            files = np.searchsorted(starts, rows, side="right") - 1
            by_file = np.argsort(files, kind="stable")
            parts = [
                tables[file].take(pa.array(rows[files == file] - starts[file]))
                for file in np.unique(files).tolist()
            ]
            gathered = pa.concat_tables(parts).combine_chunks()
            back = np.empty_like(by_file)
            back[by_file] = np.arange(len(by_file))
            yield RowBatch(gathered.take(pa.array(back)), lambda row: f"row {row + 1:,}")

    return replace(data, batches=read(), rows=manifest.rows, is_mixed=True)
