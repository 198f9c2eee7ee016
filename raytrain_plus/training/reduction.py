"""Sums over all logical ranks that do not depend on how many workers there are.

Each logical rank's gradient is a leaf of one fixed binary tree (`tree.py`). A worker sums the
maximal subtrees inside its range while it computes. Then the workers exchange the step header
(`step_header.py`), and bucket by bucket they finish the tree, in tree order, and divide by the
total weight (`bucket.py`): directly or by halves, whichever costs less.

Buckets, chunks, slices and halves only cut the vector; the sum is per element, so they cannot
change a bit. Nothing is ever added by a communication library, whose order would follow the
topology or the world size.

On an accelerator a step waits for the device once per part (its loss), once after the last part
(the time of computing), once per worker for the step header, and twice before the update: one
transfer tells which gradients are there and whether all are finite, however many buckets there are,
and the fence keeps the results of an aborted generation out of the update.
"""

import cmath
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from raytrain_plus.scalars import Sums
from raytrain_plus.training.bucket import Group, HalvedBucket, SharedBucket, make_bucket
from raytrain_plus.training.step_header import WEIGHT, Rows, StepHeader
from raytrain_plus.training.wire import Wire

Leaf = list[Tensor]
Partial = Leaf | tuple[Leaf, Leaf]  # a sum, or the two halves of which it is the sum

_AT_ONCE = 16  # halved buckets, the oldest ones, that advance in any order
_FIRST_CHANNEL = 1  # of the buckets; the step header has the one before
_BUCKET_BYTES = 4 << 20  # sent as one; several let the first travel while the last is computed


