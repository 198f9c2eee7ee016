"""Stochastic depth (Huang et al. 2016, arXiv 1603.09382)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.algorithms.aspect import Advice, Aspect, AspectError, Step
from raytrain_plus.algorithms.residual_branches import residual_branches
from raytrain_plus.algorithms.surgery import Surgery


class StochasticDepth(Aspect):
    """Drop residual branches at random in training.

    A kept branch is divided by its probability of being kept, as in torchvision. Evaluation drops
    nothing and scales nothing, as the plain model. The paper scales in evaluation instead.

    Attributes:
        drop_rate: the probability of dropping the last branch, in [0, 1). Default 0.2.
        decay: "linear" raises the probability from the first branch to the last, in equal steps, as
            in the paper; "uniform" uses `drop_rate` for all. Default "linear".
        mode: "batch" drops a branch for all samples of a logical rank, which saves its time;
            "sample" drops it for each sample independently, which saves no time. Default "batch".
    """

    drop_rate: float = Field(default=0.2, ge=0, lt=1)
    decay: Literal["linear", "uniform"] = "linear"
    mode: Literal["batch", "sample"] = "batch"

    def fit(self, step: Step) -> Advice:
        """Change how residual branches compute in training."""
        surgery = apply_stochastic_depth(
            step.model,
            drop_rate=self.drop_rate,
            decay=self.decay,
            mode=self.mode,
            optimizer=step.optimizer,
        )
        yield
        surgery.undo()


def apply_stochastic_depth(
    model: nn.Module,
    *,
    drop_rate: float = 0.2,
    decay: Literal["linear", "uniform"] = "linear",
    mode: Literal["batch", "sample"] = "batch",
    optimizer: Optimizer | None = None,
) -> Surgery:
    """Make a model drop residual branches at random in training, in place.

    Each forward draws from PyTorch's global CPU generator.

    Args:
        model: a model with blocks that `residual_branches` knows.
        drop_rate: the probability of dropping the last branch, in [0, 1).
        decay: "linear" or "uniform".
        mode: "batch" or "sample".
        optimizer: may be left out; no parameter is added.

    Raises:
        AspectError: the model has no known residual branch, or the rate is not in [0, 1).
    """
    if not 0 <= drop_rate < 1:
        raise AspectError(
            f"drop_rate={drop_rate} is not in [0, 1): choose one that is, such as 0.2"
        )
    surgery = Surgery(model, optimizer)
    branches = residual_branches(model)
    # A compiled graph cannot hold both cases. Not imported at the top: this import takes a second.
    draw = torch.compiler.disable(_is_drawn)  # type: ignore[no-untyped-call]
    for rate, branch in zip(drop_rates(len(branches), drop_rate, decay), branches, strict=True):
        if not isinstance(branch.module, _Droppable):
            surgery.mix_in(
                branch.name,
                branch.module,
                _DroppableBlock if branch.whole else _DroppableBranch,
                branch_drop_rate=rate,
                drops_per_sample=mode == "sample",
                is_drawn=draw,
            )
    return surgery


def drop_rates(branches: int, last: float, decay: Literal["linear", "uniform"]) -> list[float]:
    """Return the probability of dropping each branch, from the first to the last.

    Args:
        branches: number of branches, L.
        last: the probability of dropping the last branch.
        decay: "linear" for `last * l / L` of branch l = 1 to L; "uniform" for `last` of all.
    """
    if decay == "uniform":
        return [last] * branches
    return [last * branch / branches for branch in range(1, branches + 1)]


def drop_samples(branch: Tensor, rate: float) -> Tensor:
    """Set a branch to zero for random samples; divide the others by the probability to keep them.

    Args:
        branch: shape (n, ...).
        rate: the probability of zero, in [0, 1).
    """
    kept = (torch.rand(len(branch)) >= rate) / (1 - rate)
    # Drawn on the CPU, so that the same samples are dropped on each kind of device.
    factors = kept.to(device=branch.device, dtype=branch.dtype)
    return branch * factors.reshape(-1, *[1] * (branch.ndim - 1))


def _is_drawn(rate: float) -> bool:
    return bool(torch.rand(()) < rate)


class _Droppable:
    branch_drop_rate: float
    drops_per_sample: bool
    is_drawn: Callable[[float], bool]
    training: bool

    def _is_dropped(self) -> bool:
        return not self.drops_per_sample and self.is_drawn(self.branch_drop_rate)

    def _scale(self, branch: Tensor) -> Tensor:
        if self.drops_per_sample:
            return drop_samples(branch, self.branch_drop_rate)
        return branch / (1 - self.branch_drop_rate)


class _DroppableBranch(_Droppable):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.training or not self.branch_drop_rate:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc,no-any-return]
        if self._is_dropped():
            return x.new_zeros(())  # broadcast to the shape of the shortcut
        return self._scale(super().forward(x, *args, **kwargs))  # type: ignore[misc]


class _DroppableBlock(_Droppable):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not self.training or not self.branch_drop_rate:
            return super().forward(x, *args, **kwargs)  # type: ignore[misc,no-any-return]
        if self._is_dropped():
            return x
        y = super().forward(x, *args, **kwargs)  # type: ignore[misc]
        if not isinstance(y, Tensor):
            raise AspectError(
                f"a block returned a {type(y).__name__}, and only one that returns a tensor can be "
                "dropped: use transformers 5 or later, or do without StochasticDepth"
            )
        return x + self._scale(y - x)
