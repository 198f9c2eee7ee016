"""Aspects: advice around the named points of the training loop.

An aspect overrides any of the join points below with a generator: what stands before its `yield`
runs before the point, what stands after it runs after, last in, first out. Aspect-oriented
programming (Kiczales et al. 1997); composition of training algorithms after MosaicML's Composer.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.optim import Optimizer

from raytrain_plus.clock import Clock
from raytrain_plus.seeds import seed_for
from raytrain_plus.task import Batch

Advice = Generator[None, None, None]

JOIN_POINTS = ("step", "batch", "forward", "loss", "backward", "update", "evaluate")


class AspectError(ValueError):
    """Aspects that do not exist, are set wrongly, or do not go together."""


class Step:
    """What advice sees and may change: one step, and in it the part of one logical rank.

    Attributes:
        model: the model.
        optimizer: its optimizer.
        clock: the lengths of the run.
        number: the step, from 0.
        logical_rank: whose part is being computed; -1 outside of a part.
        batch: the part's tensors by column name.
        outputs: what the forward returned.
        losses: one loss per sample, shape (n,).
        weights: one weight per sample, shape (n,), or None for all ones.
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, clock: Clock, seed: int, number: int
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.clock = clock
        self.number = number
        self.logical_rank = -1
        self.batch: Batch = {}
        self.outputs: Any = None
        self.losses: Tensor | None = None
        self.weights: Tensor | None = None
        self._seed = seed

    def generator(self, aspect: "Aspect", device: str = "cpu") -> torch.Generator:
        """Return a fresh generator for an aspect at this step and logical rank."""
        seed = seed_for(self._seed, aspect.name, self.number, self.logical_rank)
        return torch.Generator(device).manual_seed(seed)


class Aspect(BaseModel):
    """One algorithm. Its settings are typed fields, checked when it is constructed.

    Attributes:
        runs_before: names of aspects inside of which this one must not stand.
        runs_after: names of aspects that must stand outside of this one.
        conflicts_with: names of aspects that cannot be used with this one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs_before: ClassVar[Sequence[str]] = ()
    runs_after: ClassVar[Sequence[str]] = ()
    conflicts_with: ClassVar[Sequence[str]] = ()

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    def step(self, step: Step) -> Advice:
        """Advise around a whole step, on every worker."""
        raise NotImplementedError

    def batch(self, step: Step) -> Advice:
        """Advise around one logical rank's use of its batch."""
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
        """Advise around an evaluation."""
        raise NotImplementedError


class Weave:
    """The advice of some aspects per join point, found once.

    Args:
        aspects: in any order.

    Raises:
        AspectError: two conflict, one is given twice, or their order has a cycle.
    """

    def __init__(self, aspects: Sequence[Aspect]) -> None:
        self.aspects = in_order(aspects)
        self._advice: dict[str, list[Callable[[Step], Advice]]] = {
            point: [
                getattr(aspect, point)
                for aspect in self.aspects
                if getattr(type(aspect), point) is not getattr(Aspect, point)
            ]
            for point in JOIN_POINTS
        }
        self._nothing: AbstractContextManager[None] = contextlib.nullcontext()

    def advises(self, point: str) -> bool:
        """Say whether any aspect gives advice at a join point."""
        return bool(self._advice[point])

    def around(self, point: str, step: Step) -> AbstractContextManager[None]:
        """Return the context in which the join point is to be run."""
        advice = self._advice[point]
        return _nested(advice, step) if advice else self._nothing


@contextlib.contextmanager
def _nested(advice: Sequence[Callable[[Step], Advice]], step: Step) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for one in advice:
            stack.enter_context(contextlib.contextmanager(one)(step))
        yield


def in_order(aspects: Sequence[Aspect]) -> list[Aspect]:
    """Return aspects as they nest, outermost first; how they were listed does not matter.

    Raises:
        AspectError: two conflict, one is given twice, or their order has a cycle.
    """
    by_name = {aspect.name: aspect for aspect in aspects}
    if len(by_name) < len(aspects):
        names = [aspect.name for aspect in aspects]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise AspectError(f"algorithm {', '.join(twice)} is given twice: give it once")
    for aspect in aspects:
        for other in aspect.conflicts_with:
            if other in by_name:
                raise AspectError(f"{aspect.name} and {other} cannot be used together: drop one")
    before: dict[str, set[str]] = {name: set() for name in by_name}
    for name, aspect in by_name.items():
        before[name] |= {other for other in aspect.runs_after if other in by_name}
        for other in aspect.runs_before:
            if other in by_name:
                before[other].add(name)
    ordered: list[Aspect] = []
    while before:
        free = sorted(name for name, others in before.items() if not others & before.keys())
        if not free:
            raise AspectError(f"the order of {', '.join(sorted(before))} contradicts itself")
        ordered.append(by_name[free[0]])
        del before[free[0]]
    return ordered
