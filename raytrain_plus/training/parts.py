"""One logical rank's part of a step: forward, one loss per sample, backward of their sum."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raytrain_plus.algorithms import Step, Weave
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import Batch, Task
from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.losses import take_losses, weighted
from raytrain_plus.training.reduction import (
    LANE_WIDTH,
    LOSS,
    SAMPLES,
    TOKENS,
    WEIGHT,
    Leaf,
    Rows,
)
from raytrain_plus.training.state import Replica


class Parts:
    """Computes parts, each from the buffers of the last snapshot and from seeds of its own.

    Args:
        task: the user's task.
        replica: the state; only gradients and buffers change.
        weave: the run's aspects.
        buffers: the model's.
        enter: called with the name of each phase as it begins.
    """

    def __init__(
        self,
        task: Task,
        replica: Replica,
        weave: Weave,
        buffers: Buffers,
        enter: Callable[[str], None],
    ) -> None:
        self._task = task
        self._weave = weave
        self._seed = replica.training.seed
        self._buffers = buffers
        self._enter = enter
        in_forward = {id(p): place for place, p in enumerate(replica.model.parameters())}
        self.parameters = sorted(replica.parameters.values(), key=lambda p: in_forward[id(p)])

    def run(
        self,
        step: Step,
        rank: int,
        batch: Batch,
        row: Rows,
        backward: Callable[[Tensor], None],
    ) -> None:
        """Compute the loss of one logical rank's part, and let `backward` take its gradient.

        Args:
            step: the step; afterwards what it knows of the part is dropped.
            rank: the logical rank.
            batch: its part of the batch.
            row: its row of the control lane, filled before the backward.
            backward: is given the sum of the weighted losses.
        """
        self._enter("forward")
        self._buffers.restore()
        self._seed_part(step.number, rank)
        step.logical_rank, step.batch, step.weights, step.notes = rank, batch, None, {}
        with self._weave.around("batch", step):
            self._forward(step)
            losses, weight, samples = weighted(step)
            total = losses.sum()
            row[LOSS], row[WEIGHT] = total.item(), weight
            row[SAMPLES], row[TOKENS] = samples, samples * _tokens_per_sample(step)
            self._enter("backward")
            backward(total)
        step.outputs = step.losses = None

    def backward(self, step: Step, total: Tensor) -> None:
        """Add the gradient of a part to those of the parameters."""
        with self._weave.around("backward", step):
            total.backward()  # type: ignore[no-untyped-call]

    def leaf(self, step: Step, rank: int, batch: Batch) -> Leaf:
        """Compute one leaf, gradients and then changes of the buffers, and leave no trace of it.

        No gradients may be pending. The buffers must be at a snapshot, and are so afterwards.
        """
        self.run(step, rank, batch, np.zeros(LANE_WIDTH), partial(self.backward, step))
        leaf = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        leaf += self._buffers.changes()
        self.drop_gradients()
        self._buffers.restore()
        return leaf

    def drop_gradients(self) -> None:
        """Drop all gradients."""
        # Not by the optimizer: it may not have all of them, and what it leaves would be added to.
        for parameter in self.parameters:
            parameter.grad = None

    def losses(self, step: Step, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Run forward and loss of a batch in the middle of a part, and leave no trace.

        Returns:
            The weighted losses, and the weights that are in them, or None for all ones.
        """
        before = step.batch, step.outputs, step.losses, step.weights
        step.batch, step.weights = batch, None
        try:
            with self._buffers.lent():
                self._forward(step)
            return weighted(step)[0], step.weights
        finally:
            step.batch, step.outputs, step.losses, step.weights = before
            self._seed_part(step.number, step.logical_rank)

    def _forward(self, step: Step) -> None:
        with self._weave.around("forward", step):
            step.outputs = self._task.forward(step.model, step.batch)
        with self._weave.around("loss", step):
            take_losses(step, self._task.loss(step.outputs, step.batch))

    def _seed_part(self, number: int, rank: int) -> None:
        seed_global_generators(seed_for(self._seed, "step", number, rank))


def _tokens_per_sample(step: Step) -> int:
    if step.tokens is None:
        return 0
    return math.prod(step.batch[step.tokens].shape[1:])
