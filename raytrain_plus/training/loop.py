"""One step of training, the same bits on any number of workers."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from raytrain_plus.algorithms import Step, Weave
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import Batch, Task, TaskError
from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.exchange import Exchange
from raytrain_plus.training.reduction import (
    BUSY_SECONDS,
    LANE_WIDTH,
    LOSS,
    PAUSE,
    SAMPLES,
    TOKENS,
    WEIGHT,
    Leaf,
    Reduced,
    Reduction,
    Rows,
    Wire,
    tree_sum,
)
from raytrain_plus.training.state import Replica


class LossError(ArithmeticError):
    """The loss of a step is not a finite number; the state before that step is whole."""


@dataclass(frozen=True)
class StepResult:
    """What every worker knows after a step.

    Attributes:
        step: committed steps, this one included.
        loss: mean loss over everything that counted in the step.
        pause: whether any worker asks the group to pause.
        busy_seconds: summed busy time of all workers in the step before.
    """

    step: int
    loss: float
    pause: bool
    busy_seconds: float


class TrainingLoop:
    """Runs steps of one replica, in one generation after another.

    Args:
        task: the user's task.
        replica: the state that the steps change.
        weave: the run's aspects, which built the replica.
        enter: called with the name of each phase as it begins, the hook of progress and abort;
            what it raises ends the step, whose traces are undone.
    """

    def __init__(
        self,
        task: Task,
        replica: Replica,
        weave: Weave,
        enter: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.replica = replica
        self.buffers = Buffers(replica.model)
        self._task = task
        self._weave = weave
        self._clock = replica.training.clock
        self._seed = replica.training.seed
        self._epoch: AbstractContextManager[None] | None = None
        self._enter = enter
        in_forward = {id(p): place for place, p in enumerate(replica.model.parameters())}
        self._parameters = sorted(replica.parameters.values(), key=lambda p: in_forward[id(p)])
        self._exchange: Exchange | None = None
        self._cpu_before = time.process_time()

    def begin(self, ranges: Sequence[range], wire: Wire) -> None:
        """Prepare for a generation in which worker i computes the logical ranks `ranges[i]`."""
        self._ranks = ranges[wire.index]
        self.end()
        alone = not self._weave.advises("backward")
        self._exchange = Exchange(
            Reduction(
                self._parameters,
                self.buffers.floating,
                ranges,
                wire,
                self.buffers.integer_bytes,
                self._enter,
            ),
            self._parameters,
            self._ranks,
            ranges[-1].stop,
            merge=alone,
            overlap=alone and wire.size > 1 and wire.device.type == "cpu",
        )
        self.buffers.snapshot()

    def end(self) -> None:
        """End the generation, if there is one."""
        if self._exchange is not None:
            self._exchange.end()
        self._leave_epoch()

    def run_step(self, parts: Sequence[Batch], *, ask_pause: bool = False) -> StepResult:
        """Run one step: a part per logical rank of ours, and one update.

        The join points, in order:

            fit                               around a replica's life (`state.py`)
                epoch                         in each generation that has a part of it
                    step                      on every worker
                        per logical rank:
                            batch
                                forward       outputs of the part
                                loss          one loss per sample
                                backward      gradient of the weighted sum of the losses
                        (all workers exchange their sums)
                        update                gradients are the global mean
                    evaluate                  between steps, when it is due (`evaluation.py`)
                    checkpoint                between steps, when it is due (`checkpoint.py`)

        Args:
            parts: our logical ranks' batches, in order.
            ask_pause: ask the group to pause after this step.

        Raises:
            LossError: the loss is not finite.
            Exception: whatever the task or the wire raises. The replica then stands where it
                stood before the step, unless the update itself had begun: it is then `torn`.
        """
        replica = self.replica
        step = Step(replica.training, replica.step, self._compute)
        self._enter_epoch(step)
        rows = np.zeros((len(self._ranks), LANE_WIDTH))
        rows[0, PAUSE] = ask_pause
        rows[0, BUSY_SECONDS] = self._busy_seconds()
        replica.model.train()
        self.buffers.snapshot()
        with self._weave.around("step", step):
            try:
                reduced = self._sum_over_all(step, parts, rows)
                lane = tree_sum(reduced.lane)
                loss = self._checked_loss(reduced.lane, lane)
                rate_factor = self._task.schedule(self._clock.progress(replica.step))
                self._enter("update")
            except BaseException:
                self.buffers.restore()
                self._drop_gradients()
                raise
            replica.torn = True
            self._update(step, reduced, rate_factor)
        replica.step += 1
        replica.samples += int(lane[SAMPLES])
        replica.tokens += int(lane[TOKENS])
        replica.torn = False
        if replica.step % self._clock.steps_per_epoch == 0:
            self._leave_epoch()
        return StepResult(replica.step, loss, bool(lane[PAUSE] > 0), float(lane[BUSY_SECONDS]))

    def probe(self, batch: Batch) -> Leaf:
        """Compute one leaf on the present state and leave no trace of it."""
        replica = self.replica
        step = Step(replica.training, 0, self._compute)
        replica.model.train()
        self.buffers.snapshot()
        self._run_part(step, 0, batch, np.zeros(LANE_WIDTH), partial(self._backward, step))
        leaf = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self._parameters]
        leaf += self.buffers.changes()
        self._drop_gradients()
        self.buffers.restore()
        return leaf

    def _sum_over_all(self, step: Step, parts: Sequence[Batch], rows: Rows) -> Reduced:
        """Compute our logical ranks' leaves, and exchange their sums with all workers."""
        exchange = self._exchange
        assert exchange is not None
        exchange.begin()
        integers = b""

        def backward(total: Tensor) -> None:
            nonlocal integers
            if step.logical_rank == 0:
                integers = self.buffers.integers()
            if step.logical_rank == self._ranks[-1]:
                exchange.open(rows, integers)
            run = partial(self._backward, step, total)
            exchange.backward(step.logical_rank, self.buffers.changes(), run)

        for row, rank, batch in zip(rows, self._ranks, parts, strict=True):
            self._run_part(step, rank, batch, row, backward)
        self._enter("exchange")
        return exchange.finish()

    def _run_part(
        self,
        step: Step,
        rank: int,
        batch: Batch,
        row: Rows,
        backward: Callable[[Tensor], None],
    ) -> None:
        """Compute the loss of one logical rank's part, and let `backward` take its gradient."""
        self._enter("forward")
        self.buffers.restore()
        self._seed_part(step.number, rank)
        step.logical_rank, step.batch, step.weights, step.notes = rank, batch, None, {}
        with self._weave.around("batch", step):
            self._forward(step)
            losses, weight, samples = _weighted(step)
            total = losses.sum()
            row[LOSS], row[WEIGHT] = total.item(), weight
            row[SAMPLES], row[TOKENS] = samples, samples * _tokens_per_sample(step)
            self._enter("backward")
            backward(total)
        step.outputs = step.losses = None

    def _forward(self, step: Step) -> None:
        with self._weave.around("forward", step):
            step.outputs = self._task.forward(step.model, step.batch)
        with self._weave.around("loss", step):
            step.losses = self._task.loss(step.outputs, step.batch)

    def _compute(self, step: Step, batch: Batch) -> Tensor:
        """Run forward and loss of a batch in the middle of a part, and leave no trace."""
        before = step.batch, step.outputs, step.losses, step.weights
        step.batch, step.weights = batch, None
        try:
            with self.buffers.lent():
                self._forward(step)
            return _weighted(step)[0]
        finally:
            step.batch, step.outputs, step.losses, step.weights = before
            self._seed_part(step.number, step.logical_rank)

    def _seed_part(self, number: int, rank: int) -> None:
        seed_global_generators(seed_for(self._seed, "step", number, rank))

    def _backward(self, step: Step, total: Tensor) -> None:
        with self._weave.around("backward", step):
            total.backward()  # type: ignore[no-untyped-call]

    def _update(self, step: Step, reduced: Reduced, rate_factor: float) -> None:
        """Change the replica: the same on every worker."""
        self.buffers.commit(reduced.buffers, reduced.attachment)
        self.replica.set_learning_rate(rate_factor)
        for parameter, gradient in zip(self._parameters, reduced.gradients, strict=True):
            parameter.grad = gradient
        step.logical_rank = -1
        with self._weave.around("update", step):
            self.replica.optimizer.step()
        self._drop_gradients()

    def _drop_gradients(self) -> None:
        # Not by the optimizer: it may not have all of them, and what it leaves would be added to.
        for parameter in self._parameters:
            parameter.grad = None

    def _checked_loss(self, rows: Rows, lane: Rows) -> float:
        loss = float(lane[LOSS] / lane[WEIGHT]) if lane[WEIGHT] else math.nan
        if not math.isfinite(loss):
            worst = [rank for rank, row in enumerate(rows) if not math.isfinite(row[LOSS])]
            raise LossError(
                f"the loss is {loss} at step {self.replica.step + 1} (logical ranks {worst}): "
                "lower the learning rate, clip the gradient, or look at the data of this step. "
                f"The state after step {self.replica.step} is kept."
            )
        return loss

    def _enter_epoch(self, step: Step) -> None:
        if self._epoch is None:
            epoch = self._weave.around("epoch", step)
            epoch.__enter__()
            self._epoch = epoch

    def _leave_epoch(self) -> None:
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            epoch.__exit__(None, None, None)

    def _busy_seconds(self) -> float:
        before, self._cpu_before = self._cpu_before, time.process_time()
        return self._cpu_before - before


def _weighted(step: Step) -> tuple[Tensor, float, int]:
    """Return the weighted losses, the sum of the weights, and how many are not zero."""
    losses = step.losses
    n = len(next(iter(step.batch.values())))
    if not isinstance(losses, Tensor) or losses.shape != (n,):
        got = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses)
        raise TaskError(
            f"task.loss() must return one loss per sample, a tensor of shape ({n},), and gave "
            f"{got}: use reduction='none' and do not average"
        )
    if step.weights is None:
        return losses, float(n), n
    samples = int(step.weights.count_nonzero().item())
    return losses * step.weights, float(step.weights.sum().item()), samples


def _tokens_per_sample(step: Step) -> int:
    if step.tokens is None:
        return 0
    return math.prod(step.batch[step.tokens].shape[1:])
