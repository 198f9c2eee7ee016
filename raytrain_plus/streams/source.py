"""A source: the rows of shard files of any kind, which can be gathered in any order.

`opening.py` makes sources from tables, files, folders and streams.
"""

import contextlib
import hashlib
import itertools
import json
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raytrain_plus.storage.store import InterruptedReadError
from raytrain_plus.streams.cache import CacheFullError, FileTooLargeError
from raytrain_plus.streams.chunked import ChunkedColumn
from raytrain_plus.streams.columns import Column, Values, listed, python_values
from raytrain_plus.streams.decoding import check_order_memory, explained
from raytrain_plus.streams.labels import Labels
from raytrain_plus.streams.order import Order, Ordering
from raytrain_plus.streams.vocabulary import Vocabularies

# A table or a single file is mixed as at most this many pieces, to bound the memory of the order.
_MOST_PIECES = 2**20
_ROOM_DEADLINE = 60.0  # seconds to wait until other readers close entries of the cache
_ROOM_LOOK = 0.05

Function = Callable[[dict[str, Any], torch.Generator], dict[str, Any]]


@dataclass(frozen=True)
class Transform:
    """A function that is applied to samples before the training.

    Attributes:
        function: gets a sample, or a batch, and a generator of random numbers; returns another one.
        per_batch: the function gets whole parts of a batch.
    """

    function: Function
    per_batch: bool = False


def _digest(labels: Labels) -> str:
    told = json.dumps({name: list(names) for name, names in sorted(labels.items())})
    return hashlib.sha256(told.encode()).hexdigest()


def _further(column: Column) -> list[str]:
    """Return what else identifies a column, if it has a meaning or a fill."""
    filled = [] if column.fill is None else [f"nulls are {column.fill!r}"]
    return [column.meaning, *filled] if column.meaning or filled else []


def _rows_as_values(rows: pa.Array, column: Column) -> list[Any]:
    """Return a Python or NumPy value for each row of a column without a fixed shape."""
    if column.kind == "nested":
        return python_values(rows)
    if column.kind != "list":
        values: list[Any] = rows.to_pylist()
        return values
    items: npt.NDArray[Any] = rows.flatten().to_numpy(zero_copy_only=False)
    lengths = pc.list_value_length(rows).to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths, dtype=np.int64)[:-1]
    shape = column.shape[1:]
    return [part.reshape(-1, *shape) if shape else part for part in np.split(items, ends)]


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Opened:
    """A shard's values.

    Attributes:
        values: column -> its rows.
        close: closes the file that the values map.
        confirm: raises DataError if the file has changed since it was opened.
    """

    values: Values
    close: Callable[[], None] = _nothing
    confirm: Callable[[], None] | None = None


class Shard(Protocol):
    """Rows that are opened together: a file, or a table in memory."""

    @property
    def rows(self) -> int:
        """Its number of rows."""

    @property
    def where(self) -> str:
        """Its name in an error."""

    @property
    def columns(self) -> dict[str, Column]:
        """Its columns, by name."""

    def open(self, cancelled: threading.Event) -> Opened:
        """Return the values; if `cancelled` is set, a wait for a store ends."""

    def identify(self) -> list[Any]:
        """Return what identifies this shard, as values for JSON."""

    def digest(self) -> str:
        """Return the SHA-256 of its bytes, in hex; reads them if necessary."""


class Lookahead(Protocol):
    """Fetches shards before they are read (`cache.py`)."""

    def expect(
        self,
        order: Ordering,
        epoch: int,
        lanes: range,
        position: int,
        cancelled: threading.Event,
    ) -> None:
        """Begin to fetch what some lanes read from a position on, until `cancelled` is set."""

    def check_room(self, files: int) -> None:
        """Check that the cache can hold `files` files at once."""

    def moved(self, order: Ordering, epoch: int, position: int) -> None:
        """Note the position of the lanes, from which the next uses follow."""

    def close(self) -> None:
        """Fetch nothing more, and remove the next uses from the cache."""


