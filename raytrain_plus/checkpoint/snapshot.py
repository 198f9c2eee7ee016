"""A copy of a replica's state in memory: all that training waits for when a checkpoint is due."""

import copy
from itertools import chain
from typing import Optional

import torch
from torch import Tensor

from raytrain_plus.training.state import Replica, Scalars, digest_of


class CheckpointError(ValueError):
    """A checkpoint that is incomplete, damaged, or of another model."""


class Snapshot:
    """A copy of a replica's state between two steps. It holds no reference to the replica.

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
    def of(cls, replica: Replica, reuse: Optional["Snapshot"] = None) -> "Snapshot":
        """Copy a replica's state.

        Args:
            replica: what to copy, between two steps.
            reuse: an older snapshot that is not needed any more. Its memory is reused where it
                fits, since allocating memory costs several times as much as the copy.

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
        tensors = {name: _copy(t, spare.get(name)) for name, t in replica.tensors().items()}
        live = replica.model
        named = chain(live.named_parameters(), live.named_buffers())
        names = {id(tensor): f"model/{name}" for name, tensor in named}
        left_out = replica.frozen().keys()
        model = {
            name: tensors[names[id(t)]] if id(t) in names else _copy(t)
            for name, t in live.state_dict(keep_vars=True).items()
            if isinstance(t, Tensor) and names.get(id(t)) not in left_out
        }
        return cls(tensors, copy.deepcopy(replica.scalars()), model)

    @property
    def rest(self) -> dict[str, Tensor]:
        """What the model's `state_dict()` does not hold: optimizer, aspects, other buffers."""
        return {n: t for n, t in self.tensors.items() if n.removeprefix("model/") not in self.model}

    def digest(self) -> str:
        """Return what `Replica.digest()` gave at the time of the snapshot."""
        return digest_of(self.tensors, self.scalars)


def _copy(tensor: Tensor, spare: Tensor | None = None) -> Tensor:
    if spare is None or spare.shape != tensor.shape or spare.dtype != tensor.dtype:
        spare = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    return spare.copy_(tensor.detach())
