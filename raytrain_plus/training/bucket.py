"""The sum of one bucket over all workers: directly, or by halves.

A bucket's tensors are laid out as one vector. Each worker has a row of it for each maximal subtree
of its logical ranks, and in the end all have the total.

- `DirectBucket`: every worker sends chunk w of its rows to worker w, which finishes the tree for
  that chunk and sends the result to all. Two rounds of 2 (W - 1) messages.
- `HalvedBucket`: the rounds of `halving.py`. About 2 log2 W rounds of one or two messages each.

Both do the same additions for each element. `by_halves` says which one costs less.
"""

import abc
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raytrain_plus.training.doubling import Doubling, by_doubling, to_all
from raytrain_plus.training.halving import Halving, Rounds, halving
from raytrain_plus.training.tree import additions, maximal_subtrees
from raytrain_plus.training.wire import Message, Pending, Wire, filled

_HALVES = (torch.float16, torch.bfloat16)
_ALIGNMENT = 64  # elements: every tensor starts where vectorised kernels treat it alike
_SLICED_ABOVE = 1 << 18  # elements; below, one slice has the lower latency
_SLICES = 4

UNITS = 1 << 16
"""The plan by halves cuts a vector into so many units; each bucket rounds them to whole blocks."""

# Measured between processes of one machine by `python -m benchmarks.scale --measure`, as CPU time.
_MESSAGE_SECONDS = 56e-6  # one sent, one received and added
_BYTE_SECONDS = 0.91e-9
_ROUND_SECONDS = 100e-6  # until a message that is sent has woken the other worker


@dataclass(frozen=True, eq=False)
class Group:
    """The workers of a generation, and how they sum.

    Attributes:
        ranges: the logical ranks of each worker, consecutive and in order.
        partials: how many rows each worker has.
        order: the additions that finish the tree over the rows of all workers.
        planned: the sum by halves; None if all sum directly.
    """

    ranges: Sequence[range]
    partials: Sequence[int]
    order: Sequence[tuple[int, int]]
    planned: Halving | None
    _parts: "dict[int, Part]" = field(default_factory=dict)

    @classmethod
    def of(cls, ranges: Sequence[range], device: torch.device, sizes: Sequence[float]) -> "Group":
        """Return the group of a generation.

        Args:
            ranges: the logical ranks of each worker.
            device: of the vectors. On other devices than CPUs all sum directly, since each group
                call there costs more than its messages.
            sizes: bytes of each bucket.
        """
        leaves = ranges[-1].stop
        subtrees = [maximal_subtrees(r.start, r.stop, leaves) for r in ranges]
        order = additions([node for nodes in subtrees for node in nodes], leaves)
        planned = None
        if device.type == "cpu" and len(ranges) > 2:
            candidate = halving(ranges, UNITS)
            planned = candidate if by_halves(candidate, sizes) else None
        return cls(ranges, [len(nodes) for nodes in subtrees], order, planned)

    def part(self, worker: int) -> "Part":
        """Return one worker's part in the exchange."""
        if worker not in self._parts:
            if self.planned is None:
                self._parts[worker] = Part(to_all(self.partials, self.order, worker), None)
            else:
                doubling = by_doubling(self.planned, worker)
                self._parts[worker] = Part(doubling, self.planned.rounds(worker))
        return self._parts[worker]


@dataclass(frozen=True)
class Part:
    """One worker's part in the exchange of a generation.

    Attributes:
        doubling: the exchange of what is not cut, such as the step header.
        halving: the sums by halves; None if all sum directly.
    """

    doubling: Doubling
    halving: Rounds | None

    @property
    def partners(self) -> set[int]:
        """The workers with which it exchanges messages in a step."""
        rounds = () if self.halving is None else (*self.halving.reduce, *self.halving.gather)
        moves = (move for one in rounds for move in (*one.sends, *one.receives))
        return self.doubling.partners.union(move.peer for move in moves)


def by_halves(planned: Halving, sizes: Sequence[float]) -> bool:
    """Say whether a sum by halves costs less time than a direct one, for the slowest worker.

    Args:
        planned: the plan by halves.
        sizes: bytes of each bucket.
    """
    workers, total = len(planned.pieces), sum(sizes)
    rows = [0] * workers
    for host in planned.hosts:
        rows[host] += 1
    halved = 2 * planned.levels * _ROUND_SECONDS + max(
        len(sizes) * messages * _MESSAGE_SECONDS + total * length / UNITS * _BYTE_SECONDS
        for messages, length in zip(*planned.sent(), strict=True)
    )
    direct = 2 * _ROUND_SECONDS + max(
        (1 + k) * (workers - 1) * (len(sizes) * _MESSAGE_SECONDS + total / workers * _BYTE_SECONDS)
        for k in rows
    )
    return halved < direct


