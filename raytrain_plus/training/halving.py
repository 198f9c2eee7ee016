"""The sum over all workers by halves, in the order of the tree. Pure.

The workers' partial sums are nodes of the tree (`tree.py`): the maximal subtrees of their ranges,
called slots here. At a node above the slots, the sum of the left child is spread over some slots,
and that of the right child over others: each of them holds one interval of the vector. Each element
is kept by one of its two holders; the other one sends it, and both are added, left operand first.
So every level of the tree halves what a slot holds, more or less, and at the root each worker has
one piece of the total. Then the pieces go back on the same ways, from the root to the slots.

A worker sends about 2 log2 W messages instead of 2 (W - 1), and the bytes of a ring all-reduce. The
additions are those of `tree.fold`, in the same association, for every element: only who computes
them differs. So the bits are those of every other way to compute the tree.

Each worker keeps a piece with one slot alone, its largest, the main one. Its other slots give away
all that they hold. Any assignment of pieces to workers can be reached, since pieces nest: what is
kept at a node lies inside what its keeper holds at all nodes below.

Prior art: recursive halving and doubling (Rabenseifner; Thakur, Rabenseifner and Gropp 2005), which
adds in the order of the workers' ranks and wants a power of two of them.
"""

import itertools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from raytrain_plus.training.tree import half_of, maximal_subtrees

Interval = tuple[int, int]


class Hop(NamedTuple):
    """An interval of a partial sum that moves from one slot to another.

    Attributes:
        level: height of the tree's node above the slots; hops of one level are independent.
        sender: a slot, which forgets the interval.
        receiver: a slot, which adds it to its own.
        start, stop: the interval.
        is_left: whether the sender's is the left operand.
    """

    level: int
    sender: int
    receiver: int
    start: int
    stop: int
    is_left: bool


class Join(NamedTuple):
    """A whole sum that moves from one slot to another: what of a small vector is not cut.

    Attributes:
        level: as for `Hop`.
        sender: a slot, which keeps its sum as well.
        receiver: a slot, which adds it to its own.
        is_left: whether the sender's is the left operand.
        workers: whose main slots are on the sender's side of the node: the first, and one past the
            last; equal if there is none.
    """

    level: int
    sender: int
    receiver: int
    is_left: bool
    workers: Interval


class _Held(NamedTuple):
    slot: int
    start: int
    stop: int


@dataclass(frozen=True)
class Halving:
    """How the sum of one vector moves between the workers.

    Attributes:
        slots: the nodes of the tree that the workers have summed, in order.
        hosts: each slot's worker.
        mains: each worker's main slot.
        pieces: each worker's interval of the total.
        hops: all of them, in no particular order.
        joins: for each slot that keeps a piece at a node, one hop of those that it receives there,
            as a join. So each main slot has the whole sum of each node above it, in the order of
            `hops`, and no two workers meet that have no hop between them.
        levels: the height of the tree above the slots.
    """

    slots: tuple[Interval, ...]
    hosts: tuple[int, ...]
    mains: tuple[int, ...]
    pieces: tuple[Interval, ...]
    hops: tuple[Hop, ...]
    joins: tuple[Join, ...]
    levels: int

    def sent(self) -> tuple[list[int], list[int]]:
        """Return how many messages, and how much of the vector, each worker sends."""
        messages, lengths = [0] * len(self.pieces), [0] * len(self.pieces)
        for hop in self.hops:
            at, to = self.hosts[hop.sender], self.hosts[hop.receiver]
            if at == to:
                continue
            for worker in (at, to) if self.mains[at] == hop.sender else (at,):
                messages[worker] += 1
                lengths[worker] += hop.stop - hop.start
        return messages, lengths

    def partners(self) -> list[set[int]]:
        """Return with which others each worker exchanges messages."""
        found: list[set[int]] = [set() for _ in self.pieces]
        for hop in self.hops:
            at, to = self.hosts[hop.sender], self.hosts[hop.receiver]
            if at != to:
                found[at].add(to)
                found[to].add(at)
        return found

    def rounds(self, worker: int) -> "Rounds":
        """Return one worker's part."""
        row = {s: i for i, s in enumerate(s for s, h in enumerate(self.hosts) if h == worker)}
        reduce = [Round() for _ in range(self.levels)]
        gather = [Round() for _ in range(self.levels)]
        # All workers see the hops in the same order, so messages between two of them pair up.
        for hop in self.hops:
            at, to = self.hosts[hop.sender], self.hosts[hop.receiver]
            if worker not in (at, to):
                continue
            down, up = reduce[hop.level - 1], gather[self.levels - hop.level]
            interval = (hop.start, hop.stop)
            if at == to:
                down.adds.append(Add(row[hop.receiver], *interval, hop.is_left, row[hop.sender]))
                continue
            is_main = self.mains[at] == hop.sender
            if at == worker:
                down.sends.append(Move(to, row[hop.sender], *interval))
                if is_main:
                    up.receives.append(Move(to, 0, *interval))
            else:
                down.receives.append(Move(at, row[hop.receiver], *interval))
                down.adds.append(Add(row[hop.receiver], *interval, hop.is_left))
                if is_main:
                    up.sends.append(Move(at, 0, *interval))
        return Rounds(reduce, gather, row[self.mains[worker]], self.pieces[worker])


