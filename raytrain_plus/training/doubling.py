"""How what is too small to be cut goes to all workers: sums of a few numbers, and own values. Pure.

The step header has a few sums over all logical ranks, and a few values that concern one worker
alone, such as its times. In a group that sums by halves (`halving.py`), they travel along the same
nodes of the tree: at each node, every worker of either side receives the sums of the other side,
and the values of its workers, from one partner. After log2 W rounds all have everything. A worker
sends some log2 W messages, to partners that it exchanges halves with. The additions are those of
the tree.

In a group that sums directly, every worker sends its partial sums and values to all others.

Prior art: recursive doubling (Thakur, Rabenseifner and Gropp 2005).
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from raytrain_plus.training.halving import Halving, Interval


class Parcel(NamedTuple):
    """What one message carries.

    Attributes:
        peer: the other worker.
        rows: which of this worker's rows, each with one partial sum.
        workers: whose own values.
    """

    peer: int
    rows: Interval
    workers: Interval


class RowSum(NamedTuple):
    """An addition of two rows: the result's row, the left operand's, and the right one's."""

    into: int
    left: int
    right: int


@dataclass(frozen=True)
class DoublingRound:
    """What one worker does in a round.

    Attributes:
        sends, receives: its messages.
        sums: the additions that follow when all has been received, in order.
    """

    sends: Sequence[Parcel]
    receives: Sequence[Parcel]
    sums: Sequence[RowSum]


@dataclass(frozen=True)
class Doubling:
    """One worker's part.

    Attributes:
        rounds: in order.
        rows: how many rows it needs.
        own: the rows with its own partial sums.
        total: the row in which the sum over all ends up.
    """

    rounds: Sequence[DoublingRound]
    rows: int
    own: Interval
    total: int

    @property
    def partners(self) -> set[int]:
        """The workers with which it has messages."""
        return {p.peer for r in self.rounds for p in (*r.sends, *r.receives)}


def by_doubling(planned: Halving, worker: int) -> Doubling:
    """Return one worker's part in a group that sums by halves."""
    hosts = planned.hosts
    row = {s: i for i, s in enumerate(s for s, host in enumerate(hosts) if host == worker)}
    rows = len(row)
    sends, receives = defaultdict[int, list[Parcel]](list), defaultdict[int, list[Parcel]](list)
    sums = defaultdict[int, list[RowSum]](list)
    # All workers see the joins in the same order, so messages between two of them pair up.
    for join in planned.joins:
        at, to = hosts[join.sender], hosts[join.receiver]
        if at == worker != to:
            mine = row[join.sender]
            sends[join.level].append(Parcel(to, (mine, mine + 1), join.workers))
        if to != worker:
            continue
        into = row[join.receiver]
        if at == worker:
            other = row[join.sender]
        else:
            other, rows = rows, rows + 1
            receives[join.level].append(Parcel(at, (other, other + 1), join.workers))
        operands = (other, into) if join.is_left else (into, other)
        sums[join.level].append(RowSum(into, *operands))
    return Doubling(
        [DoublingRound(sends[k], receives[k], sums[k]) for k in range(1, planned.levels + 1)],
        rows,
        (0, len(row)),
        row[planned.mains[worker]],
    )


def to_all(partials: Sequence[int], order: Sequence[tuple[int, int]], worker: int) -> Doubling:
    """Return one worker's part in a group that sums directly.

    Args:
        partials: how many partial sums each worker has.
        order: the additions that finish the tree over all of them.
        worker: the worker.
    """
    ends = [0]
    for count in partials:
        ends.append(ends[-1] + count)
    rows = [(ends[i], ends[i + 1]) for i in range(len(partials))]
    peers = [peer for peer in range(len(partials)) if peer != worker]
    only = DoublingRound(
        [Parcel(peer, rows[worker], (worker, worker + 1)) for peer in peers],
        [Parcel(peer, rows[peer], (peer, peer + 1)) for peer in peers],
        [RowSum(into, into, other) for into, other in order],
    )
    return Doubling([only] if peers else [], ends[-1], rows[worker], 0)
