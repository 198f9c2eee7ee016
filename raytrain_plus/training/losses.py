"""What a task's loss returns, and the mean that follows from it.

A task returns one loss per sample, or those and one weight per sample. A step's loss is

    sum of weight[i] * loss[i]  /  sum of weight[i]

over all samples of all logical ranks, and the step's gradient is that of this mean. Without weights
each sample counts once. An aspect's weights (`Step.weights`) multiply the task's.
"""

from typing import Any

import torch
from torch import Tensor

from raytrain_plus.algorithms import Step
from raytrain_plus.task import TaskError


def set_losses(step: Step, returned: Any) -> None:
    """Check what `task.loss()` has returned for a step's batch, and set it in the step.

    Args:
        step: the step, whose losses and weights are set.
        returned: one loss per sample, shape (n,), or a pair of those and of weights, shape (n,).

    Raises:
        TaskError: the task returned anything else.
    """
    first = next(iter(step.batch.values()))
    n = first.shape[0] if isinstance(first, Tensor) else len(first)  # len() of one takes 3 times
    losses, weights = returned, None
    if isinstance(returned, tuple):
        if len(returned) != 2:
            raise _not_losses(n, f"a tuple of {len(returned)}")
        losses, weights = returned
    step.losses = _checked_losses(losses, n)
    if weights is not None:
        checked = _checked_weights(weights, step.losses)
        step.weights = checked if step.weights is None else step.weights * checked


def weighted(step: Step) -> tuple[Tensor, float, int]:
    """Return the weighted losses, the sum of the weights, and how many are not zero.

    Raises:
        TaskError: the losses do not depend on any parameter, or a weight is no number.
    """
    losses, weights = step.losses, step.weights
    assert losses is not None
    if not losses.requires_grad and torch.is_grad_enabled():
        raise TaskError(
            "task.loss() returned losses that do not depend on any trainable parameter: compute "
            "them from the outputs, without torch.no_grad(), detach(), item() or numpy()"
        )
    if weights is None:
        n = losses.shape[0]
        return losses, float(n), n
    exact = torch.float64 if weights.is_floating_point() and weights.itemsize < 4 else None
    total = float(weights.sum(dtype=exact).item())
    return losses * weights, total, int(weights.count_nonzero().item())


def _checked_losses(losses: Any, n: int) -> Tensor:
    if isinstance(losses, Tensor) and losses.shape == (n,) and losses.is_floating_point():
        return losses
    if losses is None:
        raise _not_losses(n, "None", "does it end with `return`?")
    if isinstance(losses, (list, dict)):
        got = f"a {type(losses).__name__} of {len(losses)}"
        raise _not_losses(n, got, "add up its losses, or torch.stack() those of the samples")
    if not isinstance(losses, Tensor):
        advice = "use reduction='none', and do not take item() or numpy()"
        raise _not_losses(n, f"a {type(losses).__name__}", advice)
    shape = tuple(losses.shape)
    got = f"a tensor of shape {shape} and type {losses.dtype}"
    if not losses.is_floating_point():
        raise _not_losses(n, got, "losses are floating-point numbers")
    if shape == ():
        raise _not_losses(n, got, "use reduction='none' and do not average")
    if shape == (n, 1):
        raise _not_losses(n, got, "take losses.squeeze(1)")
    if shape[0] == n:
        axes = "1" if len(shape) == 2 else f"{tuple(range(1, len(shape)))}"
        raise _not_losses(
            n, got, f"take losses.mean({axes}), or the weighted mean of each sample and its weight"
        )
    if len(shape) == 1 and shape[0] % n == 0:
        raise _not_losses(n, got, f"take losses.view({n}, -1).mean(1) if each sample has as many")
    raise _not_losses(n, got, "use reduction='none' and keep one number for each sample")


def _not_losses(n: int, got: str, advice: str = "") -> TaskError:
    return TaskError(
        f"task.loss() must return one loss per sample, a tensor of shape ({n},), or a pair of "
        f"losses and weights of that shape, and gave {got}" + (f": {advice}" if advice else "")
    )


def _checked_weights(weights: Any, losses: Tensor) -> Tensor:
    n = len(losses)
    said = f"task.loss() must return as weights a tensor of shape ({n},)"
    if not isinstance(weights, Tensor):
        raise TaskError(f"{said}, and gave a {type(weights).__name__}")
    if weights.shape != (n,) or weights.is_complex():
        got = f"shape {tuple(weights.shape)} and type {weights.dtype}"
        raise TaskError(f"{said}, one number for each sample, and gave one of {got}")
    if weights.device != losses.device:
        raise TaskError(
            f"{said} on {losses.device} as the losses, and gave one on {weights.device}"
        )
    if weights.requires_grad:
        raise TaskError(f"{said} that depend on no parameter, and they do: use weights.detach()")
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        worst = int((~((weights >= 0) & torch.isfinite(weights))).nonzero()[0])
        raise TaskError(
            f"{said} of numbers that are not negative, and weight {worst} is "
            f"{weights[worst].item()}"
        )
    return weights
