"""The sums of one step: leaves go in one after the other, the global mean comes out.

Two things save time and no bits. A leaf and its sibling on the same worker are added by autograd
itself, in one go with the backward. And while the last leaf's backward still runs, its first
buckets are on their way already, by a thread of their own.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

from raytrain_plus.task import TaskError
from raytrain_plus.training.reduction import Leaf, Partial, Reduced, Reduction, Rows
from raytrain_plus.training.tree import Accumulator

_OVERLAP_BYTES = 1 << 20  # below, handing over to a thread takes longer than it saves


class Exchange:
    """The sums of one generation's steps.

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
        self._thread: ThreadPoolExecutor | None = None
        if overlap and size >= _OVERLAP_BYTES:
            self._thread = ThreadPoolExecutor(1, "exchange")

    def begin(self, rows: Rows) -> None:
        """Begin a step.

        Args:
            rows: our rows of the control lane, which are sent before the last backward.
        """
        buckets = self._reduction.buckets
        self._rows = rows
        self._integers = b""
        self._sums: list[Accumulator[Partial]] = [
            Accumulator(self._ranks.start, self._ranks.stop, self._leaves, _add) for _ in buckets
        ]
        self._sibling: _Sibling | None = None
        self._final: list[dict[int, Tensor]] = [{} for _ in buckets]
        self._submitted: list[Future[None]] = []
        self._next = 0

    def backward(self, rank: int, changes: Leaf, integers: bytes, run: Callable[[], None]) -> None:
        """Run one logical rank's backward, in order, and take its leaf.

        Args:
            rank: the logical rank; its row of the control lane is complete.
            changes: how far its forward has moved the floating buffers.
            integers: what its forward has made of the other buffers, if it is logical rank 0.
            run: the backward; it adds to the gradients of the parameters.
        """
        self._integers = self._integers or integers
        if self._merge and rank % 2 == 0 and rank + 1 in self._ranks:
            run()
            self._sibling = _Sibling(self._parameters, changes)
            return
        sibling, self._sibling = self._sibling or _Sibling.none(self._parameters), None
        if rank == self._ranks[-1]:
            self._reduction.open(self._rows, self._integers)
            self._run_last(run, sibling, changes)
        else:
            run()
            leaf = [*sibling.settled(), *sibling.with_changes(changes)]
            for sums, bucket in zip(self._sums, self._reduction.buckets, strict=True):
                sums.push([leaf[i] for i in bucket], sibling.leaves)
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
        self._sums, self._final, self._submitted = [], [], []  # their memory is needed elsewhere
        return self._reduction.close()

    def end(self) -> None:
        """The generation is over."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _run_last(self, run: Callable[[], None], sibling: "_Sibling", changes: Leaf) -> None:
        def arrived(i: int) -> None:
            bucket = self._final[self._bucket_of[i]]
            if i in bucket:
                raise TaskError(_TWICE)
            bucket[i] = sibling.settle(i)
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
        for i in range(n):
            bucket = self._final[self._bucket_of[i]]
            if i not in bucket:
                bucket[i] = sibling.settle(i)
        for i, change in enumerate(sibling.with_changes(changes)):
            self._final[self._bucket_of[n + i]][n + i] = change
        self._submit_complete(sibling.leaves)

    def _submit_complete(self, leaves: int) -> None:
        """Send complete buckets: in their order, which must be the same on every worker."""
        buckets = self._reduction.buckets
        while self._next < len(buckets) and len(self._final[self._next]) == len(
            buckets[self._next]
        ):
            if self._thread is not None:
                self._submitted.append(self._thread.submit(self._send, self._next, leaves))
            else:
                self._send(self._next, leaves)
            self._next += 1

    @torch.no_grad()
    def _send(self, b: int, leaves: int) -> None:
        final, sums = self._final[b], self._sums[b]
        sums.push([final[i] for i in self._reduction.buckets[b]], leaves, _halves)
        self._reduction.send(b, sums.partials)
        if b:  # the bucket before has had time to arrive
            self._reduction.finish(b - 1)


class _Sibling:
    """What a leaf has left in the gradients, to which autograd adds those of its sibling.

    The sum must be that of two leaves which were computed apart: a parameter that one of them does
    not use counts as zero there, and one that gets its gradient in several parts would be summed in
    another order, and is refused.

    Args:
        parameters: their gradients are those of the first leaf.
        changes: the first leaf's changes of the buffers.
    """

    leaves = 2

    def __init__(self, parameters: Sequence[nn.Parameter], changes: Leaf) -> None:
        self._parameters = parameters
        self._changes = changes
        self._versions = [-1 if p.grad is None else p.grad._version for p in parameters]  # noqa: SLF001

    @classmethod
    def none(cls, parameters: Sequence[nn.Parameter]) -> "_Sibling":
        """Return what stands for no sibling: nothing is added to the leaf."""
        return _Alone(parameters, [])

    @torch.no_grad()
    def settle(self, i: int) -> Tensor:
        """Return the sum for parameter i, when its backward is over."""
        gradient, before = self._parameters[i].grad, self._versions[i]
        if gradient is None:
            return torch.zeros_like(self._parameters[i])
        after = gradient._version  # noqa: SLF001 - how often it was added to
        if before < 0 or after == before:
            return gradient.add_(0.0)  # minus zero and zero are zero
        if after != before + 1:
            raise TaskError(_TWICE)
        return gradient

    def settled(self) -> Leaf:
        """Return the sums for all parameters."""
        return [self.settle(i) for i in range(len(self._parameters))]

    def with_changes(self, changes: Leaf) -> Leaf:
        """Return both leaves' changes of the buffers."""
        return _add(self._changes, changes)


class _Alone(_Sibling):
    leaves = 1

    def settle(self, i: int) -> Tensor:
        gradient = self._parameters[i].grad
        return torch.zeros_like(self._parameters[i]) if gradient is None else gradient

    def with_changes(self, changes: Leaf) -> Leaf:
        return changes


_TWICE = (
    "a parameter got its gradient in several parts in one backward, as reentrant checkpointing "
    "does it: use torch.utils.checkpoint with use_reentrant=False"
)


@torch.no_grad()
def _add(left: Partial, right: Partial) -> Leaf:
    assert isinstance(left, list)
    if left:
        torch._foreach_add_(left, right if isinstance(right, list) else _add(*right))
    return left


def _halves(left: Partial, right: Partial) -> Partial:
    """Leave the last addition to whoever copies the sum: one pass over memory instead of two."""
    assert isinstance(left, list)
    return left, right if isinstance(right, list) else _add(*right)