class Bucket:
    """Tensors laid out as one vector of n elements: gradients, buffers, marks.

    There is a mark for each gradient: after a step it is not zero if any logical rank has the
    gradient. This class alone is the bucket of a single worker.

    Attributes:
        n_gradients: how many of its tensors are gradients.
        partials: views of our partial sums, [partial][tensor].
        totals: views of the finished sums, [tensor].
        marks: the finished marks, shape (n_gradients,).

    Args:
        like: tensors like those of the bucket: gradients first, then buffers.
        n_gradients: the attribute of this name.
        rows: how many partial sums we have; 0 if the only one is the total.
    """

    def __init__(self, like: Sequence[Tensor], n_gradients: int, rows: int) -> None:
        offsets = [0]
        for size in [*(tensor.numel() for tensor in like), n_gradients]:
            offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        self._size = offsets[-1]
        self._like = like[0]
        self.n_gradients = n_gradients
        self._gradient_end = offsets[n_gradients]

        def views(flat: Tensor) -> list[Tensor]:
            return [
                flat[offset : offset + tensor.numel()].view(tensor.shape)
                for offset, tensor in zip(offsets, like, strict=False)
            ]

        self._total = self._allocate(self._size)
        self.totals = views(self._total)
        self._storage = self._total.untyped_storage()
        self._memory = self._storage._cdata  # noqa: SLF001
        self._gradients = self._total[: self._gradient_end]
        self._others = self._total[self._gradient_end :]
        self._wide = torch.float32 if self._total.dtype in _HALVES else self._total.dtype
        self._own = self._allocate(rows, self._size) if rows else self._total[None]
        self.partials = [views(flat) for flat in self._own]
        self.marks = self._total[offsets[-2] : offsets[-2] + n_gradients]
        self._own_marks = self._own[:, offsets[-2] : offsets[-2] + n_gradients]

    def references(self) -> int:
        """Count the tensors that share the memory of the finished sums."""
        count: int = torch._C._storage_Use_Count(self._memory)  # noqa: SLF001
        return count

    def gradient_sum(self) -> Tensor:
        """Return the sum of all finished gradients, shape (1,), finite only if all of them are.

        One pass over memory: a sum hides no NaN and no infinity, but may overflow by itself.
        """
        return self._gradients.sum(0, keepdim=True, dtype=self._wide)

    def mark(self, present: Sequence[bool]) -> None:
        """Set the marks of our partial sums: of all alike, as only their sum counts."""
        if not self.n_gradients:
            return
        if all(present):
            self._own_marks.fill_(1.0)
        else:
            self._own_marks.copy_(self._own_marks.new_tensor([float(one) for one in present]))

    def divide(self, weight: float, leaves: int) -> None:
        """Make means of the sums of a single worker, which needs no marks."""
        if weight:  # a step whose weight is zero is refused, and the padding must stay zero
            self._gradients.div_(weight)
        if len(self.totals) > self.n_gradients:
            self._others.div_(leaves)

    def _allocate(self, *shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=self._like.dtype, device=self._like.device)

    def _finish(self, source: Tensor, start: int, stop: int, divisors: tuple[float, int]) -> None:
        """Write the means of [start, stop) into the total; `source` has the sums."""
        weight, leaves = divisors
        cut = min(max(self._gradient_end, start), stop)
        torch.div(source[: cut - start], weight, out=self._total[start:cut])
        torch.div(source[cut - start :], leaves, out=self._total[cut:stop])


class SharedBucket(Bucket, abc.ABC):
    """A bucket that several workers sum, in rounds."""

    @property
    @abc.abstractmethod
    def messages(self) -> list[Message]:
        """All messages of a step; they are the same in every step."""

    @abc.abstractmethod
    def send(self) -> None:
        """Start sending our partial sums."""

    @property
    @abc.abstractmethod
    def is_done(self) -> bool:
        """Whether no round is left."""

    @abc.abstractmethod
    def advance(
        self, divisors: Callable[[], tuple[float, int]], enter: Callable[[str], None]
    ) -> None:
        """Do one further round: wait for what arrives, add it, and send what is whole then.

        Args:
            divisors: returns what the sums of gradients and of buffers are divided by. It is
                called when a total is there, and not before.
            enter: called with `finish` when the first message has arrived, and with `slice` at each
                further one.
        """

    @abc.abstractmethod
    def wait(self) -> None:
        """Wait until everything has arrived, after the last round."""


