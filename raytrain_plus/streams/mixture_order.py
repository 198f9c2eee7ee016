"""The order of a mixture: which stream has which place, in given proportions.

A lane's places are cut into blocks of B. In every block each stream has exactly its share of the
places; if shares are not whole numbers, the method of largest remainders rounds them. A keyed
permutation of each block chooses the places. So the stream at a place and its row follow from
(seed, lane, place) in O(B), and nothing has to be replayed. At its end, each stream begins its next
epoch, in another order, independently of the others.

Shares may change at given steps. New blocks begin there, and every stream continues at its
position.
"""

import heapq
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from raytrain_plus.seeds import seed_for
from raytrain_plus.streams.columns import DataError
from raytrain_plus.streams.order import Indices, Order, permutation

DEFAULT_BLOCK = 1024


def block_counts(shares: Sequence[float], block: int) -> Indices:
    """Return how many places of a block each stream has, by the method of largest remainders.

    Args:
        shares: the shares of the streams, in any unit; none below 0, at least one above 0.
        block: the places of a block.

    Returns:
        int64 of shape (streams,), with the sum `block`.

    Raises:
        DataError: a share is out of range, or one above 0 would get no place.
    """
    weights = np.array(shares, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise DataError(
            f"the weights are {list(shares)}, but must be numbers, none below 0 and one above 0."
        )
    exact = weights / weights.sum() * block
    counts: Indices = np.floor(exact).astype(np.int64)
    # Equal remainders go to the stream that is named first: the sort is stable.
    by_remainder = np.argsort(-(exact - counts), kind="stable")
    counts[by_remainder[: block - counts.sum()]] += 1
    if (counts[weights > 0] == 0).any():
        raise DataError(
            f"the weights {list(shares)} leave a stream without a place in a block of {block}: "
            "raise `block`, or the weight."
        )
    return counts


@dataclass(frozen=True)
class _Segment:
    """Places with the same shares: from `start` to the next segment."""

    start: int
    counts: Indices


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedOrder:
    """The order in which a run reads several streams; see `order.Ordering`.

    Its files are those of all streams, one stream after the other.

    Attributes:
        orders: the order of each stream, all with the same lanes.
        shares: the share of each stream.
        changes: step -> the shares from that step on.
        part_rows: rows of a lane in a step.
        seed: the run's seed.
        block: places of a block.
    """

    orders: Sequence[Order]
    shares: Sequence[float]
    changes: Mapping[int, Sequence[float]] = field(default_factory=dict)
    part_rows: int
    seed: int
    block: int = DEFAULT_BLOCK
    _patterns: dict[int, tuple[tuple[int, int], Indices, Indices]] = field(
        init=False, repr=False, default_factory=dict
    )

    @cached_property
    def rows(self) -> Indices:
        """Rows of each file of all streams."""
        return np.concatenate([np.asarray(order.rows, np.int64) for order in self.orders])

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return self.orders[0].lanes

    @property
    def window(self) -> int | None:
        """The number of files that a lane mixes at a time, over all streams."""
        windows = [order.window or len(order.rows) for order in self.orders]
        return sum(windows)

    @property
    def shortest_lane(self) -> int:
        """Rows of a lane in an epoch: as many as all streams have together."""
        return sum(order.shortest_lane for order in self.orders)

    def locate(self, epoch: int, lane: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """Return the files and the rows in them of the positions start..stop of a lane."""
        streams, taken = self.places(lane, self.place(epoch, start), self.place(epoch, stop))
        files, rows = np.empty_like(taken), np.empty_like(taken)
        for stream, order in enumerate(self.orders):
            here = np.flatnonzero(streams == stream)
            length = order.lane_rows(lane)
            for own_epoch in np.unique(taken[here] // length):
                # Consecutive places read consecutive rows of each stream.
                some = here[taken[here] // length == own_epoch]
                low = int(taken[some[0]] % length)
                found = order.locate(int(own_epoch), lane, low, low + len(some))
                files[some] = found[0] + self._first_file[stream]
                rows[some] = found[1]
        return files, rows

    def places(self, lane: int, start: int, stop: int) -> tuple[Indices, Indices]:
        """Return the stream at each place of a lane, and its row, counted over all epochs.

        Args:
            lane: the lane.
            start: the first place, counted over the whole run.
            stop: the place after the last.
        """
        streams = np.empty(stop - start, np.int64)
        taken = np.empty(stop - start, np.int64)
        place = start
        while place < stop:
            number = max(i for i, s in enumerate(self._segments) if s.start <= place)
            segment = self._segments[number]
            block, offset = divmod(place - segment.start, self.block)
            here = min(self.block - offset, stop - place, self._end(number) - place)
            kinds, ranks = self._pattern(number, lane, block)
            chosen = slice(offset, offset + here)
            into = slice(place - start, place - start + here)
            streams[into] = kinds[chosen]
            base = self._base(number, lane) + block * segment.counts
            taken[into] = base[kinds[chosen]] + ranks[chosen]
            place += here
        return streams, taken

    def needs(self, epoch: int, lanes: range, position: int) -> Iterator[tuple[float, int]]:
        """Yield the files that some lanes read from a position on, each with its rough distance."""
        place = self.place(epoch, position)
        lane = lanes[0] if lanes else 0

        def of(stream: int, rate: float) -> Iterator[tuple[float, int]]:
            own_epoch, own = self._own(stream, lane, place)
            order, first = self.orders[stream], int(self._first_file[stream])
            for away, file in order.needs(own_epoch, lanes, own):
                yield away / rate, file + first

        rates = self._rates(place)
        return heapq.merge(*(of(i, rate) for i, rate in enumerate(rates) if rate > 0))

    def next_use(self, epoch: int, position: int) -> npt.NDArray[np.float64]:
        """Return the rough distance of each file's next use, shape (files,)."""
        place = self.place(epoch, position)
        found = []
        for stream, (order, rate) in enumerate(zip(self.orders, self._rates(place), strict=True)):
            away = order.next_use(*self._own(stream, 0, place))
            found.append(away / rate if rate > 0 else np.full_like(away, np.inf))
        return np.concatenate(found)

    # -- positions and counts

    def place(self, epoch: int, position: int) -> int:
        """Return a position of an epoch, counted over all epochs."""
        return epoch * (self.shortest_lane // self.part_rows * self.part_rows) + position

    def _own(self, stream: int, lane: int, place: int) -> tuple[int, int]:
        """Return the epoch and position of a stream in a lane."""
        order = self.orders[stream]
        taken = int(self._counts_before(lane, place)[stream])
        epoch, position = divmod(taken, order.lane_rows(lane))
        return epoch, min(position, order.shortest_lane)

    def _rates(self, place: int) -> npt.NDArray[np.float64]:
        segment = max((s for s in self._segments if s.start <= place), key=lambda s: s.start)
        return segment.counts / self.block

    @cached_property
    def _first_file(self) -> Indices:
        sizes = [len(order.rows) for order in self.orders]
        return np.array([0, *itertools.accumulate(sizes)], np.int64)

    @cached_property
    def _segments(self) -> list[_Segment]:
        starts = {0: self.shares, **self.changes}
        return [
            _Segment(step * self.part_rows, block_counts(starts[step], self.block))
            for step in sorted(starts)
        ]

    def _end(self, number: int) -> int:
        later = self._segments[number + 1 :]
        return later[0].start if later else np.iinfo(np.int64).max

    def _pattern(self, number: int, lane: int, block: int) -> tuple[Indices, Indices]:
        """Return the stream of each place in a block, and its number of places before, (B,)."""
        kept = self._patterns.get(lane)
        if kept is None or kept[0] != (number, block):
            counts = self._segments[number].counts
            key = seed_for(self.seed, "mixture", number, lane, block)
            kinds = np.repeat(np.arange(len(counts)), counts)[permutation(self.block, key)]
            by_kind = np.argsort(kinds, kind="stable")
            ranks = np.empty_like(by_kind)
            starts = np.repeat(np.cumsum(counts) - counts, counts)
            ranks[by_kind] = np.arange(self.block) - starts
            kept = self._patterns[lane] = (number, block), kinds, ranks
        return kept[1], kept[2]

    def _base(self, number: int, lane: int) -> Indices:
        """Return how many rows of each stream a lane has read when a segment begins."""
        return self._counts_before(lane, self._segments[number].start, number)

    def _counts_before(self, lane: int, place: int, segments: int | None = None) -> Indices:
        total = np.zeros(len(self.orders), np.int64)
        for number, segment in enumerate(self._segments[:segments]):
            if segment.start >= place:
                break
            length = min(place, self._end(number)) - segment.start
            block, rest = divmod(length, self.block)
            total += block * segment.counts
            if rest:
                kinds, _ = self._pattern(number, lane, block)
                total += np.bincount(kinds[:rest], minlength=len(total))
        return total
