"""Rows of a `datasets.Dataset`: its Arrow files are read where they are, memory-mapped.

What `select`, `shuffle` and `filter` leave is a list of row numbers, which is honoured.
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raytrain_plus.storage.store import stat_of
from raytrain_plus.streams.chunked import ChunkedColumn
from raytrain_plus.streams.columns import DataError, columns_of, python_values
from raytrain_plus.streams.source import Opened

_WHERE = "the Hugging Face dataset"
_SAMPLES = 256  # rows whose values identify it, with its files
_AT_ONCE = 1024


class HuggingFaceRows:
    """The rows of a `datasets.Dataset`, as a shard.

    Args:
        dataset: the dataset.
        selection: the wanted columns; None for all that it shows.

    Raises:
        DataError: it has a transform of its own, or a column is not there or of another type.
    """

    where = _WHERE

    def __init__(self, dataset: Any, selection: Sequence[str] | None) -> None:
        if dataset.format["type"] == "custom":
            raise DataError(
                "the Hugging Face dataset has a transform (set_transform, with_transform), which "
                "is not applied here: apply it with `map`, which stores its result; or save the "
                "dataset with save_to_disk(FOLDER) and give "
                "`Stream(FOLDER, transform=FUNCTION)`, whose random numbers are seeded."
            )
        shown = list(dataset.format["columns"])
        self.schema = dataset.features.arrow_schema
        self.columns = columns_of(self.schema, shown if selection is None else selection, _WHERE)
        self.rows = len(dataset)
        self._dataset = dataset

    @cached_property
    def _indices(self) -> npt.NDArray[np.int64] | None:
        table = getattr(self._dataset, "_indices", None)
        return None if table is None else table.column(0).to_numpy().astype(np.int64)

    def open(self, cancelled: threading.Event) -> Opened:
        """Return the columns, whose pieces are read when they are needed."""
        del cancelled
        return Opened(self._values)

    @cached_property
    def _values(self) -> dict[str, Any]:
        table = self._dataset.data.table
        return {
            name: ChunkedColumn(table.column(name), column, name, _WHERE, self._indices)
            for name, column in self.columns.items()
        }

    def identify(self) -> list[Any]:
        """Return its files' names, sizes and times, and the hash of some rows of each part."""
        stats = {Path(one["filename"]) for one in self._dataset.cache_files}
        files = [(path.name, stat_of(path)) for path in sorted(stats)]
        spread = np.unique(np.linspace(0, self.rows - 1, min(self.rows, _SAMPLES)).astype(np.int64))
        rows = spread if files else np.arange(self.rows)
        return [
            *([name, stat.size, stat.validator] for name, stat in files),
            self._hash(rows),
            *(
                []
                if self._indices is None
                else [hashlib.sha256(self._indices.tobytes()).hexdigest()]
            ),
        ]

    def digest(self) -> str:
        """Return the SHA-256 of all rows."""
        return self._hash(np.arange(self.rows))

    def _hash(self, rows: npt.NDArray[np.int64]) -> str:
        found = hashlib.sha256(json.dumps(sorted(self.columns)).encode())
        for name in sorted(self.columns):
            for start in range(0, len(rows), _AT_ONCE):
                for content in self._content(name, rows[start : start + _AT_ONCE]):
                    found.update(content)
        return found.hexdigest()

    def _content(self, name: str, rows: npt.NDArray[np.int64]) -> Iterator[bytes]:
        contents: list[bytes] = [b""] * len(rows)
        for piece, places, inside in self._values[name].by_piece(rows):
            if isinstance(piece, np.ndarray):
                values = [np.ascontiguousarray(value).tobytes() for value in piece[inside]]
            else:
                taken = python_values(piece.take(pa.array(inside)))
                values = [repr(value).encode() for value in taken]
            for place, value in zip(places.tolist(), values, strict=True):
                contents[place] = value
        for content in contents:
            yield len(content).to_bytes(8, "little")
            yield content
