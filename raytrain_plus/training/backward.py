"""The backward of a part, and the gradients that it leaves.

`Backward` owns `.grad` of all parameters. Only aspects and the optimizer use it, too.

The gradients of one part are a leaf of the tree. Two sibling leaves of one worker are computed one
after the other, and autograd adds the second to the first while it computes it. The sum must be
that of two leaves which were computed apart: a parameter that one of them does not use counts as
zero there, and one that gets its gradient in several parts would be summed in another order. If the
first part of a run shows that, siblings are computed apart. If it begins later, it is refused.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from raytrain_plus.algorithms import Step, Weave
from raytrain_plus.task import TaskError
from raytrain_plus.training.reduction import Leaf
from raytrain_plus.training.state import Replica
from raytrain_plus.training.weights import Weights

TWICE = (
    "a parameter gets its gradient in several parts in one backward, which the first part of the "
    "run did not show: reentrant checkpointing does that (use torch.utils.checkpoint with "
    "use_reentrant=False), or a backward inside of forward or loss (add its loss to the losses)"
)


@dataclass(frozen=True)
class FirstSibling:
    """A leaf that waits in `.grad` for its sibling.

    Attributes:
        versions: per parameter, how often its gradient had been changed in place; -1: it had none.
        changes: the leaf's changes of the buffers.
    """

    versions: list[int]
    changes: Leaf


class Backward:
    """Runs the backward of each part, and owns the gradients of the parameters.

    Args:
        replica: whose parameters are trained.
        weave: the run's aspects.
        weights: watches the parameters, which no backward may change.

    Attributes:
        weights: as above.
        parameters: the trained ones, in the order of the model's.
        may_merge: whether siblings may be added by autograd: no aspect looks at the gradients of
            one leaf, and no parameter gets its gradient in several parts.
        present: per parameter, whether any leaf of this step has a gradient for it.
        ended: when the last backward ended, in seconds of `time.perf_counter`.
    """

    def __init__(self, replica: Replica, weave: Weave, weights: Weights) -> None:
        place = {id(p): i for i, p in enumerate(replica.model.parameters())}
        self.parameters = sorted(replica.parameters.values(), key=lambda p: place[id(p)])
        self.may_merge = not weave.advises("backward")
        self.present = [False] * len(self.parameters)
        self.ended = 0.0
        self._name_of = replica.name_of
        self._weave = weave
        self.weights = weights

    def begin_step(self) -> None:
        """Forget which gradients the leaves of the last step had."""
        self.present = [False] * len(self.parameters)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Let siblings be computed apart if the one backward inside shows that they must be."""
        counts = [0] * len(self.parameters)

        def count(i: int) -> None:
            counts[i] += 1

        hooks = [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                lambda _, i=i: count(i)
            )
            for i, parameter in enumerate(self.parameters)
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        if max(counts) > 1:
            self.may_merge = False

    def run(self, step: Step, loss: Tensor) -> None:
        """Add the gradients of a part's loss to those of the parameters.

        Args:
            step: the step, in the middle of the part.
            loss: the sum of the part's weighted losses.

        Raises:
            Exception: whatever the task or an aspect raises.
        """
        with self._weave.around("backward", step), self.weights.phase("the backward"):
            loss.backward()  # type: ignore[no-untyped-call]
        self.ended = time.perf_counter()

    def keep(self, changes: Leaf) -> FirstSibling:
        """Let the leaf in `.grad` wait for its sibling, which is computed next.

        Args:
            changes: the leaf's changes of the buffers.
        """
        versions = []
        for i, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            versions.append(-1 if gradient is None else gradient._version)  # noqa: SLF001
            if gradient is not None:
                self.present[i] = True
        return FirstSibling(versions, changes)

    def leaf(self, first: FirstSibling | None = None) -> Leaf:
        """Return all gradients; see `gradient`."""
        return [self.gradient(i, first) for i in range(len(self.parameters))]

    def gradient(self, i: int, first: FirstSibling | None = None) -> Tensor:
        """Return the gradient of parameter i, when its backward is over; zeros if there is none.

        Args:
            i: the place in `parameters`.
            first: the sibling to which the leaf was added. The result is then the sum of both.

        Raises:
            TaskError: the gradient is sparse, or it came in several parts.
        """
        parameter = self.parameters[i]
        gradient = parameter.grad
        if gradient is None:
            return torch.zeros_like(parameter)
        if gradient.layout != torch.strided:
            raise TaskError(
                f"parameter {self._name_of(parameter)!r} has a sparse gradient, and sums over "
                "workers are of dense ones: use nn.Embedding(sparse=False)"
            )
        self.present[i] = True
        if gradient.requires_grad:  # an aspect has computed it
            gradient = gradient.detach()
        if first is None:
            return gradient
        before, after = first.versions[i], gradient._version  # noqa: SLF001 - how often it was added to
        if before < 0 or after == before:
            return gradient.add_(0.0)  # minus zero and zero are zero
        if after != before + 1:
            raise TaskError(TWICE)
        return gradient

    def set(self, gradients: Sequence[Tensor], present: Sequence[bool]) -> None:
        """Give the optimizer the step's gradients.

        Args:
            gradients: the mean over all logical ranks, per parameter.
            present: whether any logical rank has the gradient. An optimizer leaves a parameter
                without one alone: neither decay nor momentum move it.
        """
        for parameter, gradient, is_present in zip(
            self.parameters, gradients, present, strict=True
        ):
            parameter.grad = gradient if is_present else None

    def drop(self) -> None:
        """Drop all gradients."""
        # Not by the optimizer: it may not have all of them, and what it leaves would be added to.
        for parameter in self.parameters:
            parameter.grad = None