class Move(NamedTuple):
    """An interval on its way to or from another worker.

    Attributes:
        peer: the other worker.
        row: which of this worker's slots has it, counted from 0; 0 on the way back.
        start, stop: the interval.
    """

    peer: int
    row: int
    start: int
    stop: int


class Add(NamedTuple):
    """An addition to one of this worker's slots.

    Attributes:
        row: the slot.
        start, stop: the interval.
        is_left: whether the other operand is the left one.
        other: another slot of this worker; None for what has been received.
    """

    row: int
    start: int
    stop: int
    is_left: bool
    other: int | None = None


@dataclass(frozen=True)
class Round:
    """What one worker does at one level.

    Attributes:
        sends, receives: its messages.
        adds: what follows when all has been received: received intervals in the order of
            `receives`, and those of its own slots between them.
    """

    sends: list[Move] = field(default_factory=list)
    receives: list[Move] = field(default_factory=list)
    adds: list[Add] = field(default_factory=list)


@dataclass(frozen=True)
class Rounds:
    """What one worker does, round by round.

    Attributes:
        reduce: from the slots to the root. What a round sends is whole after the round before.
        gather: from the root to the slots, likewise.
        main: the row in which its piece of the sum ends up.
        piece: that piece.
    """

    reduce: list[Round]
    gather: list[Round]
    main: int
    piece: Interval


