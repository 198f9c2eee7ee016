"""The sums of one step on one worker: leaves go in one after the other, the global mean comes out.

Each sum is one of a maximal subtree of the worker's logical ranks (`tree.py`), cut into buckets of
parameters. While the last leaf's backward still runs, its first buckets are sent already, by a
thread of their own. What a failed step has summed outlives it: survivors need not compute it again.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field

import torch
from torch import Tensor

from raytrain_plus.algorithms import Step
from raytrain_plus.scalars import Sums
from raytrain_plus.task import TaskError
from raytrain_plus.training.backward import TWICE, Backward, FirstSibling
from raytrain_plus.training.bits import bit_sum
from raytrain_plus.training.reduction import (
    Leaf,
    Partial,
    Reduced,
    Reduction,
)
from raytrain_plus.training.step_header import OF_A_PART, SALVAGED, Rows
from raytrain_plus.training.tree import Accumulator

_PATIENCE = 1.0  # seconds; the generation's sockets have been shut by then, so none should pass
_OVERLAP_BYTES = 1 << 20  # below, handing over to a thread takes longer than it saves


@dataclass(frozen=True)
class Subtree:
    """A sum that a failed attempt at a step has left behind.

    Attributes:
        start, stop: the logical ranks that it sums: a node of the tree.
        leaf: its sum: gradients, then changes of the buffers.
        present: per gradient, whether any leaf that its worker had computed has it.
        rows: those logical ranks' rows of the step header.
        attachment: that of logical rank 0, if it is among them.
        logged: by logical rank, the scalars that its part has logged.
    """

    start: int
    stop: int
    leaf: Leaf
    present: list[bool]
    rows: Rows
    attachment: bytes
    logged: Mapping[int, Sums] = field(default_factory=dict)


def add(left: Partial, right: Partial) -> Leaf:
    """Return the sum of two partial sums, in the memory of the left one."""
    assert isinstance(left, list)
    if left:
        torch._foreach_add_(left, right if isinstance(right, list) else add(*right))
    return left


def halves(left: Partial, right: Partial) -> Partial:
    """Leave the last addition to the copy of the sum: one pass over memory instead of two."""
    assert isinstance(left, list)
    return left, right if isinstance(right, list) else add(*right)


class Exchange:
    """The sums of one generation's steps.

    Attributes:
        audited_bits: the sum of bits of the audited leaf, once it is computed.
        overlapped_seconds: how long the thread was busy that sends during the last backward.

    Args:
        reduction: makes the global mean of the partial sums.
        backward: computes the gradients; its parameters are in the reduction's order.
        ranks: our logical ranks.
        leaves: the number of all logical ranks, V.
        overlap: whether buckets may be sent while the backward runs.
    """

    def __init__(
        self,
        reduction: Reduction,
        backward: Backward,
        ranks: range,
        leaves: int,
        *,
        overlap: bool,
    ) -> None:
        self._reduction = reduction
        self._backward = backward
        self._ranks = ranks
        self._leaves = leaves
        self._bucket_of = {i: b for b, bucket in enumerate(reduction.buckets) for i in bucket}
        size = sum(p.numel() * p.element_size() for p in backward.parameters)
        self._sums: list[Accumulator[Partial]] = []
        self._submitted: list[Future[None]] = []
        self.overlapped_seconds = 0.0
        self._thread: ThreadPoolExecutor | None = None
        if overlap and size >= _OVERLAP_BYTES:
            self._thread = ThreadPoolExecutor(1, "exchange")

    def begin_step(
        self, rows: Rows, salvaged: Sequence[Subtree] = (), audited: int | None = None
    ) -> None:
        """Begin a step.

        Args:
            rows: our rows of the step header, which are sent before the last backward.
            salvaged: what an attempt at the same step has left; used if it lies in our range.
            audited: the logical rank of which `audited_bits` is wanted, if it is ours.
        """
        start, stop = self._ranks.start, self._ranks.stop
        buckets = self._reduction.buckets
        self._rows = rows
        self._backward.begin_step()
        self._attachment = b""
        self._logged: dict[int, Sums] = {}
        ours = [s for s in salvaged if start <= s.start and s.stop <= stop]
        self._salvaged = {s.start: s for s in ours}
        self._reused = {rank for s in ours for rank in range(s.start, s.stop)}
        self._sums = [Accumulator(start, stop, self._leaves, add) for _ in buckets]
        self._first: FirstSibling | None = None
        self._final: list[dict[int, Tensor]] = [{} for _ in buckets]
        self._submitted = []
        self._next = 0
        self._whole = False
        self._broken = False
        self.overlapped_seconds = 0.0
        self._audited = audited
        self.audited_bits: int | None = None

    def reuse(self, rank: int) -> bool:
        """Say whether a logical rank need not be computed, and if so, use what is left of it.

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
            self._attachment = self._attachment or subtree.attachment
            self._logged |= subtree.logged
            present = self._backward.present
            present[:] = [a or b for a, b in zip(present, subtree.present, strict=True)]
            if subtree.stop < self._ranks.stop:
                self._push(subtree.leaf, subtree.stop - rank)
            else:
                self._final = [{i: subtree.leaf[i] for i in b} for b in self._reduction.buckets]
                self._whole = True
                self._reduction.open(self._rows, self._attachment, self._logged)
                self._submit_complete(subtree.stop - rank)
        return True

    def backward(self, step: Step, loss: Tensor, changes: Leaf, attachment: bytes) -> None:
        """Run the backward of one logical rank, in order, and add its leaf to the sums.

        Args:
            step: the step, in the middle of the rank's part. Its row of the step header is whole.
            loss: the sum of the part's weighted losses.
            changes: how far its forward has moved the floating buffers.
            attachment: what travels with the step header, if it is logical rank 0.

        Raises:
            Exception: whatever the task or the wire raises.
        """
        rank = step.logical_rank
        self._attachment = self._attachment or attachment
        if step.scalars.sums:
            self._logged[rank] = step.scalars.sums
        if self._is_merged(rank):
            self._backward.run(step, loss)
            self._first = self._backward.keep(changes)
            return
        first, self._first = self._first, None
        if first is not None:
            changes = add(first.changes, changes)
        if rank == self._ranks[-1]:
            self._reduction.open(self._rows, self._attachment, self._logged)
            self._run_last(step, loss, first, changes)
            if rank == self._audited:  # nothing is added to a last leaf where it lies
                leaf_of = {i: tensor for final in self._final for i, tensor in final.items()}
                self.audited_bits = bit_sum([leaf_of[i] for i in range(len(leaf_of))])
        else:
            self._backward.run(step, loss)
            leaf = [*self._backward.leaf(first), *changes]
            if rank == self._audited:
                self.audited_bits = bit_sum(leaf)
            self._push(leaf, 1 if first is None else 2)
        self._backward.drop()

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
        self._first = None

    def interrupt(self) -> None:
        """Keep a leaf that waits for its sibling: the step has failed, gradients are dropped."""
        first, self._first = self._first, None
        if first is not None:
            self._push([*self._backward.leaf(), *first.changes], 1)

    def end_generation(self) -> list[Subtree]:
        """End the generation; returns what a step that was not committed has left."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        kept = self._harvest()
        self.clear()
        return kept

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
            attachment = b"" if start else self._attachment
            ordered, present = [leaf[i] for i in range(len(leaf))], [*self._backward.present]
            logged = {rank: sums for rank, sums in self._logged.items() if start <= rank < stop}
            kept.append(Subtree(start, stop, ordered, present, rows, attachment, logged))
        return [*kept, *self._salvaged.values()]

    def _is_merged(self, rank: int) -> bool:
        """Say whether a leaf waits for its sibling, which is computed next."""
        follows = rank % 2 == 0 and rank + 1 in self._ranks
        apart = self._audited in (rank, rank + 1) or rank + 1 in self._reused
        return self._backward.may_merge and follows and not apart

    def _push(self, leaf: Leaf, leaves: int) -> None:
        for sums, bucket in zip(self._sums, self._reduction.buckets, strict=True):
            sums.push([leaf[i] for i in bucket], leaves)

    def _run_last(
        self, step: Step, loss: Tensor, first: FirstSibling | None, changes: Leaf
    ) -> None:
        backward, leaves = self._backward, 1 if first is None else 2

        def arrived(i: int) -> None:
            bucket = self._final[self._bucket_of[i]]
            if i in bucket:
                raise TaskError(TWICE)
            bucket[i] = backward.gradient(i, first)
            self._submit_complete(leaves)

        hooks = []
        if self._thread is not None:
            hooks = [
                parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                    lambda _, i=i: arrived(i)
                )
                for i, parameter in enumerate(backward.parameters)
                if parameter.requires_grad  # an aspect may have frozen it for this step
            ]
        try:
            backward.run(step, loss)
        finally:
            for hook in hooks:
                hook.remove()
        n = len(backward.parameters)
        for i in range(n):
            bucket = self._final[self._bucket_of[i]]
            if i not in bucket:
                bucket[i] = backward.gradient(i, first)
        for i, change in enumerate(changes, n):
            self._final[self._bucket_of[i]][i] = change
        self._whole = True
        self._submit_complete(leaves)

    def _submit_complete(self, leaves: int) -> None:
        """Send complete buckets: in their order, which must be the same on every worker."""
        buckets = self._reduction.buckets
        while self._next < len(buckets) and len(self._final[self._next]) == len(
            buckets[self._next]
        ):
            if self._thread is not None:
                self._submitted.append(self._thread.submit(self._send_early, self._next, leaves))
            else:
                self._send(self._next, leaves)
            self._next += 1

    def _send_early(self, b: int, leaves: int) -> None:
        if self._broken:  # peers receive messages in order: none may follow a missing one
            raise RuntimeError(f"bucket {b} is not sent: one before it has failed")
        began = time.perf_counter()
        try:
            self._send(b, leaves)
        except BaseException:
            self._broken = True
            raise
        self.overlapped_seconds += time.perf_counter() - began

    def _send(self, b: int, leaves: int) -> None:
        final, sums = self._final[b], self._sums[b]
        sums.push([final[i] for i in self._reduction.buckets[b]], leaves, halves)
        self._reduction.send(b, sums.partials, self._backward.present)
        if b:  # the bucket before has had time to arrive
            # A bucket that is ready already is sent before the thread waits for others.
            is_newest = self._thread is not None and self._next <= b + 1
            self._reduction.finish(b - 1, block=is_newest)
