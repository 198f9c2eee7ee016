"""Gradient clipping by global norm (Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063)."""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step

_BLOCK = 1 << 16


class GradientClipping(Aspect):
    """Scale the whole gradient down when its global norm is above `norm`.

    Attributes:
        norm: the largest allowed 2-norm of all gradients together. Default 1.0.
    """

    norm: float = Field(default=1.0, gt=0)

    def update(self, step: Step) -> Advice:
        """Clip before the optimizer sees the gradients."""
        gradients = [p.grad for p in step.model.parameters() if p.grad is not None]
        clip_by_global_norm(gradients, self.norm)
        yield


def clip_by_global_norm(gradients: Sequence[Tensor], norm: float) -> Tensor:
    """Scale gradients in place so that their global 2-norm is at most `norm`.

    The norm is computed on a fixed grid of blocks of each tensor, so that it does not depend on
    how the tensors may be cut into shards.

    Returns:
        The global norm before clipping, a scalar tensor.
    """
    blocks = [block for g in gradients if g.numel() for block in torch.split(g.reshape(-1), _BLOCK)]
    norms = torch._foreach_norm(blocks)  # noqa: SLF001 - one call for all blocks
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    factor = torch.clamp(norm / (total + 1e-6), max=1.0)
    torch._foreach_mul_(list(gradients), factor)
    return total
