"""What a task's loss returns, and the mean that follows from it.

A task returns one loss per sample, or those and one weight per sample. A step's loss is

    sum of weight[i] * loss[i]  /  sum of weight[i]

over all samples of all logical ranks, and the step's gradient is that of this mean. Without weights
each sample counts once. An aspect's weights (`Step.weights`) multiply the task's.

Losses and weights may also have one entry per token: they are summed for each sample. A single
number is the mean over the part and counts as the part's samples.
"""

from typing import Any

import torch
from torch import Tensor

from raytrain_plus.algorithms import Step
from raytrain_plus.task import Batch, TaskError


def set_losses(step: Step, returned: Any) -> None:
    """Check what `task.loss()` has returned for a step's batch, and set it in the step.

    Args:
        step: the step, whose losses and weights are set.
        returned: as `Task.loss` says.

    Raises:
        TaskError: the task returned anything else.
    """
    step.losses, weights = per_sample(returned, step.batch)
    if weights is not None:
        step.weights = weights if step.weights is None else step.weights * weights


def per_sample(
    returned: Any, batch: Batch, what: str = "task.loss()"
) -> tuple[Tensor, Tensor | None]:
    """Check what `task.loss()` has returned for a batch of n samples.

    Args:
        returned: as `Task.loss` says.
        batch: the batch.
        what: what has returned it, for the errors.

    Returns:
        Losses and weights of shape (n,); None for weights that are all one.

    Raises:
        TaskError: the task returned anything else.
    """
    first = next(iter(batch.values()))
    n = first.shape[0] if isinstance(first, Tensor) else len(first)  # len() of one takes 3 times
    losses, weights = returned, None
    if isinstance(returned, tuple):
        if len(returned) != 2:
            raise _not_losses(what, n, f"a tuple of {len(returned)}")
        losses, weights = returned
    if isinstance(losses, Tensor) and losses.shape != (n,) and losses.is_floating_point():
        if losses.dim() == 0:
            losses, weights = _of_a_mean(losses, weights, n)
        elif weights is not None and losses.dim() > 1 and losses.shape[0] == n:
            losses, weights = _summed(losses, weights, what)
    losses = _checked_losses(losses, n, what)
    return losses, None if weights is None else _checked_weights(weights, losses, what)


def total(returned: Any, batch: Batch, what: str) -> Tensor:
    """Return the sum of the weighted values of a batch, and the sum of their weights.

    Args:
        returned: as `Task.loss` says; also numbers, and tensors of whole numbers.
        batch: the batch.
        what: what has returned it, for the errors.

    Returns:
        Shape (2,), float64, on the CPU.

    Raises:
        TaskError: it is anything else.
    """
    values, *weights = returned if isinstance(returned, tuple) else (returned,)
    if isinstance(values, (bool, int, float)):
        values = torch.tensor(float(values))
    if isinstance(values, Tensor) and not values.is_complex():
        values = values.double()
    losses, weight = per_sample((values, *weights) if weights else values, batch, what)
    counts = torch.ones_like(losses) if weight is None else weight.double()
    return torch.stack([(losses * counts).sum(), counts.sum()]).cpu()


def _of_a_mean(mean: Tensor, weight: Any, n: int) -> tuple[Tensor, Any]:
    """Give each of n samples the mean of all, and an equal share of the whole weight."""
    if isinstance(weight, Tensor) and weight.dim() == 0:
        weight = (weight if weight.is_floating_point() else weight.double()) / n
        weight = weight.expand(n)
    return mean.expand(n), weight


def _summed(losses: Tensor, weights: Any, what: str) -> tuple[Tensor, Tensor]:
    """Return each sample's weighted mean over its tokens, and the sum of their weights."""
    weights = _checked_weights(weights, losses, what)
    axes = tuple(range(1, losses.dim()))
    narrow = weights.is_floating_point() and weights.itemsize < 4
    per = weights.sum(axes, dtype=torch.float64 if narrow else None)
    return (losses * weights).sum(axes) / per.where(per != 0, 1), per


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


def _checked_losses(losses: Any, n: int, what: str) -> Tensor:
    if isinstance(losses, Tensor) and losses.shape == (n,) and losses.is_floating_point():
        return losses
    if losses is None:
        raise _not_losses(what, n, "None", "does it end with `return`?")
    if isinstance(losses, (list, dict)):
        got = f"a {type(losses).__name__} of {len(losses)}"
        raise _not_losses(what, n, got, "add up its losses, or torch.stack() those of the samples")
    if not isinstance(losses, Tensor):
        advice = "use reduction='none', and do not take item() or numpy()"
        raise _not_losses(what, n, f"a {type(losses).__name__}", advice)
    shape = tuple(losses.shape)
    got = f"a tensor of shape {shape} and type {losses.dtype}"
    if not losses.is_floating_point():
        raise _not_losses(what, n, got, "losses are floating-point numbers")
    if shape == (n, 1):
        raise _not_losses(what, n, got, "take losses.squeeze(1)")
    if shape[0] == n:
        axes = "1" if len(shape) == 2 else f"{tuple(range(1, len(shape)))}"
        raise _not_losses(
            what,
            n,
            got,
            f"take losses.mean({axes}), or return weights of that shape with the losses",
        )
    if len(shape) == 1 and shape[0] % n == 0:
        raise _not_losses(
            what, n, got, f"take losses.view({n}, -1).mean(1) if each sample has as many"
        )
    raise _not_losses(what, n, got, "use reduction='none' and keep one number for each sample")


def _not_losses(what: str, n: int, got: str, advice: str = "") -> TaskError:
    return TaskError(
        f"{what} must return one number per sample, a tensor of shape ({n},), or a pair of "
        f"those and weights of one shape, and gave {got}" + (f": {advice}" if advice else "")
    )


def _checked_weights(weights: Any, losses: Tensor, what: str) -> Tensor:
    shape = tuple(losses.shape)
    said = f"{what} must return as weights a tensor of shape {shape}"
    if not isinstance(weights, Tensor):
        raise TaskError(f"{said}, and gave a {type(weights).__name__}")
    if weights.shape != shape or weights.is_complex():
        got = f"shape {tuple(weights.shape)} and type {weights.dtype}"
        raise TaskError(f"{said}, one number for each loss, and gave one of {got}")
    if weights.device != losses.device:
        raise TaskError(
            f"{said} on {losses.device} as the losses, and gave one on {weights.device}"
        )
    if weights.requires_grad:
        raise TaskError(f"{said} that depend on no parameter, and they do: use weights.detach()")
    if not bool(((weights >= 0) & torch.isfinite(weights)).all()):
        flat = weights.flatten()
        worst = int((~((flat >= 0) & torch.isfinite(flat))).nonzero()[0])
        raise TaskError(
            f"{said} of numbers that are not negative, and weight {worst} is {flat[worst].item()}"
        )
    return weights
