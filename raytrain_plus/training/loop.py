"""One step of training, the same bits on any number of workers."""

import copy
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raytrain_plus.algorithms import Step, Weave
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import Batch, Task, TaskError
from raytrain_plus.training.admission import check_first_update
from raytrain_plus.training.backward import Backward
from raytrain_plus.training.bits import bit_sum
from raytrain_plus.training.bookkeeping import Bookkeeping
from raytrain_plus.training.bucket import Group
from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.building import learning_rate_factor
from raytrain_plus.training.busy_time import BusyTime
from raytrain_plus.training.corruption import CorruptionError, Guard
from raytrain_plus.training.exchange import Exchange, Subtree
from raytrain_plus.training.modes import TrainingMode, evaluated
from raytrain_plus.training.not_finite import explain
from raytrain_plus.training.parts import Parts
from raytrain_plus.training.reduction import Leaf, Reduced, Reduction, group_of
from raytrain_plus.training.round_trip import rehearsed
from raytrain_plus.training.state import Replica
from raytrain_plus.training.step_header import (
    BUSY_SECONDS,
    CHECKPOINT,
    COMPUTE_SECONDS,
    HEADER_WIDTH,
    LOSS,
    PAUSE,
    SALVAGED,
    SAMPLES,
    SEEN_SECONDS,
    TOKENS,
    UNSEEN_SECONDS,
    WEIGHT,
    Rows,
)
from raytrain_plus.training.users_optimizer import Groups, may_draw
from raytrain_plus.training.weights import Weights
from raytrain_plus.training.wire import Wire


class LossError(ArithmeticError):
    """The loss of a step is not a finite number; the state before that step is whole.

    Attributes:
        ranks: the logical ranks from which it comes.
    """

    def __init__(self, text: str, ranks: Collection[int] = ()) -> None:
        super().__init__(text)
        self.ranks: Collection[int] | None = ranks


class StateError(ArithmeticError):
    """An update has made the state NaN or infinite; the newest checkpoint is an older one."""


class GradientError(ArithmeticError):
    """A step's gradient is not finite; the state before that step is whole."""

    ranks: Collection[int] | None = None  # the sum does not say which


class StepResult(NamedTuple):
    """What every worker knows after a step, bit for bit the same.

    Attributes:
        step: committed steps, this one included.
        loss: mean loss over everything that counted in the step.
        pause: whether any worker asks the group to pause.
        busy_seconds: summed busy time of all workers in the step before (`BusyTime`).
        checkpoint: whether any worker asks for a checkpoint of this step.
        compute_seconds: for each worker of the group, the wall time that it computed in the step
            before, in seconds, without waiting for others. 0.0 if it is not known: in a
            generation's first step, and after a step in which something was salvaged.
        exchange_seconds: of the exchange of the step before, as seen by the worker that finished
            computing last: how long it waited for the sums of all, and an upper bound of how long
            the exchange ran during its computing, in seconds. (0.0, 0.0) if it is not known.
        salvaged: how many logical ranks were not computed again, because a failed attempt at this
            step had left their sums.
        logged: scalars that the task and aspects have logged, by name.
    """

    step: int
    loss: float
    pause: bool
    busy_seconds: float
    checkpoint: bool = False
    compute_seconds: tuple[float, ...] = ()
    exchange_seconds: tuple[float, float] = (0.0, 0.0)
    salvaged: int = 0
    logged: Mapping[str, float] = MappingProxyType({})  # a NamedTuple has no default_factory


