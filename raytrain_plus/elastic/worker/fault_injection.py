"""What a worker does to itself when a fault wants it: only it has the memory and the arithmetic."""

import time
from typing import Any

import torch
from torch import Tensor

from raytrain_plus.checkpoint.upload import Uploads
from raytrain_plus.storage.errors import StoreError
from raytrain_plus.storage.store import Store
from raytrain_plus.task import Task
from raytrain_plus.training.state import Replica

_ERROR = 1e-3  # relative


class WorkerFaults:
    """A worker's parts that can be damaged.

    Args:
        task: computes the losses.
        replica: holds the weights.
        uploads: write to the store.
    """

    def __init__(self, task: Task, replica: Replica, uploads: Uploads) -> None:
        self._task = task
        self._replica = replica
        self._uploads = uploads

    def flip_bit(self, draw: int) -> None:
        """Flip one bit of one weight; which one follows from a 64-bit number."""
        # Autograd must not notice, as it would not notice a broken memory chip.
        weights = [p.data for p in self._replica.parameters.values() if p.numel()]
        weight = weights[draw % len(weights)]
        raw = weight.reshape(-1).view(torch.uint8)
        assert raw.data_ptr() == weight.data_ptr(), "a copy of the weight would be flipped"
        place = draw // len(weights)
        raw[place % len(raw)] ^= 1 << (place // len(raw) % 8)

    def miscompute(self) -> None:
        """Let all arithmetic be wrong from now on."""
        right = self._task.loss

        def wrong(outputs: Any, batch: Any) -> Tensor | tuple[Tensor, Tensor]:
            losses = right(outputs, batch)
            if isinstance(losses, tuple):
                return losses[0] * (1 + _ERROR), losses[1]
            return losses * (1 + _ERROR)

        object.__setattr__(self._task, "loss", wrong)  # a task may be a frozen dataclass

    def spoil_gradient(self) -> None:
        """Let the next gradient be NaN, though the loss is a number."""
        right, spoiled = self._task.loss, False

        def spoiling(outputs: Any, batch: Any) -> Tensor | tuple[Tensor, Tensor]:
            nonlocal spoiled
            losses = right(outputs, batch)
            values, *weights = losses if isinstance(losses, tuple) else (losses,)
            if spoiled or not values.requires_grad:
                return losses
            spoiled = True
            values = values + (0.0 * values).sqrt()  # adds zero; its slope there is infinite
            return (values, weights[0]) if weights else values

        object.__setattr__(self._task, "loss", spoiling)

    def lose_store(self, seconds: float) -> None:
        """Let the checkpoint store be out of reach for some seconds."""
        self._uploads.store = _OutOfReach(self._uploads.store, seconds)


class _OutOfReach(Store):
    def __init__(self, store: Store, seconds: float) -> None:
        super().__init__(store.url, store.options)
        self._store = store
        self._until = time.monotonic() + seconds

    def inside(self, folder: str) -> Store:
        if time.monotonic() < self._until:
            raise StoreError(f"{self.url} could not be reached: a fault keeps it away")
        return self._store.inside(folder)