def halving(ranges: Sequence[range], blocks: int) -> Halving:
    """Plan the sum of a vector.

    Args:
        ranges: the logical ranks of each worker, consecutive and in order.
        blocks: length of the vector, in any unit that is never cut.

    Raises:
        ValueError: a range is empty.
    """
    leaves = ranges[-1].stop
    slots: list[Interval] = []
    hosts: list[int] = []
    mains: list[int] = []
    for worker, ranks in enumerate(ranges):
        nodes = maximal_subtrees(ranks.start, ranks.stop, leaves)
        sizes = [stop - start for start, stop in nodes]
        mains.append(len(slots) + sizes.index(max(sizes)))
        slots += nodes
        hosts += [worker] * len(nodes)
    planner = _Planner(slots, mains, blocks)
    order = planner.order(0, leaves, 0, len(slots))
    cuts = [blocks * i // len(order) for i in range(len(order) + 1)]
    root = [_Held(s, a, b) for s, (a, b) in zip(order, itertools.pairwise(cuts), strict=True)]
    levels = planner.descend(
        (0, leaves), 0, len(slots), [held for held in root if held[1] < held[2]]
    )
    pieces = {hosts[held.slot]: (held.start, held.stop) for held in root}
    return Halving(
        slots=tuple(slots),
        hosts=tuple(hosts),
        mains=tuple(mains),
        pieces=tuple(pieces[worker] for worker in range(len(ranges))),
        hops=tuple(planner.hops),
        joins=tuple(planner.joins),
        levels=levels,
    )


class _Planner:
    """Goes down the tree above the slots, and collects the hops."""

    def __init__(self, slots: Sequence[Interval], mains: Sequence[int], blocks: int) -> None:
        self._first = {start: slot for slot, (start, _) in enumerate(slots)}
        self._in_order = mains
        self._mains = set(mains)
        self._blocks = blocks
        self.hops: list[Hop] = []
        self.joins: list[Join] = []

    def order(self, start: int, stop: int, low: int, high: int) -> list[int]:
        """Return the main slots among [low, high) in the order of their pieces.

        Left and right ones take turns, so that what a left one holds overlaps with what few right
        ones hold, which is half as much. This is the bit reversal of classical halving.
        """
        if high - low == 1:
            return [low] if low in self._mains else []
        middle = start + half_of(stop - start)
        cut = self._first[middle]
        left = self.order(start, middle, low, cut)
        right = self.order(middle, stop, cut, high)
        places = [
            ((2 * i + 1) / len(side), s) for side in (left, right) for i, s in enumerate(side)
        ]
        return [s for _, s in sorted(places)]

    def descend(self, node: Interval, low: int, high: int, held: Sequence[_Held]) -> int:
        """Collect the hops of a node and of all below it.

        Args:
            node: the node of the tree.
            low: its first slot.
            high: one past its last slot.
            held: who holds its sum, a partition of the vector.

        Returns:
            Its height above the slots.
        """
        if high - low == 1:
            return 0
        start, stop = node
        middle = start + half_of(stop - start)
        cut = self._first[middle]
        left_keeps = [one for one in held if one.slot < cut]
        right_keeps = [one for one in held if one.slot >= cut]
        left = self._widened(left_keeps, low, cut)
        right = self._widened(right_keeps, cut, high)
        level = 1 + max(
            self.descend((start, middle), low, cut, left),
            self.descend((middle, stop), cut, high, right),
        )
        ends = [bisect_left(self._in_order, slot) for slot in (low, cut, high)]  # workers
        self._meet(level, left_keeps, right, (ends[1], ends[2]), senders_are_left=False)
        self._meet(level, right_keeps, left, (ends[0], ends[1]), senders_are_left=True)
        return level

    def _widened(self, kept: Sequence[_Held], low: int, high: int) -> list[_Held]:
        """Return who holds a child's sum: its keepers at the node, with the rest of the vector."""
        if not kept:  # a main slot, if there is one: its worker gets the total back
            holder = next((slot for slot in range(low, high) if slot in self._mains), low)
            return [_Held(holder, 0, self._blocks)]
        cuts = [0]
        for i, (one, following) in enumerate(itertools.pairwise(kept), 1):
            even = self._blocks * i // len(kept)
            cuts.append(min(max(even, one.stop), following.start))
        cuts.append(self._blocks)
        return [
            _Held(one.slot, a, b)
            for one, (a, b) in zip(kept, itertools.pairwise(cuts), strict=True)
        ]

    def _meet(
        self,
        level: int,
        keepers: Sequence[_Held],
        senders: Sequence[_Held],
        workers: Interval,
        *,
        senders_are_left: bool,
    ) -> None:
        i = 0
        for keeper in keepers:
            while senders[i].stop <= keeper.start:
                i += 1
            self.joins.append(Join(level, senders[i].slot, keeper.slot, senders_are_left, workers))
            for sender in itertools.islice(senders, i, None):
                if sender.start >= keeper.stop:
                    break
                start, stop = max(sender.start, keeper.start), min(sender.stop, keeper.stop)
                self.hops.append(
                    Hop(level, sender.slot, keeper.slot, start, stop, senders_are_left)
                )
