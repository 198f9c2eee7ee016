"""A model's buffers, kept independent of which worker computes which logical rank.

Every logical rank's forward starts from the buffers as they stood at the start of the step, never
from what the logical rank before it on the same worker left behind. Afterwards a floating buffer
(a BatchNorm statistic) moves by the mean of its changes over all logical ranks, summed in the same
tree as the gradient; an integer buffer (a counter) takes the value that logical rank 0 gave it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raytrain_plus.training.state import tensor_bytes


class Buffers:
    """The buffers of a model during one step.

    Attributes:
        start: all buffers as they were at the last snapshot, the floating ones first.
        floating: tensors like the floating buffers, in name order.
        integer_bytes: the size of all other buffers together, in bytes.
    """

    def __init__(self, model: nn.Module) -> None:
        places: list[tuple[nn.Module, str, Tensor]] = []
        seen: set[int] = set()
        for _, module in sorted(model.named_modules()):
            for key, value in sorted(module.named_buffers(recurse=False)):
                if id(value) not in seen:
                    seen.add(id(value))
                    places.append((module, key, value))
        floating = [p for p in places if p[2].is_floating_point() or p[2].is_complex()]
        integer = [p for p in places if not (p[2].is_floating_point() or p[2].is_complex())]
        self._places = [*floating, *integer]
        self._n_floating = len(floating)
        self.start = [value.detach().clone() for _, _, value in self._places]
        self.floating = self.start[: self._n_floating]
        self.integer_bytes = sum(t.numel() * t.element_size() for t in self.start[len(floating) :])

    def snapshot(self) -> None:
        """Take the present values as those from which every logical rank starts."""
        for start, value in zip(self.start, self.values(), strict=True):
            start.copy_(value.detach())

    def restore(self) -> None:
        """Put the values of the last snapshot back, in place."""
        for (module, key, value), start in zip(self._places, self.start, strict=True):
            value.detach().copy_(start)
            module._buffers[key] = value  # noqa: SLF001 - a forward may have put another one here

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the model work on copies of the last snapshot for a while.

        A graph may keep what it was lent; the model's own buffers are not touched.
        """
        own = self.values()
        for (module, key, _), start in zip(self._places, self.start, strict=True):
            module._buffers[key] = start.clone()  # noqa: SLF001
        try:
            yield
        finally:
            for (module, key, _), value in zip(self._places, own, strict=True):
                module._buffers[key] = value  # noqa: SLF001

    @torch.no_grad()
    def changes(self) -> list[Tensor]:
        """Return how far each floating buffer has moved since the snapshot.

        What has not moved gives exactly zero, infinite masks and tables included. That zero is
        negative, since adding a positive one would turn the buffer's own negative zeros over.
        """
        return [
            torch.where(value == start, -torch.zeros_like(start), value - start)
            for value, start in zip(self.values(), self.floating, strict=False)
        ]

    def integers(self) -> bytes:
        """Return the present values of all buffers that are not floating."""
        return b"".join(tensor_bytes(value) for value in self.values()[self._n_floating :])

    @torch.no_grad()
    def commit(self, mean_changes: Sequence[Tensor], integers: bytes) -> None:
        """Set the values that end the step: the same on every worker."""
        self.restore()
        values = self.values()
        for value, change in zip(values, mean_changes, strict=False):
            value.add_(change)
        offset = 0
        for value in values[self._n_floating :]:
            size = value.numel() * value.element_size()
            if size:
                raw = torch.frombuffer(
                    bytearray(integers[offset : offset + size]), dtype=value.dtype
                )
                value.copy_(raw.view(value.shape))
            offset += size

    def values(self) -> list[Tensor]:
        """Return the model's buffers in the order of `start`; no copies."""
        return [module._buffers[key] for module, key, _ in self._places]  # type: ignore[misc]  # noqa: SLF001
