"""A copy of a replica's state in memory: all that training waits for when a checkpoint is due."""

import copy
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Optional

import torch
from torch import Tensor

from raytrain_plus.checkpoint.files import Layout, Limits, lay_out
from raytrain_plus.training.state import Replica, Scalars, digest_of


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged, or of another model."""


class Snapshot:
    """A copy of a replica's state, or of one writer's share. It holds no reference to the replica.

    Attributes:
        step: committed steps.
        tensors: copies on the CPU of what `Replica.tensors()` names, in row-major order.
        scalars: a copy of `Replica.scalars()`.
        model: the model's `state_dict()`, in copies that it shares with `tensors`.
    """

    def __init__(
        self, tensors: dict[str, Tensor], scalars: Scalars, model: dict[str, Tensor]
    ) -> None:
        self.step: int = scalars["step"]
        self.tensors = tensors
        self.scalars = scalars
        self.model = model

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        replica: Replica,
        reuse: Optional["Snapshot"] = None,
        layout: Layout | None = None,
        writer: int = 0,
    ) -> "Snapshot":
        """Copy a replica's state.

        The first writer copies all of it, for the digest. Each of the others copies the tensors of
        its own files.

        Args:
            replica: what to copy, between two steps.
            reuse: an older snapshot that is not needed any more. Its memory is reused where it
                fits, since allocating memory costs several times as much as the copy.
            layout: the files of the checkpoint. Default: one worker writes all.
            writer: the number of this writer in the layout.

        Raises:
            CheckpointError: an update has failed, or has made a weight NaN or infinite, so that
                there is no state to keep.
            TaskError: the state holds something that a checkpoint cannot hold, by name.
        """
        if replica.torn:
            raise CheckpointError(
                f"the update after step {replica.step} failed before its end; its state is not kept"
            )
        lost = replica.first_not_finite()
        if lost is not None:
            raise CheckpointError(
                f"the state after step {replica.step} is not kept: {lost} is not finite"
            )
        replica.check_carried()
        spare = {} if reuse is None else reuse.tensors
        state, entries = replica.tensors(), dict(_model_entries(replica))
        if layout is not None and writer > 0:
            mine = {name for piece in layout.shares[writer] for name in piece.names}
            entries = {name: entry for name, entry in entries.items() if name in mine}
            wanted = mine | {full for full, _ in entries.values()}
            state = {name: tensor for name, tensor in state.items() if name in wanted}
        tensors = {name: _copy(t, spare.get(name)) for name, t in state.items()}
        model = {
            name: tensors[full] if full in tensors else _copy(t)
            for name, (full, t) in entries.items()
        }
        return cls(tensors, copy.deepcopy(replica.scalars()), model)

    @property
    def rest(self) -> dict[str, Tensor]:
        """What the model's `state_dict()` does not hold: optimizer, aspects, other buffers."""
        return _rest(self.tensors, self.model)

    def digest(self) -> str:
        """Return what `Replica.digest()` gave at the time of a snapshot of the whole state."""
        return digest_of(self.tensors, self.scalars)


def layout_of(state: Replica | Snapshot, workers: int, limits: Limits | None = None) -> Layout:
    """Return the files of the checkpoint of a state.

    Args:
        state: a replica, or a snapshot of all of its state.
        workers: of the group that writes it.
        limits: sizes and numbers. Default: see `Limits`.
    """
    if isinstance(state, Snapshot):
        model, rest = state.model, state.rest
    else:
        model = {name: tensor for name, (_, tensor) in _model_entries(state)}
        rest = _rest(state.tensors(), model)
    return lay_out(_sizes(model), _sizes(rest), workers, limits)


def _model_entries(replica: Replica) -> Iterator[tuple[str, tuple[str, Tensor]]]:
    """Yield the tensors of the model's `state_dict()`: name, name in the state, tensor."""
    live = replica.model
    named = chain(live.named_parameters(), live.named_buffers())
    names = {id(tensor): f"model/{name}" for name, tensor in named}
    left_out = replica.frozen().keys()
    for name, tensor in live.state_dict(keep_vars=True).items():
        full = names.get(id(tensor), "")
        if isinstance(tensor, Tensor) and full not in left_out:
            yield name, (full, tensor)


def _rest(tensors: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: t for n, t in tensors.items() if n.removeprefix("model/") not in model}


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: tensor.nbytes for name, tensor in tensors.items()}


def _copy(tensor: Tensor, spare: Tensor | None = None) -> Tensor:
    if spare is None or spare.shape != tensor.shape or spare.dtype != tensor.dtype:
        spare = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return spare.copy_(tensor.detach())
