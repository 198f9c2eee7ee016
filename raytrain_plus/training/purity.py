"""Checks that a part is a function of its data, the state and its seeds, and of nothing else.

One part is tried before the first step: it is computed, everything is put back, and it is computed
again. Caches are tried with other data as well: an earlier part must not change the result of a
later one. `parts.py` does a smaller check of the same kind for attributes that first change in a
later step.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raytrain_plus.task import Batch, TaskError, TaskWarning
from raytrain_plus.training.attributes import ABSENT, Place, Slot, same

if TYPE_CHECKING:
    from raytrain_plus.training.loop import TrainingLoop

_LOOK_FOR = (
    "look for a random generator of the task's own (the global ones are seeded for each part), a "
    "counter or a cache outside of the model's buffers, the time, or a seed from the system"
)


def check_function(loop: "TrainingLoop", make_batch: Callable[[], Batch]) -> None:
    """Compute one part several times, and check that the results are equal and leave no trace.

    Args:
        loop: of a replica that has not been trained; it is left as it was.
        make_batch: returns the part's batch; each time a new copy.

    Raises:
        TaskError: the forward or the backward changes a parameter, a gradient is sparse, or the
            part depends on something else; the error names it where it can be found.
    """
    attributes, buffers = loop.buffers.attributes, loop.buffers
    weights = loop.weights.copies()
    outside = loop.buffers_outside()
    with attributes.held():
        first = loop.probe(make_batch())
        attributes.look_closely()
    _warn_of_buffers(loop.parts.moved_by_backward)
    in_place, attributes.fresh = attributes.fresh, []
    changed, left = attributes.changed, attributes.describe()
    kept = loop.bookkeeping.encoded(loop.bookkeeping.slots)
    buffers.restore()
    moved = loop.weights.differing(weights)
    if moved:
        raise TaskError(loop.weights.explain("the forward or the backward", moved[0]))
    if in_place:
        raise TaskError(
            f"{in_place[0].name} is changed, in place or by the backward, and cannot be put back: "
            "make it a buffer (self.register_buffer), which every worker and checkpoint holds"
        )
    attributes.drop_copies()
    if not _equal(first, loop.probe(make_batch())):
        name = _first_changed(outside)
        where = f"buffer {name!r} changes, and the model does not have it: put its module into "
        raise TaskError(
            "the task is not a function of its inputs: one part of the data, computed twice from "
            "the same weights, buffers and seeds, gave different gradients; "
            + (f"{where}task.model()" if name else _LOOK_FOR)
        )
    if loop.bookkeeping.slots:
        _check_bookkeeping(loop, make_batch, first, kept)
    if changed or buffers.cached:
        _check_caches(loop, make_batch, changed, left)
    loop.bookkeeping.admit()


def _first_changed(buffers: Sequence[tuple[str, Tensor, Tensor]]) -> str | None:
    """Return the name of the first buffer that is not as its copy."""
    return next((name for name, value, copy in buffers if not same(value.detach(), copy)), None)


def _warn_of_buffers(names: Sequence[str]) -> None:
    if names:
        more = f" and {len(names) - 1} more" if names[1:] else ""
        warnings.warn(
            f"the backward changes buffer {names[0]!r}{more}, as gradient checkpointing of a norm "
            "does: in plain PyTorch its statistics move twice in a step, and here they move once, "
            "as they do without checkpointing",
            TaskWarning,
            stacklevel=3,
        )


def _check_bookkeeping(
    loop: "TrainingLoop",
    make_batch: Callable[[], Batch],
    first: Sequence[Tensor],
    kept: Mapping[Slot, Any],
) -> None:
    """Compute the first part as in a later step: bookkeeping has moved on, caches are put back.

    Args:
        loop: the loop.
        make_batch: returns the first part's batch.
        first: its leaf.
        kept: the values that it has left of what is bookkeeping.
    """
    attributes, bookkeeping = loop.buffers.attributes, loop.bookkeeping
    before = bookkeeping.encoded(kept)
    bookkeeping.set_between_parts(kept)
    again = loop.probe(make_batch())
    bookkeeping.set_between_parts(before)
    for slot in kept:
        if slot not in before:
            slot.put(ABSENT)
    attributes.snapshot()
    if not _equal(first, again):
        name = next(iter(kept)).name
        raise TaskError(
            f"the task is not a function of its inputs: what it computes depends on {name}, which "
            "the forward changes each time. Make it a buffer (self.register_buffer), or compute "
            "it from the batch"
        )


def _check_caches(
    loop: "TrainingLoop",
    make_batch: Callable[[], Batch],
    changed: Sequence[Slot],
    left: Mapping[Place, Any],
) -> None:
    """Compute a part of other data, alone and after the first one, which must not show in it.

    Args:
        loop: the loop.
        make_batch: returns the first part's batch.
        changed: the attributes that the first part has changed.
        left: what it has left there.
    """
    attributes, buffers = loop.buffers.attributes, loop.buffers
    try:
        with attributes.held():
            alone = loop.probe(_varied(make_batch()))
            now = attributes.describe()
    except Exception:  # noqa: BLE001 - the task may refuse data that is made up
        return
    finally:
        attributes.fresh = []
        buffers.restore()
    with attributes.held():
        loop.probe(make_batch())
        after = loop.probe(_varied(make_batch()))
    attributes.fresh = []
    tables = [buffers.module_of(place) for place in buffers.cached]
    tables += [module for module, _ in buffers.appeared()]
    kept = {slot.place for slot in loop.bookkeeping.slots}
    attributes.adopt(
        place
        for place, value in left.items()
        if place in now
        and attributes.slot_of(place).place not in kept
        and same(value, now[place])
        and not any(attributes.slot_of(place).module is module for module in tables)
    )
    buffers.restore()
    if not _equal(alone, after):
        names = [slot.name for slot in changed] or ["a buffer that the forward replaces"]
        raise TaskError(
            f"what the model computes depends on data that it has seen before, through {names[0]}: "
            "no checkpoint and no other worker has that. Make it a buffer (self.register_buffer), "
            "or compute it from the batch"
        )


def _varied(batch: Batch) -> Batch:
    """Return a batch of the same form with other values."""

    def other(value: object) -> object:
        if not isinstance(value, Tensor) or not value.numel():
            return value
        if value.is_floating_point() or value.is_complex():
            return value * 1.25
        changed = value.clone()
        changed.reshape(-1)[: max(1, value.numel() // 2)] = torch.zeros((), dtype=value.dtype)
        return changed

    return {name: other(value) for name, value in batch.items()}


def _equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(map(same, left, right))
