"""Ghost batch normalisation (Hoffer, Hubara, Soudry 2017, arXiv 1705.08741)."""

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery

_KINDS: tuple[type[nn.Module], ...] = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GhostBatchNorm(Aspect):
    """Normalise over small groups of samples, whatever the size of the batch.

    Each logical rank normalises its part of a batch alone in any case; this divides the part
    further.

    Attributes:
        size: the fewest samples of a ghost batch. Default 32.
    """

    size: int = Field(default=32, ge=1)

    def fit(self, step: Step) -> Advice:
        """Change how batch normalisations compute in training."""
        surgery = apply_ghost_batch_norm(step.model, size=self.size, optimizer=step.optimizer)
        surgery.warn_if_unchanged(self.name, "BatchNorm1d, BatchNorm2d and BatchNorm3d layers")
        yield
        surgery.undo()


def apply_ghost_batch_norm(
    model: nn.Module, *, size: int = 32, optimizer: Optimizer | None = None
) -> Surgery:
    """Make the batch normalisations of a model normalise ghost batches, in place.

    This holds in training only, and only if a batch has at least two ghost batches. As in the
    paper, each ghost batch in turn updates the running statistics with the layer's momentum, so
    that one step moves them further than without ghost batches.

    Args:
        model: the model.
        size: the fewest samples of a ghost batch.
        optimizer: may be left out; no parameter is added.
    """
    surgery = Surgery(model, optimizer)
    for kind in _KINDS:
        for name, module in surgery.candidates(kind, _InGhostBatches):
            surgery.mix_in(name, module, _InGhostBatches, ghost_size=size)
    return surgery


def ghost_batches(batch: Tensor, size: int) -> tuple[Tensor, ...]:
    """Divide a batch into as many ghost batches of at least `size` samples as it holds.

    Args:
        batch: shape (n, ...).
        size: at least 1.

    Returns:
        `max(1, n // size)` views, in order, whose sizes differ by at most one.
    """
    return torch.tensor_split(batch, max(1, len(batch) // size))


class _InGhostBatches:
    ghost_size: int
    training: bool

    def forward(self, x: Tensor) -> Tensor:
        ghosts = ghost_batches(x, self.ghost_size) if self.training else (x,)
        normalized = [super(_InGhostBatches, self).forward(g) for g in ghosts]  # type: ignore[misc]
        return normalized[0] if len(normalized) == 1 else torch.cat(normalized)