class DirectBucket(SharedBucket):
    """Every worker sends to every other one. See `Bucket`.

    All workers call `send` and `advance` of all their buckets in the same order, as messages
    between two of them arrive in the order in which they are posted.

    Args:
        like: as for `Bucket`.
        n_gradients: as for `Bucket`.
        group: the workers.
        wire: how to reach them.
    """

    def __init__(self, like: Sequence[Tensor], n_gradients: int, group: Group, wire: Wire) -> None:
        super().__init__(like, n_gradients, group.partials[wire.index])
        self._wire = wire
        self._order = group.order
        chunks = _cuts(0, self._size, wire.size)
        slices = _SLICES if self._size // wire.size > _SLICED_ABOVE // 2 else 1
        base, end = chunks[wire.index]
        incoming = {p: self._allocate(group.partials[p], end - base) for p in wire.peers}
        self._slices = [
            self._slice(s, [_cuts(start, stop, slices) for start, stop in chunks], incoming)
            for s in range(slices)
        ]
        self._partials_sent: list[Pending] = []
        self._totals_sent: list[Pending] = []

    def _slice(
        self, s: int, cuts: Sequence[Sequence[tuple[int, int]]], incoming: Mapping[int, Tensor]
    ) -> "_Slice":
        """Return slice s of all chunks.

        Args:
            s: which slice.
            cuts: the slices of each worker's chunk.
            incoming: memory for the others' partial sums of our chunk.
        """
        wire = self._wire
        base, (start, stop) = cuts[wire.index][0][0], cuts[wire.index][s]
        own = [row[start:stop] for row in self._own]
        theirs = {
            peer: [row[start - base : stop - base] for row in rows]
            for peer, rows in incoming.items()
        }
        # Each worker begins with the next one, so that not all send to the first at once.
        peers = sorted(wire.peers, key=lambda peer: (peer - wire.index) % wire.size)
        of_peers = [(peer, slice(*cuts[peer][s])) for peer in peers]
        total = self._total[start:stop]
        return _Slice(
            start,
            stop,
            filled([Message(peer, row[at]) for peer, at in of_peers for row in self._own]),
            filled([Message(peer, row) for peer, _ in of_peers for row in theirs[peer]]),
            [
                row
                for worker in range(wire.size)
                for row in (own if worker == wire.index else theirs[worker])
            ],
            filled([Message(peer, total) for peer, _ in of_peers]),
            filled([Message(peer, self._total[at]) for peer, at in of_peers]),
        )

    @property
    def messages(self) -> list[Message]:
        """All messages of a step."""
        return [
            message
            for one in self._slices
            for side in (one.sends, one.receives, one.totals_sent, one.totals_received)
            for message in side
        ]

    def send(self) -> None:
        """Start sending our partial sums to the owner of each chunk, slice by slice."""
        post = self._wire.post
        self._totals_sent = []
        self._partials_sent = [post(one.sends, one.receives) for one in self._slices]

    @property
    def is_done(self) -> bool:
        """Whether our chunk is finished."""
        return not self._partials_sent

    def advance(
        self, divisors: Callable[[], tuple[float, int]], enter: Callable[[str], None]
    ) -> None:
        """Finish the tree for our chunk, slice by slice as it arrives, and send it to all."""
        for s, (one, pending) in enumerate(zip(self._slices, self._partials_sent, strict=True)):
            pending.wait()
            enter("slice" if s else "finish")
            for into, other in self._order:
                one.slots[into].add_(one.slots[other])
            self._finish(one.slots[0], one.start, one.stop, divisors())
            self._totals_sent.append(self._wire.post(one.totals_sent, one.totals_received))
        self._partials_sent = []

    def wait(self) -> None:
        """Wait until all chunks have arrived."""
        for pending in self._totals_sent:
            pending.wait()


@dataclass(frozen=True)
class _Slice:
    """One slice of all workers' chunks.

    Attributes:
        start, stop: of our own chunk's slice.
        sends, receives: the messages with partial sums.
        slots: all workers' partial sums of our slice.
        totals_sent, totals_received: the messages with finished sums.
    """

    start: int
    stop: int
    sends: list[Message]
    receives: list[Message]
    slots: list[Tensor]
    totals_sent: list[Message]
    totals_received: list[Message]


