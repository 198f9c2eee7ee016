"""Runs a LightningModule with one optimizer as a task.

`training_step`, `validation_step`, `configure_optimizers` and `self.log` work as they are. What
cannot work is named when the task is made. It needs the extra `raytrain-plus[lightning]`.
"""

import dis
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from raytrain_plus.extras import needed
from raytrain_plus.task import Batch, Task, TaskError

_SUPPORTED = {"training_step", "validation_step", "configure_optimizers", "forward"}
_INSTEAD = {
    "trainer": "give what you need of it as an argument of the module",
    "all_gather": "a part of a step sees its own samples; log() averages over all",
    "manual_backward": "return the loss from training_step",
    "optimizers": "return one optimizer from configure_optimizers",
    "lr_schedulers": "return the scheduler from configure_optimizers",
    "toggle_optimizer": "return one optimizer from configure_optimizers",
    "automatic_optimization": "return the loss from training_step",
    "global_step": "count in a buffer (self.register_buffer)",
    "current_epoch": "count in a buffer (self.register_buffer)",
    "global_rank": "the result must not depend on the worker",
    "local_rank": "the result must not depend on the worker",
    "logger": "use self.log, and loggers= of the trainer",
}
_LOGGED: ContextVar[list[tuple[str, Any]] | None] = ContextVar("logged by a module", default=None)


class LightningTask(Task):
    """A task that trains a LightningModule.

    Args:
        module: the class, or a function that makes a module.
        columns: the data's columns, in the order in which a batch is a tuple of them. Default: a
            batch is a dictionary of all columns.
        arguments: of the class or function.

    Raises:
        TaskError: the module uses something that does not work here; the message names all of it.
    """

    def __init__(
        self, module: Callable[..., Any], columns: Sequence[str] | None = None, **arguments: Any
    ) -> None:
        self.module = module
        self.arguments = arguments
        self.columns = columns
        self._as_tuple = columns is not None
        if inspect.isclass(module):
            check_supported(module)
            self.evaluate_loss = not _overrides(module, "validation_step")

    def model(self) -> nn.Module:
        """Make the module."""
        module = self.module(**self.arguments)
        check_supported(type(module))
        if not module.automatic_optimization:
            raise TaskError(
                f"{type(module).__name__} sets automatic_optimization to False: "
                + _INSTEAD["automatic_optimization"]
            )
        module.__class__ = type(type(module).__name__, (_Logging, type(module)), {})
        made: nn.Module = module
        return made

    def optimizer(self, model: nn.Module) -> Any:
        """Return what `configure_optimizers` returns; a scheduler steps by epoch if it is bare."""
        returned = model.configure_optimizers()  # type: ignore[operator]
        if isinstance(returned, Mapping) and returned.get("lr_scheduler") is not None:
            return {**returned, "lr_scheduler": _by_epoch(returned["lr_scheduler"])}
        if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[1], list):
            return returned[0], [_by_epoch(one) for one in returned[1]]
        return returned

    def forward(self, model: nn.Module, batch: Batch) -> Any:
        """Return what the module's step returns, and what it has logged."""
        given: Any = batch
        if self._as_tuple:
            given = tuple(batch[name] for name in self.columns or ())
        validates = not model.training and _overrides(type(model), "validation_step")
        step = model.validation_step if validates else model.training_step
        logged: list[tuple[str, Any]] = []
        token = _LOGGED.set(logged)
        try:
            takes = len(inspect.signature(step).parameters)  # type: ignore[arg-type]
            returned = step(*(given, 0)[:takes])  # type: ignore[operator]
        finally:
            _LOGGED.reset(token)
        return returned, logged

    def predict(self, model: nn.Module, batch: Batch) -> Any:
        """Return what `predict_step` returns, or else the module of the one input column."""
        if not _overrides(type(model), "predict_step"):
            return super().forward(model, batch)
        given: Any = batch
        if self._as_tuple:
            given = tuple(batch[name] for name in self.columns or () if name in batch)
        step: Any = model.predict_step
        return step(*(given, 0)[: len(inspect.signature(step).parameters)])

    def loss(self, outputs: Any, batch: Batch) -> Any:
        """Return the loss of the step, and log what it has logged."""
        del batch
        returned, logged = outputs
        for name, value in logged:
            self.log(name, value)
        return _loss_in(returned, "training_step")

    def measure(self, outputs: Any, batch: Batch) -> Mapping[str, Any]:
        """Return what `validation_step` has logged, or else its loss."""
        del batch
        returned, logged = outputs
        if self.evaluate_loss:
            return {}
        if logged:
            return dict(logged)
        return {"validation_loss": _loss_in(returned, "validation_step")}


