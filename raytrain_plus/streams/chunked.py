"""A column in many pieces, which are used where they are, such as those of memory-mapped files.

A table in one piece is one array. To make one array of many pieces would copy all of them, which
may be more than memory holds. Here a piece is decoded and checked when one of its rows is first
read.
"""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raytrain_plus.streams.columns import Column, chunk_values
from raytrain_plus.streams.decoding import check_values, explained

_Rows = npt.NDArray[np.int64]


class ChunkedColumn:
    """The rows of a column, in pieces.

    Args:
        pieces: the column.
        column: what it is.
        name: its name in an error.
        where: the name of the data in an error.
        indices: the number of each row in the pieces; None if they are the rows.
    """

    def __init__(
        self,
        pieces: pa.ChunkedArray,
        column: Column,
        name: str,
        where: str,
        indices: _Rows | None = None,
    ) -> None:
        self._pieces = [piece for piece in pieces.chunks if len(piece)]
        lengths = [len(piece) for piece in self._pieces]
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        self._column, self._name, self._where, self._indices = column, name, where, indices
        self._read: dict[int, Any] = {}
        self._lock = threading.Lock()

    def by_piece(self, rows: _Rows) -> Iterator[tuple[Any, _Rows, _Rows]]:
        """Yield the values of each piece that has some rows, their places in `rows`, and in it."""
        stored = rows if self._indices is None else self._indices[rows]
        pieces = np.searchsorted(self._starts, stored, side="right") - 1
        for number in np.unique(pieces).tolist():
            places = np.flatnonzero(pieces == number)
            yield self._values(number), places, stored[places] - self._starts[number]

    def _values(self, number: int) -> Any:
        with self._lock:
            if number not in self._read:
                piece, before = self._pieces[number], int(self._starts[number])
                with explained(self._where):
                    table = pa.table({self._name: piece})
                    check_values(table, [self._name], self._where, in_place=True)
                    self._read[number] = chunk_values(
                        piece, self._column, self._name, self._where, before
                    )
            return self._read[number]