class TrainingLoop:
    """Runs steps of one replica, in one generation after another.

    Args:
        task: the user's task.
        replica: the state that the steps change.
        weave: the run's aspects, which built the replica.
        enter: called with the name of each phase as it begins, for progress and abort. An error
            that it raises ends the step, and the step's changes are undone.
        check_every: compare the replicas' states every so many committed steps; 0: never. Only the
            update may change the state in such a step.
        audit_every: compute the leaf of one logical rank a second time, every so many steps.
        watch_task: watch the attributes of the task and of its module as well: put back what a part
            changes there, or refuse it. The process then has one loop at a time. Default: watch
            the model's attributes only.
    """

    def __init__(
        self,
        task: Task,
        replica: Replica,
        weave: Weave,
        enter: Callable[[str], None] = lambda _: None,
        *,
        check_every: int = 0,
        audit_every: int = 0,
        watch_task: bool = False,
    ) -> None:
        self.replica = replica
        self.buffers = Buffers(replica.model, task if watch_task else None)
        self._task, self._at_start = task, {**vars(task)}
        self._weave = weave
        self._groups = Groups(replica.optimizer)
        self._clock = replica.training.clock
        self._mode = TrainingMode(replica.model)
        self._seed = replica.training.seed
        self._epoch: AbstractContextManager[None] | None = None
        self._enter = enter
        self.bookkeeping = Bookkeeping(replica, self.buffers.attributes)
        self.weights = Weights(replica.model, in_phases=weave.advises_parts)
        self._backward = Backward(replica, weave, self.weights)
        self._parameters = self._backward.parameters
        self.parts = Parts(
            task,
            replica,
            weave,
            self.buffers,
            self.bookkeeping,
            self._backward,
            self._enter_phase,
        )
        self._exchange: Exchange | None = None
        self._group: Group | None = None
        self.guard = Guard(replica, self.buffers, check_every, audit_every, self._reproduce)
        self._example: tuple[Step, int, Batch] | None = None
        self._admitted = False
        self._device = self._parameters[0].device if self._parameters else torch.device("cpu")
        self._busy = BusyTime(self._device)
        self._compute_seconds, self._exchange_seconds = 0.0, (0.0, 0.0)
        self._salvaged: list[Subtree] = []
        self._salvaged_at = (0, 0)

    def group_of(self, ranges: Sequence[range]) -> Group:
        """Return how workers sum of which each has these logical ranks."""
        if self._group is None or self._group.ranges != ranges:
            buffers = self.buffers.floating
            self._group = group_of(self._parameters, buffers, ranges, self._device)
        return self._group

    def begin_generation(self, ranges: Sequence[range], wire: Wire, *, alike: bool = True) -> None:
        """Prepare for a generation in which worker i computes the logical ranks `ranges[i]`.

        Args:
            ranges: of all workers.
            wire: to the others.
            alike: all workers compute the same bits, so that a difference is an error.
        """
        self.end_generation()
        self._wire = wire
        self._ranks = ranges[wire.index]
        self._compute_seconds, self._exchange_seconds = 0.0, (0.0, 0.0)
        if self._salvaged_at != (self.replica.step, self.replica.loads):
            self._salvaged = []
        self._n_ranks = ranges[-1].stop
        group = self.group_of(ranges)
        self._reduction = Reduction(
            self._parameters, self.buffers.floating, ranges, wire, enter=self._enter, group=group
        )
        self._exchange = Exchange(
            self._reduction,
            self._backward,
            self._ranks,
            self._n_ranks,
            overlap=self._backward.may_merge and wire.size > 1 and wire.device.type == "cpu",
        )
        self.buffers.snapshot()
        rounds = group.part(wire.index).doubling.rounds
        self.guard.begin_generation(ranges, wire, rounds, alike=alike)
        self._place = wire.index
        self._busy.resume()

    def end_generation(self) -> None:
        """End the generation, if there is one."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._salvaged += exchange.end_generation()
        self._leave_epoch()
        self._busy.pause()

    def run_step(
        self,
        parts: Sequence[Batch],
        *,
        ask_pause: bool = False,
        ask_checkpoint: bool = False,
        audit_part: Batch | None = None,
    ) -> StepResult:
        """Run one step: one part for each of our logical ranks, and one update.

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
            ask_checkpoint: ask for a checkpoint of this step.
            audit_part: the audited logical rank's batch, if we are its auditor (`Guard.audit_of`).

        Raises:
            CorruptionError: some replica's memory or arithmetic is wrong.
            LossError: the loss is not finite.
            StateError, GradientError: the weights, or a gradient, are not finite.
            Exception: whatever the task or the wire raises. The replica is then as it was before
                the step, unless the update had begun: it is then `torn`.
        """
        replica, exchange = self.replica, self._exchange
        assert exchange is not None, "begin_generation() comes first"
        step = Step(replica.training, replica.step, self.parts.losses)
        self.weights.begin_step()
        self._enter_epoch(step)
        rows = self._rows(ask_pause, ask_checkpoint)
        self._mode.set()
        self.buffers.snapshot()
        with self._weave.around("step", step):
            try:
                reduced = self._sum_over_all(exchange, step, parts, rows)
                self._compare(exchange, step, audit_part)
                # Before any decision by what was received: after an abort it may be garbage.
                self._wire.fence()
                loss = self._checked_loss(reduced)
                rate_factor = self._rate_factor()
                self._enter("update")
            except BaseException as error:
                self._give_up(exchange, error)
                if isinstance(error, (LossError, GradientError)):
                    self._explain(error, step, parts)
                raise
            exchange.clear()  # its memory is needed elsewhere
            replica.torn = True
            self._update(step, reduced, rate_factor)
        self._commit(reduced.header)
        self.guard.note()
        return self._result(reduced, loss, step.scalars.with_outside(reduced.logged))

    def check_state(self) -> None:
        """Check that the state is worth keeping.

        Raises:
            StateError: an update has made a weight, or something that the optimizer keeps, NaN or
                infinite, though its gradient was finite.
        """
        lost = self.replica.first_not_finite()
        if lost is not None:
            raise StateError(
                f"{lost} is not finite after step {self.replica.step}, though the gradients were: "
                "the update overflowed, so lower the learning rate, or raise the optimizer's eps. "
                "No checkpoint of this state is kept; an older one stays the newest"
            )

    def probe(self, batch: Batch) -> Leaf:
        """Compute one leaf on the present state and leave no trace of it."""
        self.replica.model.train()
        self.buffers.snapshot()
        step = Step(self.replica.training, 0, self.parts.losses)
        with self._backward.counted():
            return self.parts.leaf(step, 0, batch)

    def drop_part(self) -> None:
        """Put back what a probe that has failed has changed."""
        self.buffers.restore()
        self._backward.drop()

    def buffers_outside(self) -> list[tuple[str, Tensor, Tensor]]:
        """Return the buffers of modules that the task holds outside of the model, with copies."""
        return [
            (f"task.{attribute}.{name}", buffer, buffer.detach().clone())
            for attribute, held in vars(self._task).items()
            if isinstance(held, nn.Module) and held is not self.replica.model
            for name, buffer in held.named_buffers()
        ]

    def _sum_over_all(
        self, exchange: Exchange, step: Step, parts: Sequence[Batch], rows: Rows
    ) -> Reduced:
        """Compute our logical ranks' leaves, and exchange their sums with all workers."""
        self._example = step, self._ranks[0], dict(parts[0])
        self.bookkeeping.begin_step()
        self._groups.begin_step()
        self.buffers.attributes.snapshot()  # between two steps the task and aspects may set some
        self._reduction.header.attachment_bytes = self.buffers.integer_bytes + self.bookkeeping.room
        salvaged, self._salvaged = self._salvaged, []
        self._salvaged_at = self.replica.step, self.replica.loads
        audit = self.guard.audit_of(step.number)
        exchange.begin_step(rows, salvaged, None if audit is None else audit[0])
        began = time.perf_counter()
        for row, rank, batch in zip(rows, self._ranks, parts, strict=True):
            if not exchange.reuse(rank):
                self._add_part(exchange, step, rank, batch, row)
        self._check_weights()
        ended = max(began, self._backward.ended)
        if self._device.type != "cpu":  # the device may still compute
            torch.accelerator.synchronize(self._device)
            ended = time.perf_counter()
        self._compute_seconds = 0.0 if salvaged else ended - began
        self._enter("exchange")
        try:
            reduced = exchange.finish()
        finally:
            waited = time.perf_counter() - ended
            self._busy.waited(waited)
        self._exchange_seconds = waited, exchange.overlapped_seconds
        return reduced

    def _add_part(self, exchange: Exchange, step: Step, rank: int, batch: Batch, row: Rows) -> None:
        """Compute one logical rank's part, and add its gradient to the step's sums."""
        self.parts.begin_part(step, rank, batch)
        with self._weave.around("batch", step):
            loss = self.parts.loss(step, row)
            attachment = b""
            if rank == 0:
                attachment = self.buffers.integers() + self.bookkeeping.message()
            exchange.backward(step, loss, self.buffers.changes(), attachment)
        step.outputs = step.losses = None

    def _check_weights(self) -> None:
        """Check that the parts of the step have left weights and parameter groups alone.

        Where aspects may act between the phases of a part, each phase was checked.

        Raises:
            TaskError: they have not.
        """
        self._groups.check("the forward, the loss or the backward")
        changed = None if self._weave.advises_parts else self.weights.changed()
        if changed is None:
            return
        self._backward.drop()
        with suppress(ArithmeticError, RuntimeError):  # a look for the phase that does it
            assert self._example is not None
            self.parts.leaf(*self._example)
        raise TaskError(self.weights.explain("the forward, the loss or the backward", changed))

    def _compare(self, exchange: Exchange, step: Step, audit_part: Batch | None) -> None:
        """Compare with all workers what must be equal, before the update."""
        if not self.guard.watches(step.number):
            return
        second, audit = None, self.guard.audit_of(step.number)
        if audit_part is not None and audit is not None and audit[1] == self._place:
            batch = dict(audit_part)  # it may be a part of ours, too, and advice changes it
            second = bit_sum(self.parts.leaf(step, audit[0], batch))
        self._enter("exchange")
        finding = self.guard.compare(exchange.audited_bits, second)
        if finding is not None:
            exchange.clear()  # sums of a wrong worker must not be salvaged
            raise CorruptionError(step.number, finding)

    def _reproduce(self, *, in_step: bool) -> None:
        """Run the task's code again, to find out whether it, and not the memory, changes weights.

        Raises:
            TaskError: the task's code changes weights.
        """

        def run() -> None:
            if in_step and self._example is not None:
                self.parts.leaf(*self._example)
                return
            step = Step(self.replica.training, self.replica.step)
            weights = evaluated(self.replica.model, self.replica.optimizer)
            with weights, self._weave.around("evaluate", step):
                pass

        changed = self.weights.changed_by(run)
        if changed:
            what = "the forward or the backward, or an aspect's advice around them,"
            if not in_step:
                what = "an aspect's advice around the evaluation"
            raise TaskError(self.weights.explain(what, changed[0]))

    def _give_up(self, exchange: Exchange, error: BaseException) -> None:
        """Put back what an unfinished step has changed.

        Raises:
            TaskError: the parts have changed weights, which may have led to the error.
        """
        exchange.interrupt()
        self.buffers.restore()
        self._backward.drop()
        if isinstance(error, CorruptionError):
            self._wire.fence()
        elif isinstance(error, Exception):
            self._check_weights()

    def _explain(
        self, error: "LossError | GradientError", step: Step, parts: Sequence[Batch]
    ) -> None:
        """Add to an error where the numbers stop being finite, if that is in one of our parts."""
        for rank, batch in zip(self._ranks, parts, strict=True):
            if error.ranks is not None and rank not in error.ranks:
                continue
            compute = partial(self.parts.leaf, step, rank, batch)
            found = explain(self.replica.model, batch, compute)
            if found:
                error.args = (f"{error} {found}",)
                return

    def _update(self, step: Step, reduced: Reduced, rate_factor: float) -> None:
        """Change the replica: the same on every worker."""
        self.buffers.commit(reduced.buffers, reduced.attachment)
        told = reduced.attachment[self.buffers.integer_bytes :]
        self.bookkeeping.commit(told, self._n_ranks)
        if self.replica.scheduling is None:
            self.replica.set_learning_rate(rate_factor)
        self._backward.set(reduced.gradients, reduced.present)
        step.logical_rank = -1
        # The parts have left the generators where they stand, and each worker had other parts.
        if not self._weave.observes or may_draw(self.replica.optimizer):
            seed_global_generators(seed_for(self._seed, "update", step.number))
        with self._weave.around("update", step), rehearsed(self.replica, self._build_another):
            self.replica.update()
        self.weights.check_kinds()
        self._backward.drop()

    def _rate_factor(self) -> float:
        """Return the task's factor on the learning rate.

        Raises:
            TaskError: it is no factor; or schedule() adds parameters to the optimizer, and would
                add them again in a newcomer, whose optimizer has them already.
        """
        progress, groups = self._clock.progress(self.replica.step), self._groups
        factor = learning_rate_factor(self._task, progress)
        if groups.have_other_members():
            groups.begin_step()
            with suppress(Exception):
                newcomers = copy.copy(self._task)
                vars(newcomers).clear()
                vars(newcomers).update(self._at_start)
                newcomers.schedule(progress)
                if not groups.have_other_members():
                    return factor
            groups.begin_step()
            raise TaskError(
                "task.schedule() adds a parameter group, and would add it again in each new worker "
                "and after each resume, whose optimizer has it already: decide by the groups that "
                "the optimizer has (optimizer.param_groups), and not by a note of the task's own"
            )
        return factor

    def _commit(self, header: Sequence[float]) -> None:
        """Count the step: the replica is whole again, one step further."""
        replica = self.replica
        replica.step += 1
        replica.samples += int(header[SAMPLES])
        replica.tokens += int(header[TOKENS])
        replica.torn = False
        if not self._admitted:
            check_first_update(replica)
            self._admitted = True
        if replica.step % self._clock.steps_per_epoch == 0:
            self._leave_epoch()

    def _build_another(self) -> Replica:
        """Build a replica as a newcomer does, and leave the task and its aspects unchanged."""
        aspects = [type(one).model_validate(one.model_dump()) for one in self._weave.aspects]
        device = next(iter(self._parameters)).device
        with self.buffers.attributes.undone():
            return Replica.build(
                copy.copy(self._task), self._seed, device, weave=Weave(aspects), clock=self._clock
            )

    def _result(self, reduced: Reduced, loss: float, logged: Mapping[str, float]) -> StepResult:
        header = reduced.header
        compute, seen, unseen = reduced.of_workers.T.tolist()
        # The worker that waited least had computed last: the others waited for it as well.
        last = seen.index(min(seen))
        return StepResult(
            self.replica.step,
            loss,
            pause=header[PAUSE] > 0,
            busy_seconds=header[BUSY_SECONDS],
            checkpoint=header[CHECKPOINT] > 0,
            compute_seconds=tuple(compute),
            exchange_seconds=(seen[last], unseen[last]),
            salvaged=int(header[SALVAGED]),
            logged=logged,
        )

    def _checked_loss(self, reduced: Reduced) -> float:
        """Return the loss, if everything is as the update needs it."""
        header = reduced.header
        if not header[WEIGHT]:
            raise LossError(
                f"no sample counts in step {self.replica.step + 1}: the weights of all samples are "
                "zero, so that the loss has no mean. Are all labels of this batch ignored? "
                "Leave samples without a label out of the data, mix them with others, or use "
                f"larger batches. The state after step {self.replica.step} is kept."
            )
        loss = header[LOSS] / header[WEIGHT]
        if not math.isfinite(loss):
            losses = self._reduction.header.losses()
            self.check_state()
            worst = [rank for rank, one in enumerate(losses) if not math.isfinite(one)]
            raise LossError(
                f"the loss is {loss} at step {self.replica.step + 1} (logical ranks {worst}): "
                "lower the learning rate, clip the gradient, or look at the data of this step. "
                f"The state after step {self.replica.step} is kept.",
                worst,
            )
        self._check_gradients(reduced)
        self.weights.check()
        return loss

    def _check_gradients(self, reduced: Reduced) -> None:
        if reduced.finite:
            return
        for parameter, gradient in zip(self._parameters, reduced.gradients, strict=True):
            bad = int((~torch.isfinite(gradient)).sum())
            if bad:
                name = self.replica.name_of(parameter)
                raise GradientError(
                    f"the gradient of parameter {name!r} is not finite at step "
                    f"{self.replica.step + 1}, though the loss is: {bad} of "
                    f"{gradient.numel()} values are NaN or infinite. Look for a root, logarithm "
                    "or quotient at zero, or an overflow in low precision. "
                    f"The state after step {self.replica.step} is kept."
                )

    def _enter_phase(self, phase: str) -> None:
        self._enter(phase)

    def _enter_epoch(self, step: Step) -> None:
        if self._epoch is None:
            epoch = self._weave.around("epoch", step)
            epoch.__enter__()
            self._epoch = epoch

    def _leave_epoch(self) -> None:
        epoch, self._epoch = self._epoch, None
        if epoch is not None:
            epoch.__exit__(None, None, None)

    def _rows(self, ask_pause: bool, ask_checkpoint: bool) -> Rows:
        """Return our rows of the step header, with what is known before the parts are computed."""
        rows = np.zeros((len(self._ranks), HEADER_WIDTH))
        rows[0, PAUSE] = ask_pause
        rows[0, CHECKPOINT] = ask_checkpoint
        rows[0, BUSY_SECONDS] = self._busy.read_and_reset()
        rows[0, COMPUTE_SECONDS] = self._compute_seconds
        rows[0, SEEN_SECONDS], rows[0, UNSEEN_SECONDS] = self._exchange_seconds
        return rows
