"""Sums over all logical ranks that do not depend on how many workers there are.

Each logical rank's gradient is a leaf of one fixed binary tree (`tree.py`). A worker sums the
maximal subtrees inside its range while it computes. Then every worker sends its rows of the step
header to all others, and bucket by bucket they finish the tree, in tree order, and divide by the
total weight (`bucket.py`): directly or by halves, whichever costs less.

Buckets, chunks, slices and halves only cut the vector; the sum is per element, so they cannot
change a bit. Nothing is ever added by a communication library, whose order would follow the
topology or the world size.

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
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raytrain_plus.scalars import Sums, check_count
from raytrain_plus.training.bucket import Group, SharedBucket, make_bucket
from raytrain_plus.training.wire import Message, Pending, Wire, filled

Rows = npt.NDArray[np.float64]
Leaf = list[Tensor]
Partial = Leaf | tuple[Leaf, Leaf]  # a sum, or the two halves of which it is the sum

# The columns of the step header. It has a row per logical rank, and every worker receives all rows.
# The values of a worker are in the row of its first logical rank.
LOSS, WEIGHT, PAUSE, BUSY_SECONDS, SAMPLES, TOKENS, CHECKPOINT, COMPUTE_SECONDS = range(8)
SEEN_SECONDS, UNSEEN_SECONDS, SALVAGED, NEW_SCALARS = range(8, 12)  # the last one in bytes
HEADER_WIDTH = 12
OF_A_PART = [LOSS, WEIGHT, SAMPLES, TOKENS]

_BUCKET_BYTES = 4 << 20  # sent as one; several let the first travel while the last is computed


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
        self.attachment_bytes = attachment_bytes
        self._n_gradients = len(gradients)
        self._like = [*gradients, *buffers]
        self.buckets = _buckets(self._like, len(gradients))
        sizes = [sum(self._like[i].nbytes for i in bucket) for bucket in self.buckets]
        self._group = Group.of(ranges, wire.device, sizes)
        self.gradients_of = [[i for i in b if i < len(gradients)] for b in self.buckets]
        self._marked = [i for mine in self.gradients_of for i in mine]
        self._columns: list[str] = []  # names of logged scalars
        self._firsts = [r.start for r in ranges]
        self._allocate()
        self._unkept = self._references()

    def _allocate(self) -> None:
        self._vectors = [
            make_bucket([self._like[i] for i in bucket], len(mine), self._group, self._wire)
            for bucket, mine in zip(self.buckets, self.gradients_of, strict=True)
        ]
        self._shared = [vector for vector in self._vectors if isinstance(vector, SharedBucket)]
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
        self._shared[b].send()

    def finish(self, b: int) -> None:
        """Finish bucket b as far as what has arrived allows, and send that; buckets go in order.

        Directly, its chunk is finished. By halves, it and all buckets before it advance by a round,
        so that as many of them are on their way at the same time as there are rounds.
        """
        if self._wire.size == 1:
            self._enter("slice" if b else "finish")
            return
        self._advance(range(b + 1))

    def _advance(self, buckets: range) -> bool:
        """Let buckets advance by a round; return whether any of them had one left."""
        under_way = [b for b in buckets if not self._shared[b].is_done]
        for b in under_way:
            divisors = self._weight(), self._leaves
            self._shared[b].advance(divisors, self._enter if b == 0 else self._enter_slice)
        return bool(under_way)

    def close(self) -> Reduced:
        """Wait until everything has arrived."""
        rows = self._rows()
        while self._advance(range(len(self._shared))):
            pass
        for bucket in self._shared:
            bucket.wait()
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

    def _enter_slice(self, _: str) -> None:
        self._enter("slice")

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
        wire.post(filled(sends), filled(receives)).wait()
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


def tree_sum(rows: Rows) -> Rows:
    """Return the sum of rows (V, width) in tree order, float64 (width,)."""
    while len(rows) > 1:
        even = len(rows) // 2 * 2
        sums = rows[0:even:2] + rows[1:even:2]
        # A last node without a sibling moves up unchanged: that is the tree of `tree.py`.
        rows = sums if even == len(rows) else np.concatenate([sums, rows[even:]])
    total: Rows = rows[0]
    return total
