"""The order of samples: lanes and windows.

A run's samples are read in V *lanes*, one per logical rank. The shard files are permuted once for
the run, and their concatenation is cut at exact sample boundaries into V lanes. In each epoch a
lane permutes its *pieces* (whole files, and parts of files at its two ends), takes K of them at a
time as a *window*, and permutes the rows within each window. So a lane needs at most K files at a
time. Every sample is a pure function of (seed, epoch, lane, position): it does not depend on the
workers, and nothing has to be replayed to reach a position.

Permutations sort hashes of integers, because the shuffle of a library may change with its version.
Golden vectors in the tests pin them.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from raytrain_plus.seeds import seed_for

Indices = npt.NDArray[np.int64]


class Ordering(Protocol):
    """The row and file that a lane reads at each position of an epoch."""

    @property
    def rows(self) -> Sequence[int] | Indices:
        """Rows of each shard file."""

    @property
    def lanes(self) -> int:
        """How many lanes there are."""

    @property
    def seed(self) -> int:
        """The run's seed."""

    @property
    def window(self) -> int | None:
        """How many files a lane mixes at a time."""

    @property
    def shortest_lane(self) -> int:
        """Rows that every lane has in an epoch."""

    def locate(self, epoch: int, lane: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """Return the files and the rows in them of the positions start..stop of a lane."""

    def place(self, epoch: int, position: int) -> int:
        """Return a position of an epoch, counted over all epochs."""

    def needs(self, epoch: int, lanes: range, position: int) -> Iterator[tuple[float, int]]:
        """Yield the files that some lanes read from a position on, each with its distance."""

    def next_use(self, epoch: int, position: int) -> npt.NDArray[np.float64]:
        """Return the distance of each file's next use, shape (files,)."""


def permutation(n: int, key: int) -> Indices:
    """Return a permutation of 0..n-1 that depends on (n, key) only.

    It sorts the first `n` outputs of SplitMix64 started at `key`: output i is a bijective mix of
    `key + (i + 1) * 0x9E3779B97F4A7C15` modulo 2**64, so no two are equal and any correct sort
    gives the same result. Source: Steele, Lea and Flood, "Fast splittable pseudorandom number
    generators", OOPSLA 2014.

    Args:
        n: How many indices, at least 0.
        key: A 64-bit unsigned integer, as `seed_for` makes it.

    Returns:
        int64 of shape (n,).
    """
    mixed = np.arange(1, n + 1, dtype=np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed += np.uint64(key)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed, kind="stable").astype(np.int64, copy=False)


@dataclass(frozen=True)
class _LaneReading:
    """The pieces of one lane in the order in which one epoch reads them.

    Attributes:
        epoch: The epoch.
        files: The file of each piece, shape (pieces,).
        starts: The lane position at which each piece begins, then the lane's end, (pieces + 1,).
        shifts: What to add to a lane position to get the row in the piece's file, (pieces,).
        windows: The lane position at which each window begins, then the lane's end.
    """

    epoch: int
    files: Indices
    starts: Indices
    shifts: Indices
    windows: Indices


@dataclass(frozen=True)
class _Window:
    """The permutation of the rows of one window, shape (rows of the window,)."""

    epoch: int
    number: int
    rows: Indices


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The order in which a run reads the rows of its shard files.

    For each lane, the last epoch and window that were read are kept. A loader needs no more, since
    it reads lanes forwards, side by side. So the memory is at most one window per lane.

    Attributes:
        rows: Rows of each shard file, at least one in all; kept as a read-only int64 array.
        lanes: V, the number of lanes (logical ranks), at least 1.
        seed: The run's seed.
        window: K, how many pieces of files a lane mixes at a time; None mixes the whole lane.
        shuffle: False reads files and rows in their stored order; the cut into lanes is the same.

    Raises:
        ValueError: One of these is out of range.
    """

    rows: Sequence[int] | Indices
    lanes: int
    seed: int
    window: int | None = 8
    shuffle: bool = True
    _readings: dict[int, _LaneReading] = field(init=False, repr=False, default_factory=dict)
    _windows: dict[int, _Window] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        rows = np.array(self.rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu" or (rows < 0).any() or not rows.any():
            raise ValueError(
                f"rows is {rows!r}, but must be the number of rows of each shard file: whole "
                "numbers, none below 0 and at least one above. Check that the data is not empty."
            )
        if self.lanes < 1:
            raise ValueError(
                f"lanes is {self.lanes}, but must be at least 1: one lane per logical rank."
            )
        if self.window is not None and self.window < 1:
            raise ValueError(
                f"window is {self.window}, but must be at least 1 file; None mixes a whole lane."
            )
        rows = rows.astype(np.int64)
        rows.flags.writeable = False
        object.__setattr__(self, "rows", rows)

    @property
    def shortest_lane(self) -> int:
        """Rows of the shortest lane; no lane has more than one row more."""
        return self._total // self.lanes

    def lane_rows(self, lane: int) -> int:
        """Return how many rows a lane has.

        Raises:
            ValueError: There is no such lane.
        """
        start, stop = self._cut(lane)
        return stop - start

    def locate(self, epoch: int, lane: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """Return where the rows at positions start..stop (exclusive) of a lane are stored.

        The cost depends on the number of windows in this range only, not on the position.

        Args:
            epoch: The epoch, from 0.
            lane: The lane, in 0..V-1.
            start: The first position in the lane, from 0.
            stop: The position after the last, at most `lane_rows(lane)`.

        Returns:
            The index of the file and the row in the file, each int64 of shape (stop - start,).

        Raises:
            ValueError: There is no such epoch or lane, or the positions are outside of the lane.
        """
        length = self.lane_rows(lane)
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}, but epochs count from 0.")
        if not 0 <= start <= stop <= length:
            raise ValueError(
                f"positions {start}..{stop} are outside lane {lane}, which has {length} rows: ask "
                f"for a range with 0 <= start <= stop <= {length}."
            )
        reading = self._reading(epoch, lane)
        positions = self._positions(reading, lane, start, stop)
        pieces = reading.starts.searchsorted(positions, side="right") - 1
        return reading.files[pieces], positions + reading.shifts[pieces]

    def place(self, epoch: int, position: int) -> int:
        """Return a position of an epoch, counted over all epochs."""
        return epoch * self.shortest_lane + position

    def needs(self, epoch: int, lanes: range, position: int) -> Iterator[tuple[float, int]]:
        """Yield the files that some lanes read from a position on, without end.

        Each file comes with the distance of its window in rows of a lane, nearest first. The lanes
        are assumed to move at the same pace.

        Args:
            epoch: The epoch to begin in.
            lanes: The lanes.
            position: The position in each of them to begin at.
        """
        passed = -position
        while True:
            windows = []
            for lane in lanes:
                reading = self._arrange(epoch, lane)
                for start, stop in itertools.pairwise(reading.windows.tolist()):
                    if stop > position:
                        first, last = np.searchsorted(reading.starts, [start, stop])
                        windows.append((start, lane, reading.files[first:last].tolist()))
            for start, _, files in sorted(windows):
                for file in files:
                    yield max(0, passed + start), file
            passed += self.shortest_lane
            epoch, position = epoch + 1, 0

    def next_use(self, epoch: int, position: int) -> npt.NDArray[np.float64]:
        """Return the distance of each file's next use in rows of a lane, shape (files,).

        Args:
            epoch: The present epoch of all lanes.
            position: The present position of all lanes. A window that has begun is 0 away.
        """
        away = np.full(len(self.rows), np.inf)
        for lane in range(self.lanes):
            length = self.lane_rows(lane)
            for later, gone in ((0, position), (1, position - length)):
                reading = self._arrange(epoch + later, lane)
                windows = np.searchsorted(reading.windows, reading.starts[:-1], side="right") - 1
                windows = np.minimum(windows, len(reading.windows) - 2)
                due = reading.windows[windows + 1] > gone
                distance = np.maximum(reading.windows[windows] - gone, 0)[due]
                np.minimum.at(away, reading.files[due], distance)
        return away

    @cached_property
    def _total(self) -> int:
        return int(np.sum(self.rows))

    @cached_property
    def _files(self) -> Indices:
        """The files in the run's order."""
        if self.shuffle:
            return permutation(len(self.rows), seed_for(self.seed, "files"))
        return np.arange(len(self.rows), dtype=np.int64)

    @cached_property
    def _starts(self) -> Indices:
        """The begin of each file in the concatenation, then the end of the last."""
        return _starts(np.asarray(self.rows)[self._files])

    def _cut(self, lane: int) -> tuple[int, int]:
        """Return the lane's first row in the concatenation, and the row after its last."""
        if not 0 <= lane < self.lanes:
            raise ValueError(f"lane is {lane}, but the lanes are 0..{self.lanes - 1}.")
        return lane * self._total // self.lanes, (lane + 1) * self._total // self.lanes

    def _reading(self, epoch: int, lane: int) -> _LaneReading:
        kept = self._readings.get(lane)
        if kept is None or kept.epoch != epoch:
            kept = self._readings[lane] = self._arrange(epoch, lane)
        return kept

    def _arrange(self, epoch: int, lane: int) -> _LaneReading:
        start, stop = self._cut(lane)
        low = int(np.searchsorted(self._starts, start, side="right")) - 1
        high = max(low, int(np.searchsorted(self._starts, stop, side="left")))
        file_starts = self._starts[low:high]
        piece_starts = np.maximum(file_starts, start)
        lengths = np.minimum(self._starts[low + 1 : high + 1], stop) - piece_starts
        pieces = np.flatnonzero(lengths > 0)
        if self.shuffle:
            pieces = pieces[permutation(len(pieces), seed_for(self.seed, "lane", epoch, lane))]
        starts = _starts(lengths[pieces])
        return _LaneReading(
            epoch=epoch,
            files=self._files[low:high][pieces],
            starts=starts,
            shifts=(piece_starts - file_starts)[pieces] - starts[:-1],
            windows=np.append(starts[: -1 : self.window or len(starts)], starts[-1]),
        )

    def _positions(self, reading: _LaneReading, lane: int, start: int, stop: int) -> Indices:
        """Return the positions in the lane before the rows are mixed within their windows."""
        if not self.shuffle or start == stop:
            return np.arange(start, stop, dtype=np.int64)
        first = int(reading.windows.searchsorted(start, side="right")) - 1
        last = int(reading.windows.searchsorted(stop, side="left"))
        mixed = []
        for number in range(first, last):
            low, high = (int(bound) for bound in reading.windows[number : number + 2])
            rows = self._window(reading.epoch, lane, number, high - low)
            mixed.append(low + rows[max(start - low, 0) : stop - low])
        return mixed[0] if len(mixed) == 1 else np.concatenate(mixed)

    def _window(self, epoch: int, lane: int, number: int, size: int) -> Indices:
        kept = self._windows.get(lane)
        if kept is None or (kept.epoch, kept.number) != (epoch, number):
            rows = permutation(size, seed_for(self.seed, "window", epoch, lane, number))
            kept = self._windows[lane] = _Window(epoch, number, rows)
        return kept.rows


def _starts(lengths: Indices) -> Indices:
    """Return the begin of each of consecutive stretches, then the end: (n,) -> (n + 1,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
