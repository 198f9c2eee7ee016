"""Weight standardisation of convolutions (Qiao et al. 2019, arXiv 1903.10520)."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, Step
from raytrain_plus.algorithms.surgery import Surgery


class WeightStandardization(Aspect):
    """Give each filter of each convolution mean 0 and variance 1 before it is used.

    Attributes:
        eps: added to the variance of a filter before the root. Default 1e-5.
        ignore_last: number of convolutions, counted from the end of the model, that are left
            unchanged, because no normalisation follows them. Default 0.
    """

    eps: float = Field(default=1e-5, gt=0)
    ignore_last: int = Field(default=0, ge=0)

    runs_after: ClassVar[Sequence[str]] = ("BlurPool",)

    def fit(self, step: Step) -> Advice:
        """Change how convolutions compute; the plain model has the standardised weights."""
        surgery = apply_weight_standardization(
            step.model, eps=self.eps, ignore_last=self.ignore_last, optimizer=step.optimizer
        )
        surgery.warn_if_unchanged(
            self.name,
            "Conv1d, Conv2d and Conv3d layers with more than one weight per filter, "
            f"the last {self.ignore_last} left out",
        )
        yield
        surgery.undo()


def apply_weight_standardization(
    model: nn.Module,
    *,
    eps: float = 1e-5,
    ignore_last: int = 0,
    optimizer: Optimizer | None = None,
) -> Surgery:
    """Make the convolutions of a model standardise their weights, in place.

    The parameters stay unchanged; each forward computes the standardised weights from them. Left
    unchanged are transposed convolutions, and filters of a single weight, which would become zero.

    Args:
        model: the model.
        eps: added to the variance.
        ignore_last: number of convolutions, counted from the end, that are left unchanged.
        optimizer: may be left out; no parameter is added.

    Returns:
        What was done; its `undo` writes the standardised weights into the parameters, so that the
        plain model computes the same.
    """
    surgery = Surgery(model, optimizer)
    all_of_them = [m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    chosen = {id(conv) for conv in all_of_them[: max(0, len(all_of_them) - ignore_last)]}
    for name, conv in surgery.candidates(_ConvNd, _Standardized):
        if id(conv) in chosen and conv.weight[0].numel() > 1:
            surgery.mix_in(name, conv, _Standardized, standardization_eps=eps)
    weights = {id(conv.weight): conv.weight for conv in _convolutions(surgery)}

    @torch.no_grad()
    def keep_function() -> None:
        for weight in weights.values():  # each once, even if layers share one
            weight.copy_(standardize_weight(weight, eps))

    surgery.on_undo(keep_function)
    return surgery


def standardize_weight(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Return `(weight - mean) / sqrt(variance + eps)`, per filter.

    Args:
        weight: shape (filters, ...).
        eps: above zero.

    Returns:
        The same shape; each filter has mean 0 and a variance of almost 1.
    """
    dimensions = tuple(range(1, weight.ndim))
    variance, mean = torch.var_mean(weight, dim=dimensions, correction=0, keepdim=True)
    return (weight - mean) * torch.rsqrt(variance + eps)


class _Standardized:
    standardization_eps: float

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        standard = standardize_weight(weight, self.standardization_eps)
        y: Tensor = super()._conv_forward(x, standard, bias)  # type: ignore[misc]
        return y


def _convolutions(surgery: Surgery) -> list[_ConvNd]:
    return [module for module in surgery.changed.values() if isinstance(module, _ConvNd)]
