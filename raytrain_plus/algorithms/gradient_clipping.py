"""Gradient clipping by global norm, by value, or adaptively.

Global norm: Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063. Adaptively, by the norm of each unit's
weights: Brock et al. 2021, arXiv 2102.06171.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step

_BLOCK = 1 << 16
_LIMITS = {"norm": "norm", "value": "value", "adaptive": "ratio"}


class GradientClipping(Aspect):
    """Make gradients that are too large smaller.

    Attributes:
        norm: for kind "norm", the largest allowed 2-norm of all gradients together. Default 1.0.
        kind: "norm" scales the whole gradient down if its global norm is above `norm`; "value"
            clips each element to [-`value`, `value`]; "adaptive" scales the gradient of each unit
            down if its norm is above `ratio` times the norm of the unit's weights. Default "norm".
        value: for kind "value", the largest allowed absolute value. Default 1.0.
        ratio: for kind "adaptive", the largest allowed ratio of norms. Default 0.01.
    """

    norm: float = Field(default=1.0, gt=0)
    kind: Literal["norm", "value", "adaptive"] = "norm"
    value: float = Field(default=1.0, gt=0)
    ratio: float = Field(default=0.01, gt=0)

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        for kind, limit in _LIMITS.items():
            given = getattr(self, limit)
            if kind != self.kind and given != type(self).model_fields[limit].default:
                raise AspectError(
                    f"{limit}={given} has no effect with kind={self.kind!r}: set "
                    f"{_LIMITS[self.kind]}, or kind={kind!r}"
                )
        return self

    def update(self, step: Step) -> Advice:
        """Clip before the optimizer sees the gradients."""
        parameters = [p for p in step.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if self.kind == "norm":
            clip_by_global_norm(gradients, self.norm)
        elif self.kind == "value":
            clip_by_value(gradients, self.value)
        else:
            clip_adaptively(parameters, gradients, self.ratio)
        yield


def clip_by_global_norm(gradients: Sequence[Tensor], norm: float) -> Tensor:
    """Scale gradients in place so that their global 2-norm is at most `norm`.

    Returns:
        The global norm before clipping, a scalar tensor.
    """
    total = global_norm(gradients)
    factor = torch.clamp(norm / (total + 1e-6), max=1.0)
    torch._foreach_mul_(list(gradients), factor)
    return total


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all tensors together, a scalar tensor.

    It is computed over fixed blocks of each tensor, so that it does not depend on how the tensors
    are cut into shards.
    """
    blocks = [block for t in tensors if t.numel() for block in torch.split(t.reshape(-1), _BLOCK)]
    norms = torch._foreach_norm(blocks)  # noqa: SLF001 - one call for all blocks
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return total


def clip_by_value(gradients: Sequence[Tensor], value: float) -> None:
    """Clip each element of the gradients to [-`value`, `value`], in place."""
    for gradient in gradients:
        gradient.clamp_(-value, value)


@torch.no_grad()
def clip_adaptively(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], ratio: float, floor: float = 1e-3
) -> None:
    """Scale each unit's gradient in place so that its norm is at most `ratio` times its weights'.

    A unit is the weights of one output: a row of a matrix, a filter of a convolution, in general
    one index of the first dimension. A vector or a scalar is one unit.

    Args:
        parameters: the weights.
        gradients: one of each parameter's shape.
        ratio: the largest allowed ratio of the norms, above zero; 0.01 to 0.08 in the paper.
        floor: the least norm that weights count with, so that weights of zero can change. Default
            1e-3.
    """
    for parameter, gradient in zip(parameters, gradients, strict=True):
        allowed = ratio * _unit_norms(parameter).clamp(min=floor)
        gradient.mul_((allowed / _unit_norms(gradient).clamp(min=1e-6)).clamp(max=1.0))


def _unit_norms(tensor: Tensor) -> Tensor:
    if tensor.ndim <= 1:
        dimensions: tuple[int, ...] | None = None
    else:
        dimensions = tuple(range(1, tensor.ndim))
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dimensions, keepdim=True)
    return norms
