"""Leaves of the tree on one worker: how two are added, and what an unfinished sum leaves behind."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raytrain_plus.task import TaskError
from raytrain_plus.training.reduction import Leaf, Partial, Rows


@dataclass(frozen=True)
class Subtree:
    """A sum that a failed attempt at a step has left behind.

    Attributes:
        start, stop: the logical ranks that it sums: a node of the tree.
        leaf: its sum: gradients, then changes of the buffers.
        rows: those logical ranks' rows of the step header.
        integers: what logical rank 0 has made of the other buffers, if it is among them.
    """

    start: int
    stop: int
    leaf: Leaf
    rows: Rows
    integers: bytes


@torch.no_grad()
def add(left: Partial, right: Partial) -> Leaf:
    """Return the sum of two partial sums; it takes the memory of the left one."""
    assert isinstance(left, list)
    if left:
        torch._foreach_add_(left, right if isinstance(right, list) else add(*right))
    return left


def halves(left: Partial, right: Partial) -> Partial:
    """Leave the last addition to whoever copies the sum: one pass over memory instead of two."""
    assert isinstance(left, list)
    return left, right if isinstance(right, list) else add(*right)


class Sibling:
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
    def none(cls, parameters: Sequence[nn.Parameter]) -> "Sibling":
        """Return what stands for no sibling: nothing is added to the leaf."""
        return _Alone(parameters, [])

    def settle(self, i: int) -> Tensor:
        """Return the sum for parameter i, when its backward is over; autograd must not record."""
        gradient, before = self._parameters[i].grad, self._versions[i]
        if gradient is None:
            return torch.zeros_like(self._parameters[i])
        check_dense(gradient)
        after = gradient._version  # noqa: SLF001 - how often it was added to
        if before < 0 or after == before:
            return gradient.add_(0.0)  # minus zero and zero are zero
        if after != before + 1:
            raise TaskError(TWICE)
        return gradient

    def present(self, i: int) -> bool:
        """Say whether parameter i has a gradient in any leaf, when its backward is over."""
        return self._parameters[i].grad is not None

    @torch.no_grad()
    def settled(self) -> Leaf:
        """Return the sums for all parameters."""
        return [self.settle(i) for i in range(len(self._parameters))]

    def leaf(self) -> Leaf:
        """Return the first leaf alone, while nothing has been added to it."""
        return [*Sibling.none(self._parameters).settled(), *self._changes]

    def marks(self) -> list[bool]:
        """Return for all parameters whether they have a gradient in any leaf."""
        return [p.grad is not None for p in self._parameters]

    def with_changes(self, changes: Leaf) -> Leaf:
        """Return both leaves' changes of the buffers."""
        return add(self._changes, changes)


class _Alone(Sibling):
    leaves = 1

    def settle(self, i: int) -> Tensor:
        gradient = self._parameters[i].grad
        if gradient is None:
            return torch.zeros_like(self._parameters[i])
        check_dense(gradient)
        return gradient

    def with_changes(self, changes: Leaf) -> Leaf:
        return changes


def check_dense(gradient: Tensor) -> None:
    """Refuse a sparse gradient.

    Raises:
        TaskError: it is one.
    """
    if gradient.layout != torch.strided:
        raise TaskError(
            f"a parameter of shape {tuple(gradient.shape)} has a sparse gradient, and sums over "
            "workers are of dense ones: use nn.Embedding(sparse=False)"
        )


TWICE = (
    "a parameter got its gradient in several parts in one backward, as reentrant checkpointing "
    "does it: use torch.utils.checkpoint with use_reentrant=False"
)
