"""Sums over all logical ranks that do not depend on how many workers there are.

Each logical rank's gradient is a leaf of one fixed binary tree (`tree.py`). A worker sums the
maximal subtrees inside its range while it computes. Then, chunk by chunk:

1. every worker sends its partial sums of chunk w to worker w, and its rows of the step header to
   all workers;
2. worker w finishes the tree for its chunk, in tree order, divides by the total weight, and sends
   the result to all workers.

Buckets, chunks and slices only cut the vector; the sum is per element, so they cannot change a bit.
Nothing is ever added by a communication library, whose order would follow the topology or the world
size.

On an accelerator a step waits for the device once per part (its loss), once after the last part
(the time of computing), once per worker for the step header, and twice before the update: one
transfer tells which gradients are there and whether all are finite, however many buckets there are,
and the fence keeps the results of an aborted generation out of the update.

Logged scalars (`scalars.py`) travel in further columns of the step header. The columns are the
names that the generation has logged up to the step before. All workers know the same names, as each
step tells all of them. Values of other names follow the sums in a message of their own, whose size
is in the step header. A step without such values sends no such message.
"""

import cmath
import itertools
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raytrain_plus.scalars import Sums, check_count
from raytrain_plus.training.tree import additions, maximal_subtrees

Rows = npt.NDArray[np.float64]
Leaf = list[Tensor]
Partial = Leaf | tuple[Leaf, Leaf]  # a sum, or the two halves of which it is the sum

# The columns of the step header. It has a row per logical rank, and every worker receives all rows.
# The values of a worker are in the row of its first logical rank.
LOSS, WEIGHT, PAUSE, BUSY_SECONDS, SAMPLES, TOKENS, CHECKPOINT, COMPUTE_SECONDS = range(8)
SEEN_SECONDS, UNSEEN_SECONDS, SALVAGED, NEW_SCALARS = range(8, 12)  # the last one in bytes
HEADER_WIDTH = 12
OF_A_PART = [LOSS, WEIGHT, SAMPLES, TOKENS]

_HALVES = (torch.float16, torch.bfloat16)
_ALIGNMENT = 64  # elements: every tensor starts where vectorised kernels treat it alike
_SLICED_ABOVE = 1 << 18  # elements; below, one slice has the lower latency
_SLICES = 4
_BUCKET_BYTES = 4 << 20  # sent as one; several let the first travel while the last is computed


@dataclass(frozen=True)
class Message:
    """A contiguous tensor on its way to or from a peer (an index into the generation)."""

    peer: int
    tensor: Tensor


class Pending(Protocol):
    """Messages that are on their way."""

    def wait(self) -> None:
        """Return when all have been sent and received, or raise what the wire raises."""


