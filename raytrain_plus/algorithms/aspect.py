"""Aspects: advice around the named points of the training loop.

An aspect overrides any of the join points below with a generator: the code before its `yield` runs
before the point, the code after it runs after the point, last in, first out. Advice that returns
before it yields has nothing to do this time, and counts as idle. Restore in a `finally` what must
be restored even if the point fails: a peer may die at any moment, and the survivors keep their
state. Aspect-oriented programming (Kiczales et al. 1997); composition of training algorithms after
MosaicML's Composer.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.clock import Clock
from raytrain_plus.scalars import Scalar, Scalars
from raytrain_plus.seeds import seed_for
from raytrain_plus.task import Batch, Task

Advice = Generator[None, None, None]
State = dict[str, Any]
"""Name -> tensor, or what JSON can hold."""

JOIN_POINTS = (
    "fit",
    "epoch",
    "step",
    "batch",
    "forward",
    "loss",
    "backward",
    "update",
    "evaluate",
    "checkpoint",
)

EVERY_OTHER = "*"
"""In `runs_before` or `runs_after`: all aspects that do not state the opposite."""


class AspectError(ValueError):
    """Aspects that do not exist, have wrong settings, or do not fit each other or the model."""


class AspectWarning(UserWarning):
    """An aspect that will have no effect."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What stays the same in all steps of a replica.

    Attributes:
        model: the model.
        optimizer: its optimizer.
        clock: the lengths of the run.
        seed: the run's seed.
        target: the batch's column that holds the labels.
        tokens: the batch's column that holds the tokens, or None.
        ignore_index: the label that means "no label".
        states: what each aspect, by name, keeps from step to step; part of the replica's state.
        folder: of the run, for files that aspects write; the current one outside of a run.
    """

    model: nn.Module
    optimizer: Optimizer
    clock: Clock
    seed: int
    target: str = "label"
    tokens: str | None = None
    ignore_index: int = -100
    states: dict[str, State] = field(default_factory=dict)
    folder: Path = Path()


@dataclass(kw_only=True)
class EvaluatedSet:
    """A set of evaluation data, as advice around an evaluation sees it after its `yield`.

    Attributes:
        name: of the set; empty for the only one.
        task: the task.
        rows: how many rows the set has.
        labels: names of classes by column, where the data has them.
        seed: the run's seed.
        load: returns the batch of the rows from a first to one after the last, as they are stored.
        apart: calls a function that computes with the model, and puts back what it changes.
        shown: what the advice records, equal on all workers: texts by name.
    """

    name: str
    task: Task
    rows: int
    labels: Mapping[str, Sequence[str]]
    seed: int
    load: Callable[[int, int], Batch]
    apart: Callable[[Callable[[], Any]], Any] = lambda call: call()
    shown: list[dict[str, str]] = field(default_factory=list)


class Step:
    """What advice sees and may change: one step, and the part of one logical rank in it.

    Attributes:
        model, optimizer, clock, target, tokens, ignore_index, folder: those of the `Training`.
        number: the step, from 0; the number of committed steps.
        logical_rank: whose part is being computed; -1 outside of a part.
        batch: the part's tensors by column name.
        outputs: what the forward returned.
        losses: one loss per sample, shape (n,).
        weights: one weight per sample, shape (n,), or None for all ones: the task's weights times
            those of aspects. The step's gradient is the gradient of the sum of all weighted losses
            divided by the sum of all weights.
        evaluation: the set that is evaluated; None outside of an evaluation.
        notes: what advice leaves for other advice in the same part.
        scalars: what is logged in the step.
    """

    def __init__(
        self,
        training: Training,
        number: int,
        compute: Callable[["Step", Batch], tuple[Tensor, Tensor | None]] | None = None,
    ) -> None:
        self.model = training.model
        self.optimizer = training.optimizer
        self.clock = training.clock
        self.target = training.target
        self.tokens = training.tokens
        self.ignore_index = training.ignore_index
        self.folder = training.folder
        self.number = number
        self.logical_rank = -1
        self.batch: Batch = {}
        self.outputs: Any = None
        self.losses: Tensor | None = None
        self.weights: Tensor | None = None
        self.evaluation: EvaluatedSet | None = None
        self.notes: dict[str, Any] = {}
        self.scalars = Scalars()
        self._training = training
        self._compute = compute

    @property
    def progress(self) -> float:
        """The fraction of the run that is committed, in [0, 1]."""
        return self.clock.progress(self.number)

    def generator(self, aspect: "Aspect", device: str | torch.device = "cpu") -> torch.Generator:
        """Return a fresh generator for an aspect at this step and logical rank."""
        seed = seed_for(self._training.seed, aspect.name, self.number, self.logical_rank)
        return torch.Generator(device).manual_seed(seed)

    def state(self, aspect: "Aspect") -> State:
        """Return what an aspect keeps from step to step: tensors, or what JSON can hold.

        It is part of the replica: checkpoints store it, newcomers receive it, digests cover it.
        `fit` sets its keys, shapes and types. Later it may change in `update` only, so that it
        stays equal on all workers.
        """
        return self._training.states.setdefault(aspect.name, {})

    def log(self, name: str, value: Scalar, weights: Scalar | None = None) -> None:
        """Log a scalar of this step, as `Task.log` does.

        In a part (`batch`, `forward`, `loss`, before the part's backward) values are averaged over
        all samples. Outside of a part (`step`, `update`) the value must be one number that is the
        same on every worker, such as the norm of the gradient.

        Raises:
            TaskError: the name or the value has another form, or it is logged too late in a part.
        """
        self.scalars.log(name, value, weights, in_part=self.logical_rank >= 0)

    def compute(self, batch: Batch) -> Tensor:
        """Run forward and loss of another batch, without side effects.

        All advice around forward and loss runs. Afterwards buffers, global generators, and this
        step's batch, outputs, losses and weights are as before.

        Returns:
            One weighted loss per sample, shape (n,), with its graph unless gradients are off.
        """
        return self.compute_weighted(batch)[0]

    def compute_weighted(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Run forward and loss of another batch as `compute` does.

        Returns:
            One weighted loss per sample, shape (n,), and the weights used, shape (n,), or None for
            all ones.
        """
        assert self._compute is not None, "outside of a part there is nothing to compute"
        return self._compute(self, batch)


class Aspect(BaseModel):
    """One algorithm. Its settings are typed fields, checked when it is constructed.

    Attributes:
        runs_before: names of aspects that must be inside of this one; `"*"` for all that do not
            state the opposite.
        runs_after: names of aspects that must be outside of this one; likewise.
        conflicts_with: names of aspects that cannot be used together with this one.
        observes: it only looks and logs, and changes no bit. It is then no part of a run's
            identity. For random numbers it has `step.generator`: the global generators are not
            seeded for its advice outside of parts. Default False.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs_before: ClassVar[Sequence[str]] = ()
    runs_after: ClassVar[Sequence[str]] = ()
    conflicts_with: ClassVar[Sequence[str]] = ()
    observes: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    def fit(self, step: Step) -> Advice:
        """Advise around a replica's whole lifetime: change the model, and change it back.

        The part after `yield` runs when a plain model is exported.
        """
        raise NotImplementedError

    def epoch(self, step: Step) -> Advice:
        """Advise around an epoch, or the part of it that falls into one generation of workers."""
        raise NotImplementedError

    def step(self, step: Step) -> Advice:
        """Advise around a whole step, on every worker."""
        raise NotImplementedError

    def batch(self, step: Step) -> Advice:
        """Advise around one logical rank's work on its batch."""
        raise NotImplementedError

    def forward(self, step: Step) -> Advice:
        """Advise around the forward of one logical rank."""
        raise NotImplementedError

    def loss(self, step: Step) -> Advice:
        """Advise around the loss of one logical rank."""
        raise NotImplementedError

    def backward(self, step: Step) -> Advice:
        """Advise around the backward of one logical rank."""
        raise NotImplementedError

    def update(self, step: Step) -> Advice:
        """Advise around the optimizer's update; gradients are the global mean."""
        raise NotImplementedError

    def evaluate(self, step: Step) -> Advice:
        """Advise around an evaluation, on every worker."""
        raise NotImplementedError

    def checkpoint(self, step: Step) -> Advice:
        """Advise around the writing of a checkpoint, on the worker that writes it."""
        raise NotImplementedError
