"""The sums of one step: leaves go in one after the other, the global mean comes out.

Two things save time and no bits. A leaf and its sibling on the same worker are added by autograd
itself, in one go with the backward. And while the last leaf's backward still runs, its first
buckets are on their way already, by a thread of their own.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch
from torch import Tensor, nn

from raytrain_plus.task import TaskError
from raytrain_plus.training.bits import bit_sum
from raytrain_plus.training.partial_sums import TWICE, Sibling, Subtree, add, halves
from raytrain_plus.training.reduction import (
    OF_A_PART,
    SALVAGED,
    Leaf,
    Partial,
    Reduced,
    Reduction,
    Rows,
)
from raytrain_plus.training.tree import Accumulator

_PATIENCE = 1.0  # seconds; the generation's sockets have been shut by then, so none should pass
_OVERLAP_BYTES = 1 << 20  # below, handing over to a thread takes longer than it saves


class Exchange:
    """The sums of one generation's steps.

    Attributes:
        audited_bits: the sum of bits of the audited leaf, once it is computed.
        beside_seconds: how long the thread was busy that sends beside the last backward.

    Args:
        reduction: how partial sums become the global mean.
        parameters: whose gradients are summed, in the reduction's order.
        ranks: our logical ranks.
        leaves: all logical ranks, V.
        merge: whether autograd may add siblings; not if somebody looks at a leaf's gradients.
        overlap: whether the exchange may run beside the backward.
    """

    def __init__(
        self,
        reduction: Reduction,
        parameters: Sequence[nn.Parameter],
        ranks: range,
        leaves: int,
        *,
        merge: bool,
        overlap: bool,
    ) -> None:
        self._reduction = reduction
        self._parameters = parameters
        self._ranks = ranks
        self._leaves = leaves
        self._merge = merge
        self._bucket_of = {i: b for b, bucket in enumerate(reduction.buckets) for i in bucket}
        size = sum(p.numel() * p.element_size() for p in parameters)
        self._sums: list[Accumulator[Partial]] = []
        self._submitted: list[Future[None]] = []
        self.beside_seconds = 0.0
        self._thread: ThreadPoolExecutor | None = None
        if overlap and size >= _OVERLAP_BYTES:
            self._thread = ThreadPoolExecutor(1, "exchange")

    def begin(
        self, rows: Rows, salvaged: Sequence[Subtree] = (), audited: int | None = None
    ) -> None:
        """Begin a step.

        Args:
            rows: our rows of the step header, which are sent before the last backward.
            salvaged: what an attempt at the same step has left; used where it lies in our range.
            audited: the logical rank whose leaf `audited_bits` is to tell, if it is ours.
        """
        start, stop = self._ranks.start, self._ranks.stop
        buckets = self._reduction.buckets
        self._rows = rows
        self._integers = b""
        self._salvaged = {s.start: s for s in salvaged if start <= s.start and s.stop <= stop}
        self._reused = {r for s in self._salvaged.values() for r in range(s.start, s.stop)}
        self._sums = [Accumulator(start, stop, self._leaves, add) for _ in buckets]
        self._sibling: Sibling | None = None
        self._final: list[dict[int, Tensor]] = [{} for _ in buckets]
        self._submitted = []
        self._next = 0
        self._whole = False
        self._broken = False
        self.beside_seconds = 0.0
        self._audited = audited
        self.audited_bits: int | None = None

    def reuse(self, rank: int) -> bool:
        """Say whether a logical rank need not be computed; its turn is over then.

        Raises:
            Exception: whatever the wire raises.
        """
        if rank not in self._reused:
            return False
        if rank in self._salvaged:
            subtree = self._salvaged.pop(rank)
            mine = slice(rank - self._ranks.start, subtree.stop - self._ranks.start)
            self._rows[mine, OF_A_PART] = subtree.rows[:, OF_A_PART]
            self._rows[mine, SALVAGED] = 1
            self._integers = self._integers or subtree.integers
            if subtree.stop < self._ranks.stop:
                self._push(subtree.leaf, subtree.stop - rank)
            else:
                self._final = [{i: subtree.leaf[i] for i in b} for b in self._reduction.buckets]
                self._whole = True
                self._reduction.open(self._rows, self._integers)
                self._submit_complete(subtree.stop - rank)
        return True

    def backward(self, rank: int, changes: Leaf, integers: bytes, run: Callable[[], None]) -> None:
        """Run one logical rank's backward, in order, and take its leaf.

        Args:
            rank: the logical rank; its row of the step header is complete.
            changes: how far its forward has moved the floating buffers.
            integers: what its forward has made of the other buffers, if it is logical rank 0.
            run: the backward; it adds to the gradients of the parameters.
        """
        self._integers = self._integers or integers
        if self._is_merged(rank):
            run()
            self._sibling = Sibling(self._parameters, changes)
            return
        is_last = rank == self._ranks[-1]
        if is_last:
            self._reduction.open(self._rows, self._integers)
        sibling, self._sibling = self._sibling or Sibling.none(self._parameters), None
        if is_last:
            self._run_last(run, sibling, changes)
            if rank == self._audited:  # nothing is added to a last leaf where it lies
                leaf_of = {i: tensor for final in self._final for i, tensor in final.items()}
                size = len(self._parameters) + len(changes)
                self.audited_bits = bit_sum([leaf_of[i] for i in range(size)])
        else:
            run()
            marks = self._reduction.marks(sibling.marks())
            leaf = [*sibling.settled(), *sibling.with_changes(changes)]
            if rank == self._audited:
                self.audited_bits = bit_sum(leaf)
            self._push([*leaf, *marks], sibling.leaves)
        for parameter in self._parameters:
            parameter.grad = None

    def finish(self) -> Reduced:
        """Return the global mean.

        Raises:
            Exception: whatever the wire raises.
        """
        for submitted in self._submitted:
            submitted.result()
        self._reduction.finish(len(self._sums) - 1)
        return self._reduction.close()

    def clear(self) -> None:
        """Forget the step's sums: it is about to be committed, or they cannot be trusted."""
        self._sums, self._final, self._submitted, self._salvaged = [], [], [], {}
        self._sibling = None

    def interrupt(self) -> None:
        """Keep a leaf that waits for its sibling: the step has failed, gradients are dropped."""
        sibling, self._sibling = self._sibling, None
        if sibling is not None:
            marks = self._reduction.marks(sibling.marks())
            self._push([*sibling.leaf(), *marks], 1)

    def end(self) -> list[Subtree]:
        """End the generation; returns what a step has left that began and was not committed."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        kept = self._harvest()
        self.clear()
        return kept

    @torch.no_grad()
    def _harvest(self) -> list[Subtree]:
        """Collect whole subtrees; none if the last leaf is in some buckets and not in others."""
        late = wait([s for s in self._submitted if not s.cancelled()], _PATIENCE).not_done
        if not self._sums or late or (self._next and not self._whole):
            return []
        buckets = self._reduction.buckets
        if self._whole:
            for sums, bucket, final in zip(self._sums, buckets, self._final, strict=True):
                if sums.end < self._ranks.stop:
                    sums.push([final[i] for i in bucket], self._ranks.stop - sums.end)
        kept = []
        for nodes in zip(*(sums.nodes for sums in self._sums), strict=True):
            leaf: dict[int, Tensor] = {}
            for bucket, (_, _, value) in zip(buckets, nodes, strict=True):
                whole = value if isinstance(value, list) else add(*value)
                leaf |= zip(bucket, whole, strict=True)
            start, stop = nodes[0][:2]
            rows = self._rows[start - self._ranks.start : stop - self._ranks.start]
            integers = b"" if start else self._integers
            kept.append(Subtree(start, stop, [leaf[i] for i in range(len(leaf))], rows, integers))
        return [*kept, *self._salvaged.values()]

    def _is_merged(self, rank: int) -> bool:
        """Say whether a leaf waits for its sibling, which is computed next."""
        follows = rank % 2 == 0 and rank + 1 in self._ranks
        apart = self._audited in (rank, rank + 1) or rank + 1 in self._reused
        return self._merge and follows and not apart

    def _push(self, leaf: Leaf, leaves: int) -> None:
        for sums, bucket in zip(self._sums, self._reduction.buckets, strict=True):
            sums.push([leaf[i] for i in bucket], leaves)

    def _run_last(self, run: Callable[[], None], sibling: "Sibling", changes: Leaf) -> None:
        @torch.no_grad()
        def arrived(i: int) -> None:
            bucket = self._final[self._bucket_of[i]]
            if i in bucket:
                raise TaskError(TWICE)
            bucket[i] = sibling.settle(i)
            if len(bucket) == len(self._reduction.gradients_of[self._bucket_of[i]]):
                self._mark(self._bucket_of[i], sibling)
            self._submit_complete(sibling.leaves)

        hooks = []
        if self._thread is not None:
            hooks = [
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _, i=i: arrived(i)
                )
                for i, parameter in enumerate(self._parameters)
                if parameter.requires_grad  # an aspect may have frozen it for this step
            ]
        try:
            run()
        finally:
            for hook in hooks:
                hook.remove()
        n = len(self._parameters)
        with torch.no_grad():
            for i in range(n):
                bucket = self._final[self._bucket_of[i]]
                if i not in bucket:
                    bucket[i] = sibling.settle(i)
        for b in range(len(self._final)):
            self._mark(b, sibling)
        for i, change in enumerate(sibling.with_changes(changes)):
            self._final[self._bucket_of[n + i]][n + i] = change
        self._whole = True
        self._submit_complete(sibling.leaves)

    def _mark(self, b: int, sibling: "Sibling") -> None:
        """Add a bucket's marks to the last leaf, whose gradients of it are all there."""
        place = self._reduction.marks_of[b]
        if place is not None and place not in self._final[b]:
            mine = self._reduction.gradients_of[b]
            self._final[b][place] = self._reduction.mark(b, [sibling.present(i) for i in mine])

    def _submit_complete(self, leaves: int) -> None:
        """Send complete buckets: in their order, which must be the same on every worker."""
        buckets = self._reduction.buckets
        while self._next < len(buckets) and len(self._final[self._next]) == len(
            buckets[self._next]
        ):
            if self._thread is not None:
                self._submitted.append(self._thread.submit(self._send_beside, self._next, leaves))
            else:
                self._send(self._next, leaves)
            self._next += 1

    def _send_beside(self, b: int, leaves: int) -> None:
        if self._broken:  # peers take messages in their order: none may follow one that is missing
            raise RuntimeError(f"bucket {b} is not sent: one before it has failed")
        began = time.perf_counter()
        try:
            self._send(b, leaves)
        except BaseException:
            self._broken = True
            raise
        self.beside_seconds += time.perf_counter() - began

    @torch.no_grad()
    def _send(self, b: int, leaves: int) -> None:
        final, sums = self._final[b], self._sums[b]
        sums.push([final[i] for i in self._reduction.buckets[b]], leaves, halves)
        self._reduction.send(b, sums.partials)
        if b:  # the bucket before has had time to arrive
            self._reduction.finish(b - 1)
