"""A torch scheduler that a task returns with its optimizer: when it steps, and what is refused.

The scheduler becomes an attribute of its optimizer. So it is part of the optimizer's state: in
checkpoints, in what a newcomer receives, and, once it has stepped, in the digest.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from raytrain_plus.task import Task, TaskError

ATTRIBUTE = "lr_scheduler"  # of an optimizer
_KEYS = ("scheduler", "interval", "frequency", "name")
_ACCEPTED = (
    "return the optimizer, (optimizer, scheduler), or {'optimizer': ..., 'lr_scheduler': "
    "{'scheduler': ..., 'interval': 'step' or 'epoch', 'frequency': 1}}"
)


@dataclass(frozen=True)
class Scheduling:
    """A scheduler, and when it steps.

    Attributes:
        scheduler: of the task's optimizer.
        by_epoch: it steps at the end of an epoch. Otherwise after each step.
        frequency: it steps after so many epochs or steps.
    """

    scheduler: LRScheduler
    by_epoch: bool = False
    frequency: int = 1

    def advance(self, step: int, steps_per_epoch: int) -> None:
        """Step the scheduler if it is due.

        Args:
            step: committed steps, the present one included.
            steps_per_epoch: of the run.
        """
        unit = steps_per_epoch * self.frequency if self.by_epoch else self.frequency
        if step % unit:
            return
        for one in _family(self.scheduler):
            # Only a warning reads this count: optimizer.step() is not wrapped (see `attach`).
            one._step_count = max(getattr(one, "_step_count", 0), 2)  # noqa: SLF001 - there is no public way
        self.scheduler.step()


def split(returned: Any) -> tuple[Any, Scheduling | None]:
    """Return the optimizer and the scheduler in what `task.optimizer(model)` returned.

    Raises:
        TaskError: it holds several optimizers or schedulers, or a scheduler that cannot be used.
    """
    optimizers, schedulers = _parts(returned)
    if not isinstance(optimizers, (list, tuple)):
        optimizers = [optimizers]
    if schedulers is None:
        schedulers = []
    if not isinstance(schedulers, (list, tuple)):
        schedulers = [schedulers]
    if len(optimizers) > 1:
        kinds = ", ".join(type(one).__name__ for one in optimizers)
        raise TaskError(
            f"task.optimizer() returned {len(optimizers)} optimizers ({kinds}), and a step here "
            "has one loss and one update: give one optimizer several parameter groups, or, for "
            "models that are trained against each other (a GAN), train one of the two in each "
            "run, with the other one frozen. Two losses that alternate are not supported"
        )
    if len(schedulers) > 1:
        raise TaskError(
            f"task.optimizer() returned {len(schedulers)} schedulers: return one, such as a "
            "torch.optim.lr_scheduler.SequentialLR or ChainedScheduler of them"
        )
    if not optimizers:
        raise TaskError(f"task.optimizer() returned no optimizer: {_ACCEPTED}")
    return optimizers[0], _scheduling(schedulers[0]) if schedulers else None


def attach(task: Task, optimizer: Any, scheduling: Scheduling) -> None:
    """Check that a scheduler fits its task and optimizer, and make it part of the optimizer.

    Raises:
        TaskError: it does not.
    """
    scheduler = scheduling.scheduler
    kind = type(scheduler).__name__
    if type(task).schedule is not Task.schedule:
        raise TaskError(
            f"task {type(task).__name__} defines schedule(progress), and optimizer() returns a "
            f"{kind} as well: both set the learning rate. Keep one of them"
        )
    for one in _family(scheduler):
        if one.optimizer is not optimizer:
            raise TaskError(
                f"the {type(one).__name__} that task.optimizer() returned is of another "
                "optimizer: build it from the optimizer that is returned with it"
            )
    # The wrapper only counts calls, and would make each update draw from new seeds.
    vars(optimizer).pop("step", None)
    setattr(optimizer, ATTRIBUTE, scheduler)


def belongs(optimizer: Any, scheduler: Any) -> bool:
    """Say whether a scheduler is, or is part of, the one that was attached to an optimizer."""
    attached = vars(optimizer).get(ATTRIBUTE)
    return attached is not None and any(one is scheduler for one in _family(attached))


def _parts(returned: Any) -> tuple[Any, Any]:
    """Return the optimizers and the schedulers, each one or a list."""
    if isinstance(returned, Mapping):
        unknown = [key for key in returned if key not in ("optimizer", "lr_scheduler")]
        if unknown or "optimizer" not in returned:
            raise TaskError(
                f"task.optimizer() returned a mapping with the keys {', '.join(map(str, returned))}"
                f": {_ACCEPTED}"
            )
        return returned["optimizer"], returned.get("lr_scheduler")
    if isinstance(returned, (list, tuple)):
        if len(returned) == 2 and _is_scheduler(returned[1]):
            return returned[0], returned[1]
        if all(isinstance(one, Mapping) for one in returned):
            return [one.get("optimizer") for one in returned], None
        return returned, None
    return returned, None


def _is_scheduler(given: Any) -> bool:
    """Say whether the second of two returned values stands for schedulers."""
    if isinstance(given, (list, tuple)):
        return all(map(_is_scheduler, given))
    if isinstance(given, Mapping):
        return "scheduler" in given
    return given is None or (
        not hasattr(given, "param_groups") and not inspect.isclass(given) and hasattr(given, "step")
    )


def _scheduling(given: Any) -> Scheduling:
    settings = dict(given) if isinstance(given, Mapping) else {"scheduler": given}
    if "monitor" in settings:
        _refuse_plateau(type(settings.get("scheduler")).__name__)
    unknown = [key for key in settings if key not in _KEYS]
    if unknown:
        raise TaskError(
            f"task.optimizer() returned an lr_scheduler with the keys {', '.join(unknown)}, which "
            f"are not supported; it may have {', '.join(_KEYS)}"
        )
    scheduler = settings.get("scheduler")
    if isinstance(scheduler, ReduceLROnPlateau):
        _refuse_plateau(type(scheduler).__name__)
    if not isinstance(scheduler, LRScheduler):
        raise TaskError(
            f"task.optimizer() returned a {type(scheduler).__name__} as scheduler, which is no "
            f"torch.optim.lr_scheduler: {_ACCEPTED}"
        )
    interval, frequency = settings.get("interval", "step"), settings.get("frequency", 1)
    if interval not in ("step", "epoch"):
        raise TaskError(f"the scheduler's interval is {interval!r}, and must be 'step' or 'epoch'")
    if type(frequency) is not int or frequency < 1:
        raise TaskError(f"the scheduler's frequency is {frequency!r}, and must be at least 1")
    return Scheduling(scheduler, interval == "epoch", frequency)


def _refuse_plateau(kind: str) -> None:
    raise TaskError(
        f"task.optimizer() returned a {kind} that follows a metric, which is not supported: the "
        "learning rate of a step must follow from the step alone. Use a schedule over the run, "
        "such as CosineAnnealingLR, or task.schedule(progress)"
    )


def _family(scheduler: LRScheduler) -> list[LRScheduler]:
    """Return a scheduler, and those that it runs."""
    found = [scheduler]
    for one in getattr(scheduler, "_schedulers", ()):
        found += _family(one)
    return found
