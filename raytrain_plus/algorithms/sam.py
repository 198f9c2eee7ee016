"""Sharpness-aware minimisation (Foret et al. 2020, arXiv 2010.01412)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.gradient_clipping import global_norm


class SAM(Aspect):
    """Take the gradient not at the weights, but where the loss near them is highest.

    Each logical rank perturbs the weights by its own gradient: the paper's m-sharpness, with m the
    samples of a logical rank. Both passes draw the same dropout. The reported loss and the
    BatchNorm statistics are those of the perturbed weights.

    Attributes:
        rho: the 2-norm of the perturbation; 0 for none. Default 0.05.
        interval: number of steps from one perturbed step to the next; the others are ordinary
            steps. Default 1.
    """

    runs_after = ("*",)  # both passes must see the batch as the others have changed it

    rho: float = Field(default=0.05, ge=0)
    interval: int = Field(default=1, ge=1)

    def batch(self, step: Step) -> Advice:
        """Perturb the weights for a logical rank's forward and backward."""
        if self.rho == 0 or step.number % self.interval:
            return
        parameters = [p for p in step.model.parameters() if p.requires_grad]
        loss = step.compute(step.batch).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with perturbed(parameters, gradients, self.rho):
            yield


@contextmanager
def perturbed(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor | None], rho: float
) -> Iterator[None]:
    """Move parameters along their gradient, and restore them bit for bit afterwards.

    Args:
        parameters: the parameters to move, in place.
        gradients: one per parameter, of its shape; None leaves the parameter unchanged.
        rho: the 2-norm of the whole move, `rho * gradient / (norm of all gradients)`.
    """
    moved = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    before = [p.detach().clone() for p, _ in moved]
    try:
        with torch.no_grad():
            scale = rho / (global_norm([g for _, g in moved]) + 1e-12)
            for parameter, gradient in moved:
                parameter.add_(gradient * scale)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), value in zip(moved, before, strict=True):
                parameter.copy_(value)
