"""One logical rank's part of a step: forward, one loss per sample, and their weighted sum."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from raytrain_plus.algorithms import Step, Weave
from raytrain_plus.seeds import seed_for, seed_global_generators
from raytrain_plus.task import CURRENT_LOG, Batch, Task, TaskError
from raytrain_plus.training.attributes import Place, Slot, same
from raytrain_plus.training.backward import Backward
from raytrain_plus.training.bookkeeping import Bookkeeping
from raytrain_plus.training.buffers import Buffers
from raytrain_plus.training.losses import set_losses, weighted
from raytrain_plus.training.reduction import Leaf
from raytrain_plus.training.state import Replica
from raytrain_plus.training.step_header import HEADER_WIDTH, LOSS, SAMPLES, TOKENS, WEIGHT, Rows

_INSTEAD = (
    "no checkpoint and no other worker has it. Make it a buffer (self.register_buffer), draw from "
    "the global generators of torch, NumPy or Python, or compute it from the batch"
)


class Parts:
    """Computes parts, each from the buffers of the last snapshot and from seeds of its own.

    Args:
        task: the user's task.
        replica: the state; only gradients and buffers change.
        weave: the run's aspects.
        buffers: the model's.
        bookkeeping: of the same attributes.
        backward: of the parts, and the watch over the parameters.
        enter: called with the name of each phase as it begins.

    Attributes:
        moved_by_backward: names of the buffers that the backward of the last `leaf` has changed.
    """

    def __init__(
        self,
        task: Task,
        replica: Replica,
        weave: Weave,
        buffers: Buffers,
        bookkeeping: Bookkeeping,
        backward: Backward,
        enter: Callable[[str], None],
    ) -> None:
        self._task = task
        self._weave = weave
        self._seed = replica.training.seed
        self._buffers = buffers
        self._attributes = buffers.attributes
        self._bookkeeping = bookkeeping
        self._advised = weave.advises_parts
        self._weights = backward.weights
        self._backward = backward
        self._enter = enter
        self.moved_by_backward: list[str] = []

    def begin_part(self, step: Step, rank: int, batch: Batch) -> None:
        """Begin one logical rank's part: from the buffers of the snapshot, and from its own seed.

        Args:
            step: the step, which holds the part from now on.
            rank: the logical rank.
            batch: its part of the batch.
        """
        self._enter("forward")
        self._buffers.restore()
        self._bookkeeping.begin_part(rank)
        self._seed_part(step.number, rank)
        step.logical_rank, step.batch, step.weights, step.notes = rank, batch, None, {}
        step.scalars.begin_part(batch)

    def loss(self, step: Step, row: Rows) -> Tensor:
        """Run forward and loss of the part that has begun; return the sum of its weighted losses.

        Args:
            step: the step, inside of the `batch` advice.
            row: the logical rank's row of the step header, which is filled.
        """
        logging = CURRENT_LOG.set(step.log)
        try:
            self._forward(step)
        finally:
            CURRENT_LOG.reset(logging)
        losses, weight, samples = weighted(step)
        if not self._advised:  # advice may freeze parameters for a while
            self._weights.check_trained("the forward or the loss")
        if self._attributes.fresh or self._buffers.has_new():
            self._settle(step, losses)
        total = losses.sum()
        row[LOSS], row[WEIGHT] = step.scalars.end_part(total), weight
        row[SAMPLES], row[TOKENS] = samples, _tokens(step, samples)
        self._enter("backward")
        return total

    def leaf(self, step: Step, rank: int, batch: Batch) -> Leaf:
        """Compute one leaf, gradients and then changes of the buffers, and leave no trace of it.

        No gradients may be pending. The buffers must be at a snapshot, and are so afterwards.

        Raises:
            TaskError: among others, a phase of the part changes a parameter.
        """
        self.begin_part(step, rank, batch)
        with self._weights.each_phase(), self._weave.around("batch", step):
            loss = self.loss(step, np.zeros(HEADER_WIDTH))
            changes = self._buffers.changes()  # as in a step: before the backward
            left = self._buffers.copies()
            self._backward.run(step, loss)
        self.moved_by_backward = self._buffers.differing(left)
        step.outputs = step.losses = None
        leaf = [*self._backward.leaf(), *changes]
        self._backward.drop()
        self._buffers.restore()
        return leaf

    def losses(self, step: Step, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Run forward and loss of a batch in the middle of a part, and leave no trace.

        Returns:
            The weighted losses, and the weights that are in them, or None for all ones.
        """
        before = step.batch, step.outputs, step.losses, step.weights
        logged = step.scalars.collected()
        step.batch, step.weights = batch, None
        try:
            with self._buffers.lent():
                self._forward(step)
            return weighted(step)[0], step.weights
        finally:
            step.batch, step.outputs, step.losses, step.weights = before
            step.scalars.replace(logged)
            self._seed_part(step.number, step.logical_rank)

    def _forward(self, step: Step) -> None:
        attributes, advised, weights = self._attributes, self._advised, self._weights
        with self._weave.around("forward", step):
            if advised:  # advice may have set attributes, and takes care of them itself
                attributes.snapshot()
            with weights.phase("the forward"):
                step.outputs = self._task.forward(step.model, step.batch)
            if advised:
                attributes.note()
        with self._weave.around("loss", step):
            if advised:
                attributes.snapshot()
            with weights.phase("the loss"):
                set_losses(step, self._task.loss(step.outputs, step.batch))
            attributes.note()

    def _settle(self, step: Step, losses: Tensor) -> None:
        """Find out what the forward has left in Python for the first time.

        The part is computed once more, from what the first computation has left. A cache and a
        last value are then equal to what they were. Bookkeeping differs, and the losses are equal.
        All three are put back after each part from now on.

        Raises:
            TaskError: the forward has left something else.
        """
        attributes, buffers, bookkeeping = self._attributes, self._buffers, self._bookkeeping
        fresh, attributes.fresh = attributes.fresh, []
        names = [slot.name for slot in fresh] or buffers.names_of(buffers.appeared())
        name, does = names[0], "changes later results"
        for keep in (buffers.rebound(), buffers.rebound() | buffers.moved_in(fresh)):
            left = attributes.describe() | buffers.describe(keep)
            values = bookkeeping.encoded(attributes.changed)
            again, now = self._again(step, keep)
            changed = [place for place in now if not same(left.get(place), now[place])]
            slots = self._slots_of(changed)
            plain = all(slot in values for slot in slots)
            kept = {slot: values[slot] for slot in slots if plain and slot}
            bookkeeping.set_in_part(kept)
            if plain and same(losses.detach(), again) and self._is_apart(step, losses, kept):
                buffers.cached |= keep if fresh else set()
                attributes.fresh = []
                bookkeeping.keep(kept)
                return
            if changed and slots[0] is not None:
                name, does = slots[0].name, "changes each time that the model computes"
            if kept:
                does += ", and results depend on it"
                break
        raise TaskError(
            f"the task is not a function of its inputs: {name} is set in the forward and "
            f"{does}: {_INSTEAD}"
        )

    def _slots_of(self, places: Sequence[Place]) -> list[Slot | None]:
        """Return the attribute at each place; None if it is a buffer's."""
        described = self._attributes.describe()
        return [self._attributes.slot_of(p) if p in described else None for p in places]

    def _is_apart(self, step: Step, losses: Tensor, kept: Mapping[Slot, Any]) -> bool:
        """Say whether the losses are the same when only the bookkeeping is left changed."""
        if not kept or self._attributes.is_held:  # `purity.py` tries that itself
            return True
        with self._attributes.suspended():
            self._bookkeeping.set_in_part(kept)
            again, _ = self._again(step, set())
        self._bookkeeping.set_in_part(kept)
        return same(losses.detach(), again)

    def _again(self, step: Step, keep: set[int]) -> tuple[Tensor, dict[Place, Any]]:
        """Compute the present part again; return the losses, and what this computation has left.

        Args:
            step: the step, in the middle of a part.
            keep: places of the buffers that are left as well.
        """
        before = step.outputs, step.losses, step.weights, step.notes
        logged = step.scalars.collected()
        self._enter("forward")  # so that the additional time does not count as a hang
        try:
            with self._buffers.replayed(keep):
                self._seed_part(step.number, step.logical_rank)
                step.weights, step.notes = None, {}
                self._forward(step)
                losses = weighted(step)[0].detach()
                return losses, self._attributes.describe() | self._buffers.describe(keep)
        finally:
            step.outputs, step.losses, step.weights, step.notes = before
            step.scalars.replace(logged)

    def _seed_part(self, number: int, rank: int) -> None:
        seed_global_generators(seed_for(self._seed, "step", number, rank))


def _tokens(step: Step, samples: int) -> int:
    """Return the tokens of the samples that count."""
    if step.tokens is None:
        return 0
    found = step.batch[step.tokens]
    if isinstance(found, Tensor):
        return samples * math.prod(found.shape[1:])
    lengths = [len(row) for row in found]
    weights = step.weights
    if samples == len(lengths) or weights is None or len(weights) != len(lengths):
        return sum(lengths)
    kept = (weights != 0).tolist()
    return sum(length for length, counts in zip(lengths, kept, strict=True) if counts)
