"""What `task.optimizer(model)` returned: whether it can be used, and what may change it."""

import inspect
import sys
from collections.abc import Iterable, Mapping
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from raytrain_plus.task import Task, TaskError
from raytrain_plus.training.lr_scheduler import ATTRIBUTE, belongs

_INSTEAD = (
    "return it with the optimizer, as (optimizer, scheduler), so that it is stepped and kept in "
    "checkpoints; or write the schedule as task.schedule(progress), which returns the factor on "
    "the learning rate at a point of the run from 0 to 1"
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
        if (
            isinstance(value, LRScheduler)
            and value.optimizer is optimizer
            and not belongs(optimizer, value)
        ):
            raise TaskError(_steered(optimizer, f"{type(value).__name__} (task.{name})"))
    for place, group in enumerate(optimizer.param_groups):
        if hasattr(optimizer, ATTRIBUTE):
            break  # it may have set the first learning rate
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


def check_unscaled(task: Task, model: nn.Module, optimizer: Any) -> None:
    """Check that no torch.amp.GradScaler scales a task's losses.

    It is called after the first part was tried: a scaler that was not used is left alone.

    Raises:
        TaskError: one does.
    """
    module = sys.modules.get(type(task).__module__)
    held: list[tuple[str, Mapping[str, Any]]] = [
        ("task.", vars(task)),
        ("optimizer.", vars(optimizer)),
        *(("model.", vars(one)) for one in model.modules()),
        ("", vars(module) if module is not None else {}),
    ]
    for owner, values in held:
        for name, value in [*values.items()]:
            if isinstance(value, GradScaler) and getattr(value, "_scale", None) is not None:
                raise TaskError(
                    f"the losses are scaled by a torch.amp.GradScaler ({owner}{name}), and nothing "
                    "here divides the gradients by its scale: return the losses as they are, and "
                    "use bfloat16 (torch.autocast), which needs no scaling"
                )


class Groups:
    """Watches an optimizer's parameter groups, which no part of a step may change.

    Args:
        optimizer: any optimizer.
    """

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.begin_step()

    def begin_step(self) -> None:
        """Record the groups as they are."""
        groups = self._optimizer.param_groups
        self._settings = [[*group.values()] for group in groups]
        self._members = [len(group["params"]) for group in groups]

    def check(self, what: str) -> None:
        """Check that the groups are as they were when the step began.

        Args:
            what: what has been run, for the error.

        Raises:
            TaskError: a group was added or removed, has other parameters, or another setting.
        """
        groups = self._optimizer.param_groups
        if self.have_other_members():
            raise TaskError(self._changed(what, "the members of the parameter groups"))
        for group, before in zip(groups, self._settings, strict=True):
            if len(group) != len(before) or not all(map(is_, group.values(), before)):
                self._check_settings(group, before, what)

    def have_other_members(self) -> bool:
        """Say whether there are other groups, or groups with more or fewer parameters."""
        members = [len(group["params"]) for group in self._optimizer.param_groups]
        return members != self._members

    def _check_settings(self, group: Mapping[str, Any], before: list[Any], what: str) -> None:
        if len(group) != len(before):
            raise TaskError(self._changed(what, "the settings in the parameter groups"))
        for (key, one), other in zip(group.items(), before, strict=True):
            if one is not other and (type(one) is not type(other) or _is_other(one, other)):
                raise TaskError(self._changed(what, f"{key!r} in the parameter groups"))

    def _changed(self, what: str, named: str) -> str:
        return (
            f"{what} changes {named} of the optimizer {type(self._optimizer).__name__}: other "
            "workers compute other parts and would not have that. Change groups in the "
            "optimizer's own step() or in an aspect's `update` advice, and learning rates by "
            "task.schedule(progress)"
        )


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
        f"the learning rate of the optimizer {type(optimizer).__name__} is set by {scheduler}, "
        f"which nothing here steps: {_INSTEAD}"
    )


def _is_other(one: Any, other: Any) -> bool:
    """Say whether two settings of one type differ; an object that was replaced does."""
    return not isinstance(one, (int, float, str, bytes, tuple)) or bool(one != other)


def _number(rate: Any) -> Any:
    return rate.item() if isinstance(rate, Tensor) and rate.numel() == 1 else rate