class _Logging:
    """What a module gets in place of Lightning's own logging, which needs a trainer."""

    def log(self, name: str, value: Any, *_: Any, **__: Any) -> None:
        """Log a value: one number, the mean over the batch."""
        if not isinstance(value, Tensor | int | float):
            raise TaskError(
                f"self.log({name!r}) got a {type(value).__name__}, and must get a number: log the "
                "value of this batch, or define metrics() and update_metric() in a task that "
                "derives from LightningTask"
            )
        logged = _LOGGED.get()
        if logged is not None:
            logged.append((name, value.detach() if isinstance(value, Tensor) else value))

    def log_dict(self, values: Mapping[str, Any], *_: Any, **__: Any) -> None:
        """Log several values."""
        for name, value in values.items():
            self.log(name, value)


def check_supported(module: type) -> None:
    """Check that a LightningModule uses nothing that does not work here.

    Raises:
        TaskError: it does; the message names all of it.
    """
    with needed("lightning"):
        from lightning.pytorch import LightningModule  # noqa: PLC0415 - an extra, of seconds
    if not issubclass(module, LightningModule):
        raise TaskError(f"{module.__name__} is no lightning.pytorch.LightningModule")
    if not _overrides(module, "training_step"):
        raise TaskError(f"{module.__name__} does not define training_step")
    inherited = {name for name in vars(_base(module, "Hooks")) if not name.startswith("_")}
    inherited |= {"configure_callbacks", "optimizer_step", "lr_scheduler_step", "backward"}
    inherited |= {"configure_gradient_clipping", "test_step", "predict_step"}
    hooks = sorted(n for n in inherited - _SUPPORTED if _overrides(module, n))
    ignored = {"test_step", "predict_step"}
    found = [f"the hook {name}()" for name in hooks if name not in ignored]
    names = [name for name in dict.fromkeys(_names_of_self(module)) if name in _INSTEAD]
    found += [f"self.{name} ({_INSTEAD[name]})" for name in names]
    if found:
        raise TaskError(
            f"{module.__name__} uses what does not work here: {', '.join(found)}. "
            "docs/guide/from-lightning.md says what to do instead"
        )


def _base(module: type, ending: str) -> Any:
    """Return the classes with Lightning's hooks, as one."""
    found = [one for one in module.__mro__ if one.__name__.endswith(ending)]
    return type("Hooks", (), {k: v for one in found for k, v in vars(one).items()})


def _own_classes(module: type) -> Iterator[type]:
    """Return a module's classes down to those of Lightning and torch."""
    for one in module.__mro__:
        if not one.__module__.startswith(
            ("lightning.", "pytorch_lightning.", "torch.", "builtins")
        ):
            yield one


def _overrides(module: type, name: str) -> bool:
    return any(name in vars(one) for one in _own_classes(module) if one is not _Logging)


def _names_of_self(module: type) -> Iterator[str]:
    """Return the names that a module's own methods read or set on themselves."""
    for one in _own_classes(module):
        for method in vars(one).values() if one is not _Logging else ():
            code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
            if code is None or not code.co_varnames:
                continue
            before = None
            for instruction in dis.get_instructions(code):
                of_self = before is not None and before.argval == code.co_varnames[0]
                if of_self and instruction.opname.endswith(("_ATTR", "_METHOD")):
                    yield str(instruction.argval)
                before = instruction


def _by_epoch(scheduler: Any) -> dict[str, Any]:
    """Return a scheduler with Lightning's default interval."""
    given = dict(scheduler) if isinstance(scheduler, Mapping) else {"scheduler": scheduler}
    return {"interval": "epoch", **given}


def _loss_in(returned: Any, step: str) -> Any:
    loss = returned.get("loss") if isinstance(returned, Mapping) else returned
    if not isinstance(loss, Tensor):
        raise TaskError(
            f"{step} returned {'nothing' if loss is None else f'a {type(loss).__name__}'}, and "
            "must return the loss, or a dictionary with it as 'loss'"
        )
    return loss