class HalvedBucket(SharedBucket):
    """Pairs of workers exchange halves, level by level. See `halving.py`.

    Its messages have a channel of their own, so that buckets advance in any order.

    Attributes:
        pending: the messages of the present round.

    Args:
        like: as for `Bucket`.
        n_gradients: as for `Bucket`.
        rounds: our part of the plan, in `UNITS`.
        rows: how many partial sums we have.
        wire: how to reach the others.
        channel: of its messages.
    """

    def __init__(
        self,
        like: Sequence[Tensor],
        n_gradients: int,
        rounds: Rounds,
        rows: int,
        wire: Wire,
        channel: int,
    ) -> None:
        super().__init__(like, n_gradients, rows)
        self._wire = wire
        self._main = rounds.main
        self._piece = self._cut(*rounds.piece)
        self._rounds: list[_Round] = []
        boxes = self._allocate(
            sum(
                stop - start
                for round_ in rounds.reduce
                for start, stop in (self._cut(*move[2:]) for move in round_.receives)
            )
        )
        taken = 0
        for round_ in rounds.reduce:
            receives = []
            for peer, _, *interval in round_.receives:
                start, stop = self._cut(*interval)
                receives.append(Message(peer, boxes[taken : taken + stop - start], channel))
                taken += stop - start
            arrived = iter(receives)
            adds = []
            for row, first, last, is_left, other in round_.adds:
                start, stop = self._cut(first, last)
                mine = self._own[row][start:stop]
                theirs = next(arrived).tensor if other is None else self._own[other][start:stop]
                adds.append((theirs, mine, mine) if is_left else (mine, theirs, mine))
            sends = [
                Message(peer, self._own[row][slice(*self._cut(first, last))], channel)
                for peer, row, first, last in round_.sends
            ]
            self._rounds.append(_Round(filled(sends), filled(receives), adds))
        for round_ in rounds.gather:
            sends, receives = (
                [
                    Message(peer, self._total[slice(*self._cut(*cut))], channel)
                    for peer, _, *cut in moves
                ]
                for moves in (round_.sends, round_.receives)
            )
            self._rounds.append(_Round(filled(sends), filled(receives), []))
        self._at = len(self._rounds)
        self.pending: Pending | None = None
        self._root = len(rounds.reduce)

    def _cut(self, start: int, stop: int) -> tuple[int, int]:
        """Return the elements of an interval of units."""
        blocks = self._size // _ALIGNMENT
        return start * blocks // UNITS * _ALIGNMENT, stop * blocks // UNITS * _ALIGNMENT

    @property
    def messages(self) -> list[Message]:
        """All messages of a step."""
        return [message for one in self._rounds for message in (*one.sends, *one.receives)]

    def send(self) -> None:
        """Start the first round."""
        self._at = 0
        self._post()

    @property
    def is_done(self) -> bool:
        """Whether the total is here."""
        return self._at == len(self._rounds)

    @property
    def is_whole_next(self) -> bool:
        """Whether the present round makes our piece of the sum whole, which is divided then."""
        return self._at == self._root - 1

    def advance(
        self, divisors: Callable[[], tuple[float, int]], enter: Callable[[str], None]
    ) -> None:
        """End a round, and start the next one."""
        assert self.pending is not None
        self.pending.wait()
        enter("slice" if self._at else "finish")
        for left, right, out in self._rounds[self._at].adds:
            torch.add(left, right, out=out)
        self._at += 1
        if self._at == self._root:
            start, stop = self._piece
            self._finish(self._own[self._main][start:stop], start, stop, divisors())
        if self._at < len(self._rounds):
            self._post()

    def wait(self) -> None:
        """Return: the last round has waited."""

    def _post(self) -> None:
        round_ = self._rounds[self._at]
        self.pending = self._wire.post(round_.sends, round_.receives)


@dataclass(frozen=True)
class _Round:
    """One round's messages, and the additions that follow: left operand, right one, result."""

    sends: list[Message]
    receives: list[Message]
    adds: list[tuple[Tensor, Tensor, Tensor]]


def make_bucket(
    like: Sequence[Tensor], n_gradients: int, group: Group, wire: Wire, channel: int
) -> Bucket | SharedBucket:
    """Return a bucket of a generation; see `Bucket`. A channel is for one bucket alone."""
    if wire.size == 1:
        return Bucket(like, n_gradients, 0)
    rounds = group.part(wire.index).halving
    if rounds is None:
        return DirectBucket(like, n_gradients, group, wire)
    return HalvedBucket(like, n_gradients, rounds, group.partials[wire.index], wire, channel)


def _cuts(start: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Cut [start, stop) into `parts` nearly equal ranges at multiples of the alignment."""
    blocks = -(-(stop - start) // _ALIGNMENT)
    ends = [min(stop, start + blocks * part // parts * _ALIGNMENT) for part in range(parts + 1)]
    return list(itertools.pairwise(ends))