class _Closes(Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def closed_on_error(opened: _Closes | None) -> Iterator[None]:
    """Close what was opened if the block fails. Otherwise its next owner closes it.

    Args:
        opened: a source or what a source owns; None for nothing.
    """
    try:
        yield
    except BaseException:
        if opened is not None:
            opened.close()
        raise


class Source:
    """Rows of a table, files or streams; made by `open_source`.

    It can be pickled: the copy opens the same data again.

    Args:
        shards: at least one, all with the same columns.
        reopen: a function and its arguments that open the same data.
        window: how many shards an order mixes at a time; None for all.
        shuffle: whether an order mixes at all.
        in_pieces: the only shard counts as many small pieces, so that its rows are mixed.
        transform: applied to samples; None for none.
        lookahead: fetches shards ahead; None for data on this machine.

    Attributes:
        shards: the shards.
        columns: Column name -> type and shape of one row.
        rows: Rows of each shard file, int64 of shape (files,), read-only. A table or a single file
            has no shard files of its own and counts as many small pieces.
        open_files: How many files to keep open; the least recently used one is closed first.
        labels: Column -> the names of its numbers, if they are known.
        label_skew: Column -> how sorted by it the rows are, if it was measured.
        vocabularies: Column of token numbers -> the tokenizer that made them, if it is known.
        waits_for_store: whether opening a file may wait for a store, which has a deadline.
        hash_data: whether the identity consists of hashes of all bytes.
        collate: makes a batch of its rows, after the transform; None for the usual way.
        cancelled: if it is set, a wait for a store ends.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        reopen: tuple[Callable[..., "Source"], tuple[Any, ...]],
        *,
        window: int | None,
        shuffle: bool = True,
        in_pieces: bool = False,
        transform: Transform | None = None,
        lookahead: Lookahead | None = None,
    ) -> None:
        self.shards, self._reopen = shards, reopen
        self.columns = shards[0].columns
        self.window, self.shuffle = window, shuffle
        self.transform, self.lookahead = transform, lookahead
        self.labels: Labels = {}
        self.label_skew: Mapping[str, float] = {}
        self.vocabularies: Vocabularies = {}
        self.open_files = 16 if lookahead is None else 2  # open files occupy the cache
        self.cancelled = threading.Event()
        self.hash_data = False
        self.collate: Callable[[Sequence[dict[str, Any]]], Any] | None = None
        self.waits_for_store = lookahead is not None
        self._fetching = 0
        counts = np.array([shard.rows for shard in shards], np.int64)
        self.total_rows = int(counts.sum())
        self._piece_rows: int | None = None
        if in_pieces:
            self._piece_rows = max(1, -(-self.total_rows // _MOST_PIECES))
            starts = np.arange(0, self.total_rows, self._piece_rows)
            counts = np.minimum(self.total_rows - starts, self._piece_rows)
        elif shuffle:
            check_order_memory(counts.tolist(), window, shards[0].where)
        self.rows = counts
        self.rows.flags.writeable = False
        self._opened: OrderedDict[int, Opened] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reopen

    @cached_property
    def identity(self) -> str:
        """SHA-256 in hex: the same for the same data.

        It covers the columns and rows. For a table it covers the values, independently of their
        chunks. For files it covers their hashes if a manifest has them or `hash_data` is set;
        otherwise their names, sizes, and what the store has that changes with their content: a
        tag, a version or a time.
        """
        described = {
            "columns": [
                [name, column.dtype.str, column.shape, *_further(column)]
                for name, column in sorted(self.columns.items())
            ],
            "rows": [shard.rows for shard in self.shards],
            "shards": [
                [shard.digest()] if self.hash_data else shard.identify() for shard in self.shards
            ],
        }
        return hashlib.sha256(json.dumps(described).encode()).hexdigest()

    def described(self) -> Mapping[str, Any]:
        """Return everything that a run's bits depend on, by name, as values for JSON."""
        function = self.transform.function if self.transform is not None else None
        hashed = {"hashed": True} if self.hash_data else {}
        return {
            **({"labels": _digest(self.labels)} if self.labels else {}),
            "content": self.identity,
            **hashed,
            "window": self.window,
            "shuffle": self.shuffle,
            "transform": getattr(function, "__qualname__", function and type(function).__name__),
        }

    def order(self, lanes: int, seed: int, part_rows: int) -> Ordering:
        """Return the order in which a run reads these rows.

        Args:
            lanes: its logical ranks.
            seed: its seed.
            part_rows: rows of a logical rank in a step.
        """
        del part_rows  # only a mixture, whose weights change at a step, uses it
        return self.lanes_order(lanes, seed)

    def lanes_order(self, lanes: int, seed: int) -> Order:
        """Return the order of these rows outside of a mixture."""
        return self._order(lanes, seed, shuffle=self.shuffle)

    def plain_order(self, lanes: int) -> Order:
        """Return the order in which the rows are stored, cut into lanes."""
        return self._order(lanes, 0, shuffle=False)

    def _order(self, lanes: int, seed: int, *, shuffle: bool) -> Order:
        return Order(
            rows=self.rows,
            lanes=lanes,
            seed=seed,
            window=self.window,
            shuffle=shuffle,
        )

    def check_room(self, lanes: int) -> None:
        """Check that the cache is large enough for one node that reads all lanes at once.

        Raises:
            DataError: it is too small; the message says what is needed.
        """
        if self.lookahead is not None:
            # For each lane a window, a file that is fetched, and two files of evaluation data.
            self.lookahead.check_room(lanes * ((self.window or len(self.rows)) + 3) + 1)

    @property
    def is_fetching(self) -> bool:
        """Whether a thread waits for a file to be opened, under a deadline of its own."""
        return self._fetching > 0 and self.waits_for_store

    def gather(
        self,
        files: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        column: str,
        out: npt.NDArray[Any],
    ) -> None:
        """Copy one column of any rows, in the given order, into an array of the caller.

        Args:
            files: The index of each row's shard file, shape (n,).
            rows: Each row's index in its file, shape (n,).
            column: The column's name.
            out: The array to fill, with the column's type and shape (n, *shape of the column).

        Raises:
            ValueError: `out` does not fit, or there is no such column.
            IndexError: There is no such file or row.
            DataError: A file cannot be read or contains a null.
        """
        wanted = self._column(column)
        if wanted.kind != "tensor":
            raise ValueError(f"column {column!r} is of kind {wanted.kind}: use `gather_list`.")
        if out.dtype != wanted.dtype or out.shape != (len(rows), *wanted.shape):
            raise ValueError(
                f"out is {out.dtype} of shape {out.shape}, but column {column!r} needs "
                f"{wanted.dtype} of shape {(len(rows), *wanted.shape)}."
            )
        for file, places, inside in self._by_file(files, rows):
            values = self._open(file)[column]
            if isinstance(values, ChunkedColumn):
                for piece, spots, there in values.by_piece(inside):
                    out[spots if places is None else places[spots]] = piece[there]
            elif places is None:
                # With mode="raise" NumPy would fill a copy first; the rows are checked above.
                np.take(values, inside, axis=0, out=out, mode="clip")
            else:
                out[places] = values[inside]

    def gather_list(
        self, files: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], column: str
    ) -> list[Any]:
        """Return one column of any rows, in the given order, if it has no fixed shape.

        Args:
            files: The index of each row's shard file, shape (n,).
            rows: Each row's index in its file, shape (n,).
            column: The name of a column of kind list, string, binary or nested.

        Returns:
            An array, `str`, `bytes`, list or dictionary for each row.

        Raises:
            ValueError, IndexError, DataError: as `gather`.
        """
        found: list[Any] = [None] * len(rows)
        for file, places, inside in self._by_file(files, rows):
            values = self._open(file)[column]
            pieces: Iterable[Any] = [(values, None, inside)]
            if isinstance(values, ChunkedColumn):
                pieces = values.by_piece(inside)
            for piece, spots, there in pieces:
                with explained(self.shards[file].where):  # finds text that is not UTF-8
                    items = _rows_as_values(piece.take(pa.array(there)), self._column(column))
                into = range(len(rows)) if places is None else places
                for place, item in zip(into if spots is None else spots, items):  # noqa: B905
                    found[place if spots is None or places is None else places[place]] = item
        return found

    def count_items(self, column: str) -> int:
        """Return the number of items in all rows of a column of lists; reads the whole column.

        Raises:
            ValueError: there is no such column, or it has another kind.
            DataError: a file cannot be read.
        """
        if self._column(column).kind != "list":
            raise ValueError(f"column {column!r} is of kind {self._column(column).kind}.")
        files = [0] if self._piece_rows else range(len(self.shards))
        size = math.prod(self._column(column).shape[1:])
        items = 0
        for file in files:
            if not self.shards[file].rows:
                continue
            values = self._open(file)[column]
            if isinstance(values, ChunkedColumn):
                all_rows = np.arange(self.shards[file].rows)
                pieces = [piece.take(pa.array(t)) for piece, _, t in values.by_piece(all_rows)]
            else:
                pieces = [values]
            items += sum(len(piece.flatten()) for piece in pieces)
        return items // size

    def _column(self, name: str) -> Column:
        if name not in self.columns:
            raise ValueError(f"there is no column {name!r}; there are {listed(self.columns)}.")
        return self.columns[name]

    def _by_file(
        self, files: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]
    ) -> Iterator[tuple[int, npt.NDArray[np.int64] | None, npt.NDArray[np.int64]]]:
        """Yield (file, places in the batch, rows in the file); places is None for all, in order."""
        if not len(rows):
            return
        # As unsigned numbers, negative ones are too large.
        if files.view(np.uint64).max() >= len(self.rows):
            raise IndexError(f"files must be in 0..{len(self.rows) - 1}.")
        if (rows.view(np.uint64) >= self.rows[files].view(np.uint64)).any():
            raise IndexError("a row is outside its file; see the source's `rows`.")
        if self._piece_rows:
            yield 0, None, files * self._piece_rows + rows
            return
        by_file = files.argsort(kind="stable")
        grouped = files[by_file]
        bounds = [0, *((grouped[1:] != grouped[:-1]).nonzero()[0] + 1).tolist(), len(files)]
        if len(bounds) == 2:
            yield int(files[0]), None, rows
            return
        inside = rows[by_file]
        for first, end in itertools.pairwise(bounds):
            yield int(grouped[first]), by_file[first:end], inside[first:end]

    def named(self, file: int, row: int) -> str:
        """Return the name of a row in an error: its number in its file from 1, and the file."""
        if self._piece_rows:
            file, row = 0, int(file) * self._piece_rows + int(row)
        return f"row {int(row) + 1:,} (counted from 1) of {self.shards[file].where}"

    def confirm(self, files: npt.NDArray[np.int64]) -> None:
        """Check that open files have not changed since they were opened.

        Args:
            files: the index of each row's shard file, shape (n,).

        Raises:
            DataError: one was replaced or overwritten.
        """
        for file in {0} if self._piece_rows else set(files.tolist()):
            opened = self._opened.get(file)
            if opened is not None and opened.confirm is not None:
                opened.confirm()

    def _open(self, file: int) -> Values:
        with self._lock:
            if file not in self._opened:
                while len(self._opened) >= self.open_files:
                    self._close_one()
                self._fetching += 1
                try:
                    self._opened[file] = self._open_shard(file)
                finally:
                    self._fetching -= 1
            self._opened.move_to_end(file)
            return self._opened[file].values

    def _open_shard(self, file: int) -> Opened:
        """Open a shard; if the cache has no room, first close the least recently used shard."""
        until = time.monotonic() + _ROOM_DEADLINE
        while True:
            try:
                return self.shards[file].open(self.cancelled)
            except FileTooLargeError:  # waiting does not help
                raise
            except CacheFullError:
                if self._opened:
                    self._close_one()
                elif time.monotonic() > until:
                    raise
                elif self.cancelled.wait(_ROOM_LOOK):
                    raise InterruptedReadError from None

    def _close_one(self) -> None:
        _, opened = self._opened.popitem(last=False)
        close = opened.close
        del opened  # its arrays map the file, which must not be evicted before they are freed
        close()

    def close(self) -> None:
        """Close all files, stop fetching, and remove the next uses from the cache.

        The code that opens a source closes it; a second call has no effect.
        """
        self.cancelled.set()
        self.release()
        if self.lookahead is not None:
            self.lookahead.close()

    def release(self) -> None:
        """Close all files; they are opened again when they are read."""
        with self._lock, contextlib.suppress(KeyError):
            while True:
                self._close_one()
