# ruff: noqa: SLF001 - PyTorch has no public way to ask for hooks
"""What a task builds: its model and its optimizer, checked before anything is trained."""

import copy
import inspect
import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from raytrain_plus.task import Task, TaskError, TaskWarning
from raytrain_plus.training.encoding import fits
from raytrain_plus.training.initial_weights import load_into
from raytrain_plus.training.lr_scheduler import Scheduling, attach, split
from raytrain_plus.training.process_state import process_kept
from raytrain_plus.training.users_optimizer import check_optimizer

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")
_NAMED = 3  # of many, in a warning


def build_model(task: Task) -> nn.Module:
    """Return the task's model.

    Raises:
        TaskError: it is no module, or has a parameter without a value.
    """
    model = task.model()
    if not isinstance(model, nn.Module):
        raise TaskError(f"task.model() returned {described(model)}, not an nn.Module")
    if type(model).__name__ in _WRAPPERS:
        raise TaskError(
            f"task.model() returned a {type(model).__name__}: return the module inside, because "
            "the workers exchange the gradients themselves"
        )
    buffers = dict(model.named_buffers())
    for name, tensor in [*model.named_parameters(), *buffers.items()]:
        if is_lazy(tensor):
            raise TaskError(
                f"task.model() returned a model whose {name!r} has no shape yet, as modules such "
                "as nn.LazyLinear have it: call the model once on an example in model()"
            )
        if tensor.is_meta:
            raise TaskError(
                f"task.model() returned a model whose {name!r} is on the device 'meta' and has no "
                "values: build the model on the CPU"
            )
        why = _unusable(tensor, is_buffer=name in buffers)
        if why is not None:
            raise TaskError(f"task.model() returned a model whose {name!r} {why}")
    if task.initial_weights is not None:
        load_into(model, task.initial_weights, partial=task.partial_weights)
    return model


def _unusable(tensor: Tensor, *, is_buffer: bool) -> str | None:
    """Say why a parameter or buffer cannot be part of the state; None if it can."""
    if tensor.layout != torch.strided:
        return (
            f"is of layout {tensor.layout}, which no checkpoint file (safetensors) holds: keep its "
            "indices and its values as two dense buffers"
        )
    if tensor.is_quantized:
        return "is quantized: keep its integers (int_repr()), its scale and its zero point apart"
    if not tensor.is_contiguous() and not fits(tensor, tensor.stride()):
        return "is a view with repeated or far elements: use .clone()"
    if is_buffer and tensor.is_floating_point() and tensor.itemsize == 1:
        return f"is a buffer of {tensor.dtype}, with which nothing can be computed: use bfloat16"
    return None


def build_optimizer(task: Task, model: nn.Module) -> tuple[Optimizer, Scheduling | None]:
    """Return the task's optimizer of a model with its scheduler, and warn of gradient hooks.

    Raises:
        TaskError: it is no optimizer, not one of this model, or it cannot be used.
    """
    optimizer, scheduling = split(task.optimizer(model))
    # Some wrap an optimizer and are none by their class.
    if not (callable(getattr(optimizer, "step", None)) and hasattr(optimizer, "param_groups")):
        raise TaskError(
            f"task.optimizer() returned {described(optimizer)}, not a torch.optim.Optimizer: "
            "return the optimizer, or (optimizer, scheduler)"
        )
    known = {id(parameter) for parameter in model.parameters()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) not in known:
                raise TaskError(
                    "the optimizer holds a tensor that is no parameter of the model, of shape "
                    f"{tuple(parameter.shape)}: build it from the parameters of the model that "
                    "optimizer(model) is given"
                )
    if scheduling is not None:
        attach(task, optimizer, scheduling)
    check_optimizer(optimizer)
    _warn_of_hooks(model)
    return optimizer, scheduling


def check_optimizer_early(task: Task) -> None:
    """Build the task's optimizer for a small stand-in model, to name a wrong kind at once.

    A task that needs its own model fails here, and is checked in the first worker.

    Raises:
        TaskError: the task returns what no model makes right: several optimizers, an optimizer
            that needs a closure, or a scheduler that cannot be used.
    """
    tried = copy.copy(task)
    try:
        with process_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            returned = tried.optimizer(nn.Linear(1, 1))
    except (Exception, SystemExit):  # noqa: BLE001 - the stand-in may be the reason
        return
    optimizer, scheduling = split(returned)
    if callable(getattr(optimizer, "step", None)) and hasattr(optimizer, "param_groups"):
        if scheduling is not None:
            attach(tried, optimizer, scheduling)
        check_optimizer(optimizer)


def learning_rate_factor(task: Task, progress: float) -> float:
    """Return the task's factor on the learning rate.

    Raises:
        TaskError: it is no number, not finite, or negative.
    """
    given = task.schedule(progress)
    try:
        factor = float(given)
    except (TypeError, ValueError):
        raise TaskError(
            f"task.schedule({progress:g}) returned {described(given)}, and must return a number: "
            "the factor on the learning rate"
        ) from None
    if not (math.isfinite(factor) and factor >= 0):
        raise TaskError(
            f"task.schedule({progress:g}) returned {factor}, and must return a finite number that "
            "is not negative: the factor on the learning rate"
        )
    return factor


def described(value: Any) -> str:
    """Describe a wrong value that a task has returned, for an error."""
    if value is None:
        return "None (does it end with `return`?)"
    if inspect.isclass(value):
        return f"the class {value.__name__} (call it)"
    return f"a {type(value).__name__}"


def gradient_hooks(model: nn.Module) -> list[str]:
    """Return the names of parameters and modules that have hooks on their gradients."""
    of_parameters = [
        f"parameter {name!r}"
        for name, parameter in model.named_parameters()
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    ]
    of_modules = [
        f"module {name!r}" if name else "the model"
        for name, module in model.named_modules()
        if module._backward_hooks or module._backward_pre_hooks
    ]
    return of_parameters + of_modules


def _warn_of_hooks(model: nn.Module) -> None:
    found = gradient_hooks(model)
    if not found:
        return
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    warnings.warn(
        f"{', '.join(found[:_NAMED])}{more}: a gradient hook sees the gradient of the sum of the "
        "losses of one logical rank's part, not that of the batch's mean. Multiply its bounds by "
        "the samples of a batch, or change gradients in the optimizer or by an aspect",
        TaskWarning,
        stacklevel=2,
    )