class Wire(Protocol):
    """Moves the bytes: point to point, in the order in which messages are posted."""

    index: int
    size: int
    peers: list[int]
    device: torch.device

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Start sending and receiving, all at once."""

    def fence(self) -> None:
        """Return when everything that was waited for has arrived, or raise what the wire raises.

        A wait alone does not say so: on a GPU it only orders streams, also after an abort.
        """


class Reduced(NamedTuple):
    """What every worker holds after a reduction, bit for bit the same.

    Attributes:
        gradients: per parameter, the sum over logical ranks divided by the total weight.
        present: per parameter, whether any logical rank has a gradient for it.
        finite: True says that all gradients are finite. False says that one may not be.
        buffers: per floating buffer, the mean over logical ranks.
        header: float64 (logical ranks, HEADER_WIDTH), every logical rank's row.
        header_sum: HEADER_WIDTH numbers, the sum of all rows in the tree's order.
        attachment: the bytes that the worker of logical rank 0 attached, filled up with zeros.
        logged: by name, the mean of a logged scalar over all logical ranks.
    """

    gradients: list[Tensor]
    present: list[bool]
    finite: bool
    buffers: list[Tensor]
    header: Rows
    header_sum: list[float]
    attachment: bytes
    logged: dict[str, float]


class Reduction:
    """The reduction of one generation; buffers are allocated once.

    Each bucket with gradients carries a tensor of marks, one per gradient: the number of leaves
    that have it. A leaf lists its gradients, its buffers, and then the marks of each bucket.

    Attributes:
        buckets: which tensors of a leaf travel together: gradients, buffers, and last the marks.
        gradients_of: for each bucket, which of these are gradients.
        marks_of: for each bucket, which of these are its marks; None if it has no gradient.
        attachment_bytes: the size of what the worker of logical rank 0 attaches, at most; it may
            be changed between two sums, on every worker alike.

    Args:
        gradients: tensors like the gradients, in the order of the forward; the backward, and so
            the buckets, come in the opposite one.
        buffers: tensors like the floating buffers.
        ranges: the logical ranks of each worker of the generation, consecutive and in order.
        wire: how to reach the other workers; its index says which range is ours.
        attachment_bytes: the attribute of this name, at first.
        enter: called as the inner phases begin: `finish` when the first slice has arrived, between
            the two halves of the exchange, and `slice` at each further slice.
    """

    def __init__(
        self,
        gradients: Sequence[Tensor],
        buffers: Sequence[Tensor],
        ranges: Sequence[range],
        wire: Wire,
        attachment_bytes: int = 0,
        enter: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._wire = wire
        self._enter = enter
        self._ranges = ranges
        self._leaves = ranges[-1].stop
        subtrees = [maximal_subtrees(r.start, r.stop, self._leaves) for r in ranges]
        self._partials = [len(nodes) for nodes in subtrees]
        self._additions = additions([node for nodes in subtrees for node in nodes], self._leaves)
        self.attachment_bytes = attachment_bytes
        self._n_gradients = len(gradients)
        self._like = [*gradients, *buffers]
        self.buckets = _buckets(self._like, len(gradients))
        self.gradients_of = [[i for i in b if i < len(gradients)] for b in self.buckets]
        self._marked = [i for mine in self.gradients_of for i in mine]
        self._columns: list[str] = []  # names of logged scalars
        self._firsts = [r.start for r in ranges]
        self._allocate()
        self._unkept = self._references()

    def _allocate(self) -> None:
        self._vectors = [
            _Vector([self._like[i] for i in bucket], len(mine), self._partials, self._wire)
            for bucket, mine in zip(self.buckets, self.gradients_of, strict=True)
        ]
        self._with_gradients = [vector for vector in self._vectors if vector.n_gradients]
        totals = {
            i: total
            for bucket, vector in zip(self.buckets, self._vectors, strict=True)
            for i, total in zip(bucket, vector.totals, strict=True)
        }
        self._totals = [totals[i] for i in range(len(totals))]

    def _references(self) -> list[int]:
        """Count what refers to the gradients: to the tensors, and to their memory by others."""
        memory = [vector.references() for vector in self._with_gradients]
        return [*map(sys.getrefcount, self._totals), *memory]

    def run(
        self,
        partials: Sequence[Leaf],
        rows: Rows,
        attachment: bytes,
        present: Sequence[bool] | None = None,
    ) -> Reduced:
        """Sum over all workers.

        Args:
            partials: for each maximal subtree of our range, its sum: gradients, then buffers.
            rows: float64 (our logical ranks, HEADER_WIDTH), our rows of the step header.
            attachment: bytes for all workers; only those of the worker of logical rank 0 count.
            present: per gradient, whether any of our logical ranks has it. Default: all.
        """
        self.open(rows, attachment)
        for b, bucket in enumerate(self.buckets):
            own = [[partial[i] for i in bucket] for partial in partials]
            self.send(b, own, present or [True] * self._n_gradients)
        for b in range(len(self.buckets)):
            self.finish(b)
        return self.close()

    def open(self, rows: Rows, attachment: bytes, logged: Mapping[int, Sums] | None = None) -> None:
        """Begin a sum: send the step header.

        Args:
            rows: as for `run`.
            attachment: as for `run`.
            logged: by logical rank of ours, the scalars that its part has logged.

        An optimizer may have kept a gradient itself (`state["previous"] = p.grad`), as it may in
        plain PyTorch, where each step has new ones. The memory is then left to it.
        """
        if self._references() != self._unkept:
            self._allocate()
            self._unkept = self._references()
        self._sent: dict[int, list[Pending]] = {}
        self._last: list[Pending] = []
        self._all_rows: Rows | None = None
        self._header_sum: list[float] | None = None
        rows = self._with_scalars(rows, logged or {})
        if self._wire.size == 1:
            self._all_rows, self._attached = rows, attachment
        else:
            self._boxes, self._header_pending = self._post_header(rows, attachment)

    def send(self, b: int, partials: Sequence[Partial], present: Sequence[bool]) -> None:
        """Send our partial sums of bucket b. Every worker sends the buckets in the same order.

        Args:
            b: the bucket.
            partials: its sums, one for each maximal subtree of our range.
            present: per gradient of all buckets, whether any of our logical ranks has it.
        """
        vector = self._vectors[b]
        for views, partial in zip(vector.partials, partials, strict=True):
            if isinstance(partial, list):
                torch._foreach_copy_(views, partial)
            else:
                for view, left, right in zip(views, *partial, strict=True):
                    torch.add(left, right, out=view)
        if self._wire.size == 1:
            self._present = present
            vector.divide(self._weight(), self._leaves)
            return
        vector.mark([present[i] for i in self.gradients_of[b]])
        self._sent[b] = vector.post_partials(self._wire)

    def finish(self, b: int) -> None:
        """Finish our chunk of bucket b as it arrives, and send it to all; buckets go in order."""
        if self._wire.size == 1:
            self._enter("slice" if b else "finish")
            return
        weight = self._weight()
        self._last += self._vectors[b].finish(
            self._wire,
            self._sent.pop(b),
            self._additions,
            (weight, self._leaves),
            lambda phase: self._enter("slice" if b else phase),
        )

    def close(self) -> Reduced:
        """Wait until everything has arrived."""
        rows = self._rows()
        for pending in self._last:
            pending.wait()
        present, finite = self._facts()
        n = self._n_gradients
        return Reduced(
            self._totals[:n],
            present,
            finite,
            self._totals[n:],
            rows[:, :HEADER_WIDTH],
            self._sum_of_rows()[:HEADER_WIDTH],
            self._attached,
            self._logged(rows),
        )

    def _facts(self) -> tuple[list[bool], bool]:
        """Return which gradients are there, and whether all are finite, by one transfer."""
        vectors = self._with_gradients
        if not vectors:
            return [], True
        found = [vector.gradient_sum() for vector in vectors]
        if self._wire.size > 1:
            found += [vector.marks for vector in vectors]
        facts: list[complex] = (torch.cat(found) if found[1:] else found[0]).tolist()
        finite = all(map(cmath.isfinite, facts[: len(vectors)]))
        if self._wire.size == 1:
            return [*self._present], finite
        marks = facts[len(vectors) :]
        present = [True] * self._n_gradients
        if not all(marks):
            for i, mark in zip(self._marked, marks, strict=True):
                present[i] = mark != 0
        return present, finite

    def _sum_of_rows(self) -> list[float]:
        if self._header_sum is None:
            self._header_sum = tree_sum(self._rows()).tolist()
        return self._header_sum

    def _weight(self) -> float:
        return self._sum_of_rows()[WEIGHT]

    def _rows(self) -> Rows:
        if self._all_rows is None:
            self._header_pending.wait()
            self._all_rows, self._attached = self._read_header(self._boxes)
        return self._all_rows

    def _header_bytes(self, worker: int) -> int:
        extra = self.attachment_bytes if worker == 0 else 0
        return len(self._ranges[worker]) * self._width * 8 + extra

    def _post_header(self, rows: Rows, attachment: bytes) -> tuple[list[Tensor], Pending]:
        wire = self._wire
        header = [
            torch.empty(self._header_bytes(worker), dtype=torch.uint8, device=wire.device)
            for worker in range(wire.size)
        ]
        attached = attachment.ljust(self.attachment_bytes, b"\0") if wire.index == 0 else b""
        payload = rows.tobytes() + attached
        header[wire.index].copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        pending = wire.post(
            [Message(peer, header[wire.index]) for peer in wire.peers],
            [Message(peer, header[peer]) for peer in wire.peers],
        )
        return header, pending

    def _read_header(self, header: list[Tensor]) -> tuple[Rows, bytes]:
        payloads = [box.cpu().numpy().tobytes() for box in header]
        cut = len(payloads[0]) - self.attachment_bytes
        text = b"".join([payloads[0][:cut], *payloads[1:]])
        return np.frombuffer(text, np.float64).reshape(-1, self._width), payloads[0][cut:]

    # -- logged scalars

    @property
    def _width(self) -> int:
        return HEADER_WIDTH + 2 * len(self._columns)

    def _with_scalars(self, rows: Rows, logged: Mapping[int, Sums]) -> Rows:
        """Return our rows with the columns of known names, and keep the values of new ones."""
        first = self._ranges[self._wire.index].start
        rows[0, NEW_SCALARS] = 0
        self._new: dict[int, Sums] = {}
        if logged:
            known = set(self._columns)
            new = {
                r: {n: v for n, v in sums.items() if n not in known} for r, sums in logged.items()
            }
            self._new = {rank: sums for rank, sums in new.items() if sums}
            if self._new:
                self._new_bytes = json.dumps(self._new).encode()
                rows[0, NEW_SCALARS] = len(self._new_bytes)
        if not self._columns:
            return rows
        ours = {rank - first: sums for rank, sums in logged.items()}
        return np.concatenate([rows, table_of(ours, self._columns, len(rows))], axis=1)

    def _logged(self, rows: Rows) -> dict[str, float]:
        """Return the means of all logged scalars, and make columns of new names."""
        sums = self._sum_of_rows()
        if not self._columns and not sums[NEW_SCALARS]:
            return {}
        found = _means(self._columns, sums[HEADER_WIDTH:])
        if sums[NEW_SCALARS]:
            self._wire.fence()  # after an abort, what was received may be garbage
            new = self._exchange_new([int(rows[first, NEW_SCALARS]) for first in self._firsts])
            names = sorted({name for sums in new.values() for name in sums})
            check_count(len(self._columns) + len(names))
            found |= _means(names, tree_sum(table_of(new, names, self._leaves)).tolist())
            self._columns += names
        return dict(sorted(found.items())) if found else found

    def _exchange_new(self, sizes: Sequence[int]) -> dict[int, Sums]:
        """Return the values of new names of all logical ranks.

        Args:
            sizes: of each worker's message, by the step header.
        """
        wire = self._wire
        if wire.size == 1:
            return self._new
        boxes = [torch.empty(size, dtype=torch.uint8, device=wire.device) for size in sizes]
        if self._new:
            boxes[wire.index].copy_(torch.frombuffer(bytearray(self._new_bytes), dtype=torch.uint8))
        sends = [Message(peer, boxes[wire.index]) for peer in wire.peers]
        receives = [Message(peer, boxes[peer]) for peer in wire.peers]
        wire.post(_filled(sends), _filled(receives)).wait()
        wire.fence()
        told: dict[int, Sums] = {}
        for box in boxes:
            if len(box):
                of_worker = json.loads(box.cpu().numpy().tobytes())
                told |= {int(rank): sums for rank, sums in of_worker.items()}
        return told


def table_of(logged: Mapping[int, Sums], names: Sequence[str], rows: int) -> Rows:
    """Return logged scalars as rows of two numbers per name; zeros where nothing was logged."""
    table = np.zeros((rows, 2 * len(names)))
    for row, sums in logged.items():
        for i, name in enumerate(names):
            if name in sums:
                table[row, 2 * i : 2 * i + 2] = sums[name]
    return table


def _means(names: Sequence[str], sums: Sequence[float]) -> dict[str, float]:
    """Return the mean of each name that was logged with any weight."""
    pairs = zip(names, sums[::2], sums[1::2], strict=True)
    return {
        name: total / weight if weight else math.nan
        for name, total, weight in pairs
        if weight or total  # both are zero if no part has logged the name; NaN is not zero
    }


def _buckets(tensors: Sequence[Tensor], n_gradients: int) -> list[list[int]]:
    """Group tensors of one dtype and device, in the order in which a backward finishes them."""
    order = [*reversed(range(n_gradients)), *range(n_gradients, len(tensors))]
    kinds: dict[tuple[str, str], list[list[int]]] = {}
    for i in order:
        groups = kinds.setdefault((str(tensors[i].dtype), str(tensors[i].device)), [[]])
        held = sum(tensors[j].numel() * tensors[j].element_size() for j in groups[-1])
        if i < n_gradients and held >= _BUCKET_BYTES:
            groups.append([])
        groups[-1].append(i)
    return [group for _, groups in sorted(kinds.items()) for group in groups]


class _Vector:
    """A bucket, laid out as one vector of n elements: gradients, buffers, marks.

    There is a mark for each gradient: after a step it is not zero if any logical rank has the
    gradient.

    Attributes:
        n_gradients: how many of its tensors are gradients.
        partials: views of our partial sums, [partial][tensor].
        totals: views of the finished sums, [tensor].
        marks: the finished marks, shape (n_gradients,).
    """

    def __init__(
        self, like: Sequence[Tensor], n_gradients: int, partials: Sequence[int], wire: Wire
    ) -> None:
        offsets = [0]
        for size in [*(tensor.numel() for tensor in like), n_gradients]:
            offsets.append(offsets[-1] + -(-size // _ALIGNMENT) * _ALIGNMENT)
        n = offsets[-1]
        self.n_gradients = n_gradients
        self._gradient_end = offsets[n_gradients]
        self._chunks = _cuts(0, n, wire.size)
        slices = _SLICES if n // wire.size > _SLICED_ABOVE // 2 else 1
        self._slices = [_cuts(start, stop, slices) for start, stop in self._chunks]

        def allocate(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=like[0].dtype, device=like[0].device)

        def views(flat: Tensor) -> list[Tensor]:
            return [
                flat[offset : offset + tensor.numel()].view(tensor.shape)
                for offset, tensor in zip(offsets, like, strict=False)
            ]

        self._total = allocate(n)
        self.totals = views(self._total)
        self._storage = self._total.untyped_storage()
        self._memory = self._storage._cdata  # noqa: SLF001
        self._gradients = self._total[: self._gradient_end]
        self._others = self._total[self._gradient_end :]
        self._wide = torch.float32 if self._total.dtype in _HALVES else self._total.dtype
        self._own = allocate(partials[wire.index], n) if wire.size > 1 else self._total[None]
        self.partials = [views(flat) for flat in self._own]
        self.marks = self._total[offsets[-2] : offsets[-2] + n_gradients]
        self._own_marks = self._own[:, offsets[-2] : offsets[-2] + n_gradients]
        mine_start, mine_stop = self._chunks[wire.index]
        self._incoming = {
            peer: allocate(partials[peer], mine_stop - mine_start) for peer in wire.peers
        }

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

    def post_partials(self, wire: Wire) -> list[Pending]:
        """Start sending our partial sums to the owner of each chunk: one pending per slice."""
        base = self._chunks[wire.index][0]
        pendings = []
        for s, (start, stop) in enumerate(self._slices[wire.index]):
            receives = [
                Message(peer, row[start - base : stop - base])
                for peer in wire.peers
                for row in self._incoming[peer]
            ]
            sends = [
                Message(peer, row[slice(*self._slices[peer][s])])
                for peer in wire.peers
                for row in self._own
            ]
            pendings.append(wire.post(_filled(sends), _filled(receives)))
        return pendings

    def finish(
        self,
        wire: Wire,
        pendings: Sequence[Pending],
        order: Sequence[tuple[int, int]],
        divisors: tuple[float, int],
        enter: Callable[[str], None],
    ) -> list[Pending]:
        """Finish the tree for our chunk, slice by slice as it arrives, and send it to all workers.

        Args:
            wire: how to reach the other workers.
            pendings: the slices on their way.
            order: the additions that finish the tree.
            divisors: what the sums of gradients and of buffers are divided by.
            enter: called at each slice.
        """
        weight, leaves = divisors
        base = self._chunks[wire.index][0]
        sent = []
        for s, pending in enumerate(pendings):
            pending.wait()
            enter("slice" if s else "finish")
            start, stop = self._slices[wire.index][s]
            slots: list[Tensor] = []
            for worker in range(wire.size):
                if worker == wire.index:
                    slots += [row[start:stop] for row in self._own]
                else:
                    slots += [row[start - base : stop - base] for row in self._incoming[worker]]
            for into, other in order:
                slots[into].add_(slots[other])
            cut = min(max(self._gradient_end, start), stop)
            torch.div(slots[0][: cut - start], weight, out=self._total[start:cut])
            torch.div(slots[0][cut - start :], leaves, out=self._total[cut:stop])
            sends = [Message(peer, self._total[start:stop]) for peer in wire.peers]
            receives = [
                Message(peer, self._total[slice(*self._slices[peer][s])]) for peer in wire.peers
            ]
            sent.append(wire.post(_filled(sends), _filled(receives)))
        return sent


def tree_sum(rows: Rows) -> Rows:
    """Return the sum of rows (V, width) in tree order, float64 (width,)."""
    while len(rows) > 1:
        even = len(rows) // 2 * 2
        sums = rows[0:even:2] + rows[1:even:2]
        # A last node without a sibling moves up unchanged: that is the tree of `tree.py`.
        rows = sums if even == len(rows) else np.concatenate([sums, rows[even:]])
    total: Rows = rows[0]
    return total


def _cuts(start: int, stop: int, parts: int) -> list[tuple[int, int]]:
    """Cut [start, stop) into `parts` nearly equal ranges at multiples of the alignment."""
    blocks = -(-(stop - start) // _ALIGNMENT)
    ends = [min(stop, start + blocks * part // parts * _ALIGNMENT) for part in range(parts + 1)]
    return list(itertools.pairwise(ends))


def _filled(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message.tensor.numel()]