class Reduced(NamedTuple):
    """What every worker holds after a reduction, bit for bit the same.

    Attributes:
        gradients: per parameter, the sum over logical ranks divided by the total weight.
        present: per parameter, whether any logical rank has a gradient for it.
        finite: True says that all gradients are finite. False says that one may not be.
        buffers: per floating buffer, the mean over logical ranks.
        header: HEADER_WIDTH numbers, the sums of the step header in the tree's order.
        of_workers: float64 (workers, 3): the columns of the step header that are not summed.
        attachment: the bytes that the worker of logical rank 0 attached, filled up with zeros.
        logged: by name, the mean of a logged scalar over all logical ranks.
    """

    gradients: list[Tensor]
    present: list[bool]
    finite: bool
    buffers: list[Tensor]
    header: list[float]
    of_workers: Rows
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
        header: the step header.

    Args:
        gradients: tensors like the gradients, in the order of the forward; the backward, and so
            the buckets, come in the opposite one.
        buffers: tensors like the floating buffers.
        ranges: the logical ranks of each worker of the generation, consecutive and in order.
        wire: how to reach the other workers; its index says which range is ours.
        attachment_bytes: the size of what the worker of logical rank 0 attaches, at first.
        group: that of `group_of`, if it is known. Default: it is made.
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
        group: Group | None = None,
    ) -> None:
        self._wire = wire
        self._enter = enter
        self._leaves = ranges[-1].stop
        self._n_gradients = len(gradients)
        self._like = [*gradients, *buffers]
        self.buckets = _buckets(self._like, len(gradients))
        self._group = group or group_of(gradients, buffers, ranges, wire.device)
        doubling = self._group.part(wire.index).doubling
        self.header = StepHeader(ranges, wire, doubling, attachment_bytes)
        self.gradients_of = [[i for i in b if i < len(gradients)] for b in self.buckets]
        self._marked = [i for mine in self.gradients_of for i in mine]
        self._allocate()
        self._unkept = self._references()

    def _allocate(self) -> None:
        self._vectors = [
            make_bucket(
                [self._like[i] for i in bucket], len(mine), self._group, self._wire, channel
            )
            for channel, (bucket, mine) in enumerate(
                zip(self.buckets, self.gradients_of, strict=True), _FIRST_CHANNEL
            )
        ]
        self._halved = [vector for vector in self._vectors if isinstance(vector, HalvedBucket)]
        self._shared = [vector for vector in self._vectors if isinstance(vector, SharedBucket)]
        if self._wire.device.type == "cpu":  # before anything counts what refers to the memory
            for shared in self._shared:
                for message in shared.messages:
                    _ = message.memory
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
        self.header.open(rows, attachment, logged or {})

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
            vector.divide(*self._divisors())
            return
        vector.mark([present[i] for i in self.gradients_of[b]])
        self._shared[b].send()

    def finish(self, b: int, *, block: bool = True) -> None:
        """Finish bucket b as far as what has arrived allows, and send that; buckets go in order.

        Directly, its chunk is finished. By halves, the step header and all buckets that were sent
        advance whenever their messages arrive, in any order.

        Args:
            b: the bucket.
            block: by halves, wait until what was sent before the call has advanced by a round.
        """
        if self._wire.size == 1:
            self._enter("slice" if b else "finish")
        elif not self._halved:
            self._advance_in_order(range(b + 1))
        elif block:
            self._advance_halved(once=True)
        else:
            self._wire.wait_any([], block=False)
            self._end_rounds(self._under_way()[:_AT_ONCE])

    def _advance_in_order(self, buckets: range) -> bool:
        """Let the step header and buckets advance by a round; return whether any had one left."""
        under_way = [b for b in buckets if not self._shared[b].is_done]
        header_is_done = self.header.is_done
        if not header_is_done:
            self.header.advance()
        for b in under_way:
            self._shared[b].advance(self._divisors, self._enter if b == 0 else self._enter_slice)
        return bool(under_way) or not header_is_done

    def _advance_halved(self, *, once: bool) -> None:
        """Let the step header and the halved buckets advance as their messages arrive.

        Args:
            once: return when each of them has advanced by a round, and not when all are done.
        """
        under_way = self._under_way()
        left = set(under_way[:_AT_ONCE])
        while under_way and (left or not once):
            oldest = under_way[:_AT_ONCE]
            ended = self._end_rounds(oldest)
            left.difference_update(ended)
            if not ended:
                posted = [one.pending for one in oldest if one.pending is not None]
                self._wire.wait_any([one for one in posted if not one.is_done])
            elif any(one.is_done for one in ended):
                under_way = [one for one in under_way if not one.is_done]

    def _under_way(self) -> "list[StepHeader | HalvedBucket]":
        everything: list[StepHeader | HalvedBucket] = [self.header, *self._halved]
        return [one for one in everything if not one.is_done]

    def _end_rounds(
        self, under_way: "Sequence[StepHeader | HalvedBucket]"
    ) -> "list[StepHeader | HalvedBucket]":
        """End the rounds whose messages are there; return what has advanced."""
        ended: list[StepHeader | HalvedBucket] = []
        for one in under_way:
            if one.pending is not None and not one.pending.is_done:
                continue
            if isinstance(one, StepHeader):
                one.advance()
            elif one.is_whole_next and not self.header.is_done:
                continue
            else:
                is_first = one is self._halved[0]
                one.advance(self._divisors, self._enter if is_first else self._enter_slice)
            ended.append(one)
        return ended

    def _divisors(self) -> tuple[float, int]:
        return self.header.sums[WEIGHT], self._leaves

    def close(self) -> Reduced:
        """Wait until everything has arrived."""
        if self._halved:
            self._advance_halved(once=False)
        else:
            while self._advance_in_order(range(len(self._shared))):
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
            self.header.sums,
            self.header.own,
            self.header.attached,
            self.header.logged(),
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


def group_of(
    gradients: Sequence[Tensor],
    buffers: Sequence[Tensor],
    ranges: Sequence[range],
    device: torch.device,
) -> Group:
    """Return how the workers of a generation sum; the arguments are those of `Reduction`."""
    like = [*gradients, *buffers]
    sizes = [sum(like[i].nbytes for i in b) for b in _buckets(like, len(gradients))]
    return Group.of(ranges, device, sizes)


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
