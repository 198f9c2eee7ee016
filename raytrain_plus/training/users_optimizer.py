"""What `task.optimizer(model)` returned: whether it can be used, and whether its step may draw."""

import inspect
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from raytrain_plus.task import Task, TaskError

_INSTEAD = (
    "write the schedule as task.schedule(progress), which returns the factor on the learning rate "
    "at a point of the run from 0 to 1, and create no scheduler"
)


def check_optimizer(optimizer: Optimizer) -> None:
    """Check that an optimizer can be used as the task returned it.

    Raises:
        TaskError: it takes its steps with a closure.
    """
    if _needs_closure(optimizer):
        raise TaskError(
            f"the optimizer {type(optimizer).__name__} needs a closure that computes the loss "
            "again, several times per update, and an update here has the gradient of one batch "
            "only: use an optimizer whose step() can be called without one"
        )


def check_schedule(task: Task, optimizer: Optimizer) -> None:
    """Check that no torch scheduler sets the learning rate of a task's optimizer.

    It is called after the first part was tried: a mistake in forward or loss is named first.

    Raises:
        TaskError: a scheduler sets it, or has set it.
    """
    check_unscheduled(optimizer)
    for name, value in vars(task).items():
        if isinstance(value, LRScheduler) and value.optimizer is optimizer:
            raise TaskError(_steered(optimizer, f"{type(value).__name__} (task.{name})"))
    for place, group in enumerate(optimizer.param_groups):
        initial, rate = (_number(group.get(key)) for key in ("initial_lr", "lr"))
        if "initial_lr" in group and initial != rate:
            raise TaskError(
                f"parameter group {place} of the optimizer holds initial_lr={initial} and "
                f"lr={rate}, as a scheduler leaves it: {_INSTEAD}"
            )


def check_unscheduled(optimizer: Optimizer) -> None:
    """Check that there is no torch scheduler of an optimizer.

    Raises:
        TaskError: there is one.
    """
    for inner in _and_inner(optimizer):
        if hasattr(inner.step, "_wrapped_by_lr_sched"):
            raise TaskError(_steered(inner, "a torch scheduler"))


def may_draw(optimizer: Any) -> bool:
    """Say whether an optimizer's step may draw random numbers: those of torch.optim do not."""
    return bool(
        not type(optimizer).__module__.startswith("torch.optim.")
        or "step" in vars(optimizer)
        or optimizer._optimizer_step_pre_hooks  # noqa: SLF001
        or optimizer._optimizer_step_post_hooks  # noqa: SLF001
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


def _and_inner(optimizer: Any) -> Iterable[Any]:
    """Return an optimizer, and those that it wraps in its attributes."""
    return [optimizer, *(v for v in vars(optimizer).values() if isinstance(v, Optimizer))]


def _needs_closure(optimizer: Any) -> bool:
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return False  # the scheduler's wrapper hides what step() takes: see `check_schedule`
    try:
        parameters = inspect.signature(optimizer.step).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(
        p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        for p in parameters
    )


def _steered(optimizer: Any, scheduler: str) -> str:
    return (
        f"the learning rate of the optimizer {type(optimizer).__name__} is set by {scheduler}, and "
        f"schedulers are not run here: {_INSTEAD}"
    )


def _number(rate: Any) -> Any:
    return rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate
